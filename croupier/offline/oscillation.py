"""Whether successive generations oscillate: statistics of their values, against noise.

A generation's value is known up to noise, and noise alone looks like oscillation: the differences
of independent values change their sign two times in three and have a lag-1 autocorrelation of -1/2.
So none of the statistics here means anything by itself. Each is compared with what it would be if
the generations lay on a straight line and every value were off by noise of its own, and two things
have to be seen at once: the values vary more than the noise does (`spread`), and they do so up and
down rather than in any other order (`alternation`).

A series oscillates if both are significant at the level. That is an intersection-union test, so
that the chance of calling a steady series oscillating is at most the level, however the two depend
on each other (Berger, "Multiparameter Hypothesis Testing and Acceptance Sampling", Technometrics
1982).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    FloatArray = NDArray[np.float64]

__all__ = (
    "LEAST_GENERATIONS",
    "OscillationTest",
    "Swings",
    "gaussian_noise",
    "oscillation_test",
    "swings",
    "swings_of_each",
)

LEAST_GENERATIONS = 6
"""Of fewer, no order is rare enough to be significant: four values have 24."""


class Swings(msgspec.Struct, frozen=True, kw_only=True):
    """How a series of values moves; means over the series where there are several.

    With values ``v_1, ..., v_G`` and differences ``d_g = v_{g+1} - v_g``:

    Attributes
    ----------
    spread
        Standard deviation of the differences, ``sqrt(sum (d_g - mean d)^2 / (G - 2))``.
    sign_changes
        Share of the pairs of successive differences with ``d_g d_{g+1} < 0``, in [0, 1].
    autocorrelation
        Lag-1 autocorrelation of the differences,
        ``sum (d_g - mean d)(d_{g+1} - mean d) / sum (d_g - mean d)^2``, in [-1, 1].
    alternation
        Minus the lag-1 autocorrelation of the values less their straight line (least squares), in
        [-1, 1]; near 1 if every other generation is a good one.
    peak_to_trough
        ``max v - min v``.
    returns
        Share of the generations that undo the one before (A-B-A): ``d_g d_{g+1} < 0`` and
        ``|v_{g+2} - v_g| < min(|d_g|, |d_{g+1}|) / 2``, in [0, 1].
    """

    spread: float
    sign_changes: float
    autocorrelation: float
    alternation: float
    peak_to_trough: float
    returns: float


class OscillationTest(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen, what noise alone would show, and how rarely it would show as much.

    Attributes
    ----------
    generations, series, draws
        Numbers of generations, of series and of surrogates.
    seen
        The statistics.
    expected
        Their means over the surrogates.
    lower, upper
        The null band: quantiles of the surrogates' statistics at `level` and ``1 - level``. What is
        beyond the end that counts as extreme is significant by itself.
    p_values
        Share of surrogates that are as extreme or more, ``(1 + k) / (1 + draws)``: of
        `autocorrelation` as low, of all others as high.
    level
        Chance of calling a steady series oscillating, at most.
    oscillates
        Whether `spread` and `alternation` are both significant.
    """

    generations: int
    series: int
    draws: int
    seen: Swings
    expected: Swings
    lower: Swings
    upper: Swings
    p_values: Swings
    level: float
    oscillates: bool


def swings(values: ArrayLike) -> Swings:
    """Statistics of one series, shape (G,), or their means over several, shape (S, G).

    Raises
    ------
    InvalidInputError
        If `values` has another shape or isn't finite.
    NotEnoughDataError
        If there are fewer than :data:`LEAST_GENERATIONS` generations.
    """
    return _as_swings(_statistics(_series("values", values)).mean(axis=0))


def swings_of_each(values: ArrayLike) -> list[Swings]:
    """Statistics of every series by itself; parameters and errors as for :func:`swings`."""
    return [_as_swings(each) for each in _statistics(_series("values", values))]


def oscillation_test(
    values: ArrayLike,
    noise: ArrayLike,
    *,
    draws: int = 2000,
    level: float = 0.05,
    random_state: int = 0,
) -> OscillationTest:
    """Test whether series oscillate more than noise does.

    A surrogate is the series' straight line (least squares), and for each generation one of its
    noises, drawn anew. Fitting the line takes two degrees of freedom of noise out of a series, so
    that nothing is to be gained from it by an oscillating one.

    Parameters
    ----------
    values
        True or estimated values of successive generations, shape (G,), or of several series that
        are independent of each other, shape (S, G).
    noise
        What a value may be off by, around 0: R samples for each generation, shape (G, R) or
        (S, G, R). From standard errors by :func:`gaussian_noise`; from values of retrainings on
        bootstrapped logs, or of a control that logs uniformly, less their means.
    draws
        Number of surrogates, at least 100.
    level
        Chance of a false alarm, in (0, 1).
    random_state
        Seed of the surrogates.

    Raises
    ------
    InvalidInputError
        If a parameter is not of these.
    NotEnoughDataError
        If there are fewer than :data:`LEAST_GENERATIONS` generations.
    """
    series = _series("values", values)
    size, generations = series.shape
    samples = np.asarray(noise, dtype=np.float64)
    samples = samples[None] if samples.ndim == 2 else samples
    if samples.ndim != 3 or samples.shape[:2] != series.shape or samples.shape[2] == 0:
        raise InvalidInputError(
            "noise", f"expected shape ({size}, {generations}, R), got {np.shape(noise)}"
        )
    if not np.isfinite(samples).all():
        raise InvalidInputError("noise", "expected finite numbers only")
    if draws < 100:
        raise InvalidInputError("draws", f"expected at least 100, got {draws}")
    if not 0.0 < level < 1.0:
        raise InvalidInputError("level", f"expected a number in (0, 1), got {level}")
    line, _ = _detrended(series)
    seen = _statistics(series).mean(axis=0)
    null = _null(line, samples, draws, np.random.default_rng(random_state))
    as_extreme = np.where(_LOW_IS_EXTREME, null <= seen, null >= seen).sum(axis=0)
    p_values = _as_swings((1.0 + as_extreme) / (1.0 + draws))
    lower, upper = np.quantile(null, [level, 1.0 - level], axis=0)
    return OscillationTest(
        generations=generations,
        series=size,
        draws=draws,
        seen=_as_swings(seen),
        expected=_as_swings(null.mean(axis=0)),
        lower=_as_swings(lower),
        upper=_as_swings(upper),
        p_values=p_values,
        level=level,
        oscillates=max(p_values.spread, p_values.alternation) <= level,
    )


def gaussian_noise(
    standard_errors: ArrayLike, *, samples: int = 2000, random_state: int = 0
) -> FloatArray:
    """Noise of values that are known up to standard errors, for :func:`oscillation_test`.

    Parameters
    ----------
    standard_errors
        At least 0, of any shape.
    samples
        For each.
    random_state
        Seed.

    Returns
    -------
    noise
        One axis more than `standard_errors`, of length `samples`.

    Raises
    ------
    InvalidInputError
        If a standard error is negative or not finite.
    """
    errors = np.asarray(standard_errors, dtype=np.float64)
    if not (np.isfinite(errors).all() and (errors >= 0.0).all()):
        raise InvalidInputError("standard_errors", "expected finite numbers >= 0")
    rng = np.random.default_rng(random_state)
    return errors[..., None] * rng.standard_normal((*errors.shape, samples))


_CELLS = 1_000_000
_LOW_IS_EXTREME = np.array([name == "autocorrelation" for name in Swings.__struct_fields__])


def _series(name: str, values: ArrayLike) -> FloatArray:
    series = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if series.ndim != 2 or series.shape[0] == 0:
        raise InvalidInputError(name, f"expected shape (G,) or (S, G), got {np.shape(values)}")
    if not np.isfinite(series).all():
        raise InvalidInputError(name, "expected finite numbers only")
    if series.shape[1] < LEAST_GENERATIONS:
        raise NotEnoughDataError(
            f"whether generations oscillate can be told from {LEAST_GENERATIONS} on, "
            f"got {series.shape[1]}"
        )
    return series


def _null(
    line: FloatArray, samples: FloatArray, draws: int, rng: np.random.Generator
) -> FloatArray:
    """Statistics of the surrogates, shape (draws, 6): as if they were the series seen."""
    size, generations, count = samples.shape
    each, generation = np.arange(size)[:, None], np.arange(generations)
    at_once = max(1, _CELLS // (size * generations))
    found = []
    for start in range(0, draws, at_once):
        number = min(at_once, draws - start)
        chosen = rng.integers(count, size=(number, size, generations))
        surrogates = line + samples[each, generation, chosen]
        of_each = _statistics(surrogates.reshape(-1, generations))
        found.append(of_each.reshape(number, size, -1).mean(axis=1))
    return np.concatenate(found)


def _detrended(series: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The least-squares line of each series, and what is left; both (S, G)."""
    time = np.arange(series.shape[1], dtype=np.float64)
    time -= time.mean()
    slope = series @ time / (time @ time)
    line = series.mean(axis=1, keepdims=True) + slope[:, None] * time
    return line, series - line


def _statistics(series: FloatArray) -> FloatArray:
    """Those of :class:`Swings`, in its order, for each series; shape (S, 6)."""
    steps = np.diff(series, axis=1)
    centred = steps - steps.mean(axis=1, keepdims=True)
    _, rest = _detrended(series)
    first, second = steps[:, :-1], steps[:, 1:]
    turned = first * second < 0.0
    nearer = np.minimum(np.abs(first), np.abs(second)) / 2.0
    undone = turned & (np.abs(series[:, 2:] - series[:, :-2]) < nearer)
    return np.column_stack(
        (
            steps.std(axis=1, ddof=1),
            turned.mean(axis=1),
            _lag_one(centred),
            -_lag_one(rest),
            np.ptp(series, axis=1),
            undone.mean(axis=1),
        )
    )


def _lag_one(centred: FloatArray) -> FloatArray:
    """Autocorrelation of each row; 0 for one that doesn't vary."""
    square = (centred**2).sum(axis=1)
    product = (centred[:, 1:] * centred[:, :-1]).sum(axis=1)
    found: FloatArray = np.divide(product, square, out=np.zeros(len(square)), where=square > 0.0)
    return found


def _as_swings(values: FloatArray) -> Swings:
    return Swings(**dict(zip(Swings.__struct_fields__, values.tolist(), strict=True)))
