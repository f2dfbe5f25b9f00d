"""Hypotheses: classes of binary decisions that a learner mixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("Hypotheses", "Members", "Thresholds", "thresholds_through")

FloatArray: TypeAlias = NDArray[np.float64]


class Hypotheses(Protocol):
    """H of them, each of which approves or declines whatever context it is given."""

    def __len__(self) -> int: ...

    def decide(self, contexts: FloatArray) -> NDArray[np.float32]:
        """1 where each of them approves, else 0: of contexts of shape (n, d), shape (H, n)."""
        ...


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Linear thresholds, ``h(x) = [w · x ≥ 0]``; contexts have a constant for the offset.

    Attributes
    ----------
    weights
        A row for each, shape (H, d). All zeros approves everybody.
    """

    weights: FloatArray

    def __len__(self) -> int:
        return len(self.weights)

    def decide(self, contexts: FloatArray) -> NDArray[np.float32]:
        """1 where ``w · x ≥ 0``, shape (H, n)."""
        return np.asarray(self.weights @ contexts.T >= 0.0, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Members:
    """Some members of a class, each perhaps more than once.

    Attributes
    ----------
    hypotheses
        The class.
    places
        Which of it, shape (R,).
    """

    hypotheses: Hypotheses
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def decide(self, contexts: FloatArray) -> NDArray[np.float32]:
        """1 where each of them approves, shape (R, n)."""
        return self.hypotheses.decide(contexts)[self.places]


def thresholds_through(
    contexts: FloatArray, size: int, rng: np.random.Generator, *, columns: Sequence[int]
) -> Thresholds:
    """A class of thresholds at random through known contexts.

    Each looks into a random direction, and has its threshold where one of the contexts lies. The
    first two are those that approve everybody and nobody. The half of them looks at a random part
    of the columns only, so that there are simple ones among them.

    Parameters
    ----------
    contexts
        Shape (n, d), the first column all ones.
    size
        H ≥ 3.
    rng
        What is drawn from.
    columns
        Columns that may have a weight, not the first one.

    Raises
    ------
    InvalidInputError
        If the size is too small, or the first column is no constant.
    """
    if size < 3:
        raise InvalidInputError("size", f"expected at least 3 hypotheses, got {size}")
    if not (contexts[:, 0] == 1.0).all():
        raise InvalidInputError("contexts", "expected a first column of ones")
    weights = np.zeros((size, contexts.shape[1]))
    directions = rng.normal(size=(size - 2, len(columns)))
    kept = rng.random(directions.shape) < np.where(rng.random(size - 2) < 0.5, 1.0, 0.4)[:, None]
    kept[np.arange(size - 2), rng.integers(len(columns), size=size - 2)] = True
    weights[2:, list(columns)] = directions * kept
    through = contexts[rng.integers(len(contexts), size=size - 2)]
    weights[2:, 0] = -(weights[2:] * through).sum(axis=1)
    weights[1, 0] = -1.0
    return Thresholds(weights)
