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

    indices, values, ends = [], [], [0]
    for row in rows:
        columns = encoder.columns(
            encoder.encode_context(row.context), encoder.encode_action(row.actions[row.chosen])
        )
        indices.append(columns.indices.astype(np.int64))
        values.append(columns.values.astype(np.float64))
        ends.append(ends[-1] + len(columns.indices))
    used, compact = np.unique(np.concatenate(indices), return_inverse=True)
    # Most estimators take 32-bit indices only.
    narrow = np.dtype(np.int32 if ends[-1] <= np.iinfo(np.int32).max else np.int64)
    stored = (np.concatenate(values), compact.astype(narrow), np.array(ends, dtype=narrow))
    matrix: Any = csr_array(stored, shape=(len(rows), len(used)))
    matrix.sum_duplicates()
    return Design(
        used,
        matrix,
        np.array([row.reward for row in rows]),
        np.array([row.weight for row in rows]),
    )
