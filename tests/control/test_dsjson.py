"""Logs of Vowpal Wabbit's decision service as events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from croupier.control.dsjson import read_interactions, read_observations
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import (
    IMPORTED,
    Action,
    Activation,
    Decision,
    MixComponent,
    Outcome,
    decode_event,
    encode_event,
)
from croupier.policy.loop import LoopConfig
from tests.offline.logs import EPOCH_US

CONFIG = LoopConfig(reward_min=-1.0)
# 2019-11-12T14:22:37.229Z
TS = 1_573_568_557_229_000
LINE: dict[str, Any] = {
    "_label_cost": -1,
    "_label_probability": 0.2,
    "_label_Action": 3,
    "_labelIndex": 2,
    "Timestamp": "2019-11-12T14:22:37.2290000Z",
    "Version": "1",
    "EventId": "f5e774da",
    "a": [3, 1, 2],
    "c": {
        "GUser": {"id": "rnc", "major": "engineering"},
        "_multi": [{"TAction": {"topic": each}} for each in ("herbs", "chess", "ski")],
    },
    "p": [0.2, 0.7, 0.1],
    "VWState": {"m": "N/A"},
}


def read(*values: dict[str, Any]) -> list[Any]:
    body = b"\r\n".join(json.dumps(value).encode() for value in values)
    return list(read_interactions(body, "shop", CONFIG, now_us=EPOCH_US))


def observe(*values: dict[str, Any]) -> list[Any]:
    body = b"\n".join(json.dumps(value).encode() for value in values)
    return list(read_observations(body, "shop", CONFIG, now_us=EPOCH_US))


def test_an_interaction() -> None:
    decision, outcome = read(LINE)
    assert isinstance(decision, Decision)
    assert (decision.decision_id, decision.loop, decision.ts) == ("f5e774da", "shop", TS)
    assert decision.context == {"GUser": {"id": "rnc", "major": "engineering"}}
    assert decision.actions == [
        Action(str(place), {"TAction": {"topic": topic}})
        for place, topic in enumerate(("herbs", "chess", "ski"))
    ]
    assert decision.pmf == pytest.approx([0.7, 0.1, 0.2], abs=1e-15)
    assert sum(decision.pmf) == pytest.approx(1.0, abs=1e-12)
    assert (decision.chosen, decision.propensity) == (2, decision.pmf[2])
    assert (decision.mix, decision.draw_key) == ([MixComponent(IMPORTED, 1.0)], "")
    assert (decision.deferred, decision.keep_prob, decision.baseline) == (False, 1.0, 0)
    assert isinstance(outcome, Outcome)
    assert (outcome.decision_id, outcome.reward, outcome.ts) == ("f5e774da", 1.0, TS)
    for event in (decision, outcome):
        assert decode_event(encode_event(event)) == event


def test_probabilities_of_seven_digits_are_put_to_a_sum_of_one() -> None:
    p = [0.3333333, 0.3333333, 0.3333333]
    decision, _ = read(LINE | {"p": p, "_label_probability": 0.33333331})
    assert sum(decision.pmf) == pytest.approx(1.0, abs=1e-12)


def test_personalizers_own_logs_have_its_features() -> None:
    context = {
        "FromUrl": [{"user": {"age": 3}}, {"user": {"new": True}}],
        "_synthetic": False,
        "_multi": [
            {"_tag": "pasta", "i": {"constant": 1, "id": "pasta"}, "j": [{"a": 1}, {"b": 2}]},
            {"i": {"constant": 1, "id": "salad"}, "j": []},
            {"_tag": "soup"},
        ],
    }
    decision, _ = read(LINE | {"c": context})
    assert decision.context == {"user": {"age": 3, "new": True}}
    assert decision.actions == [
        Action("pasta", {"a": 1, "b": 2}),
        Action("salad", {}),
        Action("soup", {}),
    ]


def test_rewards_stand_in_o_or_else_in_the_label() -> None:
    def rewards(**fields: Any) -> list[float]:
        line = {name: value for name, value in (LINE | fields).items() if value is not None}
        return [event.reward for event in read(line) if isinstance(event, Outcome)]

    assert rewards(o=[{"v": 0.5, "EventId": "f5e774da"}, {"v": 0.25}]) == [0.5, 0.25]
    assert rewards(o=[]) == [1.0]
    assert rewards(_label_cost=-0.0) == [0.0]
    assert rewards(_label_cost=None) == []


def test_deferred_and_subsampled_events() -> None:
    decision, activation, outcome = read(
        LINE | {"DeferredAction": True, "pdrop": 0.5, "o": [{"ActionTaken": True}, {"v": 0.5}]}
    )
    assert (decision.deferred, decision.keep_prob) == (True, 0.5)
    assert activation == Activation(decision_id="f5e774da", loop="shop", ts=TS)
    assert outcome.reward == 0.5


def test_the_same_line_is_the_same_event_and_another_is_not() -> None:
    assert read(LINE) == read(LINE)
    twice = [each.outcome_id for each in read(LINE | {"o": [{"v": 1.0}, {"v": 1.0}]})[1:]]
    assert len(set(twice)) == 2
    other = read(LINE | {"EventId": "another"})[1]
    assert other.outcome_id != read(LINE)[1].outcome_id


def test_observations() -> None:
    first, second = observe({"EventId": "a", "v": 0.5}, {"EventId": "b", "ActionTaken": True})
    assert (first.decision_id, first.reward, first.ts) == ("a", 0.5, EPOCH_US)
    assert second == Activation(decision_id="b", loop="shop", ts=EPOCH_US)
    (third,) = observe({"EventId": "a", "v": 0.5, "Timestamp": LINE["Timestamp"]})
    assert third.ts == TS
    assert third.outcome_id != first.outcome_id
    assert observe({"EventId": "a", "v": 0.5}) == [first]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"EventId": None}, ""),
        ({"EventId": ""}, "EventId"),
        ({"EventId": "x" * 257}, "EventId"),
        ({"Timestamp": "soon"}, ""),
        ({"Timestamp": "2099-01-01T00:00:00Z"}, "Timestamp"),
        ({"a": [3, 1]}, "a"),
        ({"a": [3, 1, 1]}, "a"),
        ({"a": [0, 1, 2]}, "a"),
        ({"p": [0.2, 0.7]}, "p"),
        ({"p": [0.2, 0.7, 0.3]}, "p"),
        ({"p": [-0.2, 0.7, 0.5]}, "p"),
        ({"p": [0.0, 0.5, 0.5], "_label_probability": 0.0}, "p[0]"),
        ({"_label_Action": 1}, "_label_Action"),
        ({"_label_probability": 0.7}, "_label_probability"),
        ({"_label_cost": 7}, "o[0].v"),
        ({"o": [{"v": 2.0}]}, "o[0].v"),
        ({"o": [{"v": 1.0, "EventId": "another"}]}, "o[0].EventId"),
        ({"pdrop": 1.0}, "pdrop"),
        ({"c": {}}, "c._multi"),
        ({"c": {"_multi": [1, 2, 3]}}, "c._multi"),
        ({"c": {"_multi": []}}, "actions"),
        ({"c": {"_multi": [{"_tag": "a"}, {"_tag": "a"}, {}]}}, "actions[1].id"),
        ({"c": {"_multi": [{"_tag": 1}, {}, {}]}}, "c._multi[0]._tag"),
        ({"c": {"_multi": [{"j": 1}, {}, {}]}}, "c._multi[0].j"),
        ({"c": {"FromUrl": {}, "_multi": [{}, {}, {}]}}, "c.FromUrl"),
        ({"c": {"_slots": [], "_multi": [{}, {}, {}]}}, "c._slots"),
        ({"c": 3}, ""),
    ],
    ids=str,
)
def test_a_line_that_cannot_be_is_refused_by_its_number(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        read(LINE, LINE | {"EventId": "second"} | change)
    assert refused.value.field == (f"line 2: {field}" if field else "line 2")


@pytest.mark.parametrize("body", [b"", b"\n \n", b"\x00\x01", b"[]", b"3", b'{"EventId": "a"}'])
def test_what_is_no_log_is_refused(body: bytes) -> None:
    for reader in (read_interactions, read_observations):
        with pytest.raises(InvalidInputError):
            reader(body, "shop", CONFIG, now_us=EPOCH_US)


def test_an_observation_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="line 1: EventId"):
        observe({"v": 0.5})
    with pytest.raises(InvalidInputError, match="line 2: v"):
        observe({"EventId": "a", "v": 0.5}, {"EventId": "a", "ActionTaken": False})
