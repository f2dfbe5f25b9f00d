"""Exploration: from an oracle's scores to an exact probability for every action.

Each exploration is a small frozen struct: its fields are its parameters, its tag is the name
that a configuration file uses, and :meth:`ExplorationBase.pmf` is the one definition that the
scorer, off-policy evaluation and the simulators share. All arithmetic is float64.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from croupier.policy.errors import ScoringError

__all__ = (
    "EpsilonGreedy",
    "Exploration",
    "ExplorationBase",
    "Greedy",
    "Softmax",
    "SquareCB",
    "Uniform",
    "apply_floor",
)

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]

_LARGEST = float(np.finfo(np.float64).max)


class ExplorationBase(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """What all explorations share: eligibility, the floor and the checks.

    Attributes
    ----------
    floor
        Smallest probability of any eligible action, in [0, 1]; it is lowered to ``1 / K`` where
        K eligible actions could not all have it.
    floor_method
        How the floor is kept: ``project`` moves the pmf to the nearest point (Euclidean) of the
        simplex with all entries at least `floor`; ``mix`` mixes it with the uniform distribution,
        which costs the best action more.
    """

    floor: float = 0.0
    floor_method: Literal["project", "mix"] = "project"

    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require("floor", self.floor, low=0.0, high=1.0)

    def pmf(
        self, scores: FloatArray, eligible: BoolArray | None = None, *, training_rows: int = 0
    ) -> FloatArray:
        """Probability of every action.

        Parameters
        ----------
        scores
            Reward estimates, shape (K,), higher is better. Only eligible entries are looked at.
        eligible
            Which actions may be chosen, shape (K,); all of them if None.
        training_rows
            Number of interactions behind `scores`, for schedules that explore less with more data.

        Returns
        -------
        ndarray of shape (K,)
            Sums to 1 within 1e-9; 0 for actions that are not eligible.

        Raises
        ------
        ScoringError
            If no action is eligible or an eligible score is not finite.
        """
        if eligible is None or eligible.all():
            return self._pmf_of_eligible(scores, training_rows)
        pmf = np.zeros(len(scores))
        pmf[eligible] = self._pmf_of_eligible(scores[eligible], training_rows)
        return pmf

    def _pmf_of_eligible(self, scores: FloatArray, training_rows: int) -> FloatArray:
        if scores.size == 0:
            raise ScoringError("no action is eligible")
        if self.needs_scores and not np.isfinite(scores).all():
            raise ScoringError("the oracle gave a score that is not finite")
        pmf = self._explore(np.asarray(scores, dtype=np.float64), training_rows)
        return apply_floor(pmf, self.floor, self.floor_method)

    def _explore(self, scores: FloatArray, training_rows: int) -> FloatArray:
        raise NotImplementedError

    def describe(self) -> str:
        """One line for tables: the kind and the parameters that differ from their defaults."""
        named = [
            f"{field.name}={getattr(self, field.name):g}"
            if isinstance(getattr(self, field.name), float)
            else f"{field.name}={getattr(self, field.name)}"
            for field in msgspec.structs.fields(self)
            if getattr(self, field.name) != field.default
        ]
        kind = str(self.__struct_config__.tag)
        return f"{kind}({', '.join(named)})" if named else kind


class Uniform(ExplorationBase, frozen=True, tag="uniform"):
    """Every eligible action alike: ``p(a) = 1 / K``."""

    needs_scores: ClassVar[bool] = False

    def _explore(self, scores: FloatArray, training_rows: int) -> FloatArray:  # noqa: ARG002
        return np.full(scores.size, 1.0 / scores.size)


class Greedy(ExplorationBase, frozen=True, tag="greedy"):
    """The best action, ties shared evenly.

    Without a floor the other actions are never seen again: no later policy can be learned or
    evaluated from such a log.
    """

    def _explore(self, scores: FloatArray, training_rows: int) -> FloatArray:  # noqa: ARG002
        return _share_of_best(scores)


class EpsilonGreedy(ExplorationBase, frozen=True, tag="epsilon_greedy"):
    """The best action, but with probability ε any: ``p(a) = ε/K + (1-ε) [a is best] / #best``.

    Attributes
    ----------
    epsilon
        Share of uniform traffic, in [0, 1].
    """

    epsilon: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        _require("epsilon", self.epsilon, low=0.0, high=1.0)

    def _explore(self, scores: FloatArray, training_rows: int) -> FloatArray:  # noqa: ARG002
        return self.epsilon / scores.size + (1.0 - self.epsilon) * _share_of_best(scores)


class Softmax(ExplorationBase, frozen=True, tag="softmax"):
    """Boltzmann exploration: ``p(a) ∝ exp(f(a) / τ)``.

    Attributes
    ----------
    temperature
        τ > 0, in units of reward: a gap of τ makes an action e times likelier.
    """

    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _require("temperature", self.temperature, low=0.0, low_open=True)

    def _explore(self, scores: FloatArray, training_rows: int) -> FloatArray:  # noqa: ARG002
        # Scores may be so far apart that a gap overflows; its exponential is 0 all the same.
        with np.errstate(over="ignore"):
            odds = np.exp((scores - scores.max()) / self.temperature)
        return np.asarray(odds / odds.sum())


class SquareCB(ExplorationBase, frozen=True, tag="squarecb"):
    """Inverse gap weighting: ``p(a) = 1 / (K + γ (f(b) - f(a)))`` for a ≠ b, and b has the rest.

    Here b is the best action and ``γ = gamma_scale · n^gamma_exponent`` with n the interactions
    behind the oracle. Actions that tie for the best share what is left evenly: the mean over all
    ways to name one of them b.

    Attributes
    ----------
    gamma_scale
        ≥ 0; 0 is uniform, large is greedy.
    gamma_exponent
        In [0, 1]; 0 keeps γ fixed at `gamma_scale`.

    References
    ----------
    Foster and Rakhlin, "Beyond UCB: Optimal and Efficient Contextual Bandits with Regression
    Oracles", 2020, Algorithm 1. Defaults of scale and exponent are Vowpal Wabbit's.
    """

    gamma_scale: float = 10.0
    gamma_exponent: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _require("gamma_scale", self.gamma_scale, low=0.0)
        _require("gamma_exponent", self.gamma_exponent, low=0.0, high=1.0)

    def gamma(self, training_rows: int) -> float:
        """Greediness γ after `training_rows` interactions."""
        return min(float(self.gamma_scale * training_rows**self.gamma_exponent), _LARGEST)

    def _explore(self, scores: FloatArray, training_rows: int) -> FloatArray:
        # An overflow means a probability of 0; only 0 * inf would be wrong, so gaps stay finite.
        with np.errstate(over="ignore"):
            gaps = np.minimum(scores.max() - scores, _LARGEST)
            pmf = 1.0 / (scores.size + self.gamma(training_rows) * gaps)
        best = gaps == 0.0
        pmf[best] = (1.0 - pmf[~best].sum()) / np.count_nonzero(best)
        return np.asarray(pmf)


Exploration: TypeAlias = Uniform | Greedy | EpsilonGreedy | Softmax | SquareCB


def apply_floor(
    pmf: FloatArray, floor: float, method: Literal["project", "mix"] = "project"
) -> FloatArray:
    """Give every action at least `floor`.

    ``project`` is the Euclidean projection onto {p : p ≥ floor, Σp = 1},
    ``p'(a) = floor + max(p(a) - floor - τ, 0)`` with τ such that p' sums to 1; ``mix`` is
    ``p'(a) = K·floor/K + (1 - K·floor) p(a)``.

    Parameters
    ----------
    pmf
        Probabilities, shape (K,), summing to 1.
    floor
        In [0, 1]; lowered to 1/K if K of them would exceed 1.
    method
        Either of the above.
    """
    floor = min(floor, 1.0 / pmf.size)
    if floor <= 0.0 or (method == "project" and pmf.min() >= floor):
        return pmf
    free = 1.0 - pmf.size * floor
    if method == "mix":
        return floor + max(free, 0.0) * pmf
    if free <= 0.0:
        return np.full(pmf.size, 1.0 / pmf.size)
    return floor + _project_onto_simplex(pmf - floor, free)


def _project_onto_simplex(values: FloatArray, total: float) -> FloatArray:
    """Nearest point with entries ≥ 0 that sum to `total` (Held, Wolfe and Crowder, 1974)."""
    descending = np.sort(values)[::-1]
    excess = (np.cumsum(descending) - total) / np.arange(1, values.size + 1)
    threshold = excess[np.flatnonzero(descending > excess)[-1]]
    return np.asarray(np.maximum(values - threshold, 0.0))


def _share_of_best(scores: FloatArray) -> FloatArray:
    best = scores == scores.max()
    return np.asarray(best / np.count_nonzero(best), dtype=np.float64)


def _require(
    name: str,
    value: float,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
) -> None:
    inside = (low < value if low_open else low <= value) and value <= high
    if not (math.isfinite(value) and inside):
        opening, closing = "(" if low_open else "[", "]" if math.isfinite(high) else ")"
        raise ValueError(f"{name} must be in {opening}{low:g}, {high:g}{closing}, got {value!r}")
