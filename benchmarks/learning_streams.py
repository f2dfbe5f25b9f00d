"""Classification data sets as bandits: the streams of :mod:`benchmarks.learning_quality`.

The context is a row's features, the actions are the classes, the reward is 1 for a right one and 0
for others; rows of yeast have several right ones, and actions of mode choice have features of their
own. All data sets come with packages. Each row is seen once, in an order that the seed shuffles.

Features are standardised by the means and standard deviations of the rows so far, the present one
among them, since a context is known before it is decided. Every learner reads the same file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import sklearn.datasets

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ("BUNDLED", "DATA", "MOST_ROWS", "DataSet", "Stream", "load", "read", "stream", "write")

BUNDLED = ("digits", "wine", "iris", "breast cancer")
"""Those of scikit-learn's."""

DATA = (*BUNDLED, "image segments", "yeast", "shuttle", "phishing", "mode choice")
MOST_ROWS = 2000


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set as it was packaged.

    Attributes
    ----------
    shared
        Features of the contexts, shape (n, d).
    own
        Features of the actions, shape (n, K, e); e may be 0.
    rewards
        What every action would earn, 0 or 1, shape (n, K).
    """

    shared: NDArray[np.float64]
    own: NDArray[np.float64]
    rewards: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stream(DataSet):
    """A data set in the order in which it is decided, standardised on the way."""


def load(name: str, exported: Path | None = None) -> DataSet:
    """Load a data set.

    Parameters
    ----------
    name
        One of :data:`DATA`.
    exported
        Where ``learning_peers.py --export`` has written those that don't come with scikit-learn.
    """
    if name in BUNDLED:
        features, labels = getattr(sklearn.datasets, f"load_{name.replace(' ', '_')}")(
            return_X_y=True
        )
        rewards = np.eye(int(labels.max()) + 1)[labels]
        return DataSet(np.asarray(features, dtype=np.float64), _none(rewards), rewards)
    assert exported is not None, "only scikit-learn's data sets are at hand"
    with np.load(exported / f"{name}.npz") as arrays:
        shared, rewards = arrays["shared"], arrays["rewards"]
        return DataSet(shared, arrays.get("own", _none(rewards)), rewards)


def stream(data: DataSet, seed: int, most_rows: int = MOST_ROWS) -> Stream:
    """Shuffle a data set, keep at most so many rows and standardise them as they come."""
    order = np.random.default_rng(seed).permutation(len(data.rewards))[:most_rows]
    shared, own = data.shared[order], data.own[order]
    return Stream(_standardised(shared[:, None])[:, 0], _standardised(own), data.rewards[order])


def write(path: Path, given: Stream) -> None:
    """Write a stream for every learner to read."""
    np.savez(path, shared=given.shared, own=given.own, rewards=given.rewards)


def read(path: Path) -> Stream:
    """Read what :func:`write` wrote."""
    with np.load(path) as arrays:
        return Stream(arrays["shared"], arrays["own"], arrays["rewards"])


def _none(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.empty((*rewards.shape, 0))


def _standardised(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(x - mean) / deviation`` over all values up to and with the row's, shape (n, k, d)."""
    rows, each, _ = features.shape
    seen = (each * np.arange(1, rows + 1))[:, None]
    # Moments about the first row lose no digits to features that are far from 0.
    apart = features - features[:1].mean(axis=1, keepdims=True)
    mean = apart.sum(axis=1).cumsum(axis=0) / seen
    square = np.square(apart).sum(axis=1).cumsum(axis=0) / seen
    variance = square - np.square(mean)
    # What has not varied yet, but for rounding, says nothing.
    varied = variance > 1e-12 * square
    deviation = np.sqrt(np.where(varied, variance, 1.0))
    centred = apart - mean[:, None]
    return np.where(varied[:, None], centred / deviation[:, None], 0.0)
