"""Exploration: from an oracle's scores to an exact probability for every action.

Each exploration is a small frozen struct: its fields are its parameters, its tag is the name
that a configuration file uses, and :meth:`ExplorationBase.pmf` is the one definition that the
scorer, off-policy evaluation and the simulators share. All arithmetic is float64.
"""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any, ClassVar, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from croupier.policy.errors import ScoringError

__all__ = (
    "Custom",
    "EpsilonGreedy",
    "Exploration",
    "ExplorationBase",
    "Falcon",
    "FastCB",
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
        return _inverse_gap_weights(scores, self.gamma(training_rows))


class Falcon(ExplorationBase, frozen=True, tag="falcon"):
    """Inverse gap weighting with the epoch's ``γ = scale · sqrt(K n / log(F n / δ))``.

    Here n is the number of interactions behind the oracle and K that of the eligible actions. This,
    not the schedule of an online learner, is the one that the theory gives for retraining in
    batches: γ is fixed within a generation and grows with the data of the one before. Before
    there is any data γ is 0, which is uniform.

    Attributes
    ----------
    scale
        > 0; the paper proves its bound for 1/30, practice wants more.
    log_class_size
        ``log F`` ≥ 0: of how many regression functions the oracle chooses one.
    delta
        Probability, in (0, 1), with which the bound may fail.

    References
    ----------
    Simchi-Levi and Xu, "Bypassing the Monster: A Faster and Simpler Optimal Algorithm for
    Contextual Bandits under Realizability", 2020, Algorithm 1.
    """

    scale: float = 1.0
    log_class_size: float = 0.0
    delta: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        _require("scale", self.scale, low=0.0, low_open=True)
        _require("log_class_size", self.log_class_size, low=0.0)
        if not 0.0 < self.delta < 1.0:
            raise ValueError(f"delta must be in (0, 1), got {self.delta!r}")

    def gamma(self, training_rows: int, actions: int) -> float:
        """Greediness γ after `training_rows` interactions, for so many eligible actions."""
        if training_rows == 0:
            return 0.0
        confidence = self.log_class_size + math.log(training_rows / self.delta)
        return min(self.scale * math.sqrt(actions * training_rows / confidence), _LARGEST)

    def _explore(self, scores: FloatArray, training_rows: int) -> FloatArray:
        return _inverse_gap_weights(scores, self.gamma(training_rows, scores.size))


class FastCB(ExplorationBase, frozen=True, tag="fastcb"):
    """Exploration in proportion to the best action's loss.

    ``p(a) = l(b) / (K l(b) + γ (l(a) - l(b)))`` for a ≠ b, and b has the rest, with the loss
    ``l(a) = (reward_max - f(a)) / (reward_max - reward_min)`` and b the action of least loss. Where
    failures are rare it explores little, in return for a regret that shrinks with them. Scores
    beyond the range count as its ends. Actions that tie for the best share evenly.

    Attributes
    ----------
    gamma
        Greediness > 0; None takes ``10 K``, the smallest that the paper's bound allows.
    loss_floor
        In (0, 1]: the best action's loss counts as at least this, since exploration would vanish
        with it, and with exploration all later learning.
    reward_min, reward_max
        Range of the reward.

    References
    ----------
    Foster and Krishnamurthy, "Efficient First-Order Contextual Bandits: Prediction, Allocation, and
    Triangular Discrimination", 2021, Algorithm 1. The floor on the loss is ours.
    """

    gamma: float | None = None
    loss_floor: float = 0.01
    reward_min: float = 0.0
    reward_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma is not None:
            _require("gamma", self.gamma, low=0.0, low_open=True)
        _require("loss_floor", self.loss_floor, low=0.0, high=1.0, low_open=True)
        if not (math.isfinite(self.reward_max - self.reward_min)):
            raise ValueError("reward_min and reward_max must be finite")
        if not self.reward_min < self.reward_max:
            raise ValueError(
                f"reward_min must be below reward_max, got {self.reward_min} and {self.reward_max}"
            )

    def _explore(self, scores: FloatArray, training_rows: int) -> FloatArray:  # noqa: ARG002
        reward = np.clip(scores, self.reward_min, self.reward_max)
        losses = (self.reward_max - reward) / (self.reward_max - self.reward_min)
        least = max(float(losses.min()), self.loss_floor)
        gamma = 10.0 * scores.size if self.gamma is None else self.gamma
        return _inverse_gap_weights(-losses, min(gamma / least, _LARGEST))


class Custom(ExplorationBase, frozen=True, tag="custom"):
    """A user's own exploration, imported by its path.

    The class is made with `params` as keyword arguments and has a method
    ``probabilities(scores, training_rows)`` that gives the pmf over the eligible actions, shape
    (K,), for their scores. Eligibility, the floor and the checks of scores are done here. Put it
    through ``croupier check-policy`` first.

    Attributes
    ----------
    path
        ``module:Class``.
    params
        Arguments of the class.
    """

    path: str
    params: dict[str, Any] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._implementation()

    def _explore(self, scores: FloatArray, training_rows: int) -> FloatArray:
        pmf = self._implementation().probabilities(scores, training_rows)
        pmf = np.asarray(pmf, dtype=np.float64)
        if pmf.shape != scores.shape or not (pmf >= 0.0).all() or abs(pmf.sum() - 1.0) > 1e-9:
            raise ScoringError(f"{self.path} gave no distribution over {scores.size} actions")
        return pmf

    def _implementation(self) -> Any:
        return _imported(self.path, msgspec.json.encode(self.params))


Exploration: TypeAlias = (
    Uniform | Greedy | EpsilonGreedy | Softmax | SquareCB | Falcon | FastCB | Custom
)


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


@functools.lru_cache(maxsize=64)
def _imported(path: str, params: bytes) -> Any:
    """The object that a path and its arguments stand for; made once, as the hot path asks often."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"path must be the module:Class of an exploration, got {path!r}: {error}"
        ) from error
    # Looked at before it is called: a generation's file must not be able to call just anything.
    if not (isinstance(found, type) and callable(getattr(found, "probabilities", None))):
        raise ValueError(  # noqa: TRY004 - msgspec reports a ValueError with the field
            f"path must be the module:Class of a class with a method "
            f"probabilities(scores, training_rows), got {path!r}"
        )
    try:
        return found(**msgspec.json.decode(params))
    except (TypeError, ValueError) as error:
        raise ValueError(f"params must be what {path} takes: {error}") from error


def _inverse_gap_weights(scores: FloatArray, gamma: float) -> FloatArray:
    """``1 / (K + gamma * gap)`` for all but the best, which share the rest evenly."""
    # An overflow means a probability of 0; only 0 * inf would be wrong, so gaps stay finite.
    with np.errstate(over="ignore"):
        gaps = np.minimum(scores.max() - scores, _LARGEST)
        pmf = 1.0 / (scores.size + gamma * gaps)
    best = gaps == 0.0
    pmf[best] = (1.0 - pmf[~best].sum()) / np.count_nonzero(best)
    return np.asarray(pmf)


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
