"""What the tests of this folder share: events with all kinds of values, and logs that hold them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from croupier.eventlog.log import Record
from croupier.offline.lake import Lake
from croupier.policy.events import (
    Acknowledgement,
    Action,
    Activation,
    Decision,
    Event,
    Judgement,
    MixComponent,
    Outcome,
    Override,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import polars as pl

    from croupier.eventlog.log import EventLog
    from croupier.offline.lake import TableName

EPOCH_US = 1_790_000_000_000_000
SUNK: tuple[TableName, ...] = ("decisions", "outcomes", "audits")


def decision(decision_id: str, ts: int = EPOCH_US, **changes: Any) -> Decision:
    """A decision between two actions."""
    values: dict[str, Any] = {
        "decision_id": decision_id,
        "loop": "shop",
        "ts": ts,
        "generation": 0,
        "learning_mode": "online",
        "context": {},
        "actions": [Action("a"), Action("b")],
        "excluded": [],
        "pmf": [0.5, 0.5],
        "chosen": 0,
        "propensity": 0.5,
        "baseline": 0,
        "scores": None,
        "mix": [MixComponent("generation:0", 1.0)],
        "draw_key": "0" * 16,
    }
    return Decision(**values | changes)


def outcome(decision_id: str, outcome_id: str, ts: int = EPOCH_US, **changes: Any) -> Outcome:
    """An outcome with reward 1."""
    values: dict[str, Any] = {"loop": "shop", "reward": 1.0} | changes
    return Outcome(decision_id=decision_id, outcome_id=outcome_id, ts=ts, **values)


def mixed_events(count: int, seed: int) -> list[Event]:
    """Events of all kinds in two loops, a fifth of them repeats of an earlier id."""
    rng = random.Random(seed)
    events: list[Event] = []
    for number in range(count):
        if events and rng.random() < 0.2:
            events.append(rng.choice(events))
            continue
        loop, ts = rng.choice(["shop", "mail"]), EPOCH_US + number * 3_600_000_000
        of = f"d{rng.randrange(count)}"
        kinds = ["decision", "decision", "outcome", "activation", "judgement", "seen", "override"]
        match rng.choice(kinds):
            case "decision":
                context = {"n": number, "x": rng.random()}
                events.append(decision(f"d{number}", ts, loop=loop, context=context))
            case "outcome":
                events.append(outcome(of, f"o{number}", ts, loop=loop, reward=rng.random()))
            case "activation":
                events.append(Activation(decision_id=of, loop=loop, ts=ts))
            case "override":
                events.append(
                    Override(
                        override_id=f"r{number}",
                        loop=loop,
                        action=rng.choice(["promote", "rollback"]),
                        generation=number,
                        champion=0,
                        reason="returns ☕",
                        by="bo",
                        ts=ts,
                    )
                )
            case "seen":
                events.append(
                    Acknowledgement(
                        acknowledgement_id=f"a{number}", loop=loop, alert_id=of, by="bo", ts=ts
                    )
                )
            case _:
                events.append(
                    Judgement(
                        judgement_id=f"j{number}",
                        loop=loop,
                        decision_id=of,
                        other_decision_id="d0",
                        auditor="anna",
                        distance=rng.random(),
                        ts=ts,
                    )
                )
    return events


def append(log: EventLog, events: Iterable[Event]) -> None:
    """Put events into a log in one go."""
    log.append([Record.of(event) for event in events])


def table(directory: Path, name: TableName) -> pl.DataFrame:
    """All of a table, in the order of the log."""
    return Lake(directory).scan(name).sort("offset").collect()
