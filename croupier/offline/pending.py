"""Which files of the lake can hold what a loop's last join has not joined.

The commit of a join notes how far it has come: the moment up to which windows had closed, and the
versions of `decisions` and `outcomes` that it read. What is left is in the days whose windows have
closed since or are open yet, and in files that were added since, whatever their day.
"""

from __future__ import annotations

from bisect import bisect_left
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl

from croupier.offline.rewards import KEY, SKEW_US

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from croupier.offline.lake import Lake, TableName
    from croupier.offline.lake_files import DataFile
    from croupier.policy.loop import LoopConfig

__all__ = ("Pending", "Reach", "first_unjoined", "joined_until", "joined_versions", "that_may_hold")

_APP = "croupier-join"
_DAY = timedelta(days=1)


def joined_until(lake: Lake, loop: str, version: int | None = None) -> int | None:
    """The moment up to which a loop's decisions are joined; None before the first join.

    In a version of the interactions if one is named.
    """
    return lake.progress("interactions", f"{_APP}:{loop}:until", version)


def joined_versions(lake: Lake, loop: str) -> tuple[int, int]:
    """Versions of `decisions` and of `outcomes` that a loop's last join has read, or -1."""
    decisions, outcomes = (
        lake.progress("interactions", f"{_APP}:{loop}:{table}")
        for table in ("decisions", "outcomes")
    )
    return -1 if decisions is None else decisions, -1 if outcomes is None else outcomes


def first_unjoined(lake: Lake, loop: str, config: LoopConfig) -> date | None:
    """Day of the first decision that an interaction may still come of; None if there is none.

    A deferred one that was never activated is none, and may never become one. Only files are read
    that the last join has not done with.

    Parameters
    ----------
    lake, loop, config
        Whose decisions.
    """
    pending = Pending(lake, loop, config)
    decisions = pending.near_decisions()
    sent = pending.near_outcomes({each.date for each in decisions})
    activations = (
        lake.read("outcomes", [each.path for each in sent])
        .filter(pl.col("kind") == "activation")
        .select("decision_id", activated="ts")
    )
    decisions += pending.activated_before(decisions)
    days = {each.date for each in decisions}
    joined = [each.path for each in pending.interactions.files if each.date in days]
    horizon = pl.duration(microseconds=config.late_horizon_us)
    left = (
        lake.read("decisions", [each.path for each in decisions])
        .join(lake.read("interactions", joined), on=KEY, how="anti", nulls_equal=True)
        .join(activations, on="decision_id", how="left")
        .filter(~pl.col("deferred") | (pl.col("activated") <= pl.col("ts") + horizon))
        .select(pl.col("date").min())
        .collect(engine="streaming")
    )
    first: date | None = left.item()
    return first


class Pending:
    """What the next join of a loop has to look at.

    Parameters
    ----------
    lake, loop, config
        Whose, and how outcomes count.

    Attributes
    ----------
    decisions, outcomes, interactions
        The tables as they are now.
    new_decisions, new_outcomes
        Files that the last join has not read.
    first
        The first day of which some windows had not closed by the last join; None before the first
        join.
    """

    def __init__(self, lake: Lake, loop: str, config: LoopConfig) -> None:
        self._lake, self._loop = lake, loop
        self._window = config.attribution_window_us
        self._horizon = timedelta(days=-(-config.late_horizon_us // SKEW_US))
        closed = self._closed()
        self.first = None if closed is None else _day(closed)
        # In this order: a decision is never younger than its outcomes.
        self.outcomes = lake.snapshot("outcomes", loop)
        self.decisions = lake.snapshot("decisions", loop)
        self.interactions = lake.snapshot("interactions", loop)
        decided, sent = joined_versions(lake, loop)
        self.new_decisions = self._new("decisions", self.decisions.files, decided)
        self.new_outcomes = self._new("outcomes", self.outcomes.files, sent)

    def marks(self, until_us: int, *, whole: bool) -> dict[str, int]:
        """What the commit of a join up to a moment notes.

        Parameters
        ----------
        until_us
            In microseconds since the epoch.
        whole
            Whether all rows were looked at that there are.
        """
        name = f"{_APP}:{self._loop}"
        closed = max(until_us - self._window, self._closed() or 0)
        marks = {f"{name}:until": until_us, f"{name}:closed": closed}
        if whole:
            marks[f"{name}:decisions"] = self.decisions.version
            marks[f"{name}:outcomes"] = self.outcomes.version
        return marks

    def near_decisions(self) -> list[DataFile]:
        """Files with decisions whose windows have closed since the last join, or are open yet.

        And those that are new, of whatever day.
        """
        files = self.decisions.files
        first = self.first
        if first is None:
            return list(files)
        return [each for each in files if each.date >= first or each.path in self.new_decisions]

    def near_outcomes(self, days: set[date]) -> list[DataFile]:
        """Files with outcomes that decisions of some days can have, and those that are new."""
        reach = self.of_decisions(days)
        files = self.outcomes.files
        return [each for each in files if each.date in reach or each.path in self.new_outcomes]

    def of_decisions(self, days: set[date]) -> Reach:
        """The days that outcomes of some days' decisions can be of."""
        return Reach(days, _DAY, self._horizon)

    def of_outcomes(self, days: set[date]) -> Reach:
        """The days that decisions of some days' outcomes can be of."""
        return Reach(days, self._horizon, _DAY)

    def activated_before(self, near: Iterable[DataFile]) -> list[DataFile]:
        """Files beside the near ones that may hold what new activations are of."""
        new = [each.path for each in self.outcomes.files if each.path in self.new_outcomes]
        activations = pl.col("kind") == "activation"
        found = self._lake.read("outcomes", new).filter(activations).select("decision_id", "date")
        sent = found.collect()
        passed = {each.path for each in near}
        reach = self.of_outcomes(set(sent["date"]))
        return [
            each
            for each in that_may_hold(sent["decision_id"], self.decisions.files)
            if each.date in reach and each.path not in passed
        ]

    def _closed(self) -> int | None:
        """The moment before which all decisions' windows had closed by the last join.

        Kept, since windows may have been longer or shorter then.
        """
        closed = self._lake.progress("interactions", f"{_APP}:{self._loop}:closed")
        if closed is not None:
            return closed
        until = joined_until(self._lake, self._loop)
        return None if until is None else until - self._window

    def _new(self, table: TableName, files: Iterable[DataFile], version: int) -> set[Path]:
        """The files that the last join has not read."""
        paths = {each.path for each in files}
        added = None if version < 0 else self._lake.added_since(table, version)
        return paths if added is None else paths & added


class Reach:
    """Days around some days.

    Parameters
    ----------
    days
        In the middle.
    before, after
        How far it reaches from each of them.
    """

    def __init__(self, days: set[date], before: timedelta, after: timedelta) -> None:
        self._days = sorted(days)
        self._before, self._after = before, after

    def __contains__(self, day: date) -> bool:
        place = bisect_left(self._days, day - self._after)
        return place < len(self._days) and self._days[place] <= day + self._before


def that_may_hold(ids: pl.Series, files: Iterable[DataFile]) -> Iterator[DataFile]:
    """Files whose bounds don't rule out that one of some decisions is there."""
    ordered = ids.sort()
    for each in files:
        if each.lowest is None or each.highest is None:
            yield each
            continue
        place = ordered.search_sorted(each.lowest)
        if place < len(ordered) and ordered[int(place)] <= each.highest:
            yield each


def _day(ts_us: int) -> date:
    return datetime.fromtimestamp(max(ts_us, 0) / 1e6, tz=UTC).date()
