"""The best fair policy in hindsight: a mixture of hypotheses, by linear programming."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ("FairComparator",)

_TOLERANCE = 1e-7
_MOST_CUTS = 100


class FairComparator:
    """Finds the mixture with the fewest errors among those that treat no pair too differently.

    ``min Σ_h π(h) e(h)`` subject to ``π(x) - π(x') ≤ limit(x, x')`` of all pairs and π in the
    simplex. The constraints are as many as pairs, and few bind: those that a solution violates are
    added, until none does. They are kept from one problem to the next.

    Parameters
    ----------
    decisions
        What each hypothesis decides in each context, shape (H, N). A constant one among them makes
        any limits of at least 0 possible.
    limits
        Of every ordered pair, at least 0, shape (N, N).
    """

    def __init__(self, decisions: NDArray[np.float32], limits: FloatArray) -> None:
        if limits.shape != (decisions.shape[1],) * 2 or not (limits >= 0.0).all():
            raise InvalidInputError("limits", "expected one of at least 0 for every pair")
        self._decisions = decisions.astype(np.float64)
        self._limits = limits
        self._pairs: set[tuple[int, int]] = set()

    def best(self, errors: FloatArray) -> FloatArray:
        """The best fair mixture.

        Parameters
        ----------
        errors
            e(h), shape (H,).

        Returns
        -------
        mixture
            π, shape (H,).
        """
        scale = max(float(np.abs(errors).max()), 1.0)
        while True:
            mixture = self._solved(errors / scale)
            chances = mixture @ self._decisions
            excess = chances[:, None] - chances - self._limits
            worst = excess.argmax(axis=1)
            beyond = excess[np.arange(len(worst)), worst]
            found = np.flatnonzero(beyond > _TOLERANCE)
            found = found[np.argsort(-beyond[found])][:_MOST_CUTS]
            fresh = {(i, int(worst[i])) for i in found.tolist()} - self._pairs
            if not fresh:
                return mixture
            self._pairs |= fresh

    def _solved(self, errors: FloatArray) -> FloatArray:
        from scipy.optimize import linprog  # noqa: PLC0415 - slow to import

        pairs = np.array(sorted(self._pairs), dtype=np.int64).reshape(-1, 2)
        columns = self._decisions
        solution = linprog(
            errors,
            A_ub=(columns[:, pairs[:, 0]] - columns[:, pairs[:, 1]]).T if len(pairs) else None,
            b_ub=self._limits[pairs[:, 0], pairs[:, 1]] if len(pairs) else None,
            A_eq=np.ones((1, len(errors))),
            b_eq=[1.0],
            bounds=(0.0, None),
            method="highs",
        )
        assert solution.x is not None, "a constant policy is fair"
        return np.asarray(solution.x, dtype=np.float64)
