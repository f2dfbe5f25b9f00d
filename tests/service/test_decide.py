"""Decisions, rewards and activations that are in order: what is answered, and what is logged."""

from __future__ import annotations

import http.client
import json
import math
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from croupier.policy.events import Activation, Decision, Outcome
from croupier.policy.sampling import draw_key
from croupier.service.secret import kept_secret
from tests.service.running import unique

if TYPE_CHECKING:
    from tests.service.running import Caller, Server

ACTIONS: list[dict[str, Any]] = [
    {"id": "red", "features": {"price": 3.5, "tags": ["new", "sale"]}},
    {"id": "grün", "features": {"price": 2}},
    {"id": "blue"},
]
CONTEXT = {"hour": 9, "device": "phone", "returning": True, "referrer": None}


def outcomes(server: Server, decision_id: str) -> list[Outcome]:
    return [
        event
        for event in server.events()
        if isinstance(event, Outcome) and event.decision_id == decision_id
    ]


def test_a_decision_is_answered_and_logged_as_answered(shared: Server, caller: Caller) -> None:
    decision_id = unique()
    request = {
        "decision_id": decision_id,
        "context": CONTEXT,
        "actions": ACTIONS,
        "excluded": ["blue"],
        "baseline": "grün",
        "deferred": True,
        "audit": {"region": "north", "age": 41},
    }
    answer = caller.post("digits/decide", request)
    assert answer.status == 200
    decided = answer.json
    assert list(decided) == [
        "decision_id", "loop", "generation", "action", "index", "propensity", "pmf",
    ]  # fmt: skip
    assert decided["decision_id"] == decision_id
    assert decided["loop"] == "digits"
    assert decided["generation"] == 0
    assert decided["pmf"] == [0.5, 0.5, 0.0]
    assert decided["action"] == ACTIONS[decided["index"]]["id"] != "blue"
    assert decided["propensity"] == decided["pmf"][decided["index"]]

    # Acknowledged means logged: no need to wait.
    logged = shared.decision(decision_id)
    assert (logged.loop, logged.generation, logged.learning_mode) == ("digits", 0, "online")
    assert (logged.pmf, logged.chosen) == (decided["pmf"], decided["index"])
    assert logged.propensity == decided["propensity"]
    assert logged.context == CONTEXT
    assert [action.id for action in logged.actions] == ["red", "grün", "blue"]
    assert [action.features for action in logged.actions] == [
        action.get("features", {}) for action in ACTIONS
    ]
    assert (logged.excluded, logged.baseline, logged.deferred) == (["blue"], 1, True)
    assert logged.audit == {"region": "north", "age": 41}
    assert [(part.source, part.weight) for part in logged.mix] == [("generation:0", 1.0)]
    secret = kept_secret(shared.data_dir / "draw-secret")
    assert logged.draw_key == draw_key("digits", 0, decision_id, secret=secret)


def test_the_smallest_request_gets_an_id_and_certainty(shared: Server, caller: Caller) -> None:
    decided = caller.post("digits/decide", {"actions": [{"id": "only"}]}).json
    assert uuid.UUID(decided["decision_id"]).version == 7
    assert (decided["action"], decided["propensity"], decided["pmf"]) == ("only", 1.0, [1.0])
    assert shared.decision(decided["decision_id"]).chosen == 0


@pytest.mark.parametrize("loop", ["digits", "trained"])
@pytest.mark.parametrize("count", [2, 3, 7, 50, 1000])
def test_any_number_of_actions_gets_a_distribution(caller: Caller, loop: str, count: int) -> None:
    ids = [f"a{number}" for number in range(count)]
    excluded = ids[1::3]
    request = {"actions": [{"id": name} for name in ids], "excluded": excluded}
    decided = caller.post(f"{loop}/decide", request).json
    assert math.isclose(math.fsum(decided["pmf"]), 1.0, abs_tol=1e-9)
    assert decided["propensity"] == decided["pmf"][decided["index"]] > 0.0
    for name, probability in zip(ids, decided["pmf"], strict=True):
        assert (probability == 0.0) == (name in excluded)


def test_the_same_decision_id_gets_the_same_answer(shared: Server, caller: Caller) -> None:
    ids = [unique() for _ in range(20)]
    request = {"context": CONTEXT, "actions": ACTIONS}
    first = [caller.post("digits/decide", request | {"decision_id": each}).body for each in ids]
    again = [caller.post("digits/decide", request | {"decision_id": each}).body for each in ids]
    assert first == again
    keys = Counter(e.decision_id for e in shared.events() if isinstance(e, Decision))
    assert [keys[each] for each in ids] == [1] * len(ids)
    assert len({json.loads(body)["action"] for body in first}) > 1


def test_a_watching_loop_plays_the_baseline(shared: Server, caller: Caller) -> None:
    request = {"actions": ACTIONS, "baseline": "blue", "decision_id": unique()}
    decided = caller.post("watching/decide", request).json
    assert (decided["action"], decided["propensity"]) == ("blue", 1.0)
    assert decided["pmf"] == [0.0, 0.0, 1.0]
    logged = shared.decision(decided["decision_id"])
    assert logged.learning_mode == "apprentice"
    assert [part.source for part in logged.mix] == ["baseline"]


def test_an_excluded_baseline_gives_way(caller: Caller) -> None:
    request = {"actions": ACTIONS, "baseline": "red", "excluded": ["red"]}
    assert caller.post("watching/decide", request).json["action"] == "grün"


def test_ids_may_be_as_long_as_allowed_and_hold_anything(shared: Server, caller: Caller) -> None:
    decision_id, action_id = "∀" * 256, '\x00/"\\\n🎲' + "x" * 250
    request = {"decision_id": decision_id, "actions": [{"id": action_id}]}
    assert caller.post("digits/decide", request).json["action"] == action_id
    assert shared.decision(decision_id).actions[0].id == action_id


def test_one_outcome(shared: Server, caller: Caller) -> None:
    decision_id = unique()
    sent = {"decision_id": decision_id, "reward": -0.5, "guardrails": {"refund": 1, "nps": 1e300}}
    assert caller.post("scaled/reward", sent).json == {"accepted": 1}
    (logged,) = outcomes(shared, decision_id)
    assert (logged.loop, logged.reward, logged.slot) == ("scaled", -0.5, None)
    assert logged.guardrails == {"refund": 1.0, "nps": 1e300}
    assert uuid.UUID(logged.outcome_id).version == 7


def test_a_list_of_outcomes_is_one_append(shared: Server, caller: Caller) -> None:
    decision_id = unique()
    sent = [
        {"decision_id": decision_id, "reward": n / 100, "outcome_id": f"{decision_id}:{n}"}
        for n in range(100)
    ]
    assert caller.post("digits/reward", sent).json == {"accepted": 100}
    logged = outcomes(shared, decision_id)
    assert [(o.outcome_id, o.reward) for o in logged] == [
        (f"{decision_id}:{n}", n / 100) for n in range(100)
    ]


def test_no_outcomes_are_fine_too(caller: Caller) -> None:
    assert caller.post("digits/reward", []).json == {"accepted": 0}


def test_a_refused_outcome_refuses_the_whole_list(shared: Server, caller: Caller) -> None:
    decision_id = unique()
    sent = [{"decision_id": decision_id, "reward": reward} for reward in (0.5, 7.0, 0.5)]
    assert caller.post("digits/reward", sent).error["target"] == "[1].reward"
    assert outcomes(shared, decision_id) == []


def test_an_activation(shared: Server, caller: Caller) -> None:
    decision_id = unique()
    assert caller.post("digits/activate", {"decision_id": decision_id}).json == {"accepted": 1}
    logged = [e for e in shared.events() if isinstance(e, Activation)]
    assert [e.loop for e in logged if e.decision_id == decision_id] == ["digits"]


def test_clients_that_are_not_ours(shared: Server) -> None:
    body = json.dumps({"actions": ACTIONS}).encode()
    path = "/v1/loops/digits/decide"
    assert shared.key is not None
    headers = {"Authorization": f"Bearer {shared.key}"}

    with urllib3.PoolManager() as pool:
        answer = pool.request("POST", f"{shared.url}{path}", body=body, headers=headers)
        assert (answer.status, answer.json()["generation"]) == (200, 0)
        # In chunks, without a length.
        parts = (body[at : at + 7] for at in range(0, len(body), 7))
        answer = pool.request("POST", f"{shared.url}{path}", body=parts, headers=headers)
        assert (answer.status, answer.json()["generation"]) == (200, 0)

    connection = http.client.HTTPConnection("127.0.0.1", shared.port)
    connection.request("POST", f"{path}?ignored=1", body, headers)
    assert connection.getresponse().status == 200
    connection.close()
