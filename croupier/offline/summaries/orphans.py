"""Outcomes that no decision in the lake can be told to: counted by the day that they came on."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import polars as pl

from croupier.offline.pending import that_may_hold
from croupier.offline.rewards import KEY, SKEW_US
from croupier.offline.stretches import stretches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date

    from croupier.offline.lake import Lake
    from croupier.offline.lake_files import DataFile

__all__ = ("DayOfOutcomes", "days_of_outcomes")

_KEYS_AT_ONCE = 2_000_000
_SKEW = timedelta(microseconds=SKEW_US)


class DayOfOutcomes:
    """What came on a day.

    Attributes
    ----------
    outcomes, activations
        Records in the lake.
    orphans
        Outcomes whose decision isn't there: not of that id and slot, within the late horizon.
    """

    def __init__(self) -> None:
        self.outcomes = 0
        self.activations = 0
        self.orphans = 0


def days_of_outcomes(
    lake: Lake,
    outcomes: Sequence[DataFile],
    decisions: Sequence[DataFile],
    *,
    horizon: timedelta,
    held: int,
) -> dict[date, DayOfOutcomes]:
    """Count what came on some days.

    Parameters
    ----------
    lake
        To read.
    outcomes
        All files of the days.
    decisions
        All files of the table.
    horizon
        How long after its decision an outcome counts.
    held
        Outcomes held at once, about.
    """
    days: dict[date, DayOfOutcomes] = {}
    for some in _portions(outcomes, held):
        left: list[pl.DataFrame] = []
        for stretch in stretches(some, held):
            frame = stretch.read(lake, "outcomes").select(*KEY, "kind").collect()
            day = stretch.files[0].date
            sent = frame.filter(pl.col("kind") == "outcome").select(*KEY)
            found = days.setdefault(day, DayOfOutcomes())
            found.outcomes += len(sent)
            found.activations += len(frame) - len(sent)
            left.append(sent.with_columns(day=pl.lit(day, pl.Date)))
        orphans = _without_decision(lake, pl.concat(left), decisions, horizon)
        for day, count in orphans.group_by("day").len().iter_rows():
            days[day].orphans += count
    return days


def _without_decision(
    lake: Lake, sent: pl.DataFrame, decisions: Sequence[DataFile], horizon: timedelta
) -> pl.DataFrame:
    """Outcomes of which no decision is found, the latest days being looked at first."""
    for file in sorted(decisions, key=lambda each: each.date, reverse=True):
        if sent.is_empty():
            break
        reach = pl.col("day").is_between(
            file.date - _SKEW, _later(file.date, horizon + timedelta(days=1))
        )
        near = sent.filter(reach)
        if near.is_empty() or not any(that_may_hold(near["decision_id"], [file])):
            continue
        for stretch in stretches([file], _KEYS_AT_ONCE):
            keys = stretch.read(lake, "decisions").select(*KEY).collect()
            found = near.join(keys, on=KEY, how="semi", nulls_equal=True).select(*KEY, "day")
            sent = sent.join(found.unique(), on=[*KEY, "day"], how="anti", nulls_equal=True)
    return sent


def _later(day: date, by: timedelta) -> date:
    return day + min(by, type(day).max - day)


def _portions(files: Sequence[DataFile], held: int) -> Iterator[list[DataFile]]:
    """Files that are looked at together: not many more rows than `held`."""
    portion: list[DataFile] = []
    for file in files:
        if portion and sum(each.rows for each in portion) + file.rows > held:
            yield portion
            portion = []
        portion.append(file)
    if portion:
        yield portion
