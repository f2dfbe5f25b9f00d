"""Bringing the small tables up to date: days are summed up anew whose files have changed.

What a table says of a day depends on the files of that day alone, and on the configuration, so days
that nothing came to are kept as they are. Days that the lake has forgotten are left out.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import msgspec
import polars as pl

from croupier.offline.pending import joined_until
from croupier.offline.summaries.orphans import days_of_outcomes
from croupier.offline.summaries.sample import ROWS, sample_of, sampled_days
from croupier.offline.summaries.tables import (
    SUMMARY_SCHEMAS,
    SummaryState,
    summaries_of,
)
from croupier.offline.summaries.traffic import day_of_traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import date

    from croupier.offline.lake import Lake
    from croupier.offline.lake_files import DataFile
    from croupier.offline.summaries.tables import SummaryName
    from croupier.policy.loop import LoopConfig

__all__ = ("SegmentsConfig", "refresh_summaries")

_FORMAT: Final = 1
_HELD: Final = 250_000
_SUMMED: Final[tuple[SummaryName, ...]] = ("hours", "actions", "propensities", "calibration")
_DAY: Final = timedelta(days=1)


class SegmentsConfig(msgspec.Struct, frozen=True):
    """What tables depend on of the configuration; others are made anew."""

    segments: tuple[str, ...]
    reward_range: tuple[float, float]
    late_horizon_us: int


def refresh_summaries(
    lake: Lake,
    loop: str,
    config: LoopConfig,
    *,
    now_us: int,
    segments: Sequence[str] = (),
    held: int = _HELD,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make a loop's tables say what its decisions, outcomes and interactions say now.

    Sums of floating point numbers are those of polars, whose last bits depend on how it divides its
    work; counts, minima and bins are exact.

    Parameters
    ----------
    lake
        To read; the tables are written below it. Hold its lock.
    loop, config
        Whose.
    now_us
        In microseconds since the epoch.
    segments
        What decisions are told apart by, beside the loop's fairness.attributes.
    held
        Rows held at once, about.
    progress
        Called with days done and in all.
    """
    work = _Refresh(lake, loop, config, segments, held)
    work(now_us, progress)


class _Refresh:
    def __init__(
        self, lake: Lake, loop: str, config: LoopConfig, segments: Sequence[str], held: int
    ) -> None:
        self._lake, self._loop, self._held = lake, loop, held
        self._summaries = summaries_of(lake)
        names = tuple(dict.fromkeys([*config.fairness.attributes, *segments]))
        self._asked = SegmentsConfig(
            segments=names,
            reward_range=(config.reward_min, config.reward_max),
            late_horizon_us=config.late_horizon_us,
        )
        self._outcomes = _by_day(lake.snapshot("outcomes", loop).files)
        self._decisions = _by_day(lake.snapshot("decisions", loop).files)
        self._interactions = _by_day(lake.snapshot("interactions", loop).files)
        self._days: list[dict[str, object]] = []
        self._left_out: dict[str, str] = {}

    def __call__(self, now_us: int, progress: Callable[[int, int], None] | None) -> None:
        asked = msgspec.json.encode(self._asked).decode()
        found = self._summaries.state(self._loop)
        usable = found is not None and (found.format, found.asked) == (_FORMAT, asked)
        before = found if found is not None and usable else SummaryState(format=_FORMAT, made=0)
        days = sorted(self._decisions.keys() | self._interactions.keys())
        digests = {
            day: _digest([*self._decisions.get(day, ()), *self._interactions.get(day, ())])
            for day in days
        }
        sent = {day: _digest(files) for day, files in self._outcomes.items()}
        stale = [day for day in days if before.by_decisions.get(day) != digests[day]]
        fresh: dict[SummaryName, list[pl.DataFrame]] = {name: [] for name in _SUMMED}
        for number, day in enumerate(stale, start=1):
            self._sum_up(day, fresh)
            if progress is not None:
                progress(number, len(stale))
        kept = _Kept(set(days), set(stale))
        tables: dict[SummaryName, pl.DataFrame] = {
            name: kept.with_rows(self._summaries.read(self._loop, name), parts)
            for name, parts in fresh.items()
        }
        again = self._outcome_days(before, sent, stale)
        tables["days"] = self._with_outcomes(tables["hours"], kept, again)
        tables["sample"] = self._sample(days, stale)
        self._summaries.write(
            self._loop,
            tables,
            SummaryState(
                format=_FORMAT,
                made=now_us,
                joined_until=joined_until(self._lake, self._loop),
                asked=asked,
                by_decisions=digests,
                by_outcomes=sent,
                left_out=(before.left_out | self._left_out) if stale else before.left_out,
            ),
        )

    def _sum_up(self, day: date, fresh: dict[SummaryName, list[pl.DataFrame]]) -> None:
        found = day_of_traffic(
            self._lake,
            self._decisions.get(day, ()),
            self._interactions.get(day, ()),
            segments=self._asked.segments,
            reward_range=self._asked.reward_range,
            held=self._held,
        )
        for name in _SUMMED:
            fresh[name].append(found.tables[name])
        self._left_out |= found.left_out
        self._days.append(
            {
                "date": _shown(day),
                "without_pmf": found.without_pmf,
                "contradictions": found.contradictions,
                "repeated": found.repeated,
            }
        )

    def _outcome_days(
        self, before: SummaryState, sent: dict[date, str], stale: Sequence[date]
    ) -> list[date]:
        """Days of outcomes to be counted anew.

        New decisions can be what outcomes of their day, or later ones, had missed.
        """
        there = [day for day in stale if day in self._decisions]
        # Rows without a time have no place among the days.
        first = min(there) if there else None
        return [
            day
            for day, digest in sorted(sent.items())
            if before.by_outcomes.get(day) != digest
            or (first is not None and day >= _before(first))
        ]

    def _with_outcomes(self, hours: pl.DataFrame, kept: _Kept, again: list[date]) -> pl.DataFrame:
        """The table of days: what decisions came to, and what came."""
        decided = hours.group_by("date").agg(
            pl.col("decisions", "joined", "observed", "defaulted", "late", "revised").sum()
        )
        old = self._summaries.read(self._loop, "days")
        looked = pl.DataFrame(
            self._days,
            schema={
                name: SUMMARY_SCHEMAS["days"][name]
                for name in ("date", "without_pmf", "contradictions", "repeated")
            },
        )
        looked = kept.with_rows(old.select(looked.columns), [looked])
        counted = days_of_outcomes(
            self._lake,
            [file for day in again for file in self._outcomes[day]],
            [file for files in self._decisions.values() for file in files],
            horizon=timedelta(microseconds=self._asked.late_horizon_us),
            held=self._held,
        )
        came = pl.DataFrame(
            [
                {
                    "date": _shown(day),
                    "outcomes": found.outcomes,
                    "activations": found.activations,
                    "orphans": found.orphans,
                }
                for day, found in counted.items()
            ],
            schema={
                name: SUMMARY_SCHEMAS["days"][name]
                for name in ("date", "outcomes", "activations", "orphans")
            },
        )
        passed = _Kept(set(self._outcomes), set(again))
        came = passed.with_rows(old.select(came.columns), [came])
        schema = SUMMARY_SCHEMAS["days"]
        whole = decided.join(looked, on="date", how="full", coalesce=True, nulls_equal=True)
        whole = whole.join(came, on="date", how="full", coalesce=True, nulls_equal=True)
        counts = [name for name in schema.names() if name != "date"]
        return whole.select("date", pl.col(counts).fill_null(0)).sort("date", nulls_last=True)

    def _sample(self, days: Sequence[date], stale: Sequence[date]) -> pl.DataFrame:
        """Rows of the latest days, drawn evenly within each."""
        rows = {day: sum(file.rows for file in self._interactions.get(day, ())) for day in days}
        wanted = sampled_days(rows)
        old = self._summaries.read(self._loop, "sample")
        parts = []
        for day, share in wanted.items():
            mine = old.filter(pl.col("date").eq_missing(_shown(day)))
            if day not in stale and len(mine) == min(share, rows[day]):
                parts.append(mine)
                continue
            parts.append(sample_of(self._lake, self._interactions[day], share, held=self._held))
        return pl.concat([SUMMARY_SCHEMAS["sample"].to_frame(), *parts]).head(2 * ROWS)


class _Kept:
    """Which rows of a table are kept: those of days that are still there and not made anew."""

    def __init__(self, there: set[date], again: set[date]) -> None:
        kept = there - again
        self._days = [_shown(day) for day in kept]

    def with_rows(self, old: pl.DataFrame, fresh: Iterable[pl.DataFrame]) -> pl.DataFrame:
        days = pl.Series("date", self._days, dtype=pl.Date)
        kept = old.filter(pl.col("date").is_in(days.implode(), nulls_equal=True))
        return pl.concat([kept, *fresh], how="diagonal_relaxed").select(old.columns)


def _by_day(files: Iterable[DataFile]) -> dict[date, list[DataFile]]:
    days: dict[date, list[DataFile]] = defaultdict(list)
    for file in files:
        days[file.date].append(file)
    return dict(days)


def _digest(files: Iterable[DataFile]) -> str:
    names = sorted(f"{file.path.parent.parent.parent.name}/{file.path.name}" for file in files)
    return hashlib.blake2b("\n".join(names).encode(), digest_size=12).hexdigest()


def _shown(day: date) -> date | None:
    """As the column has it: rows without a time are of the first of all days for the lake."""
    return None if day == type(day).min else day


def _before(day: date) -> date:
    return day if day == type(day).min else day - _DAY
