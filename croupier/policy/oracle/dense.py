"""Dense rows: the encoder's columns as a small matrix, for models that can't take hashed ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from croupier.policy.encoding import EncodedDecision, FeatureEncoder, IndexArray, ValueArray

__all__ = ("Vocabulary",)


class Vocabulary:
    """The columns that a model knows, each with its place in a dense row; others drop out.

    Parameters
    ----------
    encoder
        Makes the columns.
    columns
        Indices into the encoder's table, masked, ascending, at most 65,535 of them: shape (m,).
    products
        Whether they include the products of context and action features.

    Raises
    ------
    ValueError
        If the columns can't be.
    """

    def __init__(
        self, encoder: FeatureEncoder, columns: NDArray[np.int64], *, products: bool
    ) -> None:
        size = 1 << encoder.config.bits
        outside = columns.size and not 0 <= columns[0] <= columns[-1] < size
        if outside or (np.diff(columns) <= 0).any():
            raise ValueError("expected ascending indices into the encoder's table")
        self.columns = columns
        self.products = products
        self._encoder = encoder
        self._mask = encoder.mask
        # Two bytes an entry: the table is looked into at random, and ought to stay in the cache.
        self._places = np.full(size, len(columns), dtype=np.uint16)
        self._places[columns] = np.arange(len(columns))

    @classmethod
    def of(
        cls,
        encoder: FeatureEncoder,
        decisions: Iterable[EncodedDecision],
        *,
        limit: int,
        products: bool,
    ) -> Vocabulary:
        """The columns that occur in most of the decisions, up to a limit; of equals the first.

        Parameters
        ----------
        encoder
            What the decisions were encoded with.
        decisions
            To look through.
        limit
            Most columns.
        products
            Whether the products of context and action features are columns too.
        """
        counts = np.zeros(1 << encoder.config.bits, dtype=np.int32)
        for decision in decisions:
            if products:
                indices = encoder.decision_columns(decision).indices
            else:
                there = [
                    group.indices[group.values != 0.0] for group in (decision.context, decision.own)
                ]
                indices = np.concatenate(there) & encoder.mask
            counts[np.unique(indices)] += 1
        used = np.flatnonzero(counts)
        commonest = used[np.argsort(-counts[used], kind="stable")[:limit]]
        return cls(encoder, np.sort(commonest), products=products)

    def __len__(self) -> int:
        return len(self.columns)

    def rows(self, decision: EncodedDecision) -> NDArray[np.float32]:
        """One row per action, shape (K, m); 0 where an action doesn't have the column."""
        actions, width = len(decision.actions), len(self.columns)
        # A product of large features is infinite in float32, which trees can tell from the rest.
        with np.errstate(over="ignore"):
            if self.products:
                entries = self._encoder.decision_columns(decision)
                rows = np.zeros((actions, width), dtype=np.float32)
                self._add(rows, entries.actions, entries.indices, entries.values)
                return rows
            context, own = decision.context, decision.own
            # All actions share the context: it is looked up once, with a place for the unknown.
            shared = np.zeros(width + 1, dtype=np.float32)
            np.add.at(shared, self._places[context.indices & self._mask], context.values)
            rows = np.empty((actions, width), dtype=np.float32)
            rows[:] = shared[:-1]
            self._add(rows, decision.owners, own.indices & self._mask, own.values)
        return rows

    def _add(
        self,
        rows: NDArray[np.float32],
        owners: NDArray[np.int64],
        indices: IndexArray,
        values: ValueArray,
    ) -> None:
        """Add values to the rows of their actions; an index can occur more than once."""
        places = self._places[indices]
        known = places < len(self.columns)
        np.add.at(rows, (owners[known], places[known]), values[known])
