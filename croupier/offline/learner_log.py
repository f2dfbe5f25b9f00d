"""What a loop learns from: interactions of the learner's folds, as far back as its window goes."""

from __future__ import annotations

import logging
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING

import polars as pl

from croupier.offline.delays import settling
from croupier.offline.folds import is_judged
from croupier.offline.interactions import current_interactions, logged_requests
from croupier.offline.rewards import KEY
from croupier.offline.window import Window, window_of
from croupier.policy.sensitive import SensitiveFeatures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.offline.lake import Lake
    from croupier.offline.lake_files import DataFile
    from croupier.policy.loop import LoopConfig

__all__ = ("LearnerLog", "learnable")

_log = logging.getLogger(__name__)


class LearnerLog:
    """A loop's interactions that are not the judge's, within its training window.

    Nothing is read before it is asked for, and then no file that is older than the window. Rows
    with features that are sensitive by now are left out.

    Parameters
    ----------
    lake, loop, config
        Whose.
    judge_share
        Share of the folds that are the judge's.
    version
        Of the interactions table.
    """

    def __init__(
        self, lake: Lake, loop: str, config: LoopConfig, judge_share: float, *, version: int
    ) -> None:
        self._lake, self._loop = lake, loop
        self._training = config.training
        self._version = version
        self._judged = is_judged(judge_share, config.training)
        self._settle = settling(lake, loop, config, version=version)
        self._config = config

    def rows(self, *which: pl.Expr, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Those rows that something is true of, in the order of the log.

        Parameters
        ----------
        which
            What is to be true.
        columns
            That are read; all if None.
        """
        found = self._within(self._window.since).filter(*which).sort("offset", "decision_id")
        if columns is None or self._config.fairness.sensitive:
            rows = learnable(self._loop, self._config, found.collect())
            return rows if columns is None else rows.select(columns)
        return found.select(columns).collect()

    def count(self, most: int) -> int:
        """How many rows there are, or `most` if there are more, of which no others are read."""
        since = self._window.since
        files = [each for each in self._files(self._version) if since is None or each.date >= since]
        # Every decision has one row of the first revision, and filters don't look at rewards.
        first = pl.col("revision").fill_null(0) == 0
        rows = self._read(files).filter(self._window.within, first).head(most).select(pl.len())
        count: int = rows.collect(engine="streaming").item()
        return count

    def rows_since(self, version: int, *which: pl.Expr) -> pl.DataFrame:
        """Rows of decisions that had no interaction in an earlier version, in the order of the log.

        Only days are read that have files now which they hadn't then.

        Parameters
        ----------
        version
            The earlier version of the interactions table.
        which
            What is to be true of the rows.
        """
        then = {each.path for each in self._files(version)}
        days = {each.date for each in self._files(self._version) if each.path not in then}
        first = min(days, default=None)
        fresh = pl.col("date").is_in(sorted(days))
        if first == date.min:
            fresh |= pl.col("date").is_null()
        known = current_interactions(self._lake, self._loop, version=version, since=first)
        seen = known.filter(fresh).select(KEY)
        found = self._within(first).filter(fresh, *which)
        new = found.join(seen, on=KEY, how="anti", nulls_equal=True)
        return learnable(self._loop, self._config, new.sort("offset", "decision_id").collect())

    @cached_property
    def _window(self) -> Window:
        return window_of(
            self._files(self._version),
            self._read,
            duration=self._training.window,
            generations=self._training.window_generations,
        )

    def _within(self, since: date | None) -> pl.LazyFrame:
        rows = current_interactions(self._lake, self._loop, version=self._version, since=since)
        return self._mine(rows).filter(self._window.within)

    def _read(self, files: Sequence[DataFile]) -> pl.LazyFrame:
        return self._mine(self._lake.read("interactions", [each.path for each in files]))

    def _mine(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        return self._settle(rows).filter(~self._judged)

    def _files(self, version: int) -> list[DataFile]:
        return self._lake.snapshot("interactions", self._loop, version).files


def learnable(loop: str, config: LoopConfig, interactions: pl.DataFrame) -> pl.DataFrame:
    """Leave out rows with features that no oracle may see, logged before they were named.

    Parameters
    ----------
    loop, config
        Whose.
    interactions
        Rows of the interactions table.
    """
    guard = SensitiveFeatures.of(config.fairness)
    if guard is None:
        return interactions
    found = (guard.has_any(each.context, each.actions) for each in logged_requests(interactions))
    refused = pl.Series(list(found), dtype=pl.Boolean)
    if refused.any():
        _log.warning(
            "loop %s: %d interactions have sensitive features and are not learned from",
            loop,
            int(refused.sum()),
        )
    return interactions.filter(~refused)
