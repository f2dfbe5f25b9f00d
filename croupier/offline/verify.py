"""Whether a lake holds what the event log says: recounted, and its rewards worked out again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import polars as pl

from croupier.offline.guardrails import column_of, told, unpacked
from croupier.offline.interactions import current_interactions
from croupier.offline.join import joined_until, joined_versions
from croupier.offline.retention import forgotten_before
from croupier.offline.rewards import KEY, resolve
from croupier.offline.sink import sunk_in, sunk_position
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import (
    Acknowledgement,
    Decision,
    Judgement,
    Outcome,
    Override,
    decode_event,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from croupier.eventlog.log import EventLog, LogPartition
    from croupier.offline.lake import Lake, TableName
    from croupier.policy.events import Event
    from croupier.policy.loop import LoopConfig

__all__ = ("LoopVerification", "verify_loop")

_BATCH = 20_000
_BUCKETS = 16
_NAMED = pl.Schema(
    [
        ("table", pl.String()),
        ("id", pl.List(pl.String)),
        ("offset", pl.Int64()),
        ("partition", pl.Int64()),
        ("forgotten", pl.Boolean()),
    ]
)
# What a record is known by in the lake, besides its loop.
_IDS: dict[TableName, tuple[str, ...]] = {
    "decisions": KEY,
    "outcomes": ("kind", "outcome_id"),
    "audits": ("judgement_id",),
}


class LoopVerification(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification found for a loop.

    Attributes
    ----------
    records
        Different decisions, outcomes, activations and judgements that the log has and the lake
        should have.
    missing
        Of those, the ones that the lake hasn't.
    unknown
        Rows of the lake that the log doesn't have at their positions, of those it still has.
    repeated
        Rows whose key another row of the table has too.
    checked
        Interactions whose rewards were worked out again.
    wrong
        Of those, the ones that are missing, or that differ.
    """

    records: int
    missing: int
    unknown: int
    repeated: int
    checked: int
    wrong: int

    @property
    def sound(self) -> bool:
        """Whether nothing is amiss."""
        return not (self.missing or self.unknown or self.repeated or self.wrong)


def verify_loop(
    lake: Lake,
    log: EventLog,
    loop: str,
    config: LoopConfig,
    *,
    share: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> LoopVerification:
    """Count a loop's records in the log and in the lake, and work rewards out again.

    Ids are compared by hashes of 64 bits. What was forgotten is left out, and so is what the log
    doesn't have any more. Rewards are worked out by the loop's present configuration, from what its
    last join had read: one that was joined under other settings differs. Guardrails are looked at
    where an interaction has them.

    Parameters
    ----------
    lake, log
        The lake, and the log that it is filled from.
    loop, config
        Whose.
    share
        Of the interactions whose rewards are worked out again, in (0, 1].
    progress
        Called with records read and in all.

    Raises
    ------
    LogUnavailableError
        If the log can't be read.
    """
    logged = _logged(lake, log, loop, progress)
    kept = logged.filter(~pl.col("forgotten"))
    missing = unknown = repeated = 0
    for table in _IDS:
        rows = _rows_of(lake, table, loop)
        here = pl.col("table") == table
        repeated += len(rows) - rows["id"].n_unique()
        missing += kept.filter(here).join(rows, on="id", how="anti")["id"].n_unique()
        # A night that was broken off may have noted that it forgets, and not done it yet.
        unknown += _unknown(rows, logged.filter(here), log, loop)
    checked, wrong = _check_rewards(lake, log, loop, config, share)
    return LoopVerification(
        records=kept.select(pl.struct("table", "id").n_unique()).item(),
        missing=missing,
        unknown=unknown,
        repeated=repeated,
        checked=checked,
        wrong=wrong,
    )


def _logged(
    lake: Lake, log: EventLog, loop: str, progress: Callable[[int, int], None] | None
) -> pl.DataFrame:
    """Hashes of the ids of a loop's records, and where they stand."""
    parts = [each for each in log.partitions() if each.loop in {None, loop}]
    ends = {each: sunk_position(lake, each) or 0 for each in parts}
    total = sum(max(0, end - part.start()) for part, end in ends.items())
    found, done = [pl.DataFrame(schema=_NAMED).with_columns(_hash(pl.col("id")))], 0
    for part, end in ends.items():
        gone = forgotten_before(lake, loop, part)
        for entries in _batches(part, end):
            rows = [
                (*_named(event), position, part.number, gone(position, event.ts))
                for position, event in entries
                if event is not None and event.loop == loop
            ]
            frame = pl.DataFrame(rows, schema=_NAMED, orient="row")
            found.append(frame.with_columns(_hash(pl.col("id"))))
            done += len(entries)
            if progress is not None:
                progress(min(done, total), total)
    return pl.concat(found)


def _batches(part: LogPartition, end: int) -> Iterator[list[tuple[int, Event | None]]]:
    position = part.start()
    while position < end:
        entries = [each for each in part.read(position, limit=_BATCH) if each.position < end]
        if not entries:
            return
        yield [(each.position, _decoded(each.payload)) for each in entries]
        position = entries[-1].position + 1


def _decoded(payload: bytes) -> Event | None:
    """An event; None for what the sink has set aside."""
    try:
        return decode_event(payload)
    except InvalidInputError:
        return None


def _named(event: Event) -> tuple[str, list[str | None]]:
    """The table of an event, and what it is known by there."""
    match event:
        case Decision():
            return "decisions", [event.decision_id, event.slot]
        case Outcome():
            return "outcomes", ["outcome", event.outcome_id]
        case Judgement():
            return "audits", [event.judgement_id]
        case Acknowledgement():
            return "audits", [event.acknowledgement_id]
        case Override():
            return "audits", [event.override_id]
        case _:
            return "outcomes", ["activation", f"activation:{event.decision_id}"]


def _hash(ids: pl.Expr) -> pl.Expr:
    return ids.list.eval(pl.element().fill_null("\0")).list.join("\1").hash()


def _rows_of(lake: Lake, table: TableName, loop: str) -> pl.DataFrame:
    ids = pl.concat_list(_IDS[table])
    rows = lake.scan(table, loop).select(_hash(ids).alias("id"), "offset", "partition")
    return rows.collect(engine="streaming")


def _unknown(rows: pl.DataFrame, logged: pl.DataFrame, log: EventLog, loop: str) -> int:
    count = 0
    for part in log.partitions():
        if part.loop in {None, loop}:
            same = pl.col("partition").eq_missing(pl.lit(part.number, dtype=pl.Int64))
            kept = rows.filter(same & (pl.col("offset") >= part.start()))
            count += len(kept.join(logged.filter(same), on=["id", "offset"], how="anti"))
    return count


def _check_rewards(
    lake: Lake, log: EventLog, loop: str, config: LoopConfig, share: float
) -> tuple[int, int]:
    """How many interactions were worked out again, and how many of them are other ones."""
    until = joined_until(lake, loop)
    if until is None:
        return 0, 0
    decided, sent = joined_versions(lake, loop)
    held = ("reward", "reward_source", "outcomes", "delay_s", "fold")
    guardrails = sorted(config.guardrails)
    buckets = max(1, round(share * _BUCKETS))
    checked = wrong = 0
    versions: tuple[tuple[TableName, int], ...] = (("decisions", decided), ("outcomes", sent))
    parts = log.partitions()
    read = [(table, sunk_in(lake, table, parts, version)) for table, version in versions]
    for bucket in range(buckets):
        here = pl.col("decision_id").hash() % _BUCKETS == bucket
        decisions, outcomes = (
            lake.scan(table, loop).filter(here, sunk).collect(engine="streaming")
            for table, sunk in read
        )
        present = current_interactions(lake, loop).filter(here)
        held_now = present.select(*KEY, *held, *unpacked(guardrails))
        found = held_now.collect(engine="streaming")
        known = decisions.select(*KEY, "ts", "deferred")
        found = found.join(known, on=KEY, how="semi", nulls_equal=True)
        nothing = found.clear().with_columns(revision=pl.lit(0, dtype=pl.Int64))
        sent_now = outcomes.with_columns(*told(guardrails), new=pl.lit(value=False))
        right = resolve(config, until, known, sent_now, nothing).rows
        same = _same(right, found, held, guardrails)
        checked += len(right)
        wrong += max(len(right), len(found)) - len(same)
    return checked, wrong


def _same(
    right: pl.DataFrame, found: pl.DataFrame, held: Sequence[str], guardrails: Sequence[str]
) -> pl.DataFrame:
    """Which interactions are as they should be.

    A guardrail that one doesn't have was not configured when it was joined, and isn't looked at.
    """
    both = right.join(found, on=[*KEY, *held], how="inner", nulls_equal=True, suffix="_found")
    columns = [column_of(name) for name in guardrails]
    right_too = (
        pl.col(f"{column}_found").is_null() | (pl.col(column) == pl.col(f"{column}_found"))
        for column in columns
    )
    # One that is there twice is wrong once.
    return both.filter(pl.all_horizontal(pl.lit(value=True), *right_too)).unique(KEY)
