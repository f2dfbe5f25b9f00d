"""A tree of boxes over decisions, by which it is bounded who may violate with whom.

A violation is a pair with ``gap(π, π') - d(x, x') - α > 0``. A node of the tree holds decisions in
a box: least and largest coordinates in every auditor's space, and least and largest probabilities.
The largest possible gap of a decision to a box, less the least possible distance, less α, is at
least what any pair of them has. A box where that is at most 0 holds no partner.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.policy.fairness.auditors import FloatArray, Metric, NamedGap

__all__ = ("BoxTree",)

_IN_LEAF = 8
# By so many of a node's decisions it is found out along which coordinate it is longest.
_LOOKED_AT = 64


@dataclass(frozen=True, slots=True)
class BoxTree:
    """A perfect binary tree; the children of node i are 2 i and 2 i + 1, the root is 1.

    Attributes
    ----------
    rows
        Decisions of every leaf, shape (leaves, size). To fill the last places some decisions are
        there twice. Leaf j is node ``leaves + j``.
    points
        Their coordinates: every metric's places, then probabilities; shape (leaves, size, D).
    low, high
        Boxes of the nodes, shape (leaves, 2, D): those of the children of node i in row i.
    parts
        Columns of every metric, (start, end).
    votes
        Of the metrics' distances in order, the one that is the panel's, from 1.
    gap
        How probabilities are compared.
    """

    rows: NDArray[np.int64]
    points: FloatArray
    low: FloatArray
    high: FloatArray
    parts: tuple[tuple[int, int], ...]
    votes: int
    gap: NamedGap

    @classmethod
    def of(
        cls, metrics: Sequence[Metric], votes: int, treatments: FloatArray, gap: NamedGap
    ) -> BoxTree:
        """Halve the decisions along the longest coordinate, until few are left in a leaf.

        Parameters
        ----------
        metrics
            Of m auditors, m ≥ 1, over n ≥ 1 decisions.
        votes
            In 1..m, see :func:`~croupier.policy.fairness.auditors.required_votes`.
        treatments
            Probabilities of K actions, shape (n, K).
        gap
            ``any`` or ``total_variation``, see :func:`~croupier.policy.fairness.auditors.gap_of`.

        Raises
        ------
        InvalidInputError
            If it is another gap.
        """
        if gap not in {"any", "total_variation"}:
            raise InvalidInputError("gap", f"expected any or total_variation, got {gap!r}")
        ends = np.cumsum([0, *(each.places.shape[1] for each in metrics)]).tolist()
        columns = np.hstack([*(each.places for each in metrics), treatments])
        rows = _halved(columns)
        points = columns[rows]
        low, high = points.min(axis=1), points.max(axis=1)
        lows, highs = [low], [high]
        while len(low) > 1:
            low = low.reshape(-1, 2, low.shape[1]).min(axis=1)
            high = high.reshape(-1, 2, high.shape[1]).max(axis=1)
            lows.append(low)
            highs.append(high)
        # Node 0 doesn't exist, and its children, 0 and the root, are never asked for.
        below, above = (np.concatenate([each[-1], *each[::-1]]) for each in (lows, highs))
        return cls(
            rows=rows,
            points=points,
            low=below.reshape(len(rows), 2, -1),
            high=above.reshape(len(rows), 2, -1),
            parts=tuple(pairwise(ends)),
            votes=votes,
            gap=gap,
        )

    @property
    def leaves(self) -> int:
        """How many there are, a power of 2."""
        return len(self.rows)

    @property
    def depth(self) -> int:
        """Of the leaves below the root."""
        return self.leaves.bit_length() - 1

    def bounds(self, points: FloatArray, nodes: NDArray[np.int64]) -> FloatArray:
        """Gap less distance of a point to what is in each of the two children of a node, at most.

        Parameters
        ----------
        points
            Shape (b, D).
        nodes
            That aren't leaves, shape (b,).

        Returns
        -------
        bounds
            Of shape (b, 2).
        """
        low, high = self.low[nodes], self.high[nodes]
        asked = points[:, None, :]
        probabilities = slice(self.parts[-1][1], None)
        below = asked[..., probabilities] - low[..., probabilities]
        above = high[..., probabilities] - asked[..., probabilities]
        gaps = self._gap(np.maximum(below, above))
        outside = np.maximum(low - asked, asked - high)
        return gaps - self._distances(np.maximum(outside, 0.0, out=outside))

    def excesses(self, points: FloatArray, leaves: NDArray[np.int64]) -> FloatArray:
        """Gap less distance of a point to each of a leaf's decisions, shape (b, size)."""
        apart = self.points[leaves] - points[:, None, :]
        gaps = self._gap(np.abs(apart[..., self.parts[-1][1] :]))
        return gaps - self._distances(apart)

    def _gap(self, apart: FloatArray) -> FloatArray:
        if self.gap == "any":
            return np.asarray(apart[..., 0] if apart.shape[-1] == 1 else apart.max(axis=-1))
        return np.asarray(np.minimum(apart.sum(axis=-1) / 2.0, 1.0))

    def _distances(self, apart: FloatArray) -> FloatArray:
        """The panel's; of more than 1 as they are, since no gap is that large."""
        squares = np.empty((len(self.parts), *apart.shape[:-1]))
        for (start, end), found in zip(self.parts, squares, strict=True):
            part = apart[..., start:end]
            np.einsum("...i,...i->...", part, part, out=found)
        if self.votes == 1:
            chosen = squares.min(axis=0)
        elif self.votes == len(squares):
            chosen = squares.max(axis=0)
        else:
            chosen = np.partition(squares, self.votes - 1, axis=0)[self.votes - 1]
        return np.asarray(np.sqrt(chosen, out=chosen))


def _halved(columns: FloatArray) -> NDArray[np.int64]:
    """Rows of the leaves, shape (leaves, size)."""
    n = len(columns)
    leaves = 1
    while leaves * _IN_LEAF < n:
        leaves *= 2
    size = -(-n // leaves)
    rows = (np.arange(size * leaves) % n)[None, :]
    while len(rows) < leaves:
        some = columns[rows[:, :: max(1, rows.shape[1] // _LOOKED_AT)]]
        longest = np.ptp(some, axis=1).argmax(axis=1)
        order = np.argpartition(columns[rows, longest[:, None]], rows.shape[1] // 2, axis=1)
        rows = np.take_along_axis(rows, order, axis=1).reshape(2 * len(rows), -1)
    return rows
