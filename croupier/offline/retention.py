"""Retention: forgetting what was logged once it is old enough, in the lake and in the event log.

What is deleted is a loop's whole days, and never a row that something may still come of: one that
isn't in the lake yet, a decision that isn't joined, or an outcome of such a decision. Each table is
one Delta commit; `interactions` comes last, so that after a crash no decision is there without its
interaction, which would be joined anew. A mark in the first commit says how far a loop was
forgotten; :func:`sink_again` and :func:`forget_again` bring a lake that is built anew from the log
to the same point. The event log lets go of the segments that hold nothing that the lake still has.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl

from croupier.offline.pending import first_unjoined
from croupier.offline.sink import sink, sunk_position, tables_of
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import decode_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from croupier.eventlog.log import EventLog, LogEntry, LogPartition
    from croupier.offline.lake import Lake, TableName
    from croupier.offline.sink import SinkReport
    from croupier.policy.loop import LoopConfig

__all__ = (
    "RetentionReport",
    "forget_again",
    "forget_all",
    "forgotten_before",
    "retain",
    "sink_again",
    "sunk_positions",
)

_DAY = timedelta(days=1)
_EPOCH = date(1970, 1, 1)
# In this order, see above.
_TABLES: tuple[TableName, ...] = ("decisions", "outcomes", "audits", "interactions")
_LOGGED: tuple[TableName, ...] = ("decisions", "outcomes", "audits")
# How many entries that can't be read are passed over to find out how old they are.
_LOOKED_AT = 100
_BY_DATE, _BY_POSITION = "croupier-forgotten-days", "croupier-forgotten-positions"


@dataclass(frozen=True, slots=True)
class RetentionReport:
    """What was forgotten.

    Attributes
    ----------
    decisions
        How many, by loop; loops that lost none are left out.
    segments
        Of the event log that were removed.
    """

    decisions: dict[str, int]
    segments: int


def retain(
    lake: Lake, log: EventLog, loops: Mapping[str, LoopConfig], *, now_us: int
) -> RetentionReport:
    """Forget what is older than its loop's `log_retention`.

    Parameters
    ----------
    lake
        Hold its lock. What isn't joined yet stays, so run the join first.
    log
        That the lake is filled from.
    loops
        Configuration by name; a loop without a retention keeps everything.
    now_us
        Now, in microseconds since the epoch.
    """
    forgotten: dict[str, int] = {}
    parts = log.partitions()
    limited = {
        name: config.log_retention_us
        for name, config in loops.items()
        if config.log_retention_us is not None
    }
    for name, retention in limited.items():
        until = _day(now_us - retention)
        unsunk = _first_unsunk(lake, _of(name, parts))
        if unsunk is not None:
            until = min(until, _day(unsunk) - _DAY)
        waiting = first_unjoined(lake, name, loops[name])
        if waiting is not None:
            # Clocks differ: its outcome may be stamped before it, on the day before.
            until = min(until, waiting - _DAY)
        removed = _forget_days(lake, name, until)
        if removed:
            forgotten[name] = removed
    # What was forgotten whole may only now be in segments that are full.
    due = bool(limited) or any(_forgotten(lake, name, parts) for name in loops)
    return RetentionReport(forgotten, _release(lake, parts) if due else 0)


def forget_all(lake: Lake, log: EventLog, loop: str) -> RetentionReport:
    """Forget everything of a loop that is in the lake, joined or not.

    Parameters
    ----------
    lake
        Hold its lock. What isn't in the lake yet stays, so run the sink first.
    log
        That the lake is filled from. A segment goes once no loop needs it; one that isn't full yet
        is left to :func:`retain`.
    loop
        Whose.
    """
    parts = log.partitions()
    sunk = {each: sunk_position(lake, each) or 0 for each in _of(loop, parts)}
    removed = _forget_positions(lake, loop, sunk)
    return RetentionReport({loop: removed} if removed else {}, _release(lake, parts))


def forgotten_before(lake: Lake, loop: str, part: LogPartition) -> Callable[[int, int], bool]:
    """Whether a loop's record at a position of a partition, of a time, was forgotten."""
    days = lake.progress("decisions", f"{_BY_DATE}:{loop}") or 0
    until = lake.progress("decisions", _mark(loop, part)) or 0
    day_us = _DAY // timedelta(microseconds=1)
    return lambda position, ts_us: position < until or ts_us < days * day_us


def sink_again(
    log: EventLog,
    fresh: Lake,
    lake: Lake,
    loops: Iterable[str],
    progress: Callable[[int, int], None] | None = None,
    *,
    until: int | Mapping[str, int] | None = None,
) -> list[SinkReport]:
    """Bring a new lake as far as another one, forgetting on the way what was forgotten there whole.

    An id that was forgotten may have been used again, so the order matters.

    Parameters
    ----------
    log
        To read from.
    fresh, lake
        The new one, whose lock is held, and the one that it is to equal.
    loops
        Names of all loops.
    progress
        Called with positions done and in all, of the last stretch.
    until
        How far the other one is to be followed; as far as it has come now if None.
    """
    parts = log.partitions()
    marks = {loop: _forgotten(lake, loop, parts) for loop in loops}
    reports = []
    for loop, forgotten in sorted(marks.items(), key=lambda mark: sorted(mark[1].values())):
        if forgotten:
            reach = {each.name: position for each, position in forgotten.items()}
            alone = [reach.get(each.name) for each in parts if each.loop is None]
            reports.append(sink(log, fresh, until=alone[0] if alone else reach, again=True))
            _forget_positions(fresh, loop, forgotten)
    if until is None:
        until = sunk_positions(lake, parts)
    return [*reports, sink(log, fresh, progress, until=until, again=True)]


def sunk_positions(lake: Lake, parts: Sequence[LogPartition]) -> int | dict[str, int] | None:
    """Up to where a lake has everything, by partition if the log has several; None if nowhere."""
    sunk = {part.name: sunk_position(lake, part) for part in parts}
    if all(position is None for position in sunk.values()):
        return None
    alone = [sunk[part.name] for part in parts if part.stream is None]
    return alone[0] if alone else {name: position or 0 for name, position in sunk.items()}


def forget_again(fresh: Lake, lake: Lake, loop: str) -> None:
    """Forget the days in a new lake, once it is joined, that were forgotten in another one."""
    days = lake.progress("decisions", f"{_BY_DATE}:{loop}")
    if days is not None:
        _forget_days(fresh, loop, _EPOCH + timedelta(days=days))


def _forget_days(lake: Lake, loop: str, until: date) -> int:
    """Forget a loop's days before one; gives the number of decisions."""
    days = (until - _EPOCH).days
    mark = f"{_BY_DATE}:{loop}"
    gone = (pl.col("date") < until) & (pl.col("loop") == loop)
    if all(lake.scan(table).filter(gone).head(1).collect().is_empty() for table in _TABLES):
        return 0
    # A name has nothing in it that would have to be quoted, see `valid_loop_name`.
    predicate = f"date < '{until.isoformat()}' AND loop = '{loop}'"
    return _forget(lake, gone, dict.fromkeys(_TABLES, predicate), {mark: days})


def _forget_positions(lake: Lake, loop: str, reach: Mapping[LogPartition, int]) -> int:
    """Forget what a loop has below positions of the log; gives the number of decisions."""
    below = {table: _below(table, reach) for table in _TABLES}
    predicates = {
        # Where there is no such column, all rows come from a log without partitions.
        table: f"loop = '{loop}'"
        if "partition" in below[table] and not lake.has_column(table, "partition")
        else f"loop = '{loop}' AND ({below[table]})"
        for table in _TABLES
    }
    gone = (pl.col("loop") == loop) & pl.sql_expr(below["decisions"])
    return _forget(lake, gone, predicates, {_mark(loop, at): reach[at] for at in reach})


def _below(table: TableName, reach: Mapping[LogPartition, int]) -> str:
    """SQL that is true of a table's rows that stand below positions of the log.

    In a log with partitions, what another log has brought into the lake counts as before it.
    """
    source = "decisions" if table == "interactions" else table
    stretches = []
    for part, position in reach.items():
        if part.number is None:
            return f'"offset" < {position}'
        if source in tables_of(part):
            stretches.append(f'"partition" = {part.number} AND "offset" < {position}')
    return " OR ".join(['"partition" IS NULL', *stretches])


def _forgotten(lake: Lake, loop: str, parts: Iterable[LogPartition]) -> dict[LogPartition, int]:
    """The positions of the log below which a loop was forgotten whole."""
    marks = {part: lake.progress("decisions", _mark(loop, part)) for part in _of(loop, parts)}
    return {part: position for part, position in marks.items() if position is not None}


def _mark(loop: str, part: LogPartition) -> str:
    return f"{_BY_POSITION}:{loop}" + ("" if part.number is None else f":{part.name}")


def _of(loop: str, parts: Iterable[LogPartition]) -> list[LogPartition]:
    """Where a loop's records are."""
    return [part for part in parts if part.loop in {None, loop}]


def _forget(
    lake: Lake, gone: pl.Expr, predicates: Mapping[TableName, str], marks: Mapping[str, int]
) -> int:
    removed: int = lake.scan("decisions").filter(gone).select(pl.len()).collect().item()
    for table in _TABLES:
        lake.delete(table, predicates[table], marks=marks if table == "decisions" else None)
    return removed


def _first_unsunk(lake: Lake, parts: Iterable[LogPartition]) -> int | None:
    """Time of the first events that aren't in the lake; None if all are."""
    times = []
    for part in parts:
        position = max(sunk_position(lake, part) or 0, part.start())
        if position < part.end() and (entries := part.read(position, limit=_LOOKED_AT)):
            times.append(next(filter(None, map(_time, entries)), 0))
    return min(times, default=None)


def _time(entry: LogEntry) -> int | None:
    """When an entry was logged; None if it can't be read."""
    try:
        return decode_event(entry.payload).ts
    except InvalidInputError:
        return None


def _release(lake: Lake, parts: Iterable[LogPartition]) -> int:
    """Let the log go of what the lake has had and no longer has."""
    released = 0
    for part in parts:
        position = sunk_position(lake, part)
        if position is None:
            continue
        for table in tables_of(part):
            first = _first_position(lake, table, part)
            position = position if first is None else min(position, first)
        released += part.release(position)
    return released


def _first_position(lake: Lake, table: TableName, part: LogPartition) -> int | None:
    """The first position of a partition that a table has a row of; None if it has none.

    Bounds of the files' positions tell where it can be: mostly one file is read.
    """
    first: int | None = None
    files = lake.snapshot(table, part.loop).files
    for file in sorted(files, key=lambda each: -1 if each.first is None else each.first):
        if first is not None and file.first is not None and file.first >= first:
            break
        rows = lake.read(table, [file.path])
        if part.number is not None:
            rows = rows.filter(pl.col("partition") == part.number)
        found = rows.select(pl.col("offset").min()).collect().item()
        if found is not None:
            first = found if first is None else min(first, found)
    return first


def _day(ts_us: int) -> date:
    return datetime.fromtimestamp(max(ts_us, 0) / 1e6, tz=UTC).date()
