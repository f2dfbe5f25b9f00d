"""What the series of the oscillation study say: one summary for each arm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import scipy

from croupier.offline.oscillation import OscillationTest, oscillation_test, swings_of_each
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ("ArmSummary", "Mean", "OscillationStudy", "mean_of", "summarise")


class Mean(msgspec.Struct, frozen=True, kw_only=True):
    """A mean over seeds with its standard error; None with one seed."""

    value: float
    error: float | None


class ArmSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one arm, after its burn-in.

    Attributes
    ----------
    arm
        Its name.
    seeds
        How many series there are.
    value
        True value of a generation.
    gain
        True value above that of the uniform policy for the same requests at the same time.
    regret
        What the best action is worth more, relative to the same of the uniform policy: 1 if nothing
        was learned, 0 if everything.
    spread
        Standard deviation of the differences of successive gains.
    autocorrelation
        Lag-1 autocorrelation of these differences; -1/2 if gains are independent of each other.
    returns
        Share of the panel whose most probable action is that of two generations ago and not the
        last one's.
    total_variation, flip_rate
        Distance of successive policies on the panel.
    positive_rate, ece, entropy, coverage
        Means, see :data:`~croupier.offline.study.series.SERIES_SCHEMA`.
    test
        Of the gains, against the noise of the control; None without a control.
    """

    arm: str
    seeds: int
    value: Mean
    gain: Mean
    regret: Mean
    spread: Mean
    autocorrelation: Mean
    returns: Mean
    total_variation: Mean
    flip_rate: Mean
    positive_rate: Mean
    ece: Mean
    entropy: Mean
    coverage: Mean
    test: OscillationTest | None


class OscillationStudy(msgspec.Struct, frozen=True, kw_only=True):
    """All arms.

    Attributes
    ----------
    generations, burn_in
        Of each series, and how many of them are left out at its beginning.
    level
        Chance of calling an arm oscillating that isn't.
    control
        The arm that noise is taken from; None if it wasn't run.
    arms
        In the order in which they were asked for.
    """

    generations: int
    burn_in: int
    level: float
    control: str | None
    arms: list[ArmSummary]


def summarise(
    runs: pl.DataFrame,
    *,
    burn_in: int,
    control: str | None,
    level: float = 0.05,
    random_state: int = 0,
) -> OscillationStudy:
    """Summarise series.

    Gains, and not values, are what is looked at: a world that changes makes all policies better or
    worse, and the uniform one with them.

    The noise that an arm's gains are tested against is that of the control, whose generations
    learn as much from uniform decisions and don't depend on each other: its gains less their
    straight line in each seed, from all generations and seeds.

    Parameters
    ----------
    runs
        Of :data:`~croupier.offline.study.runs.RUNS_SCHEMA`, all of as many generations.
    burn_in
        How many generations are left out at the beginning of each series.
    control
        Name of the arm that gives the noise; None to test nothing.
    level
        Of the tests, in (0, 1).
    random_state
        Seed of the tests.

    Raises
    ------
    InvalidInputError
        If there are no series, or the control isn't among them.
    """
    names: list[str] = runs["arm"].unique(maintain_order=True).to_list()
    if not names:
        raise InvalidInputError("runs", "expected at least one series")
    if control is not None and control not in names:
        raise InvalidInputError("control", f"expected one of the arms, got {control!r}")
    noise = None if control is None else _noise(_Settled.of(runs, control, burn_in).gain)
    arms = []
    for name in names:
        settled = _Settled.of(runs, name, burn_in)
        test = None
        if noise is not None:
            shape = (*settled.gain.shape, len(noise))
            test = oscillation_test(
                settled.gain,
                np.broadcast_to(noise, shape),
                level=level,
                random_state=random_state,
            )
        arms.append(settled.summary(name, test))
    generations = int(runs["generation"].max()) + 1  # type: ignore[arg-type]
    return OscillationStudy(
        generations=generations, burn_in=burn_in, level=level, control=control, arms=arms
    )


class _Settled:
    """The series of an arm after its burn-in; each column has shape (seeds, generations)."""

    def __init__(self, columns: dict[str, FloatArray]) -> None:
        self._columns = columns
        self.gain = columns["value"] - columns["uniform_value"]

    @classmethod
    def of(cls, runs: pl.DataFrame, arm: str, burn_in: int) -> _Settled:
        rows = runs.filter(arm=arm).filter(runs.filter(arm=arm)["generation"] >= burn_in)
        seeds = rows["seed"].n_unique()
        ordered = rows.sort("seed", "generation")
        return cls(
            {
                name: ordered[name].to_numpy().astype(np.float64).reshape(seeds, -1)
                for name in _TAKEN
            }
        )

    def summary(self, arm: str, test: OscillationTest | None) -> ArmSummary:
        columns = self._columns
        room = columns["best_value"] - columns["uniform_value"]
        missed = columns["best_value"] - columns["value"]
        swings = swings_of_each(self.gain)
        return ArmSummary(
            arm=arm,
            seeds=len(self.gain),
            value=mean_of(columns["value"].mean(axis=1)),
            gain=mean_of(self.gain.mean(axis=1)),
            regret=mean_of(missed.sum(axis=1) / room.sum(axis=1)),
            spread=mean_of(np.array([each.spread for each in swings])),
            autocorrelation=mean_of(np.array([each.autocorrelation for each in swings])),
            **{name: mean_of(np.nanmean(columns[name], axis=1)) for name in _MEANS},
            test=test,
        )


_MEANS = (
    "returns",
    "total_variation",
    "flip_rate",
    "positive_rate",
    "ece",
    "entropy",
    "coverage",
)
_TAKEN = ("value", "uniform_value", "best_value", *_MEANS)


def _noise(gains: FloatArray) -> FloatArray:
    """What gains are off their straight lines, as much as if no line had been fitted."""
    generations = gains.shape[1]
    time = np.arange(generations) - (generations - 1) / 2.0
    line = gains.mean(axis=1, keepdims=True) + np.outer(gains @ time / (time @ time), time)
    residuals: FloatArray = (gains - line) * math.sqrt(generations / (generations - 2.0))
    return residuals.ravel()


def mean_of(values: FloatArray) -> Mean:
    """Mean and standard error of independent values, one for each seed, shape (seeds,)."""
    error = float(scipy.stats.sem(values)) if len(values) > 1 else None
    return Mean(value=float(values.mean()), error=error)
