"""The sink: from the event log into the lake, exactly once by id.

Every partition of the log is brought over by itself. A batch is one Delta commit for each table it
goes to, and carries the position reached as an application transaction; so rows and progress are
seen together or not at all, whatever happens to this process. A commit is made only if the
progress is still what the batch began at. So of two processes that bring over the same partition,
because one has been given up by its group and doesn't know it, or because a nightly job runs beside
the group, one has its batch refused, looks how far the lake has come, and goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from logging import getLogger
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import polars as pl
import pyarrow as pa
from msgspec import UNSET

from croupier.offline.engine import LOCAL
from croupier.offline.known_keys import KnownKeys
from croupier.offline.lake import SCHEMAS, Lake, ProgressError, TableName
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import (
    IMPORTED,
    Acknowledgement,
    Activation,
    Decision,
    Judgement,
    Outcome,
    Override,
    decode_event,
    event_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from croupier.eventlog.log import EventLog, LogEntry, LogPartition
    from croupier.offline.engine import Engine
    from croupier.policy.events import Event, SessionStep

    Progress: TypeAlias = Callable[[int, int], None]

__all__ = (
    "Brought",
    "PartitionSink",
    "PartitionState",
    "SinkReport",
    "decision_row",
    "partition_states",
    "report_of",
    "sink",
    "sunk_in",
    "sunk_position",
    "tables_of",
)

_APP = "croupier-sink"
_BATCH = 20_000
# What a record is known by; a decision that has no slots is known by having none. An activation is
# known by its decision, and no outcome_id that a caller makes up may pass for one.
_KEYS: dict[TableName, tuple[str, ...]] = {
    "decisions": ("loop", "decision_id", "slot"),
    "outcomes": ("loop", "kind", "outcome_id"),
    "audits": ("loop", "judgement_id"),
}
# The last one is committed with every batch, empty or not: its progress is the partition's.
_ORDER: tuple[TableName, ...] = ("outcomes", "audits", "decisions")
_STREAMS: dict[str, TableName] = {
    "decisions": "decisions",
    "outcomes": "outcomes",
    "audits": "audits",
}
# The year 10000: beyond it there is no date that the lake could write down.
_LATEST_US = 253_402_300_800_000_000

_UNFIT = (pa.ArrowException, OverflowError, TypeError, ValueError)

_logger = getLogger(__name__)


class SinkReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one run of the sink did.

    Attributes
    ----------
    decisions, outcomes
        Rows added to the lake.
    duplicates
        Records with an id that the lake had already.
    position
        Of the log, up to which the lake now has everything; by partition if it has several.
    set_aside
        Records that can't be read, and were put where somebody will find them.
    missed
        Positions that the log had let go of before they were sunk.
    """

    decisions: int
    outcomes: int
    duplicates: int
    position: int | dict[str, int]
    set_aside: int = 0
    missed: int = 0


class PartitionState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a partition of the log goes, and how much of it the lake has.

    Attributes
    ----------
    partition
        Its name.
    start, end
        See :class:`~croupier.eventlog.log.LogPartition`.
    sunk
        Position up to which the lake has everything; None if nothing was ever sunk.
    lag
        Positions that are not in the lake yet.
    """

    partition: str
    start: int
    end: int
    sunk: int | None
    lag: int


def sink(
    log: EventLog,
    lake: Lake,
    progress: Progress | None = None,
    *,
    batch: int = _BATCH,
    until: int | Mapping[str, int] | None = None,
    again: bool = False,
    engine: Engine = LOCAL,
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
        Position to stop at, instead of the log's end; by partition if it has several.
    again
        Whether the log was sunk before, into another lake: what can't be read was set aside then.
    engine
        Brings the partitions over, side by side, where the log is one that any machine can read. A
        log that is one sequence is brought over by this process. What a worker had committed before
        it died is not in the report.

    Raises
    ------
    InvalidInputError
        If a record can't be decoded and the log has no place for such, or if the lake is ahead of
        the log: it was filled from another one.
    LogUnavailableError
        If the log can't be read now.
    """
    parts = log.partitions()
    sinks = [PartitionSink(each, lake, again=again) for each in parts]
    ends = [each.end(until) for each in sinks]
    first = [each.begin() for each in sinks]
    total = sum(map(max, ends, first)) - sum(first)

    def show() -> None:
        if progress is not None:
            done = sum(other.position for other in sinks) - sum(first)
            progress(min(done, total), total)

    if engine.distributed and all(each.stream is not None for each in parts):
        behind = [(each, end) for each, end in zip(sinks, ends, strict=True) if each.position < end]
        asked = [(each.partition.name, end) for each, end in behind]
        found = engine.map(_bring_over, asked, _Sinking(log, lake, batch, again))
        for (each, _), brought in zip(behind, found, strict=True):
            each.credit(brought)
            show()
        return report_of(sinks)
    for each, end in zip(sinks, ends, strict=True):
        for _ in each.steps(end, batch):
            show()
    return report_of(sinks)


def sunk_position(lake: Lake, partition: LogPartition | None = None) -> int | None:
    """Position of a log or partition up to which a lake has everything; None before the first run.

    Parameters
    ----------
    lake
        Where its records go.
    partition
        Which one; the only one of a log that is one sequence if None.
    """
    if partition is None:
        return lake.progress(_ORDER[-1], _APP)
    return lake.progress(tables_of(partition)[-1], _app(partition))


def sunk_in(lake: Lake, table: TableName, parts: Sequence[LogPartition], version: int) -> pl.Expr:
    """Which rows a version of a table had; all if Delta has forgotten that version.

    By their positions: files of that version may be gone.
    """
    if not lake.has_version(table, version):
        return pl.lit(value=True)
    own: list[pl.Expr] = []
    for part in parts:
        if table not in tables_of(part):
            continue
        below = pl.col("offset") < (lake.progress(table, _app(part), version) or 0)
        if part.number is None:
            return below
        own.append((pl.col("partition") == part.number) & below)
    return pl.any_horizontal(pl.col("partition").is_null(), *own)


def partition_states(log: EventLog, lake: Lake) -> list[PartitionState]:
    """The state of every partition.

    Raises
    ------
    LogUnavailableError
        If the log can't be read now.
    """
    states = []
    for part in log.partitions():
        sunk, start, end = sunk_position(lake, part), part.start(), part.end()
        lag = end - max(start, sunk or start)
        states.append(
            PartitionState(partition=part.name, start=start, end=end, sunk=sunk, lag=max(0, lag))
        )
    return states


def tables_of(partition: LogPartition) -> tuple[TableName, ...]:
    """The tables that a partition's records go to, in the order in which they are committed."""
    return _ORDER if partition.stream is None else (_STREAMS[partition.stream],)


class PartitionSink:
    """Brings one partition of a log into the lake, batch by batch.

    Parameters
    ----------
    partition, lake
        From where and to where.
    again
        See :func:`sink`.

    Attributes
    ----------
    position
        Up to which the lake has everything, as far as is known here.
    added, read, set_aside, missed
        What has become of records so far, see :class:`SinkReport`; `added` by table.
    """

    def __init__(self, partition: LogPartition, lake: Lake, *, again: bool = False) -> None:
        self.partition = partition
        self.position = 0
        self.added: dict[TableName, int] = dict.fromkeys(_ORDER, 0)
        self.read = self.set_aside = self.missed = 0
        self._lake = lake
        self._again = again
        self._app = _app(partition)
        self._tables = tables_of(partition)
        self._known: dict[TableName, KnownKeys] = {}

    def begin(self) -> int:
        """Look how far the lake has come, and go on from there; gives the position."""
        self._known.clear()
        sunk = self._lake.progress(self._tables[-1], self._app)
        start = self.partition.start() if sunk is None or self.partition.expires else sunk
        if sunk is not None and start > sunk:
            self.missed += start - sunk
            _logger.error(
                "positions %d to %d of %s were let go of before they were in the lake",
                sunk,
                start - 1,
                self.partition.name,
            )
        self.position = start if sunk is None else max(sunk, start)
        return self.position

    def end(self, until: int | Mapping[str, int] | None = None) -> int:
        """The partition's end, or a position before it that was asked for.

        Raises
        ------
        InvalidInputError
            If the lake is ahead of the partition.
        """
        sunk, end = self._lake.progress(self._tables[-1], self._app), self.partition.end()
        if sunk is not None and sunk > end:
            raise InvalidInputError(
                "log",
                f"expected the one that the lake was filled from, up to position {sunk}; "
                f"this one ends at {end}",
            )
        if until is None:
            return end
        return min(end, until if isinstance(until, int) else until.get(self.partition.name, 0))

    def steps(self, end: int, limit: int) -> Iterator[None]:
        """Bring over everything up to a position that is not beyond the end, step by step."""
        while self.position < end:
            try:
                self.step(end, limit)
            except ProgressError:
                self.begin()
            yield

    def credit(self, brought: Brought) -> None:
        """Count what another process has brought over of this partition."""
        self.position = max(self.position, brought.position)
        self.read += brought.read
        self.set_aside += brought.set_aside
        for table, count in brought.added.items():
            self.added[table] += count

    def step(self, end: int, limit: int) -> None:
        """Bring over the next records, at most up to a position that is not beyond the end.

        Raises
        ------
        ProgressError
            If somebody else has brought over some; :meth:`begin` again.
        InvalidInputError, LogUnavailableError
            See :func:`sink`.
        """
        limit = min(limit, end - self.position)
        found = self.partition.read(self.position, limit=limit)
        entries = [each for each in found if each.position < end]
        # Fewer than asked for: whatever else there is up to the end isn't to be seen.
        position = end if len(entries) < limit else entries[-1].position + 1
        tables, dead = self._rows(entries)
        if dead and not self._again:
            # Before the commit that passes over them: they may be set aside twice, but not lost.
            self.partition.set_aside(dead)
        with self._lake.keeping_files():
            added = {
                table: self._append_once(table, rows, position) for table, rows in tables.items()
            }
        for table, count in added.items():
            self.added[table] += count
        self.read += len(entries)
        self.set_aside += len(dead)
        self.position = position

    def _rows(
        self, entries: Sequence[LogEntry]
    ) -> tuple[dict[TableName, pl.DataFrame], list[tuple[LogEntry, InvalidInputError]]]:
        """Rows by table, in the order in which the tables must be committed, and what is none."""
        rows: dict[TableName, list[dict[str, Any]]] = {table: [] for table in self._tables}
        of: dict[int, LogEntry] = {}
        dead = []
        for entry in entries:
            try:
                table, row = self._row(entry)
            except InvalidInputError as error:
                dead.append((entry, error))
            else:
                rows[table].append(row)
                of[entry.position] = entry
        frames = {}
        for table, found in rows.items():
            frames[table], unfit = _frame(table, found)
            dead += [(of[row["offset"]], error) for row, error in unfit]
        return frames, dead

    def _row(self, entry: LogEntry) -> tuple[TableName, dict[str, Any]]:
        if entry.flaw is not None:
            raise InvalidInputError("record", entry.flaw)
        event = decode_event(entry.payload)
        if not 0 <= event.ts < _LATEST_US:
            raise InvalidInputError("event.ts", f"expected a time before 10000, got {event.ts}")
        table, row = _row(event, entry.position, self.partition.number)
        if self.partition.loop is not None:
            self._check_place(event, table, entry)
        return table, row

    def _check_place(self, event: Event, table: TableName, entry: LogEntry) -> None:
        """Whether an event stands where it belongs: elsewhere its repeats would not be found."""
        if event.loop != self.partition.loop:
            raise InvalidInputError(
                "event.loop", f"expected {self.partition.loop!r}, got {event.loop!r}"
            )
        if table not in self._tables:
            raise InvalidInputError("event.type", f"expected one of {self._tables[0]}")
        key = event_key(event)
        if key != entry.key:
            raise InvalidInputError("record.key", f"expected {key!r}, got {entry.key!r}")

    def _append_once(self, table: TableName, rows: pl.DataFrame, position: int) -> int:
        """Append what the table doesn't have yet; gives the number of rows added."""
        done = self._lake.progress(table, self._app)
        last = table == self._tables[-1]
        if last and done is not None and done > self.position:
            raise ProgressError(f"{self._app} has come to {done} already")
        if (done or 0) >= position or (rows.is_empty() and not last):
            return 0
        rows = rows.filter(pl.col("offset") >= (done or 0))
        known = self._known_keys(table)
        rows = known.new(rows)
        self._lake.append(table, rows, app=self._app, progress=position, after=done)
        known.add(rows)
        return len(rows)

    def _known_keys(self, table: TableName) -> KnownKeys:
        if table not in self._known:
            where = pl.lit(value=True)
            if self.partition.number is not None:
                # A key is always in the same partition; but for one that came from another log.
                own = pl.col("partition") == self.partition.number
                where = (own | pl.col("partition").is_null()) & (
                    pl.col("loop") == self.partition.loop
                )
            self._known[table] = KnownKeys(self._lake, table, _KEYS[table], where)
        return self._known[table]


@dataclass(frozen=True, slots=True)
class Brought:
    """What was brought over of a partition, see :class:`PartitionSink`."""

    position: int
    added: dict[TableName, int]
    read: int
    set_aside: int


@dataclass(frozen=True, slots=True)
class _Sinking:
    """From where, to where and how partitions are brought over."""

    log: EventLog
    lake: Lake
    batch: int
    again: bool


def _bring_over(given: _Sinking, asked: tuple[str, int]) -> Brought:
    """Bring over a partition, by its name, up to a position; in a process of a cluster."""
    name, end = asked
    # It was opened for this task, where it was brought to.
    with given.log as log:
        (partition,) = (each for each in log.partitions() if each.name == name)
        sink = PartitionSink(partition, given.lake, again=given.again)
        sink.begin()
        for _ in sink.steps(end, given.batch):
            pass
        return Brought(sink.position, sink.added, sink.read, sink.set_aside)


def _app(partition: LogPartition) -> str:
    """The name under which a partition's progress is noted."""
    return _APP if partition.stream is None else f"{_APP}:{partition.name}"


def report_of(sinks: Sequence[PartitionSink]) -> SinkReport:
    """What several sinks have done together."""
    added = {table: sum(each.added[table] for each in sinks) for table in _ORDER}
    set_aside = sum(each.set_aside for each in sinks)
    alone = [each.position for each in sinks if each.partition.stream is None]
    return SinkReport(
        decisions=added["decisions"],
        outcomes=added["outcomes"],
        duplicates=sum(each.read for each in sinks) - set_aside - sum(added.values()),
        position=alone[0] if alone else {each.partition.name: each.position for each in sinks},
        set_aside=set_aside,
        missed=sum(each.missed for each in sinks),
    )


def decision_row(decision: Decision, offset: int, partition: int | None = None) -> dict[str, Any]:
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
        "partition": partition,
        "session": None if decision.session is UNSET else _session(decision.session),
    }


def _session(step: SessionStep) -> dict[str, Any]:
    return msgspec.structs.asdict(step) | {
        "recalls": [msgspec.structs.asdict(recall) for recall in step.recalls]
    }


def _row(event: Event, offset: int, partition: int | None) -> tuple[TableName, dict[str, Any]]:
    match event:
        case Decision():
            if not 0 <= event.chosen < len(event.actions):
                raise InvalidInputError("event.chosen", "expected the index of an action")
            return "decisions", decision_row(event, offset, partition)
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
                "partition": partition,
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
                "partition": partition,
            }
        case Judgement():
            row = msgspec.structs.asdict(event)
            row.pop("version")
            return "audits", _AUDIT | row | _place(event.ts, offset, partition, "judgement")
        case Acknowledgement():
            row = {
                "loop": event.loop,
                "judgement_id": event.acknowledgement_id,
                "auditor": event.by,
                "ts": event.ts,
                "alert_id": event.alert_id,
            }
            return "audits", _AUDIT | row | _place(event.ts, offset, partition, "acknowledgement")
        case Override():
            row = {
                "loop": event.loop,
                "judgement_id": event.override_id,
                "auditor": event.by,
                "ts": event.ts,
                "action": event.action,
                "generation": event.generation,
                "champion": event.champion,
                "reason": event.reason,
            }
            return "audits", _AUDIT | row | _place(event.ts, offset, partition, "override")


_AUDIT: dict[str, Any] = dict.fromkeys(SCHEMAS["audits"].names())


def _place(ts: int, offset: int, partition: int | None, kind: str) -> dict[str, Any]:
    return {"date": _date(ts), "offset": offset, "kind": kind, "partition": partition}


def _frame(
    table: TableName, rows: list[dict[str, Any]]
) -> tuple[pl.DataFrame, list[tuple[dict[str, Any], InvalidInputError]]]:
    """Rows as a table's, and those that the table can't hold, with the reason."""
    try:
        return _framed(table, rows), []
    except _UNFIT:
        # Rare, so that it may take long to find out which ones it is.
        fit, unfit = [], []
        for row in rows:
            try:
                _framed(table, [row])
            except _UNFIT as error:
                reason = f"expected values that the lake can hold: {str(error).splitlines()[0]}"
                unfit.append((row, InvalidInputError("event", reason)))
            else:
                fit.append(row)
        return _framed(table, fit), unfit


def _framed(table: TableName, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows as a table's; through Arrow, which takes lists and structs from Python ten times faster.

    Raises
    ------
    ArrowException, OverflowError, TypeError, ValueError
        If the table can't hold one of them.
    """
    schema = pl.DataFrame(schema=SCHEMAS[table]).to_arrow().schema
    columns = {name: [row[name] for row in rows] for name in schema.names}
    frame = pl.from_arrow(pa.Table.from_pydict(columns, schema=schema))
    assert isinstance(frame, pl.DataFrame)
    return frame.match_to_schema(SCHEMAS[table])


def _is_imported(decision: Decision) -> bool:
    return any(component.source == IMPORTED for component in decision.mix)


def _date(ts_us: int) -> int:
    """Days since the epoch, which polars takes for a date."""
    return ts_us // 86_400_000_000


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
