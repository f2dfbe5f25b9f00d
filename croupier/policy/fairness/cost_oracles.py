"""Cost-sensitive oracles: from examples with costs to hypotheses that keep the costs low.

Follow-the-perturbed-leader asks an oracle for the best hypothesis on all examples and some made-up
ones. Three answer, each with R leaders at once, that is, under R perturbations: one that looks
through an explicit class, least squares in closed form, and any classifier of scikit-learn's. The
perturbations are drawn once and grow from round to round, as is enough against whoever doesn't
react to the draws (Kalai and Vempala, 2005).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from croupier.policy.errors import InvalidInputError
from croupier.policy.fairness.hypotheses import Hypotheses, Members, Thresholds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ("ClassifierOracle", "CostOracle", "EnumeratingOracle", "LeastSquaresOracle")

FloatArray: TypeAlias = NDArray[np.float64]


class CostOracle(Protocol):
    """Keeps examples, and gives the best hypotheses on them under perturbations."""

    def add(self, contexts: FloatArray, costs: FloatArray) -> None:
        """Take in examples.

        Parameters
        ----------
        contexts
            Shape (n, d).
        costs
            What approving each of them costs more than declining, shape (n,).
        """
        ...

    def leaders(self, rng: np.random.Generator) -> Hypotheses:
        """The leader under each of R perturbations."""
        ...


class _Scale:
    """How large perturbations are: ``noise · √(Σ c²)`` over all costs c so far.

    It grows with the root of the rounds, as it has to, without a horizon.
    """

    def __init__(self, noise: float) -> None:
        if not 0.0 < noise < math.inf:
            raise InvalidInputError("noise", f"expected a positive number, got {noise}")
        self._noise = noise
        self._squares = 1.0

    def saw(self, costs: FloatArray) -> None:
        self._squares += float(costs @ costs)

    def __float__(self) -> float:
        return self._noise * math.sqrt(self._squares)


class EnumeratingOracle:
    """The exact oracle of an explicit class, at O(H k) a round to add and O(H R) to find leaders.

    Perturbations are Laplace costs on both coordinates of each context of a separator.

    Parameters
    ----------
    hypotheses
        The class.
    separator
        Contexts that tell any two hypotheses apart, shape (s, d).
    size
        R, how many leaders.
    noise
        Their scale, see :class:`_Scale`, over √s.
    """

    def __init__(
        self, hypotheses: Hypotheses, separator: FloatArray, *, size: int = 100, noise: float = 1.0
    ) -> None:
        self._hypotheses = hypotheses
        self._apart = hypotheses.decide(separator).astype(np.float64)
        self._costs = np.zeros(len(hypotheses))
        self._scale = _Scale(noise)
        self._size = size
        self._made_up: FloatArray | None = None

    def add(self, contexts: FloatArray, costs: FloatArray) -> None:
        """Take in examples, see :class:`CostOracle`."""
        self._scale.saw(costs)
        self._costs += self._hypotheses.decide(contexts) @ costs

    def leaders(self, rng: np.random.Generator) -> Members:
        """The hypotheses with the least perturbed cost; one may lead several times."""
        if self._made_up is None:
            separating = self._apart.shape[1]
            noise = _laplace_differences(rng, (separating, self._size)) / math.sqrt(separating)
            self._made_up = self._apart @ noise
        perturbed = self._costs[:, None] + float(self._scale) * self._made_up
        return Members(self._hypotheses, perturbed.argmin(axis=0))


class LeastSquaresOracle:
    """Approves where ridge regression expects approving to cost no more than declining.

    ``w = -(λI + Σ x xᵀ)⁻¹ Σ x (c + ζ)`` and ``h(x) = [w · x ≥ 0]``. A perturbation ζ is one price
    on every approval so far; with a constant among the features that is ``w₀ - ζ``, so the leaders
    are parallel thresholds and their mixture is a smooth function of one score. All that is kept
    are two sums; nothing is put off, and R leaders cost one factorisation.

    Least squares is a surrogate: it minimises squared distances from the costs, and not the cost of
    a threshold's decisions, which is NP-hard. What is proved of the exact oracle isn't of this one.

    Parameters
    ----------
    width
        d; the first feature is the constant.
    size
        R; the ζ are the R middle quantiles of a Laplace distribution.
    noise
        Its scale, see :class:`_Scale`, over the number of examples.
    ridge
        λ > 0.
    """

    def __init__(
        self, width: int, *, size: int = 200, noise: float = 5.0, ridge: float = 1.0
    ) -> None:
        self._gram = ridge * np.eye(width)
        self._moment = np.zeros(width)
        self._examples = 0
        self._scale = _Scale(noise)
        middles = (np.arange(size) + 0.5) / size - 0.5
        self._quantiles = -np.sign(middles) * np.log1p(-2.0 * np.abs(middles))

    def add(self, contexts: FloatArray, costs: FloatArray) -> None:
        """Take in examples, see :class:`CostOracle`."""
        self._scale.saw(costs)
        self._gram += contexts.T @ contexts
        self._moment += costs @ contexts
        self._examples += len(costs)

    def leaders(self, rng: np.random.Generator) -> Thresholds:  # noqa: ARG002
        """Parallel thresholds, by one solve."""
        weights = np.tile(-np.linalg.solve(self._gram, self._moment), (self._quantiles.size, 1))
        weights[:, 0] -= float(self._scale) / max(self._examples, 1) * self._quantiles
        return Thresholds(weights)


class ClassifierOracle:
    """Any binary classifier of scikit-learn's that takes sample weights.

    Where approving costs c more than declining, the best hypothesis is the one with the least
    weighted error for labels ``[c < 0]`` with weights ``|c|``. A classifier is fitted to these, on
    all examples and made-up ones: Laplace costs on the contexts of a separator.

    Theory wants fresh leaders in every round. This oracle fits R of them whenever the examples have
    grown by a factor since, O(R log T) fits in T rounds. In between it follows leaders that are out
    of date, which the theory doesn't cover; and what a classifier minimises is a surrogate, too.

    Parameters
    ----------
    make
        Makes an estimator from a seed.
    separator
        Contexts that are perturbed, shape (s, d).
    size
        R, how many leaders.
    noise
        Scale of the costs, see :class:`_Scale`, over √s.
    growth
        Factor above 1.

    Attributes
    ----------
    fits
        How many estimators were fitted so far.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        separator: FloatArray,
        *,
        size: int = 20,
        noise: float = 1.0,
        growth: float = 2.0,
    ) -> None:
        if not growth > 1.0:
            raise InvalidInputError("growth", f"expected a number above 1, got {growth}")
        self.fits = 0
        self._make = make
        self._separator = separator
        self._scale = _Scale(noise)
        self._size = size
        self._growth = growth
        self._contexts = [separator]
        self._costs: list[FloatArray] = []
        self._examples = self._fitted_at = 0
        self._leaders: _Classifiers | None = None

    def add(self, contexts: FloatArray, costs: FloatArray) -> None:
        """Take in examples, see :class:`CostOracle`."""
        self._scale.saw(costs)
        self._contexts.append(contexts)
        self._costs.append(costs)
        self._examples += len(costs)

    def leaders(self, rng: np.random.Generator) -> _Classifiers:
        """Those that were fitted last, after new ones were if that is due."""
        if self._leaders is None or self._examples >= self._growth * max(self._fitted_at, 1):
            self._leaders = self._fitted(rng)
            self._fitted_at = self._examples
        return self._leaders

    def _fitted(self, rng: np.random.Generator) -> _Classifiers:
        separating = len(self._separator)
        noise = float(self._scale) / math.sqrt(separating)
        made_up = noise * _laplace_differences(rng, (self._size, separating))
        contexts = np.concatenate(self._contexts)
        leaders: list[Any] = []
        for costs in made_up:
            all_costs = np.concatenate([costs, *self._costs])
            labels = all_costs < 0.0
            if labels.all() or not labels.any():
                leaders.append(bool(labels[0]))
                continue
            estimator = self._make(int(rng.integers(2**31)))
            # Weights of mean 1: the penalties of estimators are made for such.
            weights = np.abs(all_costs) / np.abs(all_costs).mean()
            leaders.append(estimator.fit(contexts, labels, sample_weight=weights))
            self.fits += 1
        return _Classifiers(leaders)


class _Classifiers:
    """Fitted classifiers; True or False is one that approves everybody or nobody."""

    def __init__(self, leaders: Sequence[Any]) -> None:
        self._leaders = leaders

    def __len__(self) -> int:
        return len(self._leaders)

    def decide(self, contexts: FloatArray) -> NDArray[np.float32]:
        """1 where each of them approves, shape (R, n)."""
        decided = np.empty((len(self._leaders), len(contexts)), dtype=np.float32)
        for row, leader in zip(decided, self._leaders, strict=True):
            row[:] = leader if isinstance(leader, bool) else leader.predict(contexts)
        return decided


def _laplace_differences(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    """Differences of two standard Laplace variables: a cost of approving less one of declining."""
    # A Laplace variable is a difference of exponentials, and the sum of two of these a gamma.
    return rng.standard_gamma(2.0, shape) - rng.standard_gamma(2.0, shape)
