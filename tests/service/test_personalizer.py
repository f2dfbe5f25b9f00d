"""Azure AI Personalizer's API: its own SDK, requests as its reference shows them, and errors."""

from __future__ import annotations

import json
import math
import time
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from azure.cognitiveservices.personalizer import PersonalizerClient
from azure.cognitiveservices.personalizer.models import (
    ErrorResponseException,
    RankableAction,
    RankRequest,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from msrest.authentication import CognitiveServicesCredentials
from msrest.exceptions import HttpOperationError

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.offline.nightly import Nightly, NightlyConfig
from croupier.offline.registry import Registry
from croupier.offline.sink import sink
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Activation, Decision, Outcome
from croupier.policy.exploration import EpsilonGreedy
from croupier.policy.loop import LoopConfig
from croupier.service.auth import KeyRing
from croupier.service.config import KeyConfig
from croupier.service.personalizer import find_call, merge_features
from croupier.service.refusals import Refusal
from tests.offline.shop import no_steps
from tests.service.generations import generation
from tests.service.running import Server, running, unique, wait_until
from tests.service.test_durability import locked_log
from tests.service.test_probes import references, resolve, sample

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service.conftest import Serve
    from tests.service.running import Answer, Caller

# Of MLflow's own making.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]

V1 = "/personalizer/v1.0"
PREVIEW = "/personalizer/v1.1-preview.3"
MAX_BODY_BYTES = 100_000
NEWS, COLD = "key-of-the-news", "key-of-the-cold"
WATCHING, BROKEN = "key-named-watching", "key-named-broken"
ALL, SEVERAL = "key-of-everything", "key-of-two-loops"
CONFIG = f"""
[service]
port = 0
max_body_bytes = {MAX_BODY_BYTES}

[service.keys]
news = {{ key = "{NEWS}", loops = ["news"] }}
cold = {{ key = "{COLD}", loops = ["cold"] }}
watching = {{ key = "{WATCHING}", personalizer_loop = "watching" }}
broken = {{ key = "{BROKEN}", loops = ["news", "broken"], personalizer_loop = "broken" }}
all = {{ key = "{ALL}" }}
several = {{ key = "{SEVERAL}", loops = ["news", "watching"] }}

[log]
busy_timeout_s = 0.2

[loops.news]
reward_min = -1.0

[loops.cold]

[loops.watching]
learning_mode = "apprentice"

[loops.broken]
"""
ACTIONS: list[dict[str, Any]] = [
    {"id": "sport", "features": [{"topic": "sport", "words": 300}, {"provider": {"paid": True}}]},
    {"id": "politics", "features": [{"topic": "politics"}]},
    {"id": "weather", "features": [{"topic": "weather"}, {"local": True}]},
]
IDS = [action["id"] for action in ACTIONS]
CONTEXT: list[dict[str, Any]] = [
    {"user": {"device": "phone", "visits": 7}},
    {"environment": {"weekday": "monday", "rain": False}},
]
SLOTS: list[dict[str, Any]] = [
    {
        "id": "Main Column",
        "features": [{"size": "large"}, {"position": 1}],
        "excludedActions": ["politics"],
        "baselineAction": "weather",
    },
    {"id": "Side Bar", "features": [{"size": "small"}], "baselineAction": "sport"},
]


def rank_request(**fields: Any) -> dict[str, Any]:
    """A request with every field that the reference has, unless it is None."""
    request = {
        "contextFeatures": CONTEXT,
        "actions": ACTIONS,
        "excludedActions": ["politics"],
        "eventId": unique(),
        "deferActivation": False,
    }
    return {name: value for name, value in (request | fields).items() if value is not None}


def slots_request(**fields: Any) -> dict[str, Any]:
    request = {
        "contextFeatures": CONTEXT,
        "actions": ACTIONS,
        "slots": SLOTS,
        "eventId": unique(),
        "deferActivation": False,
    }
    return {name: value for name, value in (request | fields).items() if value is not None}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("personalizer"), CONFIG, ALL)
    server.serve(generation("news", 1))
    broken = generation("broken", 1)
    broken.oracle.weights_[:] = np.nan  # type: ignore[union-attr]
    server.serve(broken)
    with running(server):
        yield server


@pytest.fixture
def caller(server: Server) -> Iterator[Caller]:
    with server.caller() as caller:
        yield caller


def post(caller: Caller, path: str, value: Any = b"", key: str | None = NEWS) -> Answer:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    headers = {} if key is None else {"Ocp-Apim-Subscription-Key": key}
    return caller.send("POST", path, body, headers)


def sdk(server: Server, key: str = NEWS, slash: str = "") -> PersonalizerClient:
    return PersonalizerClient(server.url + slash, CognitiveServicesCredentials(key))


def sdk_request(**fields: Any) -> RankRequest:
    actions = [RankableAction(id=each["id"], features=each["features"]) for each in ACTIONS]
    return RankRequest(actions=actions, context_features=CONTEXT, **fields)


def decisions(server: Server, event_id: str) -> list[Decision]:
    return [
        event
        for event in server.events()
        if isinstance(event, Decision) and event.decision_id == event_id
    ]


# The unmodified SDK.


@pytest.mark.parametrize("slash", ["", "/"], ids=["plain", "as in Azure's portal"])
def test_the_sdk_ranks_rewards_and_activates(server: Server, slash: str) -> None:
    client = sdk(server, slash=slash)
    event_id = f"visit/{unique()} 100%?é"
    answer = client.rank(
        sdk_request(event_id=event_id, excluded_actions=["politics"], defer_activation=True)
    )
    client.events.reward(event_id, -0.5)
    client.events.activate(event_id)

    decision, outcome, activation = server.events()[-3:]
    assert isinstance(decision, Decision)
    assert (answer.event_id, decision.decision_id) == (event_id, event_id)
    assert (decision.loop, decision.generation, decision.deferred) == ("news", 1, True)
    assert answer.reward_action_id == IDS[decision.chosen]
    assert {each.id: each.probability for each in answer.ranking} == dict(
        zip(IDS, decision.pmf, strict=True)
    )
    assert [each.id for each in answer.ranking][1] == "politics"
    assert answer.ranking[0].id == answer.reward_action_id
    assert isinstance(outcome, Outcome)
    assert (outcome.decision_id, outcome.reward, outcome.slot) == (event_id, -0.5, None)
    assert isinstance(activation, Activation)
    assert activation.decision_id == event_id


def test_the_sdk_gets_an_event_id_if_it_gives_none(server: Server) -> None:
    first, second = (sdk(server).rank(sdk_request()).event_id for _ in range(2))
    assert uuid.UUID(first).version == uuid.UUID(second).version == 7
    assert first != second


def test_the_sdk_understands_a_refusal(server: Server) -> None:
    with pytest.raises(ErrorResponseException) as ranked:
        sdk(server).rank(RankRequest(actions=[]))
    error = ranked.value.error.error
    assert (error.code, error.target) == ("InvalidRankRequest", "actions")
    with pytest.raises(HttpOperationError) as rewarded:
        sdk(server).events.reward("e", 1.5)
    assert rewarded.value.response.status_code == 400
    with pytest.raises(ErrorResponseException) as unknown:
        sdk(server, "not-a-known-key").rank(sdk_request())
    assert unknown.value.response.status_code == 401
    assert unknown.value.error.error.code == "401"


def visit(client: PersonalizerClient, number: int) -> tuple[str, dict[str, float]]:
    """The action for a visit by phone or by laptop, and the probability of every action."""
    device = "phone" if number % 2 else "laptop"
    answer = client.rank(
        RankRequest(
            actions=[
                RankableAction(id="short", features=[{"words": 1}]),
                RankableAction(id="long", features=[{"words": 5}]),
            ],
            context_features=[{"user": {"device": device}}],
            event_id=f"visit-{number}",
        )
    )
    return answer.reward_action_id, {each.id: each.probability for each in answer.ranking}


def test_a_loop_learns_from_the_sdk(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is on a phone reads what is short. Secret and ids are fixed, so nothing is random."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    server = serve(
        '[service]\nport = 0\nregistry_poll = "50 ms"\n'
        f'draw_secret = "{"5" * 64}"\n'
        '[loops.news]\nexploration = { kind = "epsilon_greedy", epsilon = 0.1 }'
    )
    # No keys and one loop: any key opens it.
    client = sdk(server, "whatever the key was")
    best = {number: "short" if number % 2 else "long" for number in range(600)}
    for number in range(400):
        chosen, pmf = visit(client, number)
        assert pmf == {"short": 0.5, "long": 0.5}
        if chosen == best[number]:
            client.events.reward(f"visit-{number}", 1.0)
    loops = {"news": LoopConfig(exploration=EpsilonGreedy(epsilon=0.1))}
    registry = Registry(
        f"sqlite:///{server.data_dir / 'mlflow.db'}", server.data_dir / "mlartifacts"
    )
    nightly = Nightly(Lake(tmp_path / "lake"), registry, loops, NightlyConfig())
    with SqliteEventLog(server.data_dir / "log") as log:
        tomorrow = time.time_ns() // 1000 + 86_400_000_000
        (night,) = nightly.run(log, now_us=tomorrow, steps=no_steps).loops
    assert night.join.joined == 400
    assert 150 < night.join.observed < 250
    assert night.champion == 1
    wait_until(lambda: bool(server.readiness()["loops"]["news"]["generation"] == 1))
    for number in range(400, 420):
        _, pmf = visit(client, number)
        assert pmf[best[number]] == pytest.approx(0.95)


# Requests as the reference shows them.


@pytest.mark.parametrize("version", [V1, PREVIEW])
def test_a_rank_request_with_everything(server: Server, caller: Caller, version: str) -> None:
    request = rank_request()
    answer = post(caller, f"{version}/rank", request)
    assert answer.status == 201
    assert set(answer.json) == {"ranking", "eventId", "rewardActionId"}
    assert all(set(each) == {"id", "probability"} for each in answer.json["ranking"])
    assert math.fsum(each["probability"] for each in answer.json["ranking"]) == pytest.approx(1.0)
    assert answer.json["ranking"][1] == {"id": "politics", "probability": 0.0}
    (decision,) = decisions(server, request["eventId"])
    assert decision.context == {**CONTEXT[0], **CONTEXT[1]}
    assert [action.features for action in decision.actions] == [
        {"topic": "sport", "words": 300, "provider": {"paid": True}},
        {"topic": "politics"},
        {"topic": "weather", "local": True},
    ]
    assert (decision.excluded, decision.slot) == (["politics"], None)
    assert answer.json["rewardActionId"] == IDS[decision.chosen]


def test_a_rank_request_with_the_least(server: Server, caller: Caller) -> None:
    answer = post(caller, f"{V1}/rank", {"actions": ACTIONS})
    assert answer.status == 201
    (decision,) = decisions(server, answer.json["eventId"])
    assert (decision.context, decision.excluded, decision.deferred) == ({}, [], False)


def test_nulls_and_fields_of_later_versions_are_passed_over(caller: Caller) -> None:
    nulls = dict.fromkeys(["contextFeatures", "excludedActions", "eventId", "deferActivation"])
    assert post(caller, f"{V1}/rank", {"actions": ACTIONS, **nulls, "more": 1}).status == 201


def test_the_same_event_id_gets_the_same_answer(caller: Caller) -> None:
    for path, made in ((f"{V1}/rank", rank_request), (f"{PREVIEW}/multislot/rank", slots_request)):
        requests = [made() for _ in range(30)]
        first = [post(caller, path, each, COLD).body for each in requests]
        assert [post(caller, path, each, COLD).body for each in requests] == first
        # They are drawn: the chance that all are alike is below 1e-8.
        assert len({json.dumps(json.loads(each) | {"eventId": ""}) for each in first}) > 1


@pytest.mark.parametrize(
    ("excluded", "baseline"),
    [
        ([], "sport"),
        (["sport"], "politics"),
        (["politics"], "sport"),
        (["sport", "no"], "politics"),
    ],
)
def test_the_first_action_that_is_not_excluded_is_the_baseline(
    caller: Caller, excluded: list[str], baseline: str
) -> None:
    """An apprentice plays it, with probability 1; an id that is none excludes nothing."""
    request = rank_request(excludedActions=excluded)
    answer = post(caller, f"{V1}/rank", request, WATCHING).json
    assert answer["rewardActionId"] == baseline
    assert {each["id"]: each["probability"] for each in answer["ranking"]} == {
        each: float(each == baseline) for each in IDS
    }


def test_more_actions_than_personalizer_took(caller: Caller) -> None:
    actions = [{"id": f"a{number}", "features": [{"x": number}]} for number in range(51)]
    answer = post(caller, f"{V1}/rank", {"actions": actions})
    assert answer.status == 201
    assert len(answer.json["ranking"]) == 51


def test_slots_are_filled(server: Server, caller: Caller) -> None:
    request = slots_request()
    answer = post(caller, f"{PREVIEW}/multislot/rank", request)
    assert answer.status == 201
    assert set(answer.json) == {"slots", "eventId"}
    assert [each["id"] for each in answer.json["slots"]] == ["Main Column", "Side Bar"]
    main, side = (each["rewardActionId"] for each in answer.json["slots"])
    assert main != "politics"
    assert main != side
    events = decisions(server, request["eventId"])
    assert [event.slot for event in events] == ["Main Column", "Side Bar"]
    assert [IDS[event.chosen] for event in events] == [main, side]
    assert events[0].context["slot"] == {
        "id": "Main Column",
        "features": {"size": "large", "position": 1},
    }
    assert events[0].context["user"] == CONTEXT[0]["user"]


def test_slots_have_baselines(caller: Caller) -> None:
    answer = post(caller, f"{PREVIEW}/multislot/rank", slots_request(), WATCHING).json
    assert [each["rewardActionId"] for each in answer["slots"]] == ["weather", "sport"]


def test_a_context_may_speak_of_a_slot(server: Server, caller: Caller) -> None:
    request = slots_request(contextFeatures=[{"slot": 3}, {"slot": 4, "user": "new"}])
    assert post(caller, f"{PREVIEW}/multislot/rank", request).status == 201
    event, _ = decisions(server, request["eventId"])
    assert event.context["contextFeatures.slot"] == [3, 4]
    assert event.context["user"] == "new"


def test_rewards_find_their_slots(serve: Serve, tmp_path: Path) -> None:
    """From requests through the log into the lake; an event that nobody knows is an orphan."""
    server = serve('[service]\nport = 0\n[loops.shop]\nattribution_window = "1 h"\n')
    with server.caller() as caller:
        filled = post(
            caller,
            f"{PREVIEW}/multislot/rank",
            slots_request(eventId="filled", deferActivation=True),
        ).json
        calls: list[tuple[str, Any]] = [
            ("multislot/events/filled/activate", b""),
            ("multislot/events/filled/reward", {"reward": [{"slotId": "Side Bar", "value": 0.25}]}),
            ("rank", rank_request(eventId="ranked")),
            ("events/ranked/reward", {"value": 0.75}),
            ("rank", rank_request(eventId="never shown", deferActivation=True)),
            ("events/never%20shown/reward", {"value": 1}),
            ("events/unheard-of/reward", {"value": 1}),
            ("multislot/events/ranked/reward", {"reward": []}),
        ]
        for path, body in calls:
            answer = post(caller, f"{PREVIEW}/{path}", body)
            assert answer.status == (201 if path == "rank" else 204), answer
            if answer.status == 204:
                assert (answer.body, "content-length" in answer.headers) == (b"", False)
        later = max(event.ts for event in server.events()) + 10 * 3_600_000_000
    lake = Lake(tmp_path / "lake")
    with SqliteEventLog(server.data_dir / "log") as log, lake.lock():
        sink(log, lake)
        report = join(lake, "shop", LoopConfig(attribution_window="1 h"), later)
    assert (report.joined, report.observed) == (3, 2)
    rows = lake.scan("interactions", "shop").sort("offset").collect()
    main, side = (each["rewardActionId"] for each in filled["slots"])
    assert rows.select("decision_id", "slot", "reward").rows() == [
        ("filled", "Main Column", 0.0),
        ("filled", "Side Bar", 0.25),
        ("ranked", None, 0.75),
    ]
    assert rows["action_id"].to_list()[:2] == [main, side]


def test_activation_takes_any_body(caller: Caller) -> None:
    for path in (f"{V1}/events/e/activate", f"{PREVIEW}/multislot/events/e/activate"):
        for body in (b"", b"{}", b"null", b"\xff"):
            assert post(caller, path, body).status == 204


# Merging features.

LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=2)
VALUES = st.recursive(
    LEAVES,
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.sampled_from("xyz"), below, max_size=3)
    ),
    max_leaves=10,
)
OBJECTS = st.lists(st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=3), max_size=4)


def leaves(value: Any) -> list[Any]:
    """All values but nulls, with a number told from a boolean."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [leaf for below in value for leaf in leaves(below)]
    return [] if value is None else [(type(value).__name__, value)]


@settings(deadline=None, derandomize=True, database=None)
@given(OBJECTS)
def test_nothing_is_lost_in_merging(objects: list[dict[str, Any]]) -> None:
    before = json.dumps(objects)
    merged = merge_features("contextFeatures", objects)
    assert set(merged) == {key for each in objects for key in each}
    assert sorted(leaves(merged), key=repr) == sorted(leaves(objects), key=repr)
    assert json.dumps(objects) == before


@pytest.mark.parametrize(
    ("objects", "merged"),
    [
        ([], {}),
        ([{}], {}),
        ([{"a": 1}, {"b": None}], {"a": 1, "b": None}),
        ([{"a": 1}, {"a": 2}], {"a": [1, 2]}),
        ([{"a": 1}, {"a": 1}], {"a": [1, 1]}),
        ([{"tag": ["x"]}, {"tag": "y"}, {"tag": None}, {"tag": ["z"]}], {"tag": ["x", "y", "z"]}),
        ([{"a": {"b": 1}}, {"a": {"c": {"d": 2}}}, {"a": {"c": {"e": 3}}}],
         {"a": {"b": 1, "c": {"d": 2, "e": 3}}}),
        ([{"a": {"b": 1}}, {"a": 2}], {"a": [{"b": 1}, 2]}),
        ([{"a": None}, {"a": None}], {"a": None}),
        ([{"a": None}, {"a": {"b": 1}}], {"a": {"b": 1}}),
    ],
)  # fmt: skip
def test_merging(objects: list[dict[str, Any]], merged: dict[str, Any]) -> None:
    assert merge_features("contextFeatures", objects) == merged


def test_merging_does_not_go_deeper_than_an_oracle() -> None:
    deep: dict[str, Any] = {}
    for _ in range(20):
        deep = {"a": deep}
    with pytest.raises(InvalidInputError, match=r"^contextFeatures(\.a)+: expected at most 8"):
        merge_features("contextFeatures", [deep, deep])


# Keys.


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [
        (NEWS, 204, None),
        (WATCHING, 204, None),
        (BROKEN, 204, None),
        (ALL, 403, "InvalidApiAccess"),
        (SEVERAL, 403, "InvalidApiAccess"),
        (NEWS.upper(), 401, "401"),
        ("", 401, "401"),
        (None, 401, "401"),
    ],
)
def test_a_key_stands_for_a_loop(
    caller: Caller, key: str | None, status: int, code: str | None
) -> None:
    answer = post(caller, f"{V1}/events/e/activate", key=key)
    assert answer.status == status
    if code is not None:
        assert answer.error["code"] == code
    if status == 401:
        assert "Ocp-Apim-Subscription-Key" in answer.headers["www-authenticate"]
    if status == 403:
        assert "personalizer_loop" in answer.error["message"]


def test_a_key_of_ours_is_none_of_personalizers(caller: Caller) -> None:
    for headers in ({"X-Api-Key": NEWS}, {"Authorization": f"Bearer {NEWS}"}):
        assert caller.send("POST", f"{V1}/events/e/activate", b"", headers).status == 401
    headers = {"Ocp-Apim-Subscription-Key": NEWS}
    body = b'{"decision_id": "d"}'
    assert caller.send("POST", "/v1/loops/news/activate", body, headers).status == 401


@pytest.mark.parametrize(
    ("key", "loops", "expected"),
    [
        (None, ["a"], (200, "a")),
        (None, ["a", "b"], (403, "")),
        (KeyConfig(key="long enough"), ["a"], (200, "a")),
        (KeyConfig(key="long enough"), ["a", "b"], (403, "")),
        (KeyConfig(key="long enough", loops=("b",)), ["a", "b"], (200, "b")),
        (KeyConfig(key="long enough", loops=()), ["a"], (403, "")),
        (KeyConfig(key="long enough", personalizer_loop="b"), ["a", "b"], (200, "b")),
        (KeyConfig(key="another key"), ["a"], (401, "")),
    ],
)
def test_which_loop_a_key_stands_for(
    key: KeyConfig | None, loops: list[str], expected: tuple[int, str]
) -> None:
    ring = KeyRing({} if key is None else {"app": key})
    headers = [(b"host", b"x"), (b"ocp-apim-subscription-key", b"long enough")]
    try:
        found = 200, ring.admit_personalizer(headers, loops, "decide").loop
    except Refusal as refusal:
        found = refusal.status, ""
    assert found == expected


# Refusals.

ONE = {"id": "a", "features": []}
RANK: list[tuple[Any, str]] = [
    (b"", "body"),
    (b"[]", "body"),
    (b'{"actions": [', "body"),
    (b"[" * 10_000, "body"),
    ({}, "actions"),
    ({"actions": []}, "actions"),
    ({"actions": None}, "actions"),
    ({"actions": [None]}, "actions[0]"),
    ({"actions": [{"id": "a"}]}, "actions[0].features"),
    ({"actions": [{"id": "a", "features": {}}]}, "actions[0].features"),
    ({"actions": [{"id": "a", "features": [None]}]}, "actions[0].features[0]"),
    ({"actions": [ONE, {"features": []}]}, "actions[1].id"),
    ({"actions": [ONE, ONE]}, "actions[1].id"),
    ({"actions": [{"id": "", "features": []}]}, "actions[0].id"),
    ({"actions": [{"id": "x" * 257, "features": []}]}, "actions[0].id"),
    ({"actions": [{"id": "a", "features": [{"x": 1e39}]}]}, "actions[0].features"),
    ({"actions": [ONE], "contextFeatures": {}}, "contextFeatures"),
    ({"actions": [ONE], "contextFeatures": [1]}, "contextFeatures[0]"),
    ({"actions": [ONE], "contextFeatures": [{"x": 1e39}]}, "contextFeatures"),
    ({"actions": [ONE], "contextFeatures": [{"a": {"x": [[[[[[[["y"]]]]]]]]}}]},
     "contextFeatures.a.x[0][0][0][0][0][0][0]"),
    ({"actions": [ONE], "excludedActions": ["a"]}, "excludedActions"),
    ({"actions": [ONE], "excludedActions": [1]}, "excludedActions[0]"),
    ({"actions": [ONE], "eventId": ""}, "eventId"),
    ({"actions": [ONE], "eventId": "x" * 257}, "eventId"),
    ({"actions": [ONE], "deferActivation": "no"}, "deferActivation"),
]  # fmt: skip
SLOT = {"id": "s", "baselineAction": "a"}
MULTISLOT: list[tuple[Any, str]] = [
    ({"actions": [ONE]}, "slots"),
    ({"actions": [ONE], "slots": []}, "slots"),
    ({"actions": [ONE], "slots": [{"id": "s"}]}, "slots[0].baselineAction"),
    ({"actions": [ONE], "slots": [SLOT | {"id": ""}]}, "slots[0].id"),
    ({"actions": [ONE], "slots": [SLOT, SLOT]}, "slots[1].id"),
    ({"actions": [ONE], "slots": [SLOT, SLOT | {"id": "t"}]}, "slots[1]"),
    ({"actions": [ONE], "slots": [SLOT | {"baselineAction": "b"}]}, "slots[0].baselineAction"),
    ({"actions": [ONE], "slots": [SLOT | {"excludedActions": ["b"]}]},
     "slots[0].excludedActions[0]"),
    ({"actions": [ONE], "slots": [SLOT | {"features": [{"x": 1e39}]}]}, "slots[0]"),
    ({"actions": [ONE], "slots": [SLOT], "contextFeatures": [{"x": 1e39}]}, "contextFeatures"),
    ({"actions": [ONE], "slots": [SLOT], "eventId": ""}, "eventId"),
]  # fmt: skip
REWARD: list[tuple[Any, str]] = [
    (b"", "body"),
    ({}, "value"),
    ({"value": None}, "value"),
    ({"value": "1"}, "value"),
    ({"value": 1.01}, "value"),
    ({"value": -1.01}, "value"),
    (b'{"value": 1e999}', "value"),
]
SLOT_REWARD: list[tuple[Any, str]] = [
    ({}, "reward"),
    ({"value": 1}, "reward"),
    ({"reward": [{"value": 1}]}, "reward[0].slotId"),
    ({"reward": [{"slotId": "s"}]}, "reward[0].value"),
    ({"reward": [{"slotId": "s", "value": 0}, {"slotId": "", "value": 0}]}, "reward[1].slotId"),
    ({"reward": [{"slotId": "s", "value": 2}]}, "reward[0].value"),
]
CASES = [
    *((f"{V1}/rank", "InvalidRankRequest", *case) for case in RANK),
    *((f"{PREVIEW}/multislot/rank", "InvalidRankRequest", *case) for case in MULTISLOT),
    *((f"{V1}/events/e/reward", "InvalidRewardRequest", *case) for case in REWARD),
    *(
        (f"{PREVIEW}/multislot/events/e/reward", "InvalidRewardRequest", *case)
        for case in SLOT_REWARD
    ),
    (f"{V1}/events/{'x' * 257}/reward", "InvalidRewardRequest", {"value": 1}, "eventId"),
    (f"{V1}/events//reward", "InvalidRewardRequest", {"value": 1}, "eventId"),
    (f"{V1}/events/%ff/reward", "InvalidRewardRequest", {"value": 1}, "eventId"),
    (f"{V1}/events/{'x' * 257}/activate", "InvalidEventIdToActivate", b"", "eventId"),
    (f"{PREVIEW}/multislot/events//activate", "InvalidEventIdToActivate", b"", "eventId"),
]


@pytest.mark.parametrize(
    ("path", "code", "body", "target"), CASES, ids=lambda value: repr(value)[-60:]
)
def test_a_refusal_names_the_field(
    caller: Caller, path: str, code: str, body: Any, target: str
) -> None:
    answer = post(caller, path, body)
    assert answer.status == 400
    assert answer.error["code"] == ("BadRequest" if target == "body" else code)
    assert answer.error["target"] == target
    assert answer.error["message"].startswith((f"{target}: ", "expected a JSON body: "))


def test_refusals_leave_nothing_in_the_log(server: Server, caller: Caller) -> None:
    before = len(server.events())
    for path, _, body, _ in CASES:
        post(caller, path, body)
    assert len(server.events()) == before


@pytest.mark.parametrize(
    "path",
    [
        V1, f"{V1}/", f"{V1}/rank/", f"{V1}/Rank", f"{V1}/multislot/rank", f"{V1}/events",
        f"{V1}/events/e", f"{V1}/events/e/f/reward", f"{V1}/events/e/rank", f"{V1}/multislot",
        f"{V1}/multislot/events/e/reward", f"{V1}/configurations/services", f"{V1}/models",
        f"{PREVIEW}/multislot/multislot/rank", f"{PREVIEW}/multislot/events/e",
        "/personalizer/v2/rank", "/personalizer/", "/personalizer/rank",
        "/personalizer%2Fv1.0%2Frank",
    ],
)  # fmt: skip
def test_an_unknown_route(caller: Caller, path: str) -> None:
    answer = post(caller, path, rank_request())
    assert (answer.status, answer.error["code"]) == (404, "ResourceNotFound")


@pytest.mark.parametrize("path", [f"{V1}/rank", f"{PREVIEW}/multislot/events/e/reward"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_the_wrong_method(caller: Caller, method: str, path: str) -> None:
    answer = caller.send(method, path, headers={"Ocp-Apim-Subscription-Key": NEWS})
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.error["code"] == "MethodNotAllowed"


def test_a_body_that_is_too_large(caller: Caller) -> None:
    answer = post(caller, f"{V1}/rank", b" " * (MAX_BODY_BYTES + 1))
    assert (answer.status, answer.error["code"]) == (413, "PayloadSizeExceeded")


def test_a_log_that_takes_nothing_is_told(server: Server, caller: Caller) -> None:
    request, slots = rank_request(), slots_request()
    with locked_log(server):
        for path, body in [
            (f"{V1}/rank", request),
            (f"{PREVIEW}/multislot/rank", slots),
            (f"{V1}/events/locked/reward", {"value": 1}),
            (f"{V1}/events/locked/activate", b""),
        ]:
            answer = post(caller, path, body)
            assert (answer.status, answer.error["code"]) == (503, "LogUnavailable")
            assert answer.headers["retry-after"] == "1"
    wait_until(lambda: post(caller, f"{V1}/rank", rank_request()).status == 201)
    # What was refused is not there, not even late.
    ids = {request["eventId"], slots["eventId"], "locked"}
    assert not [event for event in server.events() if getattr(event, "decision_id", "") in ids]


def test_an_oracle_in_trouble_does_not_show(server: Server, caller: Caller) -> None:
    """The baseline is played, and logged so."""
    request = rank_request(excludedActions=["sport"])
    answer = post(caller, f"{V1}/rank", request, BROKEN)
    assert (answer.status, answer.json["rewardActionId"]) == (201, "politics")
    (decision,) = decisions(server, request["eventId"])
    assert (decision.mix[0].source, decision.propensity) == ("baseline", 1.0)
    filled = post(caller, f"{PREVIEW}/multislot/rank", slots_request(), BROKEN)
    assert [each["rewardActionId"] for each in filled.json["slots"]] == ["weather", "sport"]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NAMES = st.sampled_from(
    ["actions", "id", "features", "contextFeatures", "excludedActions", "eventId", "slots",
     "deferActivation", "baselineAction", "reward", "value", "slotId", "slot"]
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(NAMES, below, max_size=4),
    max_leaves=20,
)
FEATURE_LISTS = st.lists(st.dictionaries(NAMES, JSON, max_size=3), max_size=3)
CANDIDATES = st.tuples(
    *(st.fixed_dictionaries({"id": st.just(each), "features": FEATURE_LISTS}) for each in "abc")
).map(list)
PLACES = st.lists(
    st.fixed_dictionaries(
        {"id": st.sampled_from("st"), "baselineAction": st.sampled_from("abcd")},
        optional={"features": FEATURE_LISTS, "excludedActions": st.lists(st.sampled_from("abc"))},
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda slot: slot["id"],
)
SHARED: dict[str, st.SearchStrategy[Any]] = {
    "contextFeatures": FEATURE_LISTS,
    "eventId": st.sampled_from("ef"),
}
REQUESTS: dict[str, st.SearchStrategy[Any]] = {
    f"{V1}/rank": st.fixed_dictionaries({"actions": CANDIDATES}, optional=SHARED),
    f"{PREVIEW}/multislot/rank": st.fixed_dictionaries(
        {"actions": CANDIDATES, "slots": PLACES}, optional=SHARED
    ),
    f"{V1}/events/e/reward": st.fixed_dictionaries({"value": st.floats(-2, 2)}),
}


@pytest.mark.parametrize("path", REQUESTS)
def test_no_request_is_the_servers_fault(server: Server, path: str) -> None:
    """Whatever is sent, as it should be but for its features or not at all."""
    seen = set()
    with server.caller() as caller:

        @settings(max_examples=100, deadline=None, derandomize=True, database=None)
        @given(JSON | REQUESTS[path])
        def fuzz(body: Any) -> None:
            answer = post(caller, path, body)
            seen.add(answer.status)
            if answer.status == 400:
                assert answer.error["target"]

        fuzz()
    assert seen == {400, 204 if path.endswith("reward") else 201}
    assert server.events()


# What is seen from outside.


def test_counters_count(caller: Caller) -> None:
    def counts() -> list[float]:
        return [
            sample(caller, "croupier_decisions_total", loop="news"),
            sample(caller, "croupier_propensity_count", loop="news"),
            sample(caller, "croupier_outcomes_total", loop="news"),
            sample(caller, "croupier_activations_total", loop="news"),
            sample(caller, "croupier_request_seconds_count", route="personalizer/rank"),
            sample(caller, "croupier_request_seconds_count", route="personalizer/multislot/reward"),
            sample(caller, "croupier_errors_total", status="400", code="InvalidRankRequest"),
        ]

    before = counts()
    rewards = {"reward": [{"slotId": "s", "value": 1}, {"slotId": "t", "value": 0}]}
    assert post(caller, f"{V1}/rank", rank_request()).status == 201
    assert post(caller, f"{PREVIEW}/multislot/rank", slots_request()).status == 201
    assert post(caller, f"{V1}/events/e/reward", {"value": 1}).status == 204
    assert post(caller, f"{PREVIEW}/multislot/events/e/reward", rewards).status == 204
    assert post(caller, f"{V1}/events/e/activate").status == 204
    assert post(caller, f"{V1}/rank", {}).status == 400
    assert [now - was for now, was in zip(counts(), before, strict=True)] == [3, 3, 3, 1, 1, 1, 1]


def test_the_description_agrees_with_the_service(caller: Caller) -> None:
    document = caller.get("/openapi.json").json
    paths = {
        path: each["post"] for path, each in document["paths"].items() if path.startswith(V1[:13])
    }
    assert len(paths) == 9
    for path, described in paths.items():
        call = find_call(path.encode())
        assert call is not None
        assert str(call.status) in described["responses"]
        assert {"personalizer": []} in described["security"]
        assert ("requestBody" in described) == (call.verb != "activate")
        assert ("parameters" in described) == (call.verb != "rank")
        assert all(isinstance(resolve(document, each), dict) for each in references(described))
    for path, request in (
        (f"{V1}/rank", rank_request()),
        (f"{PREVIEW}/multislot/rank", slots_request()),
    ):
        body = paths[path]["requestBody"]["content"]["application/json"]["schema"]
        assert set(resolve(document, body["$ref"])["properties"]) == set(request)
        content = paths[path]["responses"]["201"]["content"]["application/json"]["schema"]
        answer = post(caller, path, request).json
        assert set(resolve(document, content["$ref"])["properties"]) == set(answer)
