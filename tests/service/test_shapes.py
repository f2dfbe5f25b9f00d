"""Rankings, slots and slates: what is answered, logged and refused, and what comes of rewards."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.audit import audit_propensities
from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.offline.sink import sink
from croupier.policy.events import Decision
from croupier.policy.loop import LoopConfig
from croupier.policy.sampling import draw_key
from croupier.policy.slates import replay_place
from croupier.policy.slots import Slot
from croupier.service.api import OutcomeRequest
from croupier.service.client import Client, ServiceError
from croupier.service.secret import kept_secret
from tests.service.generations import generation
from tests.service.running import Server, running, unique
from tests.service.test_probes import sample

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service.running import Caller

IDS = ["a", "b", "c", "d", "e"]
ACTIONS: list[dict[str, Any]] = [
    {"id": each, "features": {"x": number}} for number, each in enumerate(IDS)
]
CONTEXT = {"hour": 9}
ROUTES: dict[str, dict[str, Any]] = {
    "rank": {"depth": 3, "excluded": ["b"], "baseline": "c"},
    "slots": {"slots": [{"id": "top", "baseline": "c"}, {"id": "side", "excluded": ["a"]}]},
    "slate": {"size": 3, "excluded": ["b"], "baseline": "c"},
}


def asked(route: str, **fields: Any) -> dict[str, Any]:
    return {"actions": ACTIONS, "context": CONTEXT, **ROUTES[route], **fields}


def logged(server: Server, decision_id: str) -> list[Decision]:
    """All decisions of an id; they must stand next to each other in the log."""
    places = [
        (place, event)
        for place, event in enumerate(server.events())
        if isinstance(event, Decision) and event.decision_id == decision_id
    ]
    assert places[-1][0] - places[0][0] == len(places) - 1
    return [event for _, event in places]


@pytest.fixture
def client(shared: Server) -> Iterator[Client]:
    with Client(shared.url, "trained", key=shared.key) as client:
        yield client


def test_a_ranking_is_logged_as_answered(shared: Server, client: Client) -> None:
    answer = client.rank(
        ACTIONS, CONTEXT, depth=3, excluded=["b"], baseline="c", decision_id=unique(), deferred=True
    )
    assert (answer.loop, answer.generation) == ("trained", 1)
    assert sorted(answer.ranking) == IDS
    assert answer.ranking[1] == "b"
    free = [each for each in answer.ranking if each != "b"]
    assert [choice.action for choice in answer.drawn] == free[:3]
    events = logged(shared, answer.decision_id)
    for place, (choice, event) in enumerate(zip(answer.drawn, events, strict=True)):
        assert choice.slot == event.slot == str(place)
        assert (choice.index, choice.propensity) == (event.chosen, event.propensity)
        assert choice.pmf == event.pmf
        assert event.excluded == ["b", *free[:place]]
        assert math.isclose(math.fsum(event.pmf), 1.0, abs_tol=1e-9)
        assert event.deferred
    assert [IDS[event.baseline] for event in events] == [
        "c" if "c" not in free[:place] else next(each for each in IDS if each in free[place:])
        for place in range(3)
    ]


def test_a_ranking_of_one_is_a_decision(shared: Server, client: Client) -> None:
    """The same draw, the same event, but for the time."""
    first, second = unique(), unique()
    ranked = client.rank(ACTIONS, CONTEXT, decision_id=first)
    (event,) = logged(shared, first)
    assert ranked.drawn[0].slot is event.slot is None
    client.decide(ACTIONS, CONTEXT, decision_id=second)
    (other,) = logged(shared, second)
    assert (event.pmf, event.scores, event.mix) == (other.pmf, other.scores, other.mix)


def test_slots_are_logged_as_answered(shared: Server, client: Client) -> None:
    answer = client.slots(
        ACTIONS,
        [Slot(id="top", features={"wide": True}, baseline="c"), {"id": "side", "excluded": ["a"]}],
        CONTEXT,
        decision_id=unique(),
        audit={"region": "north"},
    )
    events = logged(shared, answer.decision_id)
    for choice, event in zip(answer.slots, events, strict=True):
        assert (choice.slot, choice.index, choice.pmf) == (event.slot, event.chosen, event.pmf)
        assert choice.propensity == event.propensity == event.pmf[event.chosen]
        assert event.audit == {"region": "north"}
        secret = kept_secret(shared.data_dir / "draw-secret")
        key = draw_key("trained", 1, answer.decision_id, choice.slot, secret=secret)
        assert event.draw_key == key
    top, side = events
    assert top.context == {"hour": 9, "slot": {"id": "top", "features": {"wide": True}}}
    assert side.context == {"hour": 9, "slot": {"id": "side", "features": {}}}
    assert (top.excluded, side.excluded) == ([], ["a", answer.slots[0].action])
    assert IDS[top.baseline] == "c"


def test_a_slate_is_logged_as_answered(shared: Server, client: Client) -> None:
    answer = client.slate(ACTIONS, 3, CONTEXT, excluded=["b"], decision_id=unique())
    assert math.fsum(answer.inclusion) == pytest.approx(3.0, abs=1e-9)
    assert answer.inclusion[1] == 0.0
    events = logged(shared, answer.decision_id)
    assert len({member.action for member in answer.slate}) == 3
    for member, event in zip(answer.slate, events, strict=True):
        assert (member.slot, member.index) == (event.slot, event.chosen)
        assert member.inclusion == answer.inclusion[member.index]
        assert event.slate_size == 3
        assert event.propensity == pytest.approx(member.inclusion / 3, abs=1e-15)
        assert replay_place(np.array(event.pmf), 3, member.slot, event.draw_key) == event.chosen


@pytest.mark.parametrize("route", ROUTES)
def test_the_same_decision_id_gets_the_same_answer(caller: Caller, route: str) -> None:
    sent = [asked(route, decision_id=unique()) for _ in range(10)]
    first = [caller.post(f"trained/{route}", each).body for each in sent]
    assert [caller.post(f"trained/{route}", each).body for each in sent] == first


@pytest.mark.parametrize(
    ("route", "actions"), [("rank", "cbade"), ("slots", "cb"), ("slate", "cad")]
)
def test_a_watching_loop_plays_the_baseline(
    shared: Server, caller: Caller, route: str, actions: str
) -> None:
    answer = caller.post(f"watching/{route}", asked(route)).json
    if route == "rank":
        assert "".join(answer["ranking"]) == actions
    else:
        assert "".join(each["action"] for each in answer[route]) == actions
    for event in logged(shared, answer["decision_id"]):
        assert event.propensity == 1.0
        assert event.slate_size is None
        assert event.shadow is not None
    if route == "slate":
        assert answer["inclusion"] == [1.0, 0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(("route", "events"), [("rank", 3), ("slots", 2), ("slate", 3)])
def test_every_draw_is_counted(caller: Caller, route: str, events: int) -> None:
    def counts() -> list[float]:
        return [
            sample(caller, "croupier_decisions_total", loop="trained"),
            sample(caller, "croupier_propensity_count", loop="trained"),
            sample(caller, "croupier_request_seconds_count", route=route),
        ]

    before = counts()
    assert caller.post(f"trained/{route}", asked(route)).status == 200
    assert [now - was for now, was in zip(counts(), before, strict=True)] == [events, events, 1]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("rank", {"depth": 0}, "depth"),
    ("rank", {"depth": 5}, "depth"),
    ("rank", {"depth": "2"}, "depth"),
    ("rank", {"size": 2}, "size"),
    ("rank", {"actions": [{"id": "a"}, {"id": "c", "x": 1}]}, "actions[1].x"),
    ("rank", {"context": {"x": 1e39}}, "context"),
    ("slots", {"slots": []}, "slots"),
    ("slots", {"slots": [{"id": str(n)} for n in range(6)]}, "slots[5]"),
    ("slots", {"slots": [{"id": "x"}, {"id": "x"}]}, "slots[1].id"),
    ("slots", {"slots": [{"id": "x"}, {}]}, "slots[1].id"),
    ("slots", {"slots": [{"id": "x", "feature": {}}]}, "slots[0].feature"),
    ("slots", {"slots": [{"id": "x", "baseline": "z"}]}, "slots[0].baseline"),
    ("slots", {"slots": [{"id": "x", "excluded": ["a", "z"]}]}, "slots[0].excluded[1]"),
    ("slots", {"slots": [{"id": "x"}, {"id": "y", "features": {"x": 1e39}}]}, "slots[1]"),
    ("slots", {"slots": [{"id": "x", "features": {"x": [[[[[[["y"]]]]]]]}}]},
     "slots[0].features.x[0][0][0][0][0][0]"),
    ("slots", {"context": {"slot": 1}}, "context.slot"),
    ("slots", {"context": {"x": 1e39}}, "context"),
    ("slots", {"excluded": ["a"]}, "excluded"),
    ("slots", {"actions": [{"id": "a"}, {"id": "c", "features": {"x": 1e39}}]},
     "actions[1].features"),
    ("slate", {"size": 0}, "size"),
    ("slate", {"size": 5}, "size"),
    ("slate", {"size": None}, "size"),
    ("slate", {"baseline": "z"}, "baseline"),
    ("slate", {"audit": {"account": 10**400}}, "audit.account"),
]  # fmt: skip


@pytest.mark.parametrize("loop", ["digits", "trained", "watching"])
@pytest.mark.parametrize(("route", "fields", "target"), REFUSED, ids=str)
def test_a_refusal_names_the_field(
    caller: Caller, loop: str, route: str, fields: dict[str, Any], target: str
) -> None:
    """Whoever is served: nobody, an oracle, or the baseline with an apprentice."""
    answer = caller.post(f"{loop}/{route}", asked(route, **fields))
    assert (answer.status, answer.error["code"]) == (400, "InvalidRequest")
    assert answer.error["target"] == target


def test_a_slate_says_how_many_it_wants(caller: Caller) -> None:
    answer = caller.post("digits/slate", {"actions": ACTIONS})
    assert answer.error["target"] == "size"


def test_the_client_says_what_it_can_t_send(client: Client) -> None:
    with pytest.raises(ServiceError) as refused:
        client.slate(ACTIONS, 9)
    assert refused.value.target == "size"
    with pytest.raises(ValueError, match=r"^slots: "):
        client.slots(ACTIONS, [{"name": "top"}])


def test_rewards_find_their_places(tmp_path: Path) -> None:
    """From three requests, through the log, into the lake: every place its own reward."""
    server = Server(tmp_path, '[service]\nport = 0\n[loops.shop]\nattribution_window = "1 h"\n')
    server.serve(generation("shop", 1))
    with running(server), Client(server.url, "shop") as client:
        ranked = client.rank(ACTIONS, CONTEXT, depth=2, decision_id="ranked")
        filled = client.slots(
            ACTIONS, [{"id": "top"}, {"id": "side"}], CONTEXT, decision_id="filled", deferred=True
        )
        slate = client.slate(ACTIONS, 3, CONTEXT, decision_id="slate")
        single = client.rank(ACTIONS, CONTEXT, decision_id="single")
        client.activate("filled")
        client.rewards(
            [
                OutcomeRequest(decision_id="ranked", slot=ranked.drawn[1].slot, reward=0.5),
                OutcomeRequest(decision_id="ranked", reward=1.0),
                OutcomeRequest(decision_id="filled", slot="side", reward=0.25),
                *(
                    OutcomeRequest(decision_id="slate", slot=each.slot, reward=each.index / 8)
                    for each in slate.slate
                ),
            ]
        )
        client.reward("single", 0.75)
        client.reward("filled", 1.0, slot="top", outcome_id="twice")
        client.reward("filled", 1.0, slot="top", outcome_id="twice")
        later = max(event.ts for event in server.events()) + 10 * 3_600_000_000
    lake = Lake(tmp_path / "lake")
    with SqliteEventLog(server.data_dir / "log") as log, lake.lock():
        sink(log, lake)
        report = join(lake, "shop", LoopConfig(attribution_window="1 h"), later)
    assert (report.joined, report.observed, report.orphans) == (8, 7, 1)
    rows = lake.scan("interactions", "shop").sort("offset").collect()
    assert rows.select("decision_id", "slot", "action_id", "reward", "slate_size").rows() == [
        ("ranked", "0", ranked.drawn[0].action, 0.0, None),
        ("ranked", "1", ranked.drawn[1].action, 0.5, None),
        ("filled", "top", filled.slots[0].action, 1.0, None),
        ("filled", "side", filled.slots[1].action, 0.25, None),
        *(("slate", each.slot, each.action, each.index / 8, 3) for each in slate.slate),
        ("single", None, single.drawn[0].action, 0.75, None),
    ]
    audit = audit_propensities(rows)
    assert audit.violations is not None
    assert (audit.violations.rows, audit.replayed, audit.replay_mismatches) == (0, 8, 0)
