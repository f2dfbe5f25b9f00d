"""The sink: from the event log into the lake, exactly once by id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import polars as pl

from croupier.offline.lake import SCHEMAS, Lake, TableName
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import (
    IMPORTED,
    Activation,
    Decision,
    Judgement,
    Outcome,
    decode_event,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from croupier.eventlog.log import LogEntry, LogPartition
    from croupier.policy.events import Event

    Progress: TypeAlias = Callable[[int, int], None]

__all__ = ("SinkReport", "decision_row", "sink", "sunk_position")

_APP = "croupier-sink"
_BATCH = 20_000
# What a record is known by; a decision that has no slots is known by having none. An activation is
# known by its decision, and no outcome_id that a caller makes up may pass for one.
_KEYS: dict[TableName, tuple[str, ...]] = {
    "decisions": ("loop", "decision_id", "slot"),
    "outcomes": ("loop", "kind", "outcome_id"),
    "audits": ("loop", "judgement_id"),
}
# `decisions` is committed last and with every batch, empty or not: its progress is the sink's.
_ORDER: tuple[TableName, ...] = ("outcomes", "audits", "decisions")


@dataclass(frozen=True, slots=True)
class SinkReport:
    """What one run of the sink did.

    Attributes
    ----------
    decisions, outcomes
        Rows added to the lake.
    duplicates
        Records with an id that the lake had already.
    position
        Of the log, up to which the lake now has everything.
    """

    decisions: int
    outcomes: int
    duplicates: int
    position: int


def sink(
    log: LogPartition,
    lake: Lake,
    progress: Progress | None = None,
    *,
    batch: int = _BATCH,
    until: int | None = None,
) -> SinkReport:
    """Bring the lake up to the log's end as it is now.

    Every batch is one Delta commit per table that carries the log position reached, so a crash at
    any point repeats nothing and leaves nothing out.

    Parameters
    ----------
    log
        To read from.
    lake
        To write to; hold its lock.
    progress
        Called with positions done and in all.
    batch
        Records to a commit, at least 1.
    until
        Position to stop at, instead of the log's end.

    Raises
    ------
    InvalidInputError
        If a record can't be decoded, or if the lake is ahead of the log: it was filled from
        another one.
    """
    first = sunk_position(lake) or log.start()
    position, end = first, log.end()
    if position > end:
        raise InvalidInputError(
            "log",
            f"expected the one that the lake was filled from, up to position {first}; "
            f"this one ends at {end}",
        )
    end = end if until is None else min(until, end)
    added = dict.fromkeys(_ORDER, 0)
    read = 0
    while position < end:
        entries = log.read(position, limit=min(batch, end - position))
        position = entries[-1].position + 1
        read += len(entries)
        for table, rows in _tables(entries).items():
            added[table] += _append_once(lake, table, rows, position)
        if progress is not None:
            progress(position - first, end - first)
    return SinkReport(
        decisions=added["decisions"],
        outcomes=added["outcomes"],
        duplicates=read - sum(added.values()),
        position=position,
    )


def sunk_position(lake: Lake) -> int | None:
    """Position of the log up to which a lake has everything; None before the first run."""
    return lake.progress("decisions", _APP)


def decision_row(decision: Decision, offset: int) -> dict[str, Any]:
    """One row of the decisions table."""
    return {
        "loop": decision.loop,
        "date": _date(decision.ts),
        "offset": offset,
        "decision_id": decision.decision_id,
        "ts": decision.ts,
        "generation": None if _is_imported(decision) else decision.generation,
        "learning_mode": decision.learning_mode,
        "context": _json(decision.context),
        "actions": _json(decision.actions),
        "action_ids": [action.id for action in decision.actions],
        "excluded": decision.excluded,
        "pmf": decision.pmf,
        "chosen": decision.chosen,
        "action_id": decision.actions[decision.chosen].id,
        "propensity": decision.propensity,
        "baseline": decision.baseline,
        "scores": decision.scores,
        "mix": [msgspec.structs.asdict(component) for component in decision.mix],
        "keep_prob": decision.keep_prob,
        "draw_key": decision.draw_key,
        "deferred": decision.deferred,
        "slot": decision.slot,
        "audit": _json(decision.audit),
        "slate_size": decision.slate_size,
        "shadow": None if decision.shadow is None else msgspec.structs.asdict(decision.shadow),
    }


def _tables(entries: Sequence[LogEntry]) -> dict[TableName, list[dict[str, Any]]]:
    """Rows by table, in the order in which the tables must be committed."""
    tables: dict[TableName, list[dict[str, Any]]] = {table: [] for table in _ORDER}
    for entry in entries:
        try:
            event = decode_event(entry.payload)
        except InvalidInputError as error:
            raise InvalidInputError(
                f"log position {entry.position}: {error.field}", error.expected
            ) from error
        table, row = _row(event, entry.position)
        tables[table].append(row)
    return tables


def _row(event: Event, offset: int) -> tuple[TableName, dict[str, Any]]:
    match event:
        case Decision():
            return "decisions", decision_row(event, offset)
        case Outcome():
            return "outcomes", {
                "loop": event.loop,
                "date": _date(event.ts),
                "offset": offset,
                "kind": "outcome",
                "decision_id": event.decision_id,
                "slot": event.slot,
                "outcome_id": event.outcome_id,
                "reward": event.reward,
                "guardrails": _json(event.guardrails),
                "ts": event.ts,
            }
        case Activation():
            return "outcomes", {
                "loop": event.loop,
                "date": _date(event.ts),
                "offset": offset,
                "kind": "activation",
                "decision_id": event.decision_id,
                "slot": None,
                "outcome_id": f"activation:{event.decision_id}",
                "reward": None,
                "guardrails": "{}",
                "ts": event.ts,
            }
        case Judgement():
            row = msgspec.structs.asdict(event)
            row.pop("version")
            return "audits", row | {
                "date": _date(event.ts),
                "offset": offset,
                "kind": "judgement",
            }


def _append_once(lake: Lake, table: TableName, rows: list[dict[str, Any]], position: int) -> int:
    """Append what the table doesn't have yet; gives the number of rows added."""
    done = lake.progress(table, _APP) or 0
    if done >= position or (not rows and table != "decisions"):
        return 0
    frame = pl.DataFrame(rows, schema=SCHEMAS[table]).filter(pl.col("offset") >= done)
    key = _KEYS[table]
    frame = frame.unique(key, keep="first", maintain_order=True)
    known = (
        lake.scan(table)
        .select(key)
        .join(frame.lazy().select(key), on=key, how="semi", nulls_equal=True)
        .collect()
    )
    frame = frame.join(known, on=key, how="anti", nulls_equal=True, maintain_order="left")
    lake.append(table, frame, app=_APP, progress=position)
    return len(frame)


def _is_imported(decision: Decision) -> bool:
    return any(component.source == IMPORTED for component in decision.mix)


def _date(ts_us: int) -> int:
    """Days since the epoch, which polars takes for a date."""
    return ts_us // 86_400_000_000


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
