"""The regression problem behind a batch of interactions: one line per row, one column per index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.policy.encoding import FeatureEncoder
    from croupier.policy.oracle.base import TrainingRow

__all__ = ("Design", "design_of")


@dataclass(frozen=True, slots=True)
class Design:
    """The chosen actions' columns and what came of them.

    Attributes
    ----------
    columns
        Indices that occur, ascending, shape (m,).
    matrix
        Sparse, over just these columns, shape (n, m).
    rewards, weights
        Of the rows, shape (n,).
    """

    columns: NDArray[np.int64]
    matrix: Any
    rewards: NDArray[np.float64]
    weights: NDArray[np.float64]


def design_of(encoder: FeatureEncoder, rows: Sequence[TrainingRow]) -> Design:
    """Encode the chosen action of every row; there must be rows."""
    from scipy.sparse import csr_array  # noqa: PLC0415 - slow to import, and only to learn

    contexts, actions, rewards, weights = [], [], [], []
    for row in rows:
        contexts.append(encoder.encode_context(row.context))
        actions.append(encoder.encode_action(row.actions[row.chosen]))
        rewards.append(row.reward)
        weights.append(row.weight)
    lines = encoder.lines(contexts, actions)
    used, compact = _compact(lines.indices, 1 << encoder.config.bits)
    # Most estimators take 32-bit indices only.
    narrow = np.dtype(np.int32 if lines.ends[-1] <= np.iinfo(np.int32).max else np.int64)
    stored = (lines.values, compact.astype(narrow), lines.ends.astype(narrow))
    matrix: Any = csr_array(stored, shape=(len(rewards), len(used)))
    matrix.sum_duplicates()
    return Design(used, matrix, np.array(rewards), np.array(weights))


def _compact(
    indices: NDArray[np.int64], columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Those that occur, ascending, and the place of each among them, as `np.unique` has it."""
    if columns > len(indices):
        return np.unique(indices, return_inverse=True)
    # No sorting, and a table that takes less room than the indices.
    places = np.zeros(columns, dtype=np.int64)
    places[indices] = 1
    used = np.flatnonzero(places)
    places[used] = np.arange(len(used))
    return used, places[indices]
