"""A distance that is learned from people's judgements of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy

from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import ArrayLike, NDArray

    from croupier.policy.fairness.auditors import FloatArray

__all__ = ("DistanceLearner",)

_JITTER = 1e-9
_FOLDS = 5


class DistanceLearner:
    """Weights of ``d² = Σ_k w_k² Δ_k²`` from judged distances, by penalised least squares.

    A diagonal Mahalanobis distance, so that ``s = Σ_k v_k Δ_k²`` is linear in ``v = w² ≥ 0`` and
    the fit is convex: ``min_v Σ_i (d_i² - s_i)² + λ Σ_k (σ_k² v_k - prior_k)²``, where a judgement
    of 1 says no more than that the distance is at least 1 (it costs ``max(0, 1 - s_i)²``), as
    distances are cut off there. Non-negative least squares as in Schultz & Joachims, "Learning a
    Distance Metric from Relative Comparisons" (2003), with judged distances in the place of
    comparisons.

    Parameters
    ----------
    penalty
        λ > 0, in judgements: how many of them the prior is worth.
    prior
        ``σ_k² v_k`` before any judgement, in squared distance of two random individuals. With the
        same one for all features, and as many as they are, random pairs are `prior` · K apart.

    Attributes
    ----------
    weights_
        w_k ≥ 0, shape (K,).
    covariance_
        Of v, shape (K, K): the inverse of the penalised normal equations, times the variance of the
        residuals (Laplace's approximation without the bound at 0).
    noise_
        Standard deviation of the residuals of d².
    """

    def __init__(self, *, penalty: float = 0.1, prior: float = 0.1) -> None:
        if not penalty > 0.0:
            raise InvalidInputError("penalty", f"expected a number above 0, got {penalty}")
        if not prior >= 0.0:
            raise InvalidInputError("prior", f"expected at least 0, got {prior}")
        self.penalty = penalty
        self.prior = prior

    def fit(self, squares: ArrayLike, distances: ArrayLike, scales: ArrayLike) -> Self:
        """Learn weights.

        Parameters
        ----------
        squares
            ``Δ_k²`` of the judged pairs, shape (m, K), m ≥ 0.
        distances
            As judged, in [0, 1], shape (m,).
        scales
            ``σ_k``: how far apart random individuals are in feature k (root mean square), shape
            (K,). A feature in which all are the same has weight 0.
        """
        given, judged = _pairs(squares, distances)
        spread = np.asarray(scales, dtype=np.float64) ** 2
        varies = spread > 0.0
        unit = np.divide(given, spread, out=np.zeros_like(given), where=varies)
        target = judged**2
        prior = np.where(varies, self.prior, 0.0)
        found = _least_squares(unit, target, self.penalty, prior)
        residuals = _residuals(unit @ found, target)
        # Two judgements' worth of a moderate error: few of them can agree by chance.
        self.noise_ = float(np.sqrt((residuals @ residuals + 2 * 0.1**2) / (len(judged) + 2)))
        active = unit[(target < 1.0) | (unit @ found < 1.0)]
        normal = active.T @ active + self.penalty * np.eye(len(found))
        inverse = np.linalg.inv(normal) * self.noise_**2
        per = np.divide(1.0, spread, out=np.zeros_like(spread), where=varies)
        self.weights_ = np.sqrt(found * per)
        self.covariance_ = inverse * np.outer(per, per)
        return self

    def predict(self, squares: ArrayLike) -> FloatArray:
        """Distances of pairs, in [0, 1], shape (m,)."""
        values = np.asarray(squares, dtype=np.float64) @ self.weights_**2
        return np.asarray(np.minimum(np.sqrt(np.maximum(values, 0.0)), 1.0))

    def uncertainty(self, squares: ArrayLike) -> FloatArray:
        """Standard errors of the distances of pairs, before they are cut off at 1, shape (m,).

        By the delta method on ``d = sqrt(s)``, with d at least as large as the error of s allows:
        ``sd(s) / (2 max(d, sd(s)^½))``.
        """
        given = np.asarray(squares, dtype=np.float64)
        deviation = np.sqrt(np.einsum("ij,jk,ik->i", given, self.covariance_, given) + _JITTER)
        distance = np.sqrt(np.maximum(given @ self.weights_**2, 0.0))
        return np.asarray(deviation / (2.0 * np.maximum(distance, np.sqrt(deviation))))

    def held_out_error(
        self,
        squares: ArrayLike,
        distances: ArrayLike,
        scales: ArrayLike,
        rng: np.random.Generator,
    ) -> float:
        """Mean absolute error of the distance of pairs that weren't learned from (5-fold).

        The parameters are those of :meth:`fit`, and the source of the folds.

        Raises
        ------
        NotEnoughDataError
            If there are fewer than 5 pairs.
        """
        given, judged = _pairs(squares, distances)
        if len(judged) < _FOLDS:
            raise NotEnoughDataError(
                f"a distance can be held out from {_FOLDS} judgements on, got {len(judged)}"
            )
        fold = rng.permutation(len(judged)) % _FOLDS
        errors = np.zeros(len(judged))
        for number in range(_FOLDS):
            out = fold == number
            learner = DistanceLearner(penalty=self.penalty, prior=self.prior)
            learner.fit(given[~out], judged[~out], scales)
            errors[out] = np.abs(learner.predict(given[out]) - judged[out])
        return float(errors.mean())


def _pairs(squares: ArrayLike, distances: ArrayLike) -> tuple[FloatArray, FloatArray]:
    given = np.asarray(squares, dtype=np.float64)
    judged = np.asarray(distances, dtype=np.float64)
    if given.ndim != 2 or judged.shape != given.shape[:1]:
        raise InvalidInputError(
            "squares", f"expected shapes (m, K) and (m,), got {given.shape} and {judged.shape}"
        )
    if not ((judged >= 0.0) & (judged <= 1.0)).all():
        raise InvalidInputError("distances", "expected numbers in [0, 1]")
    return given, judged


def _least_squares(
    unit: FloatArray, target: FloatArray, penalty: float, prior: FloatArray
) -> FloatArray:
    def cost(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        off = _residuals(unit @ values, target)
        away = values - prior
        slope = 2.0 * (unit.T @ off + penalty * away)
        return float(off @ off + penalty * (away @ away)), slope

    found = scipy.optimize.minimize(
        cost,
        prior,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, None)] * len(prior),
        options={"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-10},
    )
    return np.asarray(found.x, dtype=np.float64)


def _residuals(values: FloatArray, target: FloatArray) -> FloatArray:
    """What squared distances are off by; one that is judged to be 1 may be any that is larger."""
    off = values - target
    return np.asarray(np.where(target >= 1.0, np.minimum(off, 0.0), off))
