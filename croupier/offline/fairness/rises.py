"""Whether the violation rate rises across generations, or only moves as chance would have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ("LEAST_GENERATIONS", "RiseTest", "rise_test")

LEAST_GENERATIONS = 2
_DRAWS = 5000
_ROUNDING = 1e-9


class RiseTest(msgspec.Struct, frozen=True, kw_only=True):
    """One-sided tests that the rates of successive generations don't rise.

    Attributes
    ----------
    generations
        How many were looked at.
    trend_p_value
        That there is no rising line through them.
    jump_p_value
        That the last is no higher than all before it together.
    p_value
        Of both: twice the smaller, at most 1 (Bonferroni).
    level
        Chance of a false alarm, at most.
    rises
        Whether `p_value` is at most the level.
    """

    generations: int
    trend_p_value: float
    jump_p_value: float
    p_value: float
    level: float
    rises: bool


def rise_test(
    rates: ArrayLike, effective_pairs: ArrayLike, *, level: float = 0.01, random_state: int = 0
) -> RiseTest:
    """Test whether violation rates rise.

    Rates are compared as ``φ = arcsin √θ``, which varies by about ``1 / 4n`` whatever the rate is
    (Anscombe, "The Transformation of Poisson, Binomial and Negative-Binomial Data", 1948). The
    trend is the slope of the line through them by weighted least squares,
    ``z = Σ w_g (g - ḡ) φ_g / √(Σ w_g (g - ḡ)²)`` with ``w_g = 4 n_g``, and the jump the last one
    less the mean of all before it. Violations are rare, so that normal quantiles don't fit: the
    p-values are shares of simulated series, in which every generation has the rate of all of them
    together.

    Parameters
    ----------
    rates
        Of successive generations that were judged by the same panel, in [0, 1], shape (G,).
    effective_pairs
        Of how many independent pairs each is worth, see
        :class:`~croupier.offline.fairness.violation_rate.ViolationRate`; at least 1, shape (G,).
    level
        Chance of a false alarm, in (0, 1).
    random_state
        Seed of the simulated series.

    Raises
    ------
    InvalidInputError
        If a parameter is not of these.
    NotEnoughDataError
        If there are fewer than 2 generations.
    """
    given = np.asarray(rates, dtype=np.float64)
    pairs = np.asarray(effective_pairs, dtype=np.float64)
    if given.ndim != 1 or pairs.shape != given.shape:
        raise InvalidInputError(
            "rates", f"expected (G,) and (G,), got {given.shape}, {pairs.shape}"
        )
    if not ((given >= 0.0) & (given <= 1.0)).all():
        raise InvalidInputError("rates", "expected numbers in [0, 1]")
    if not (np.isfinite(pairs) & (pairs >= 1.0)).all():
        raise InvalidInputError("effective_pairs", "expected numbers of at least 1")
    if not 0.0 < level < 1.0:
        raise InvalidInputError("level", f"expected a number in (0, 1), got {level}")
    count = len(given)
    if count < LEAST_GENERATIONS:
        raise NotEnoughDataError(
            f"a rise can be seen from {LEAST_GENERATIONS} generations on, got {count}"
        )
    size = np.maximum(np.round(pairs), 1.0)
    # Half a violation and half a pair that doesn't, so that none in all isn't taken for never.
    common = float((size @ given + 0.5) / (size.sum() + 1.0))
    rng = np.random.default_rng(random_state)
    null = rng.binomial(size.astype(np.int64), common, size=(_DRAWS, count)) / size
    seen, chance = _statistics(given[None, :], size)[0], _statistics(null, size)
    # As large but for rounding is as large.
    as_extreme = (chance >= seen - _ROUNDING).sum(axis=0)
    trend_p, jump_p = ((1.0 + as_extreme) / (1.0 + _DRAWS)).tolist()
    p_value = min(1.0, 2.0 * min(trend_p, jump_p))
    return RiseTest(
        generations=count,
        trend_p_value=trend_p,
        jump_p_value=jump_p,
        p_value=p_value,
        level=level,
        rises=p_value <= level,
    )


def _statistics(rates: NDArray[np.float64], pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Trend and jump of series (S, G) in standard errors, shape (S, 2)."""
    angle, weight = np.arcsin(np.sqrt(rates)), 4.0 * pairs
    time = np.arange(rates.shape[1], dtype=np.float64)
    time -= np.average(time, weights=weight)
    slope = angle @ (weight * time) / np.sqrt(weight @ (time * time))
    before = np.average(angle[:, :-1], axis=1, weights=weight[:-1])
    spread = np.sqrt(1.0 / weight[-1] + 1.0 / weight[:-1].sum())
    return np.column_stack((slope, (angle[:, -1] - before) / spread))
