"""What an oracle believes of the actions of one decision: rewards, and how sure it is of them."""

from __future__ import annotations

import math
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from croupier.policy.errors import ScoringError

__all__ = ("Estimates", "Uncertainty", "all_finite")

FloatArray: TypeAlias = NDArray[np.float64]

_FEW = 100

Uncertainty: TypeAlias = frozenset[str]
"""Names of the fields of :class:`Estimates`, beside the mean, that an oracle can fill in."""


class Estimates(msgspec.Struct, frozen=True):
    """Reward estimates of K actions, and the uncertainty that an exploration may ask for.

    Attributes
    ----------
    mean
        Expected reward of every action, shape (K,).
    deviation
        Standard error of every mean, shape (K,), at least 0: for a linear model fitted by ridge
        regression, ``sqrt(xᵀ V⁻¹ x)`` with ``V = λI + Σ x xᵀ``, that is, in units of the noise's
        standard deviation.
    covariance
        Of the means' errors, shape (K, K), symmetric and positive semidefinite, its diagonal
        ``deviation ** 2``.
    members
        Every ensemble member's own estimates, shape (B, K).
    """

    mean: FloatArray
    deviation: FloatArray | None = None
    covariance: FloatArray | None = None
    members: FloatArray | None = None

    def of(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Estimates:
        """The estimates of some of the actions, by mask or by index."""
        return Estimates(
            self.mean[chosen],
            None if self.deviation is None else self.deviation[chosen],
            None if self.covariance is None else self.covariance[chosen][:, chosen],
            None if self.members is None else self.members[:, chosen],
        )

    def require(self, needs: Uncertainty, wants: Uncertainty = frozenset()) -> None:
        """Check the mean, the fields that are needed, and those that are wanted if they are there.

        Raises
        ------
        ScoringError
            If a needed field is missing, a number is not finite, or a deviation is below 0.
        """
        if not all_finite(self.mean):
            raise ScoringError("the oracle gave a score that is not finite")
        if not needs and not wants:
            return
        missing = sorted(name for name in needs if getattr(self, name) is None)
        if missing:
            raise ScoringError(f"the oracle does not estimate {', '.join(missing)}")
        there = {name for name in needs | wants if getattr(self, name) is not None}
        if not all(all_finite(getattr(self, name)) for name in there):
            raise ScoringError("the oracle gave a score that is not finite")
        if "deviation" in there and self.deviation is not None and self.deviation.min() < 0.0:
            raise ScoringError("the oracle gave a standard error below 0")


def all_finite(values: FloatArray) -> bool:
    """Whether no number is infinite or NaN."""
    # The sum of others is never finite; a few numbers are added faster than NumPy is called.
    if values.ndim == 1 and values.size <= _FEW and math.isfinite(sum(values.tolist())):
        return True
    return bool(np.isfinite(values).all())
