"""What a keyed message is answered with, without any Kafka."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from croupier.policy.events import Decision, Outcome, SessionStep, encode_event
from croupier.policy.generation import cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.sessions import SessionsConfig
from croupier.policy.traffic import Plan
from croupier.service.desk import Desk, Reply
from croupier.service.limits import FeatureLimits
from croupier.service.scorer import Scorer
from tests.policy.recurrent import ACTIONS, OBSERVATION, recurrent_generation

LOOP = "banner"
REQUEST = {"context": {"hour": "nine"}, "actions": [{"id": "red"}, {"id": "blue"}]}
DOCS = (Path(__file__).parents[2] / "docs" / "kafka.md").read_text()


def desk_of(scorer: Scorer | None = None, **others: Any) -> Desk:
    limits: dict[str, Any] = {
        "max_body_bytes": 10_000,
        "max_payload_bytes": 5_000,
        "remembered": 3,
    }
    if scorer is None:
        scorer = Scorer({LOOP: LoopConfig()}, secret=bytes(16))
        scorer.swap(Plan(cold_start(LOOP)))
    return Desk(scorer, FeatureLimits(100_000, 20_000), **(limits | others))


@pytest.fixture
def desk() -> Desk:
    return desk_of()


def ask(desk: Desk, key: str | None, request: Any = REQUEST, route: str = "decide") -> Reply:
    body = json.dumps(request).encode()
    return desk.answer(LOOP, route, None if key is None else key.encode(), body)


def error(reply: Reply) -> tuple[int, str | None]:
    assert reply.refusal is not None
    assert (reply.records, reply.events) == ((), ())
    return reply.status, json.loads(reply.body)["error"]["target"]


def test_the_example_in_the_documentation(desk: Desk) -> None:
    request, answer = re.findall(r"^```json\n(.*?)\n```$", DOCS, re.MULTILINE)
    reply = desk.answer(LOOP, "decide", b"order-1", request.encode())
    assert (reply.status, reply.body.decode()) == (200, answer)


def test_what_is_told_is_what_is_to_be_logged(desk: Desk) -> None:
    reply = ask(desk, "one")
    (record,) = reply.records
    (decision,) = reply.events
    assert isinstance(decision, Decision)
    assert (record.key, record.kind) == ("one", "decision")
    assert record.payload == encode_event(decision)
    told = json.loads(reply.body)
    assert told["decision_id"] == decision.decision_id == "one"
    assert (told["pmf"], told["index"]) == (decision.pmf, decision.chosen)


def test_what_was_not_settled_is_not_remembered(desk: Desk) -> None:
    first = ask(desk, "one")
    assert ask(desk, "one").records == ()
    desk.forget()
    again = ask(desk, "one")
    assert (again.body, len(again.records)) == (first.body, 1)
    desk.settle()
    repeated = ask(desk, "one")
    assert (repeated.body, repeated.records, repeated.events) == (first.body, (), ())


def test_an_id_is_for_one_request(desk: Desk) -> None:
    ask(desk, "one")
    other = REQUEST | {"context": {"hour": "ten"}}
    assert error(ask(desk, "one", other)) == (400, "decision_id")
    desk.settle()
    assert error(ask(desk, "one", other)) == (400, "decision_id")
    assert ask(desk, "two", other).status == 200


def test_only_so_much_is_remembered() -> None:
    few: list[dict[str, Any]] = [{"remembered": 2}, {"remembered_bytes": 300}]
    for limits in few:
        desk = desk_of(**limits)
        for key in ("one", "two", "three"):
            ask(desk, key)
        desk.settle()
        assert ask(desk, "three").records == ()
        assert len(ask(desk, "one").records) == 1


def test_what_is_wrong_is_refused(desk: Desk) -> None:
    assert error(desk.answer(LOOP, "decide", b"k", None)) == (400, "body")
    assert error(desk.answer(LOOP, "decide", b"k", b"{")) == (400, "body")
    assert error(desk.answer(LOOP, "decide", b"k", b" " * 10_001)) == (413, "body")
    assert error(desk.answer(LOOP, "decide", b"\xff", json.dumps(REQUEST).encode())) == (
        400,
        "decision_id",
    )
    assert error(ask(desk, None)) == (400, "decision_id")
    assert error(ask(desk, "a", REQUEST | {"decision_id": "b"})) == (400, "decision_id")
    assert error(ask(desk, "k", route="dictate")) == (404, "croupier-kind")
    long = REQUEST | {"audit": {"note": "x" * 6000}}
    assert error(ask(desk, "k", long)) == (400, "body")
    # None of it has used the id up.
    assert ask(desk, "k").status == 200


def test_a_fault_of_ours_is_told_and_no_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "step", lambda *_: 1 / 0)
        assert error(ask(desk, "k")) == (500, None)
    assert ask(desk, "k").status == 200


def test_steps_of_sessions_are_taken_when_they_are_settled() -> None:
    """Those of a batch that failed are asked again, by whoever leads the partition then."""
    config = LoopConfig(sessions=SessionsConfig(user="user", state=OBSERVATION))
    scorer = Scorer({LOOP: config}, secret=bytes(16))
    scorer.swap(Plan(recurrent_generation(LOOP, 1)))
    desk = desk_of(scorer)
    request = {"context": {"user": "ann"}, "actions": [{"id": each} for each in ACTIONS]}

    def steps(*keys: str) -> list[int]:
        replies = [ask(desk, key, request) for key in keys]
        found = [event.session for reply in replies for event in reply.events]  # type: ignore[union-attr]
        return [each.step for each in found if isinstance(each, SessionStep)]

    assert steps("a", "b") == [0, 1]
    desk.settle()
    assert steps("c", "d") == [2, 3]
    desk.forget()
    assert steps("c", "x") == [2, 3]
    desk.settle()
    assert steps("c") == []
    kept = ask(desk, "k", request | {"session": ""})
    token = json.loads(kept.body)["session"]
    (event,) = ask(desk, "l", request | {"session": token}).events
    assert isinstance(event, Decision)
    assert isinstance(event.session, SessionStep)
    assert (event.session.id, event.session.step) == ("k", 1)
    # A message that the log can't hold is no step.
    assert error(ask(desk, "long", request | {"audit": {"note": "x" * 6000}})) == (400, "body")
    assert steps("e") == [4]


def test_outcomes_are_for_whom_they_name(desk: Desk) -> None:
    reported = [{"decision_id": name, "reward": 1.0} for name in ("one", "two")]
    reply = ask(desk, "whatever", reported, route="reward")
    assert json.loads(reply.body) == {"accepted": 2}
    assert [record.key for record in reply.records] == ["one", "two"]
    assert all(isinstance(event, Outcome) for event in reply.events)
    assert error(ask(desk, "k", {"decision_id": "one", "reward": 7}, route="reward")) == (
        400,
        "reward",
    )


def test_what_is_not_kept_is_answered_and_counted() -> None:
    scorer = Scorer({LOOP: LoopConfig(keep_prob=0.5)}, secret=bytes(16))
    replies = [ask(desk_of(scorer), f"id-{number}") for number in range(100)]
    assert {len(reply.events) for reply in replies} == {1}
    assert 20 < sum(len(reply.records) for reply in replies) < 80
