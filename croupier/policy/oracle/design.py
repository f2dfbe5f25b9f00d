"""The regression problem behind a batch of interactions: one line per row, one column per index."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from croupier.policy.encoding import PARTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.policy.encoding import EncodedFeatures, FeatureEncoder, Lines, ValueArray
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
    parts
        Which of the encoder's :data:`~croupier.policy.encoding.PARTS` a column belongs to, the
        first of several, shape (m,); None unless asked for.
    norms
        Squared norms of the rows' columns of every part, of products with an id or the constant
        just one, shape (n, PARTS); likewise.
    """

    columns: NDArray[np.int64]
    matrix: Any
    rewards: NDArray[np.float64]
    weights: NDArray[np.float64]
    parts: NDArray[np.uint8] | None = None
    norms: NDArray[np.float64] | None = None


def design_of(
    encoder: FeatureEncoder, rows: Sequence[TrainingRow], *, parts: bool = False
) -> Design:
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
    design = Design(used, matrix, np.array(rewards), np.array(weights))
    if not parts:
        return design
    return replace(
        design,
        parts=_parts(encoder, contexts, actions, lines)[used],
        norms=_norms(encoder, contexts, actions),
    )


def _parts(
    encoder: FeatureEncoder,
    contexts: Sequence[EncodedFeatures],
    actions: Sequence[EncodedFeatures],
    lines: Lines,
) -> NDArray[np.uint8]:
    """The part of every column of the table, shape (2**bits,); of those that don't occur, any."""
    table = np.zeros(1 << encoder.config.bits, dtype=np.uint8)
    sizes = [
        (len(shared.indices), len(own.indices))
        for shared, own in zip(contexts, actions, strict=True)
    ]
    shapes, of_shape = np.unique(np.array(sizes), axis=0, return_inverse=True)
    found = []
    for place, (shared, own) in enumerate(shapes.tolist()):
        starts = lines.ends[:-1][of_shape == place]
        found.append((starts, encoder.parts(shared, own)))
    # The lowest one last, so that a column that is in several has it.
    for part in reversed(range(PARTS)):
        for starts, parts in found:
            at = starts[:, None] + np.flatnonzero(parts == part)
            table[lines.indices[at]] = part
    return table


def _norms(
    encoder: FeatureEncoder,
    contexts: Sequence[EncodedFeatures],
    actions: Sequence[EncodedFeatures],
) -> NDArray[np.float64]:
    shared = np.array([_square(each.values[1:]) for each in contexts])
    first = int(encoder.config.action_id)
    own = np.array([_square(each.values[first:]) for each in actions])
    return np.column_stack([np.ones(len(shared)), shared, own, shared * own])


def _square(values: ValueArray) -> float:
    wide = values.astype(np.float64)
    return float(wide @ wide)


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
