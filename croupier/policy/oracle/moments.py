"""Moments of a linear regression: all that a ridge regression needs of its rows, however many.

They are sums over rows, so that a log is gone through in blocks, and parts of it by several
processes, in memory that depends on the columns alone.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from croupier.policy.encoding import PARTS
from croupier.policy.errors import GenerationError
from croupier.policy.oracle.base import checked
from croupier.policy.oracle.design import design_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from croupier.policy.encoding import FeatureEncoder
    from croupier.policy.oracle.base import TrainingRow
    from croupier.policy.oracle.design import Design

__all__ = (
    "Moments",
    "TooManyColumnsError",
    "designs_of",
    "moments_of",
    "require_room",
)

_ROWS_AT_ONCE = 4096


class TooManyColumnsError(GenerationError):
    """More columns occur than a ridge regression may have."""


class Moments:
    """Sums over rows x of features, with rewards r and weights w.

    Attributes
    ----------
    columns
        Indices that occurred, in any order, shape (m,).
    gram
        ``Σ w x xᵀ``, shape (m, m).
    products
        ``Σ w r x``, shape (m,).
    weight
        ``Σ w``.
    parts
        Lowest of the encoder's :data:`~croupier.policy.encoding.PARTS` that a column belongs to,
        shape (m,); 0 where nobody asked.
    norms
        ``Σ w |x_part|²``, shape (PARTS,); likewise.
    """

    def __init__(self) -> None:
        self.columns: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.gram: NDArray[np.float64] = np.empty((0, 0))
        self.products: NDArray[np.float64] = np.empty(0)
        self.parts: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
        self.norms: NDArray[np.float64] = np.zeros(PARTS)
        self.weight = 0.0

    def add(self, design: Design) -> None:
        """Take in a batch of rows."""
        weighed: Any = design.matrix.multiply(design.weights[:, None]).tocsr()
        with np.errstate(over="ignore", invalid="ignore"):
            gram = (weighed.T @ design.matrix).toarray()
            products = weighed.T @ design.rewards
        parts = design.parts
        if parts is None:
            parts = np.zeros(len(design.columns), dtype=np.uint8)
        at = self._places(design.columns, parts)
        self.gram[np.ix_(at, at)] += gram
        self.products[at] += products
        self.weight += float(design.weights.sum())
        if design.norms is not None:
            self.norms += design.weights @ design.norms

    def merge(self, other: Moments) -> None:
        """Take in what another one has."""
        at = self._places(other.columns, other.parts)
        self.gram[np.ix_(at, at)] += other.gram
        self.products[at] += other.products
        self.weight += other.weight
        self.norms += other.norms

    def _places(self, columns: NDArray[np.int64], parts: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Where columns are, after those that are new have got a place."""
        new = ~np.isin(columns, self.columns)
        before, after = len(self.columns), len(self.columns) + int(new.sum())
        if after > before:
            gram = np.zeros((after, after))
            gram[:before, :before] = self.gram
            self.gram = gram
            self.products = np.concatenate([self.products, np.zeros(after - before)])
            self.columns = np.concatenate([self.columns, columns[new]])
            self.parts = np.concatenate([self.parts, parts[new]])
        order = np.argsort(self.columns)
        at = order[np.searchsorted(self.columns, columns, sorter=order)]
        self.parts[at] = np.minimum(self.parts[at], parts)
        return np.asarray(at, dtype=np.int64)


def moments_of(
    encoder: FeatureEncoder, rows: Sequence[TrainingRow], *, most: int, parts: bool
) -> Moments:
    """The moments of interactions.

    Parameters
    ----------
    encoder
        Makes columns of them.
    rows
        At least one.
    most
        Columns that may occur; the rows are gone through no further once there are more.
    parts
        Whether parts and norms are asked for.

    Raises
    ------
    NotEnoughDataError
        If there are no rows.
    InvalidInputError
        If a row's chosen index, propensity, reward or weight can't be, or its features.
    TooManyColumnsError
        If more columns occur.
    """
    found = Moments()
    for design in designs_of(encoder, rows, parts=parts):
        require_room(len(np.union1d(found.columns, design.columns)), most)
        found.add(design)
    return found


def designs_of(
    encoder: FeatureEncoder, rows: Sequence[TrainingRow], *, parts: bool
) -> Iterator[Design]:
    """Blocks of rows, each checked and encoded as it is asked for; errors as :func:`moments_of`."""
    left = checked(rows)
    while block := list(islice(left, _ROWS_AT_ONCE)):
        yield design_of(encoder, block, parts=parts)


def require_room(columns: int, most: int) -> None:
    """Refuse more columns than there may be.

    Raises
    ------
    TooManyColumnsError
        If there are more.
    """
    if columns > most:
        raise TooManyColumnsError(
            f"oracle.max_columns: expected at most {most} columns, got {columns} or more "
            f"(features, action ids and their products); give it fewer features, hash them into "
            f"fewer with encoder.bits, or raise max_columns"
        )
