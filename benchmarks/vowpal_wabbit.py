"""Vowpal Wabbit's explorers with given estimates: for parity tests and comparisons.

Every action has one feature of its own; the weights are set by hand, so that Vowpal Wabbit's
estimates are known exactly and its pmf is a function of them alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import vowpal_wabbit_next as vw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ("PinnedExplorer", "regcb_intervals", "request_of")

_BITS = 14


class PinnedExplorer:
    """One of Vowpal Wabbit's explorers, whose members' cost estimates are set before every request.

    Parameters
    ----------
    arguments
        What follows ``--cb_explore_adf``.
    members
        Places of the members among the models that share a feature's weights; ``(0,)`` if the
        explorer has one model.
    """

    def __init__(self, arguments: str, members: Sequence[int] = (0,)) -> None:
        common = f"--quiet --cb_explore_adf --cb_type mtr --noconstant -b {_BITS}"
        self._workspace: Any = vw.Workspace([*common.split(), *arguments.split()])
        self._members = tuple(members)
        weights = self._workspace.weights()
        # With several models to a feature, the table is claimed to be as many times too large.
        self._weights = weights[: (1 << _BITS) // weights.shape[1]]

    def learn(self) -> None:
        """Count one more interaction."""
        self._workspace.learn_one(request_of(np.ones(2), label=vw.CBLabel(label=(0.5, 0.5))))

    def pmf(
        self, costs: NDArray[np.float64], values: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Vowpal Wabbit's pmf, shape (K,).

        Parameters
        ----------
        costs
            Estimates of the cost by every member, shape (B, K), or (K,) for one.
        values
            Of the actions' features, shape (K,); 1 unless given. They set how much an estimate
            moves with an example.
        """
        costs = np.atleast_2d(costs)
        values = np.ones(costs.shape[1]) if values is None else values
        self._weights[:] = 0.0
        for member, row in zip(self._members, costs, strict=True):
            self._weights[: row.size, member, 0] = row / values
        pmf = dict(self._workspace.predict_one(request_of(values)))
        return np.array([pmf[action] for action in range(values.size)], dtype=np.float64)


def request_of(values: NDArray[np.float64], label: Any = None) -> list[Any]:
    """A request whose action k has the one feature k, of a given value; the first has the label."""
    shared = vw.Example()
    shared.set_label(vw.CBLabel(shared=True))
    examples = [shared]
    for index, value in enumerate(values):
        example = vw.Example()
        example.set_label(label if label is not None and index == 0 else vw.CBLabel())
        example["a"].push_feature(index, float(value))
        examples.append(example)
    return examples


def regcb_intervals(
    costs: NDArray[np.float64], sensitivities: NDArray[np.float64], delta: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Vowpal Wabbit's intervals of the cost, in [0, 1]: lower and upper ends, shape (K,) each.

    An imagined example of cost -1 (or 2) is given the largest weight w for which
    ``w (d² - (d - s w)²) <= delta``, d being its distance from the estimate and s the estimate's
    movement per unit of weight; the estimate moves by ``s w``. Vowpal Wabbit halves an interval of
    weights 20 times; so does this, for the comparison is of pmfs that jump where an end does.
    """
    lower = [
        max(cost - s * _weight(cost + 1.0, s, delta), 0.0) if cost >= 0.0 else 0.0
        for cost, s in zip(costs, sensitivities, strict=True)
    ]
    upper = [
        min(cost + s * _weight(2.0 - cost, s, delta), 1.0) if cost <= 1.0 else 1.0
        for cost, s in zip(costs, sensitivities, strict=True)
    ]
    return np.minimum(lower, 1.0), np.maximum(upper, 0.0)


def _weight(distance: float, sensitivity: float, delta: float) -> float:
    high = min(distance / sensitivity, float(np.finfo(np.float32).max))
    if high * distance * distance <= delta:
        return high
    low = 0.0
    for _ in range(20):
        middle = (low + high) / 2.0
        excess = middle * (distance**2 - (distance - sensitivity * middle) ** 2) - delta
        if excess > 0.0:
            high = middle
        else:
            low = middle
        if math.fabs(excess) <= 1e-6 or high - low <= 1e-6:
            break
    return low
