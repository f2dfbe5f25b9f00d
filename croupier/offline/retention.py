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

from croupier.offline.sink import sink, sunk_position
from croupier.policy.events import decode_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from croupier.eventlog.log import LogPartition
    from croupier.offline.lake import Lake, TableName
    from croupier.offline.sink import SinkReport
    from croupier.policy.loop import LoopConfig

__all__ = ("RetentionReport", "forget_again", "forget_all", "retain", "sink_again")

_DAY = timedelta(days=1)
_EPOCH = date(1970, 1, 1)
# In this order, see above.
_TABLES: tuple[TableName, ...] = ("decisions", "outcomes", "audits", "interactions")
_LOGGED: tuple[TableName, ...] = ("decisions", "outcomes", "audits")
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
    lake: Lake, log: LogPartition, loops: Mapping[str, LoopConfig], *, now_us: int
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
    limited = {
        name: config.log_retention_us
        for name, config in loops.items()
        if config.log_retention_us is not None
    }
    if limited:
        unsunk = _first_unsunk(lake, log)
    for name, retention in limited.items():
        until = _day(now_us - retention)
        if unsunk is not None:
            until = min(until, _day(unsunk) - _DAY)
        waiting = _first_unjoined(lake, name, loops[name])
        if waiting is not None:
            # Clocks differ: its outcome may be stamped before it, on the day before.
            until = min(until, waiting - _DAY)
        removed = _forget_days(lake, name, until)
        if removed:
            forgotten[name] = removed
    # What was forgotten whole may only now be in segments that are full.
    marks = (lake.progress("decisions", f"{_BY_POSITION}:{name}") for name in loops)
    due = bool(limited) or any(mark is not None for mark in marks)
    return RetentionReport(forgotten, _release(lake, log) if due else 0)


def forget_all(lake: Lake, log: LogPartition, loop: str) -> RetentionReport:
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
    position = sunk_position(lake) or 0
    removed = _forget_positions(lake, loop, position)
    return RetentionReport({loop: removed} if removed else {}, _release(lake, log))


def sink_again(
    log: LogPartition,
    fresh: Lake,
    lake: Lake,
    loops: Iterable[str],
    progress: Callable[[int, int], None] | None = None,
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
    """
    marks = {loop: lake.progress("decisions", f"{_BY_POSITION}:{loop}") for loop in loops}
    reports = []
    for position, loop in sorted((at, loop) for loop, at in marks.items() if at is not None):
        reports.append(sink(log, fresh, until=position))
        _forget_positions(fresh, loop, position)
    return [*reports, sink(log, fresh, progress, until=sunk_position(lake))]


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
    return _forget(lake, gone, f"date < '{until.isoformat()}' AND loop = '{loop}'", mark, days)


def _forget_positions(lake: Lake, loop: str, position: int) -> int:
    """Forget what a loop has below a position of the log; gives the number of decisions."""
    mark = f"{_BY_POSITION}:{loop}"
    gone = (pl.col("offset") < position) & (pl.col("loop") == loop)
    predicate = f"loop = '{loop}' AND offset < {position}"
    return _forget(lake, gone, predicate, mark, position)


def _forget(lake: Lake, gone: pl.Expr, predicate: str, mark: str, progress: int) -> int:
    removed: int = lake.scan("decisions").filter(gone).select(pl.len()).collect().item()
    for table in _TABLES:
        # A name has nothing in it that would have to be quoted, see `valid_loop_name`.
        marked = (mark, progress) if table == "decisions" else None
        lake.delete(table, predicate, mark=marked)
    return removed


def _first_unsunk(lake: Lake, log: LogPartition) -> int | None:
    """Time of the first event that isn't in the lake; None if all are."""
    position = max(sunk_position(lake) or 0, log.start())
    entries = log.read(position, limit=1) if position < log.end() else []
    return decode_event(entries[0].payload).ts if entries else None


def _first_unjoined(lake: Lake, loop: str, config: LoopConfig) -> date | None:
    """Day of the first decision that an interaction may still come of; None if there is none.

    A deferred one that was never activated in time is none, and was never to become one.
    """
    key = ("decision_id", "slot")
    window = pl.duration(microseconds=config.attribution_window_us)
    activated = (
        lake.scan("outcomes", loop)
        .filter(pl.col("kind") == "activation")
        .select("decision_id", activated="ts")
    )
    left = (
        lake.scan("decisions", loop)
        .join(lake.scan("interactions", loop), on=key, how="anti", nulls_equal=True)
        .join(activated, on="decision_id", how="left")
        .filter(~pl.col("deferred") | (pl.col("activated") <= pl.col("ts") + window))
        .select(pl.col("date").min())
        .collect()
    )
    first: date | None = left.item()
    return first


def _release(lake: Lake, log: LogPartition) -> int:
    """Let the log go of what the lake has had and no longer has."""
    position = sunk_position(lake)
    if position is None:
        return 0
    for table in _LOGGED:
        first = lake.scan(table).select(pl.col("offset").min()).collect().item()
        if first is not None:
            position = min(position, first)
    return log.release(position)


def _day(ts_us: int) -> date:
    return datetime.fromtimestamp(max(ts_us, 0) / 1e6, tz=UTC).date()
