"""What all explorations share: eligibility, the checks of scores, and the floor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from croupier.policy.errors import ScoringError
from croupier.policy.estimates import Estimates, Uncertainty

__all__ = (
    "LARGEST",
    "Approximation",
    "ExplorationBase",
    "Round",
    "apply_floor",
    "require",
    "require_range",
    "share_of_best",
)

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]

LARGEST = float(np.finfo(np.float64).max)


class Round(msgspec.Struct, frozen=True):
    """What an exploration may know of a decision besides its estimates.

    Attributes
    ----------
    training_rows
        Number of interactions behind the estimates.
    baseline
        Index, among the eligible actions, of the application's own choice; None if it has none.
    budget
        Reward that a decision may lose in expectation, on top of what its exploration allows, since
        earlier decisions have earned it; below 0 while they have earned too little.
    """

    training_rows: int = 0
    baseline: int | None = None
    budget: float = 0.0


@dataclass(frozen=True, slots=True)
class Approximation:
    """How far the pmf that is played can be from the one that was meant.

    The pmf that is played is the one that is drawn from and logged, so propensities are exact all
    the same. The bound is for whoever evaluates or compares the policy that was meant: its value
    differs from that of the played one by at most ``total_variation`` times the range of the
    reward.

    Attributes
    ----------
    standard_error
        Of every probability, shape (K,).
    largest
        Bound on the error of all probabilities at once, by Hoeffding's inequality.
    total_variation
        Bound on half the sum of all errors.
    confidence
        With which either bound holds, over the samples.
    """

    standard_error: FloatArray
    largest: float
    total_variation: float
    confidence: float


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
    uses_baseline: ClassVar[bool] = False
    # Parameters that earlier versions don't know, see `written`; their defaults can't change.
    later: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        require("floor", self.floor, low=0.0, high=1.0)

    @property
    def needs(self) -> Uncertainty:
        """Fields of :class:`Estimates` that must be there beside the mean."""
        return frozenset()

    @property
    def wants(self) -> Uncertainty:
        """What it needs, and what it makes use of where the oracle offers it."""
        return self.needs

    @property
    def caution(self) -> str | None:
        """What a user of this exploration should be warned of; None if nothing."""
        return None

    def pmf(
        self,
        scores: FloatArray | Estimates,
        eligible: BoolArray | None = None,
        *,
        training_rows: int = 0,
        baseline: int | None = None,
        budget: float = 0.0,
    ) -> FloatArray:
        """Probability of every action.

        Parameters
        ----------
        scores
            Reward estimates, shape (K,), higher is better; or :class:`Estimates`, which also tell
            how sure the oracle is. Only eligible entries are looked at.
        eligible
            Which actions may be chosen, shape (K,); all of them if None.
        training_rows
            Number of interactions behind `scores`, for schedules that explore less with more data.
        baseline
            Index of the application's own choice, for explorations that fall back on it.
        budget
            Reward that this decision may lose in expectation, see :class:`Round`.

        Returns
        -------
        ndarray of shape (K,)
            Sums to 1 within 1e-9; 0 for actions that are not eligible.

        Raises
        ------
        ScoringError
            If no action is eligible, an eligible score is not finite, or the estimates lack what
            the exploration needs.
        """
        estimates = scores if isinstance(scores, Estimates) else Estimates(scores)
        if eligible is None or eligible.all():
            return self._pmf_of_eligible(estimates, Round(training_rows, baseline, budget))
        if baseline is not None:
            if not eligible[baseline]:
                raise ScoringError("the baseline is not eligible")
            baseline = int(np.count_nonzero(eligible[:baseline]))
        round_ = Round(training_rows, baseline, budget)
        pmf = np.zeros(estimates.mean.size)
        pmf[eligible] = self._pmf_of_eligible(estimates.of(eligible), round_)
        return pmf

    def approximation(self, pmf: FloatArray, confidence: float = 0.999) -> Approximation | None:  # noqa: ARG002
        """How far a pmf can be from what it stands for; None where it is exact to rounding.

        Parameters
        ----------
        pmf
            As :meth:`pmf` gave it, shape (K,), without a floor.
        confidence
            Of the bounds, in (0, 1).
        """
        return None

    def greediness(self, training_rows: int, actions: int) -> float | None:  # noqa: ARG002
        """γ, where the pmf of eligible actions is their inverse gap weights and nothing else.

        What is so simple can be had from one call of the kernel. None where it is not. It is asked
        for oracles that tell nothing but the mean.

        Parameters
        ----------
        training_rows
            Interactions behind the scores.
        actions
            Number of eligible actions.
        """
        return None

    def written(self) -> dict[str, Any]:
        """The parameters as a generation's file has them, for scorers of any version.

        A parameter that earlier versions don't know is left out where it has its default, which is
        to do what they do.
        """
        return {
            name: value
            for name, value in msgspec.to_builtins(self).items()
            if name not in self.later or value != _default_of(self, name)
        }

    def _pmf_of_eligible(self, estimates: Estimates, round_: Round) -> FloatArray:
        if estimates.mean.size == 0:
            raise ScoringError("no action is eligible")
        if self.needs_scores:
            estimates.require(self.needs, self.wants)
        pmf = self._explore(estimates, round_)
        return apply_floor(pmf, self.floor, self.floor_method)

    def _explore(self, estimates: Estimates, round_: Round) -> FloatArray:
        raise NotImplementedError

    def describe(self) -> str:
        """One line for tables: the kind and the parameters that differ from their defaults."""
        named = [
            f"{field.name}={_shown(getattr(self, field.name))}"
            for field in msgspec.structs.fields(self)
            if getattr(self, field.name) != field.default
        ]
        kind = str(self.__struct_config__.tag)
        return f"{kind}({', '.join(named)})" if named else kind


def _default_of(exploration: ExplorationBase, name: str) -> object:
    fields = msgspec.structs.fields(exploration)
    return next(field.default for field in fields if field.name == name)


def _shown(value: object) -> str:
    if isinstance(value, ExplorationBase):
        return value.describe()
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    if floor <= 0.0:
        return pmf
    floor = min(floor, 1.0 / pmf.size)
    if method == "project" and pmf.min() >= floor:
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


def share_of_best(scores: FloatArray) -> FloatArray:
    """All of the probability to the best score, evenly where several tie; over the last axis."""
    best = scores == scores.max(axis=-1, keepdims=True)
    return np.asarray(best / np.count_nonzero(best, axis=-1, keepdims=True), dtype=np.float64)


def require_range(reward_min: float, reward_max: float) -> None:
    """Refuse a range of the reward that is none, or is too wide to be reckoned with."""
    for name, end in (("reward_min", reward_min), ("reward_max", reward_max)):
        if not math.isfinite(end):
            raise ValueError(f"{name} must be finite, got {end}")
    if not reward_min < reward_max:
        raise ValueError(f"reward_min must be below reward_max, got {reward_min} and {reward_max}")
    if not math.isfinite(reward_max - reward_min):
        raise ValueError(f"reward_max - reward_min must be finite, got {reward_max - reward_min}")


def require(
    name: str,
    value: float,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
) -> None:
    """Refuse a parameter that is not a finite number in its range, naming both."""
    inside = (low < value if low_open else low <= value) and value <= high
    if not (math.isfinite(value) and inside):
        opening, closing = "(" if low_open else "[", "]" if math.isfinite(high) else ")"
        raise ValueError(f"{name} must be in {opening}{low:g}, {high:g}{closing}, got {value!r}")
