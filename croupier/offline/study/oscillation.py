"""What the series of the oscillation study say: one summary for each arm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
import scipy

from croupier.offline.oscillation import OscillationTest, oscillation_test, swings_of_each
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
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
        Standard deviation of what changing generations changes: the value of one less that of its
        predecessor there and then.
    autocorrelation
        Lag-1 autocorrelation of these changes; -1/2 if generations are independent of each other.
    returns
        Share of the panel whose most probable action is that of two generations ago and not the
        last one's.
    total_variation, flip_rate
        Distance of successive policies on the panel.
    positive_rate, ece, entropy, coverage
        Means, see :data:`~croupier.offline.study.series.SERIES_SCHEMA`.
    test
        Of the changes, against the noise of the control; None without a control.
    bootstrap_test
        The same against what retraining on bootstrapped logs changes; None without these.
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
    bootstrap_test: OscillationTest | None


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

    A world that changes makes all policies better or worse. So what is looked at is what changing
    generations changes, ``d_g = V_g(π_g) - V_g(π_{g-1})``, both at the same time; their sums from
    the first generation on are the values as they would be in a world that had stood still.

    The noise that these are tested against is that of the control, whose generations learn as much
    from uniform decisions and don't depend on each other: its sums less their straight line in each
    seed, from all generations and seeds. An arm with generations that were retrained on
    bootstrapped logs is tested against how their values differ from their mean as well.

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
    settled = {name: _Settled.of(runs, name, burn_in) for name in names}
    noise = None if control is None else _noise(settled[control].chained)

    def tested(chained: FloatArray, samples: FloatArray | None) -> OscillationTest | None:
        if samples is None:
            return None
        return oscillation_test(chained, samples, level=level, random_state=random_state)

    arms = []
    for name, each in settled.items():
        drawn = None if noise is None else np.broadcast_to(noise, (*each.chained.shape, len(noise)))
        own = _bootstrapped(runs, name, burn_in)
        arms.append(each.summary(name, tested(each.chained, drawn), tested(each.chained, own)))
    generations = int(runs["generation"].max()) + 1  # type: ignore[arg-type]
    return OscillationStudy(
        generations=generations, burn_in=burn_in, level=level, control=control, arms=arms
    )


def _bootstrapped(runs: pl.DataFrame, arm: str, burn_in: int) -> FloatArray | None:
    """How bootstrapped values differ from their means, shape (seeds, generations, B)."""
    rows = runs.filter(pl.col("generation") >= burn_in, arm=arm).sort("seed", "generation")
    if rows["bootstrapped"].null_count():
        return None
    values = np.array(rows["bootstrapped"].to_list(), dtype=np.float64)
    count = values.shape[1]
    residuals: FloatArray = (values - values.mean(axis=1, keepdims=True)) * math.sqrt(
        count / (count - 1.0)
    )
    return np.reshape(residuals, (rows["seed"].n_unique(), -1, count))


class _Settled:
    """The series of an arm after its burn-in; each column has shape (seeds, generations)."""

    def __init__(self, columns: dict[str, FloatArray]) -> None:
        self._columns = columns
        self.gain = columns["value"] - columns["uniform_value"]
        changes = columns["value"] - columns["carried_value"]
        self.chained = np.cumsum(changes, axis=1)

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

    def summary(
        self, arm: str, test: OscillationTest | None, bootstrap_test: OscillationTest | None
    ) -> ArmSummary:
        columns = self._columns
        room = columns["best_value"] - columns["uniform_value"]
        missed = columns["best_value"] - columns["value"]
        swings = swings_of_each(self.chained)
        return ArmSummary(
            arm=arm,
            seeds=len(self.gain),
            value=mean_of(columns["value"].mean(axis=1)),
            gain=mean_of(self.gain.mean(axis=1)),
            regret=mean_of(missed.sum(axis=1) / room.sum(axis=1)),
            spread=mean_of(np.array([each.spread for each in swings])),
            autocorrelation=mean_of(np.array([each.autocorrelation for each in swings])),
            **{name: mean_of(_of_seeds(columns[name])) for name in _MEANS},
            test=test,
            bootstrap_test=bootstrap_test,
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
_TAKEN = ("value", "uniform_value", "best_value", "carried_value", *_MEANS)


def _noise(values: FloatArray) -> FloatArray:
    """What values are off their straight lines, as much as if no line had been fitted."""
    generations = values.shape[1]
    time = np.arange(generations) - (generations - 1) / 2.0
    line = values.mean(axis=1, keepdims=True) + np.outer(values @ time / (time @ time), time)
    residuals: FloatArray = (values - line) * math.sqrt(generations / (generations - 2.0))
    return residuals.ravel()


def _of_seeds(values: FloatArray) -> FloatArray:
    """Means over the generations that have a value, of the seeds with any, shape (<= seeds,)."""
    some = ~np.isnan(values).all(axis=1)
    return np.asarray(np.nanmean(values[some], axis=1)) if some.any() else np.array([np.nan])


def mean_of(values: FloatArray) -> Mean:
    """Mean and standard error of independent values, one for each seed, shape (seeds,)."""
    error = float(scipy.stats.sem(values)) if len(values) > 1 else None
    return Mean(value=float(values.mean()), error=error)
