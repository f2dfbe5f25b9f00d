"""Tilts: a pmf with some actions more probable than exploration makes them, and others less."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.policy.exploration import apply_floor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.policy.events import Action

__all__ = ("LARGEST_LOG_WEIGHT", "Tilt")

LARGEST_LOG_WEIGHT = 20.0
"""Of any action, up or down: within it no sum of probabilities overflows or vanishes."""


class Tilt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Log-weights of actions, ``q(a|x) = p(a|x) exp(w_a) / Σ_b p(b|x) exp(w_b)``.

    Weights belong to ids, so that they stay with an action whatever else can be chosen: the ratio
    of two actions' probabilities changes by the same factor in every set that has both.

    Attributes
    ----------
    log_weights
        Ids with their w, each in [-20, 20]; actions that aren't named have 0.

    References
    ----------
    Corrado and Hanna, "On-Policy Policy Gradient Reinforcement Learning Without On-Policy
    Sampling", 2023: a behaviour policy apart from the target. This family of them is ours.
    """

    log_weights: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        for action_id, weight in self.log_weights:
            if not -LARGEST_LOG_WEIGHT <= weight <= LARGEST_LOG_WEIGHT:
                raise ValueError(
                    f"log_weights must be in [-{LARGEST_LOG_WEIGHT:g}, {LARGEST_LOG_WEIGHT:g}], "
                    f"got {weight} for {action_id!r}"
                )
        if len(self._factors) != len(self.log_weights):
            raise ValueError("log_weights must name every action once")

    @cached_property
    def _factors(self) -> dict[str, float]:
        return {action_id: math.exp(weight) for action_id, weight in self.log_weights}

    def applied(
        self,
        pmf: NDArray[np.float64],
        actions: Sequence[Action],
        eligible: NDArray[np.bool_] | None = None,
        *,
        floor: float = 0.0,
    ) -> NDArray[np.float64]:
        """The tilted pmf, shape (K,).

        What can't be played stays at 0. A floor that the tilt went below is restored by
        :func:`~croupier.policy.exploration.apply_floor`, by projection. Where all actions weigh the
        same, the pmf itself is given back.

        Parameters
        ----------
        pmf
            Of the actions, shape (K,), summing to 1; 0 for those that are not eligible.
        actions
            K of them.
        eligible
            Which may be chosen, shape (K,); all of them if None.
        floor
            Smallest probability of eligible actions, in [0, 1].
        """
        known = self._factors
        factors = [known.get(each.id, 1.0) for each in actions]
        if len(set(factors)) == 1:
            return pmf
        odds = pmf * np.array(factors)
        tilted: NDArray[np.float64] = odds / odds.sum()
        if floor <= 0.0:
            return tilted
        if eligible is None:
            return apply_floor(tilted, floor)
        tilted[eligible] = apply_floor(tilted[eligible], floor)
        return tilted
