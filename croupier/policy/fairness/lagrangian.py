"""The Lagrangian of individually fair learning: errors, and a price for every reported pair."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from croupier.policy.fairness.protocol import Violation

__all__ = ("Penalty", "lagrangian", "violations_at_most")


class Penalty(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The price C_t of a reported pair: ``C_t = scale · k · t^exponent``.

    A learner whose Lagrangian regret is O((k + C) √T) has, with C = k T^{1/4}, an error regret of
    O(k T^{3/4}) and, by :func:`violations_at_most`, O(T^{3/4} / ε) violations; with the price
    growing in t the same holds of every T at once.

    Attributes
    ----------
    scale
        At least 0; 0 learns without regard to the panel.
    exponent
        In [0, 1).
    """

    scale: float = 1.0
    exponent: float = 0.25

    def __post_init__(self) -> None:
        if not 0.0 <= self.scale < math.inf:
            raise ValueError(f"scale must be at least 0, got {self.scale}")
        if not 0.0 <= self.exponent < 1.0:
            raise ValueError(f"exponent must be in [0, 1), got {self.exponent}")

    def at(self, round_: int, instances: int) -> float:
        """C_t, of round t ≥ 1 with k instances."""
        return float(self.scale * instances * round_**self.exponent)


def lagrangian(
    chances: NDArray[np.float64],
    labels: NDArray[np.float64],
    violation: Violation | None,
    price: float,
) -> float:
    """L_{C,ρ}(π) of a round.

    ``Σ_i [y_i + π(x_i)(1 - 2 y_i)] + C (π(x_over) - π(x_under))``, the second term only where a
    pair was reported. Bechavod and Roth, 2022, section 3.

    Parameters
    ----------
    chances
        π(x_i), in [0, 1], shape (k,).
    labels
        y_i, shape (k,).
    violation
        The pair that the panel reported of whoever played, who need not be π.
    price
        C ≥ 0.
    """
    error = float((labels + chances * (1.0 - 2.0 * labels)).sum())
    if violation is None:
        return error
    return error + price * float(chances[violation.over] - chances[violation.under])


def violations_at_most(
    lagrangian_regret: float, error_regret: float, price: float, slack: float
) -> float:
    """How many rounds can have had a reported pair: ``(R_L - R) / (C ε)``.

    Where a pair is reported, the learner's chances differ by more than d + α, and those of a
    comparator that is fair at α - ε by at most d + α - ε. So each such round adds more than C ε to
    the Lagrangian regret R_L against that comparator, beside the regret R in errors, which is
    negative where the learner errs less than a fair policy can.

    Parameters
    ----------
    lagrangian_regret, error_regret
        R_L and R against the same comparator.
    price
        C > 0, the smallest of the rounds that are counted.
    slack
        ε > 0.
    """
    return (lagrangian_regret - error_regret) / (price * slack)
