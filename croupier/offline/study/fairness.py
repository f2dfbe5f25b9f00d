"""What the series of the fairness study say: how regret and violations grow, one row an arm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.offline.study.fair_learners import ALL_LABELS, EXP2
from croupier.offline.study.oscillation import Mean, mean_of
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ("FairArmSummary", "FairnessStudy", "Growth", "Sidedness", "growth_of", "summarise_fair")

_RESAMPLES = 2000
_BURN_IN = 32


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """An exponent b in ``c · T^b``, with its interval.

    Attributes
    ----------
    exponent
        Fitted to the mean over seeds.
    lower, upper
        Ends of the 95 % interval, from seeds that are drawn again.
    """

    exponent: float
    lower: float
    upper: float

    @property
    def is_sublinear(self) -> bool:
        """Whether all of the interval is below 1."""
        return self.upper < 1.0


class FairArmSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one arm in one world after T rounds.

    Attributes
    ----------
    world, arm
        Names.
    seeds
        How many series there are.
    error
        Share of the instances that it gets wrong, over all rounds.
    late_error
        The same over the later half of the rounds.
    regret
        Errors above those of the best fair mixture in hindsight, over k.
    violations
        Share of the rounds with a reported pair.
    late_violations
        The same over the later half of the rounds.
    excess
        By how much the reported pairs were beyond d + α, summed over rounds.
    approved
        Share of the instances that were approved.
    regret_growth, violations_growth
        How the two grow with T; None where the mean isn't positive at all checkpoints.
    """

    world: str
    arm: str
    seeds: int
    error: Mean
    late_error: Mean
    regret: Mean
    violations: Mean
    late_violations: Mean
    excess: Mean
    approved: Mean
    regret_growth: Growth | None
    violations_growth: Growth | None


class Sidedness(msgspec.Struct, frozen=True, kw_only=True):
    """What it costs to see the labels of the approved alone: differences, paired by seed.

    Attributes
    ----------
    world
        Name.
    regret
        Of Exp2 with one-sided feedback, less that with all labels, over k.
    violations
        The same of the share of rounds with a reported pair.
    """

    world: str
    regret: Mean
    violations: Mean


class FairnessStudy(msgspec.Struct, frozen=True, kw_only=True):
    """All worlds and arms.

    Attributes
    ----------
    rounds, instances
        T and k.
    fitted_from
        The first checkpoint that growth is fitted to.
    arms
        In the order in which they were asked for.
    sidedness
        A row for each world where both arms were run.
    """

    rounds: int
    instances: int
    fitted_from: int
    arms: list[FairArmSummary]
    sidedness: list[Sidedness]


def summarise_fair(runs: pl.DataFrame, *, random_state: int = 0) -> FairnessStudy:
    """Summarise series.

    Parameters
    ----------
    runs
        Of :data:`~croupier.offline.study.fair_runs.FAIR_RUNS_SCHEMA`, all of the same T and k.
    random_state
        Of the bootstrap.

    Raises
    ------
    InvalidInputError
        If there are no series.
    """
    if not len(runs):
        raise InvalidInputError("runs", "expected at least one series")
    horizon, instances = int(runs["horizon"][0]), int(runs["instances"][0])
    found = {
        (world, arm): _Curves(rows)
        for (world, arm), rows in runs.group_by(["world", "arm"], maintain_order=True)
        if isinstance(world, str) and isinstance(arm, str)
    }
    times = next(iter(found.values())).times
    fitted_from = int(times[times >= horizon / _BURN_IN].min())
    return FairnessStudy(
        rounds=horizon,
        instances=instances,
        fitted_from=fitted_from,
        arms=[
            each.summary(world, arm, fitted_from, random_state)
            for (world, arm), each in found.items()
        ],
        sidedness=[
            Sidedness(
                world=world,
                regret=mean_of(one.regret[:, -1] - found[world, ALL_LABELS].regret[:, -1]),
                violations=mean_of(
                    (one.violations[:, -1] - found[world, ALL_LABELS].violations[:, -1]) / horizon
                ),
            )
            for (world, arm), one in found.items()
            if arm == EXP2 and (world, ALL_LABELS) in found
        ],
    )


def growth_of(times: FloatArray, curves: FloatArray, random_state: int = 0) -> Growth | None:
    """Exponent of the mean curve, by least squares of its logarithm on that of the time.

    The checkpoints of a curve depend on each other, the seeds don't: these are resampled.

    Parameters
    ----------
    times
        Shape (m,), positive.
    curves
        A row for each seed, shape (seeds, m).
    random_state
        Of the bootstrap.

    Returns
    -------
    growth
        None where the mean isn't positive everywhere, or was not in some resample.
    """
    rng = np.random.default_rng(random_state)
    chosen = rng.integers(len(curves), size=(_RESAMPLES, len(curves)))
    means = np.vstack([curves.mean(axis=0), curves[chosen].mean(axis=1)])
    if not (means > 0.0).all():
        return None
    centred = np.log(times) - np.log(times).mean()
    slopes = np.log(means) @ centred / (centred @ centred)
    lower, upper = np.quantile(slopes[1:], [0.025, 0.975]).tolist()
    return Growth(exponent=float(slopes[0]), lower=lower, upper=upper)


class _Curves:
    """The series of an arm in a world; each column has shape (seeds, checkpoints)."""

    def __init__(self, rows: pl.DataFrame) -> None:
        ordered = rows.sort("seed", "rounds")
        self.seeds = ordered["seed"].n_unique()
        self.times = self._column(ordered, "rounds")[0]
        self.error = self._column(ordered, "error")
        self.regret = self.error - self._column(ordered, "fair_error")
        self.violations = self._column(ordered, "violations")
        self._excess = self._column(ordered, "excess")[:, -1]
        self._approved = self._column(ordered, "approved")[:, -1]

    def summary(self, world: str, arm: str, fitted_from: int, random_state: int) -> FairArmSummary:
        fitted = self.times >= fitted_from
        half = int(np.searchsorted(self.times, self.times[-1] / 2.0))
        late = self.times[-1] - self.times[half]
        growths = [
            growth_of(self.times[fitted], each[:, fitted], random_state)
            for each in (self.regret, self.violations)
        ]
        return FairArmSummary(
            world=world,
            arm=arm,
            seeds=self.seeds,
            error=mean_of(self.error[:, -1] / self.times[-1]),
            late_error=mean_of((self.error[:, -1] - self.error[:, half]) / late),
            regret=mean_of(self.regret[:, -1]),
            violations=mean_of(self.violations[:, -1] / self.times[-1]),
            late_violations=mean_of((self.violations[:, -1] - self.violations[:, half]) / late),
            excess=mean_of(self._excess),
            approved=mean_of(self._approved),
            regret_growth=growths[0],
            violations_growth=growths[1],
        )

    def _column(self, ordered: pl.DataFrame, name: str) -> FloatArray:
        return ordered[name].to_numpy().astype(np.float64).reshape(self.seeds, -1)
