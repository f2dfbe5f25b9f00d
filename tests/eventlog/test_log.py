from __future__ import annotations

from typing import Any

import msgspec
import pytest

from croupier.eventlog.log import LogConfig, LogEntry, Record
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import (
    Action,
    Activation,
    Decision,
    Judgement,
    MixComponent,
    Outcome,
    decode_event,
)

DECISION = Decision(
    decision_id="d1",
    loop="checkout",
    ts=1,
    generation=0,
    learning_mode="online",
    context={"city": "Paris"},
    actions=[Action("a"), Action("b", {"price": 2.5})],
    excluded=[],
    pmf=[0.5, 0.5],
    chosen=1,
    propensity=0.5,
    baseline=0,
    scores=None,
    mix=[MixComponent("uniform", 1.0)],
    draw_key="0123456789abcdef",
)
OUTCOME = Outcome(decision_id="d1", loop="checkout", outcome_id="o1", reward=1.0, ts=2)
ACTIVATION = Activation(decision_id="d1", loop="checkout", ts=3)
JUDGEMENT = Judgement(
    judgement_id="j1",
    loop="checkout",
    decision_id="d1",
    other_decision_id="d2",
    auditor="ana",
    distance=0.5,
    ts=4,
)


@pytest.mark.parametrize(
    ("event", "kind", "key"),
    [
        (DECISION, "decision", "d1"),
        (OUTCOME, "outcome", "d1"),
        (ACTIVATION, "activation", "d1"),
        (JUDGEMENT, "judgement", "j1"),
    ],
)
def test_a_record_carries_its_event(
    event: Decision | Outcome | Activation | Judgement, kind: str, key: str
) -> None:
    record = Record.of(event)
    assert (record.loop, record.kind, record.key) == ("checkout", kind, key)
    assert decode_event(record.payload) == event


def test_records_and_entries_are_immutable() -> None:
    record = Record.of(OUTCOME)
    entry = LogEntry(1, record.loop, record.kind, record.key, record.payload)
    with pytest.raises(AttributeError):
        record.key = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        entry.position = 2  # type: ignore[misc]


@pytest.mark.parametrize("field", ["loop", "kind", "key"])
def test_a_record_that_no_log_could_store_is_refused(field: str) -> None:
    fields = {"loop": "checkout", "kind": "decision", "key": "d1"} | {field: "\ud800"}
    with pytest.raises(InvalidInputError, match="surrogates"):
        Record(**fields, payload=b"")


def test_the_default_configuration_is_durable() -> None:
    assert LogConfig().durability == "commit"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_rows": 0}, "segment_rows must be at least 1, got 0"),
        ({"busy_timeout_s": 0.0}, r"busy_timeout_s must be in \(0, 3600\], got 0.0"),
        ({"busy_timeout_s": float("inf")}, "busy_timeout_s must be in"),
        ({"busy_timeout_s": float("nan")}, "busy_timeout_s must be in"),
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"max_batch": 10, "max_pending": 9}, r"max_pending must be at least max_batch \(10\)"),
    ],
)
def test_a_configuration_says_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogConfig(**options)


@pytest.mark.parametrize("options", [{"segment_row": 5}, {"durability": "maybe"}])
def test_a_configuration_file_with_an_unknown_word_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(options, LogConfig)
