"""The sums that the test of the propensities is made of: those of parts of a log add up.

Per cell (an action, or an action of a generation) and per bin of probability there are the expected
and the observed counts and what their covariance takes, see
:func:`~croupier.offline.propensity.propensity_test`. Taking cells or bins together is a linear map
of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy
from numpy.typing import NDArray

__all__ = ("BIN_EDGES", "CountSums", "DrawSums", "Draws")

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

# Fixed, because edges chosen from the log would depend on the draws that are tested: where
# generations are trained on earlier draws, their pmfs carry those draws on.
BIN_EDGES = np.array(
    [0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 1.0]
)
_BINS = len(BIN_EDGES) - 1


@dataclass(frozen=True, eq=False)
class Draws:
    """Flat pmfs with row offsets, shapes (m,) and (n + 1,), and the chosen indices, shape (n,)."""

    pmf: FloatArray
    offsets: IntArray
    chosen: IntArray

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.chosen)

    @property
    def sizes(self) -> IntArray:
        """Number of entries of every row, shape (n,)."""
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class CountSums:
    """Sums of k cells or bins.

    Attributes
    ----------
    expected, observed
        ``Σ_i μ_ic``, the sum of the probabilities, and how often one was chosen, shape (k,).
    spread
        ``Σ p (1 - p)`` over the entries, shape (k,).
    squares
        ``Σ_i μ_i μ_i'``, sparse of shape (k, k).
    """

    expected: FloatArray
    observed: IntArray
    spread: FloatArray
    squares: Any

    def __add__(self, other: CountSums) -> CountSums:
        return CountSums(
            self.expected + other.expected,
            self.observed + other.observed,
            self.spread + other.spread,
            scipy.sparse.csr_array(self.squares + other.squares),
        )

    def pooled(self, label: IntArray, size: int) -> CountSums:
        """The sums of `size` groups, `label` of shape (k,) telling which one each is put into."""
        together = _map(label, size)
        return CountSums(
            np.bincount(label, self.expected, size).astype(np.float64),
            np.bincount(label, self.observed, size).astype(np.int64),
            np.bincount(label, self.spread, size).astype(np.float64),
            scipy.sparse.csr_array(together @ self.squares @ together.T),
        )


@dataclass(frozen=True, eq=False)
class DrawSums:
    """Sums over the rows of a log, of k cells and of the bins between :data:`BIN_EDGES`.

    Attributes
    ----------
    rows
        That were added up.
    impossible
        Of them, those whose chosen action has probability 0.
    cells, bins
        Their sums.
    both
        ``Σ p`` of the entries that are in a cell and a bin, sparse of shape (k, bins).
    products
        ``Σ_i μ_ic μ_ib`` of cells and bins, of the same shape.
    """

    rows: int
    impossible: int
    cells: CountSums
    bins: CountSums
    both: Any
    products: Any

    @classmethod
    def of(cls, log: Draws, cell: IntArray, size: int) -> DrawSums:
        """Add up the rows of a log.

        Parameters
        ----------
        log
            Whose pmfs are distributions.
        cell
            The cell of every entry, in [0, size), shape (m,).
        size
            Number of cells.
        """
        picked = log.offsets[:-1] + log.chosen
        place = np.searchsorted(BIN_EDGES, log.pmf, side="left") - 1
        bin_ = np.clip(place, 0, _BINS - 1).astype(np.int64)
        by_cell, by_bin = _probability(log, cell, size), _probability(log, bin_, _BINS)
        both = scipy.sparse.coo_array((log.pmf, (cell, bin_)), shape=(size, _BINS)).tocsr()
        return cls(
            rows=log.n,
            impossible=int(np.count_nonzero(log.pmf[picked] == 0.0)),
            cells=_sums(log, cell, picked, by_cell),
            bins=_sums(log, bin_, picked, by_bin),
            both=both,
            products=scipy.sparse.csr_array(by_cell.T @ by_bin),
        )

    def __add__(self, other: DrawSums) -> DrawSums:
        return DrawSums(
            self.rows + other.rows,
            self.impossible + other.impossible,
            self.cells + other.cells,
            self.bins + other.bins,
            scipy.sparse.csr_array(self.both + other.both),
            scipy.sparse.csr_array(self.products + other.products),
        )

    def pooled(
        self, label: IntArray, size: int, bin_label: IntArray | None = None, bins: int = _BINS
    ) -> DrawSums:
        """The sums of `size` groups of cells, and of groups of bins if these are labelled too."""
        together = _map(label, size)
        into = _map(np.arange(_BINS) if bin_label is None else bin_label, bins)
        return DrawSums(
            self.rows,
            self.impossible,
            self.cells.pooled(label, size),
            self.bins if bin_label is None else self.bins.pooled(bin_label, bins),
            scipy.sparse.csr_array(together @ self.both @ into.T),
            scipy.sparse.csr_array(together @ self.products @ into.T),
        )


def _probability(log: Draws, of_entry: IntArray, size: int) -> Any:
    """The (n, size) matrix of every row's probability of every cell or bin."""
    found = scipy.sparse.csr_array((log.pmf, of_entry, log.offsets), shape=(log.n, size), copy=True)
    # Two entries of a row may fall into one; their probabilities add up before squaring.
    found.sum_duplicates()
    return found


def _sums(log: Draws, of_entry: IntArray, picked: IntArray, probability: Any) -> CountSums:
    size = probability.shape[1]
    return CountSums(
        np.bincount(of_entry, log.pmf, size).astype(np.float64),
        np.bincount(of_entry[picked], minlength=size).astype(np.int64),
        np.bincount(of_entry, log.pmf * (1.0 - log.pmf), size).astype(np.float64),
        scipy.sparse.csr_array(probability.T @ probability),
    )


def _map(label: IntArray, size: int) -> Any:
    """The matrix that takes sums to those of their groups, of shape (size, k)."""
    k = len(label)
    return scipy.sparse.csr_array((np.ones(k), (label, np.arange(k))), shape=(size, k))
