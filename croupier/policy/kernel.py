"""The compiled inner loops of a decision, if they were built.

They are optional: without a compiler or Python's headers at installation everything works, and a
decision takes longer. ``CROUPIER_KERNEL=off`` in the environment does without them all the same, to
measure what they are worth.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ("KERNEL", "Chosen", "Kernel")

_T = TypeVar("_T")

Chosen: TypeAlias = tuple[list[float], list[float], int]
"""The pmf, the scores that it comes of, and the index of the action that was drawn from it."""


class Kernel(Protocol):
    """What is compiled; see ``_kernel.c``."""

    def encode(
        self, features: Any, seed: int, first: int | None, /
    ) -> tuple[NDArray[np.uint64], NDArray[np.float32]] | None:
        """Indices and values of an object's features; None if Python has to look at them."""
        ...

    def score(
        self, weights: NDArray[Any], context: tuple[Any, Any], actions: Sequence[tuple[Any, Any]], /
    ) -> NDArray[np.float64]:
        """Dot products of a table with the columns of every action, shape (K,)."""
        ...

    def variances(  # noqa: PLR0917 - as compiled
        self,
        places: NDArray[np.int32],
        covariance: NDArray[np.float64],
        precisions: NDArray[np.float64],
        action_id: bool,  # noqa: FBT001
        context: tuple[Any, Any],
        actions: Sequence[tuple[Any, Any]],
        /,
    ) -> NDArray[np.float64] | None:
        """Variances of the scores under a posterior, shape (K,); None if rounding spoils one."""
        ...

    def count(self, actions: list[Any], /) -> int:
        """How many features all actions have together."""
        ...

    def look_up(self, known: dict[bytes, _T], texts: list[Any], /) -> list[_T | None]:
        """What a dictionary has for each of some buffers, by their bytes."""
        ...

    def gap_weights(self, scores: NDArray[np.float64], gamma: float, /) -> NDArray[np.float64]:
        """Inverse gap weights of finite scores, shape (K,)."""
        ...

    def choose(
        self,
        weights: NDArray[Any],
        context: tuple[Any, Any],
        actions: Sequence[tuple[Any, Any]],
        gamma: float,
        number: float,
        /,
    ) -> Chosen | None:
        """Inverse gap weights of scores, the scores, and what is drawn at a number in [0, 1)."""
        ...


def _kernel() -> Kernel | None:
    if os.environ.get("CROUPIER_KERNEL") == "off":
        return None
    try:
        return cast("Kernel", import_module("croupier.policy._kernel"))
    except ImportError:
        return None


KERNEL: Kernel | None = _kernel()
