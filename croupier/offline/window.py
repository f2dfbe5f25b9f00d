"""How far back rows are learned from and judged on, found without reading what is older."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from croupier.policy.loop import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import date, datetime

    from croupier.offline.lake_files import DataFile

__all__ = ("Window", "window_of")


@dataclass(frozen=True, slots=True)
class Window:
    """The rows that are recent enough.

    Attributes
    ----------
    since
        The first day that any of them can be of; None for all days.
    within
        Whether a row is one of them.
    """

    since: date | None
    within: pl.Expr


def window_of(
    files: Sequence[DataFile],
    read: Callable[[Sequence[DataFile]], pl.LazyFrame],
    *,
    duration: str | None = None,
    generations: int | None = None,
) -> Window:
    """The window of some interactions.

    Days are looked at from the latest on until it is known where the window begins, and of their
    columns only what that takes.

    Parameters
    ----------
    files
        Of the interactions table.
    read
        Gives those rows of some files that are asked about.
    duration
        How far the window reaches back from the latest of these rows; None for all. Rows without a
        time are in no window in time.
    generations
        Of how many of the latest generations among them rows are wanted; None for all.
    """
    days: dict[date, list[DataFile]] = defaultdict(list)
    for each in files:
        days[each.date].append(each)
    window = Window(None, pl.lit(value=True))
    if duration is not None:
        latest = _latest(days, read)
        if latest is None:
            return Window(None, pl.lit(value=False))
        start = latest - timedelta(microseconds=parse_duration(duration))
        window = Window(start.date(), pl.col("ts") > start)
    if generations is None:
        return window
    recent = {day: held for day, held in days.items() if _is_since(day, window.since)}
    oldest = _oldest(recent, lambda held: read(held).filter(window.within), generations)
    if oldest is None:
        return Window(None, pl.lit(value=False))
    since = min(day for day, held in recent.items() if _newest(held) >= oldest)
    return Window(since, window.within & (pl.col("generation") >= oldest))


def _latest(
    days: Mapping[date, Sequence[DataFile]],
    read: Callable[[Sequence[DataFile]], pl.LazyFrame],
) -> datetime | None:
    """When the latest row was made; None if none has a time."""
    for day in sorted(days, reverse=True):
        found: Any = read(days[day]).select(pl.col("ts").max()).collect().item()
        if found is not None:
            latest: datetime = found
            return latest
    return None


def _oldest(
    days: Mapping[date, Sequence[DataFile]],
    read: Callable[[Sequence[DataFile]], pl.LazyFrame],
    count: int,
) -> int | None:
    """The oldest of the latest generations; None if there is none."""
    found: set[int] = set()
    for day in sorted(days, key=lambda each: (_newest(days[each]), each), reverse=True):
        latest = sorted(found)[-count:]
        if len(latest) == count and _newest(days[day]) <= latest[0]:
            break
        numbers = read(days[day]).select(pl.col("generation").unique()).collect()["generation"]
        found.update(numbers.drop_nulls().to_list())
    return min(sorted(found)[-count:], default=None)


def _newest(files: Sequence[DataFile]) -> float:
    """No row of some files is of a later generation than this one."""
    return max(math.inf if each.newest is None else each.newest for each in files)


def _is_since(day: date, first: date | None) -> bool:
    return first is None or day >= first
