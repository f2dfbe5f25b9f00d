"""What the runs of the transfer study say: one row for each arm at each level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import polars as pl
import scipy

from croupier.offline.study.oscillation import Mean, mean_of
from croupier.sim2rec.transfer_config import ARMS, UPPER_BOUND
from croupier.sim2rec.transfer_runs import RECOMMENDER

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("ArmResult", "Lead", "TransferStudy", "summarise_transfer")

_ORDER: Final = (RECOMMENDER, *(arm.name for arm in ARMS))


class Lead(msgspec.Struct, frozen=True, kw_only=True):
    """How far an arm is ahead of the one before it.

    Attributes
    ----------
    over
        That arm.
    difference
        Of test returns, seed by seed.
    p_value
        Of the paired t-test over seeds that neither is better, two-sided; None with one seed or
        without any variance.
    """

    over: str
    difference: Mean
    p_value: float | None


class ArmResult(msgspec.Struct, frozen=True, kw_only=True):
    """What an arm's policies earn from the test group without having met it.

    Attributes
    ----------
    level
        Transfer level.
    arm
        Its name.
    seeds
        How many policies were trained.
    test_return
        Of a user of the test group; the standard error is over seeds.
    of_upper_bound, of_optimum
        That return as a share of the upper bound's and of the optimum.
    lead
        Over the arm before it; None for the first one.
    seconds
        Processor time of a training on average, None for the supervised recommender.
    """

    level: int
    arm: str
    seeds: int
    test_return: Mean
    of_upper_bound: float
    of_optimum: float
    lead: Lead | None
    seconds: float | None


class TransferStudy(msgspec.Struct, frozen=True, kw_only=True):
    """All arms, and what is known of the test users without any training.

    Attributes
    ----------
    arms
        Level by level, from the least to the most that is known.
    yardsticks
        Rows of :data:`~croupier.sim2rec.study.STUDY_SCHEMA`.
    """

    arms: list[ArmResult]
    yardsticks: list[dict[str, float | str | None]]


def summarise_transfer(
    runs: pl.DataFrame, yardsticks: pl.DataFrame, levels: Sequence[int]
) -> TransferStudy:
    """Say what runs were worth.

    Parameters
    ----------
    runs
        Of :data:`~croupier.sim2rec.transfer_runs.RUNS_SCHEMA`, with every arm at every level and
        the same seeds; the last point of each counts.
    yardsticks
        Of :data:`~croupier.sim2rec.study.STUDY_SCHEMA`, on the same test users.
    levels
        Which are told of.
    """
    last = runs.filter(
        pl.col("iteration") == pl.col("iteration").max().over("level", "arm", "seed")
    ).sort("seed")
    optimum = yardsticks.filter(policy="optimum")["mean_return"].item()
    upper = last.filter(arm=UPPER_BOUND)
    bound = upper["test_return"].to_numpy().mean()
    results: list[ArmResult] = []
    for level in levels:
        before: ArmResult | None = None
        for arm in _ORDER:
            rows = upper if arm == UPPER_BOUND else last.filter(arm=arm, level=level)
            value = mean_of(rows["test_return"].to_numpy())
            previous = None if before is None else _rows_of(last, before)
            before = ArmResult(
                level=level,
                arm=arm,
                seeds=len(rows),
                test_return=value,
                of_upper_bound=value.value / float(bound),
                of_optimum=value.value / optimum,
                lead=None
                if before is None or previous is None
                else _lead(before.arm, previous, rows),
                seconds=None if arm == RECOMMENDER else float(rows["seconds"].to_numpy().mean()),
            )
            results.append(before)
    return TransferStudy(arms=results, yardsticks=yardsticks.to_dicts())


def _rows_of(last: pl.DataFrame, result: ArmResult) -> pl.DataFrame:
    return last.filter(arm=result.arm, level=result.level)


def _lead(over: str, before: pl.DataFrame, rows: pl.DataFrame) -> Lead:
    difference = rows["test_return"].to_numpy() - before["test_return"].to_numpy()
    p_value = None
    if difference.size > 1 and difference.std() > 0.0:
        p_value = float(scipy.stats.ttest_1samp(difference, 0.0).pvalue)
    return Lead(over=over, difference=mean_of(difference), p_value=p_value)
