"""Whether the logged propensities are the probabilities with which actions were really drawn.

Everything off-policy rests on it. :func:`pmf_violations` counts the rows whose pmf contradicts
itself; :func:`propensity_test` tests the log as a whole: given the logged pmfs, the choices must
look like draws from them, per action, per generation and per level of probability.

Ragged action sets are held flat, as in a CSR matrix: the entries of all rows one after the other,
and `offsets` of shape (n + 1,), so that row i holds the entries ``offsets[i]:offsets[i + 1]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from croupier.offline.draw_sums import BIN_EDGES, CountSums, Draws, DrawSums
from croupier.policy.errors import InvalidInputError

__all__ = (
    "BinCheck",
    "CellCheck",
    "GenerationCheck",
    "PmfViolations",
    "PropensityTest",
    "pmf_violations",
    "propensity_test",
    "propensity_test_of",
)

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

# How far a pmf may be from 1 and still be tested: the null hypothesis is about a distribution.
_SUM_TOLERANCE = 1e-6

# Integers that span no more than this beyond their number index a table; others are sorted.
_DENSE_CODES = 1_000_000

_EXAMPLES = 10


class PmfViolations(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows contradict themselves; a row may be counted under several headings.

    Attributes
    ----------
    n
        Rows looked at.
    rows
        Rows with any violation.
    bad_entry
        Rows with a pmf entry that is negative or not finite.
    bad_sum
        Rows whose pmf doesn't sum to 1 within the tolerance (an empty one sums to 0).
    bad_chosen
        Rows whose chosen index is outside of the pmf.
    bad_propensity
        Rows whose propensity isn't the pmf's chosen entry within the tolerance, or isn't in (0, 1].
    examples
        Up to 10 row numbers with violations, the first ones.
    """

    n: int
    rows: int
    bad_entry: int
    bad_sum: int
    bad_chosen: int
    bad_propensity: int
    examples: tuple[int, ...]


class GenerationCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The test restricted to the action cells of one generation.

    Attributes
    ----------
    generation
        Its number.
    n
        Its rows.
    statistic, dof, p_value
        As in :class:`PropensityTest`. With many generations some p-values are small by chance.
    """

    generation: int
    n: int
    statistic: float
    dof: int
    p_value: float


class CellCheck(msgspec.Struct, frozen=True, kw_only=True):
    """How often an action was chosen in a generation, against what its probabilities promise.

    Attributes
    ----------
    generation
        Its number.
    action
        Code of the action; None for the generation's rare actions taken together.
    expected
        Sum of its probabilities.
    observed
        How often it was chosen.
    z
        ``(observed - expected)`` in standard deviations; 0 where there is no randomness.
    """

    generation: int
    action: int | None
    expected: float
    observed: int
    z: float


class BinCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The same for all entries with probabilities in a bin: a calibration table.

    Attributes
    ----------
    low, high
        Ends of the bin: above `low`, up to `high`.
    expected, observed, z
        As in :class:`CellCheck`.
    """

    low: float
    high: float
    expected: float
    observed: int
    z: float


class PropensityTest(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a log's choices look like draws from its pmfs.

    Attributes
    ----------
    statistic
        Chi-square statistic; infinite if an action of probability 0 was chosen.
    dof
        Its degrees of freedom.
    p_value
        Probability of a statistic this large or larger with correct propensities, uniform in
        [0, 1] then; 1 if there was no randomness to test.
    n
        Rows tested.
    bin_statistic, bin_dof, bin_p_value
        The same of the bins alone, over all actions and generations. A small miscalibration that
        is the same everywhere drowns among the many cells of a log with many generations or
        actions; here it has a few degrees of freedom only.
    impossible
        Rows whose chosen action has probability 0.
    generations, cells, bins
        Tables for the audit: where the deviation is.
    """

    statistic: float
    dof: int
    p_value: float
    bin_statistic: float
    bin_dof: int
    bin_p_value: float
    n: int
    impossible: int
    generations: tuple[GenerationCheck, ...]
    cells: tuple[CellCheck, ...]
    bins: tuple[BinCheck, ...]

    @property
    def combined_p_value(self) -> float:
        """Of both statistics together: twice the smaller (Bonferroni), at most 1."""
        return min(1.0, 2.0 * min(self.p_value, self.bin_p_value))

    def rejects(self, level: float = 0.01) -> bool:
        """Whether the log is refuted, by either statistic, with at most `level` false alarms."""
        return self.combined_p_value < level


def propensity_test(
    pmfs: ArrayLike,
    chosen: ArrayLike,
    *,
    offsets: ArrayLike | None = None,
    actions: ArrayLike | None = None,
    generations: ArrayLike | None = None,
    min_expected: float = 5.0,
) -> PropensityTest:
    r"""Test that logged propensities are the probabilities with which actions were drawn.

    With phi(i, a) the indicators of the entry's cell (generation and action) and of its bin of
    probability, each row contributes what was chosen less what was to be expected::

        D = sum_i [phi(i, a_i) - sum_a p_ia phi(i, a)],
        V = sum_i [sum_a p_ia phi(i, a) phi(i, a)' - mu_i mu_i'],  mu_i = sum_a p_ia phi(i, a),
        T = D' V^+ D  ~  chi-square(rank V).

    Under the null each term has mean 0 given everything before it, so D is a martingale, V its
    predictable variance, and T follows from the martingale central limit theorem (Hall & Heyde,
    "Martingale Limit Theory", 1980, chapter 3): the pmfs may depend on earlier draws, as those of
    a trained policy do. Cells find a wrong action or generation, bins find probabilities that are
    wrong alike for whichever action is the greedy one.

    The approximation needs counts: actions with an expected count of their rarer outcome,
    ``sum p (1 - p)``, below `min_expected` are taken together within their generation, bins with
    their neighbours, and directions whose variance is still below `min_expected` are left out.

    Parameters
    ----------
    pmfs
        Probability of every action of every row: flat of shape (m,) together with `offsets`, or
        of shape (n, K). Entries in [0, 1], every row summing to 1 (see :func:`pmf_violations`).
    chosen
        Index of the chosen action within its row, shape (n,).
    offsets
        Where the rows begin in flat arrays, shape (n + 1,), from 0 to m; None for (n, K).
    actions
        An integer code of every entry's action, shaped like `pmfs`; its position in the row if
        None.
    generations
        Number of the generation that made each row, shape (n,), integers; all one if None.
    min_expected
        Smallest count that the chi-square approximation is trusted with, above 0.

    Raises
    ------
    InvalidInputError
        If an argument has another shape or impossible values; it names the argument.

    Notes
    -----
    Says nothing about draws that depend on each other beyond what the pmfs say (a sticky
    draw per user passes), and finds no error that is random from row to row with mean 0 in every
    cell and bin. A row's context is not looked at.
    """
    log = _read_log(pmfs, chosen, offsets)
    _require_distributions(log)
    if not min_expected > 0.0:
        raise InvalidInputError("min_expected", f"expected a number above 0, got {min_expected!r}")
    if actions is None:
        actions = np.arange(len(log.pmf)) - np.repeat(log.offsets[:-1], log.sizes)
    numbers, generation = _integer_codes("generations", generations, log.n)
    codes, action = _integer_codes("actions", np.ravel(np.asarray(actions)), len(log.pmf))

    used, cell = _compact(np.repeat(generation, log.sizes) * len(codes) + action)
    sums = DrawSums.of(log, cell, len(used))
    rows = np.bincount(generation, minlength=len(numbers))
    fine = _Fine(used // len(codes), used % len(codes), numbers, codes, rows)
    return _test(sums, fine, min_expected)


def propensity_test_of(sums: DrawSums, *, min_expected: float = 5.0) -> PropensityTest:
    """The same test of a log of which sums are left, of one generation whose cells are actions.

    Parameters
    ----------
    sums
        Of all rows; the codes of the actions are the numbers of the cells, the generation is 0.
    min_expected
        As in :func:`propensity_test`.
    """
    k = len(sums.cells.expected)
    alone, actions = np.zeros(k, dtype=np.int64), np.arange(k)
    return _test(sums, _Fine(alone, actions, np.zeros(1), actions, [sums.rows]), min_expected)


def pmf_violations(
    pmfs: ArrayLike,
    chosen: ArrayLike,
    propensity: ArrayLike,
    *,
    offsets: ArrayLike | None = None,
    tolerance: float = 1e-9,
) -> PmfViolations:
    """Count the rows whose pmf, chosen index and propensity contradict each other.

    Parameters
    ----------
    pmfs, chosen, offsets
        As in :func:`propensity_test`, but any values go.
    propensity
        The logged probability of the chosen action, shape (n,).
    tolerance
        How far a sum may be from 1, and a propensity from its pmf entry.

    Raises
    ------
    InvalidInputError
        If the shapes don't go together.
    """
    log = _read_log(pmfs, chosen, offsets)
    logged = _floats("propensity", propensity)
    if logged.shape != (log.n,):
        raise InvalidInputError("propensity", f"expected shape ({log.n},), got {logged.shape}")
    bad = ~np.isfinite(log.pmf) | (log.pmf < 0.0)
    bad_entry = _row_sums(log, bad.astype(np.float64)) > 0.0
    # A comparison with NaN is false, so that a row with NaN counts as one with a wrong sum too.
    bad_sum = ~(np.abs(_row_sums(log, log.pmf) - 1.0) <= tolerance)
    bad_chosen = (log.chosen < 0) | (log.chosen >= log.sizes)
    entry = np.full(log.n, np.nan)
    entry[~bad_chosen] = log.pmf[(log.offsets[:-1] + log.chosen)[~bad_chosen]]
    right = (np.abs(logged - entry) <= tolerance) & (logged > 0.0) & (logged <= 1.0 + tolerance)
    rows = bad_entry | bad_sum | bad_chosen | ~right
    return PmfViolations(
        n=log.n,
        rows=int(rows.sum()),
        bad_entry=int(bad_entry.sum()),
        bad_sum=int(bad_sum.sum()),
        bad_chosen=int(bad_chosen.sum()),
        bad_propensity=int(np.count_nonzero(~right)),
        examples=tuple(int(row) for row in np.flatnonzero(rows)[:_EXAMPLES]),
    )


@dataclass(frozen=True, eq=False)
class _Fine:
    """What the cells are before rare ones are taken together, and what their numbers stand for.

    `generation` and `action` index into `numbers` and `codes`, and have one element per cell; a
    generation's cells stand next to each other. `rows` counts the rows of every generation.
    """

    generation: IntArray
    action: IntArray
    numbers: ArrayLike
    codes: ArrayLike
    rows: ArrayLike


@dataclass(frozen=True, eq=False)
class _Cells:
    """The cells that are tested, `label` telling of every fine one which it is part of.

    `generation` and `action` have one element per cell; action -1 stands for the rare ones.
    """

    label: IntArray
    generation: IntArray
    action: IntArray

    @property
    def size(self) -> int:
        return len(self.generation)


@dataclass(frozen=True, eq=False)
class _Bins:
    label: IntArray
    edges: FloatArray


@dataclass(frozen=True, eq=False)
class _Counts:
    """Per cell or bin: what was expected, what was observed, and the covariance of the two."""

    expected: FloatArray
    observed: IntArray
    covariance: Any

    @classmethod
    def of(cls, sums: CountSums) -> _Counts:
        covariance = scipy.sparse.csr_array(scipy.sparse.diags_array(sums.expected) - sums.squares)
        return cls(sums.expected, sums.observed, covariance)

    @property
    def excess(self) -> FloatArray:
        return self.observed - self.expected

    @property
    def z(self) -> FloatArray:
        variance = np.maximum(self.covariance.diagonal(), 0.0)
        # Below this the variance is what rounding leaves of sum p - sum p^2.
        random = variance > 1e-9 * np.maximum(self.expected, 1.0)
        return np.where(random, self.excess / np.sqrt(np.where(random, variance, 1.0)), 0.0)


def _test(sums: DrawSums, fine: _Fine, min_expected: float) -> PropensityTest:
    cells = _find_cells(sums.cells.spread, fine, min_expected)
    bins = _find_bins(sums.bins.spread, min_expected)
    pooled = sums.pooled(cells.label, cells.size, bins.label, len(bins.edges) - 1)
    cell_counts, bin_counts = _Counts.of(pooled.cells), _Counts.of(pooled.bins)
    cross = scipy.sparse.csr_array(pooled.both - pooled.products)
    statistic, dof, blocks = _statistic(cells, cell_counts, bin_counts, cross, min_expected)
    by_bin = _Directions.of(bin_counts.covariance.toarray(), bin_counts.excess, min_expected)
    bin_statistic, bin_dof = by_bin.statistic, len(by_bin.z)
    if sums.impossible:
        statistic = bin_statistic = math.inf
    return PropensityTest(
        statistic=statistic,
        dof=dof,
        p_value=_p_value(statistic, dof),
        bin_statistic=bin_statistic,
        bin_dof=bin_dof,
        bin_p_value=_p_value(bin_statistic, bin_dof),
        n=sums.rows,
        impossible=sums.impossible,
        generations=_generation_table(blocks, fine),
        cells=_cell_table(cells, cell_counts, fine),
        bins=_bin_table(bins, bin_counts),
    )


def _read_log(pmfs: ArrayLike, chosen: ArrayLike, offsets: ArrayLike | None) -> Draws:
    """Bring the arguments into flat form; check shapes, not values."""
    pmf = _floats("pmfs", pmfs)
    index = _integers("chosen", chosen)
    if index.ndim != 1:
        raise InvalidInputError("chosen", f"expected shape (n,), got {index.shape}")
    n = len(index)
    if offsets is None:
        if pmf.ndim != 2 or len(pmf) != n:
            raise InvalidInputError(
                "pmfs", f"expected shape ({n}, K) or offsets as well, got {pmf.shape}"
            )
        return Draws(pmf.ravel(), np.arange(n + 1) * pmf.shape[1], index)
    if pmf.ndim != 1:
        raise InvalidInputError("pmfs", f"expected shape (m,) with offsets, got {pmf.shape}")
    starts = _integers("offsets", offsets)
    wrong = starts.shape != (n + 1,) or starts[0] != 0 or starts[-1] != len(pmf)
    if wrong or (np.diff(starts) < 0).any():
        raise InvalidInputError(
            "offsets", f"expected {n + 1} non-decreasing numbers from 0 to {len(pmf)}"
        )
    return Draws(pmf, starts, index)


def _require_distributions(log: Draws) -> None:
    if not ((log.pmf >= 0.0) & (log.pmf <= 1.0 + _SUM_TOLERANCE)).all():
        raise InvalidInputError("pmfs", "expected probabilities; pmf_violations counts the rows")
    off = np.abs(_row_sums(log, log.pmf) - 1.0)
    if off.size and off.max() > _SUM_TOLERANCE:
        row = int(np.argmax(off))
        raise InvalidInputError(
            "pmfs", f"expected rows that sum to 1; row {row} is off by {off[row]}"
        )
    if ((log.chosen < 0) | (log.chosen >= log.sizes)).any():
        raise InvalidInputError("chosen", "expected indices into the row's actions")


def _find_cells(spread: FloatArray, fine: _Fine, min_expected: float) -> _Cells:
    """Cells of generation and action, rare actions of a generation taken together."""
    rare = spread < min_expected
    # A generation's rare actions may be rare even together: they take the next rarest with them.
    pooled = np.bincount(fine.generation, weights=spread * rare)
    for short in np.unique(fine.generation[rare]):
        others = np.flatnonzero((fine.generation == short) & ~rare)
        if pooled[short] < min_expected and others.size:
            rare[others[np.argmin(spread[others])]] = True
    # One number more than there are actions, in front: the rare ones.
    n_actions = int(fine.action.max(initial=-1)) + 1
    label = np.where(rare, 0, fine.action + 1)
    cells, of_fine = np.unique(fine.generation * (n_actions + 1) + label, return_inverse=True)
    return _Cells(of_fine, cells // (n_actions + 1), cells % (n_actions + 1) - 1)


def _find_bins(spread: FloatArray, min_expected: float) -> _Bins:
    """Bins of probability, every one wide enough to hold a trusted count."""
    edges, held = [0.0], 0.0
    for upper, count in zip(BIN_EDGES[1:], spread, strict=True):
        held += float(count)
        if held >= min_expected:
            edges.append(float(upper))
            held = 0.0
    if len(edges) == 1:
        edges.append(1.0)
    # What is left above the last full bin belongs to that bin.
    edges[-1] = 1.0
    return _Bins(
        np.searchsorted(np.array(edges[1:-1]), BIN_EDGES[1:], side="left"), np.array(edges)
    )


@dataclass(frozen=True, eq=False)
class _Directions:
    """Uncorrelated standardised deviations: ``z = vectors' D / sqrt(variances)``."""

    vectors: FloatArray
    scales: FloatArray
    z: FloatArray

    @property
    def statistic(self) -> float:
        return float(self.z @ self.z)

    @classmethod
    def of(cls, covariance: FloatArray, excess: FloatArray, least: float) -> _Directions:
        """Principal directions with a variance of at least `least`."""
        variances, vectors = np.linalg.eigh(covariance)
        kept = variances >= least
        scales = np.sqrt(variances[kept])
        return cls(vectors[:, kept], scales, vectors[:, kept].T @ excess / scales)


def _statistic(
    cells: _Cells, cell_counts: _Counts, bin_counts: _Counts, cross: Any, least: float
) -> tuple[float, int, list[_Directions]]:
    """Chi-square statistic, degrees of freedom, and the directions of every generation.

    Rows of different generations share no cell, so V is block-diagonal but for a border, the bins:
    a block each, then the bins after regression on all blocks (the Schur complement).
    """
    ends = np.flatnonzero(np.diff(cells.generation, append=-1)) + 1
    border = bin_counts.covariance.toarray()
    excess = bin_counts.excess
    blocks = []
    for start, end in zip(np.concatenate(([0], ends))[:-1], ends, strict=True):
        own = slice(int(start), int(end))
        block = _Directions.of(
            cell_counts.covariance[own, own].toarray(), cell_counts.excess[own], least
        )
        regression = (block.vectors / block.scales).T @ cross[own].toarray()
        border = border - regression.T @ regression
        excess = excess - regression.T @ block.z
        blocks.append(block)
    last = _Directions.of(border, excess, least)
    statistic = sum(block.statistic for block in (*blocks, last))
    return statistic, sum(len(block.z) for block in (*blocks, last)), blocks


def _generation_table(blocks: list[_Directions], fine: _Fine) -> tuple[GenerationCheck, ...]:
    rows, numbers = np.asarray(fine.rows), np.asarray(fine.numbers)
    return tuple(
        GenerationCheck(
            generation=int(numbers[index]),
            n=int(rows[index]),
            statistic=block.statistic,
            dof=len(block.z),
            p_value=_p_value(block.statistic, len(block.z)),
        )
        for index, block in zip(np.flatnonzero(rows), blocks, strict=True)
    )


def _cell_table(cells: _Cells, counts: _Counts, fine: _Fine) -> tuple[CellCheck, ...]:
    numbers, codes = np.asarray(fine.numbers), np.asarray(fine.codes)
    return tuple(
        CellCheck(
            generation=int(numbers[generation]),
            action=None if action < 0 else int(codes[action]),
            expected=float(expected),
            observed=int(observed),
            z=float(z),
        )
        for generation, action, expected, observed, z in zip(
            cells.generation, cells.action, counts.expected, counts.observed, counts.z, strict=True
        )
    )


def _bin_table(bins: _Bins, counts: _Counts) -> tuple[BinCheck, ...]:
    return tuple(
        BinCheck(
            low=float(low),
            high=float(high),
            expected=float(expected),
            observed=int(seen),
            z=float(z),
        )
        for low, high, expected, seen, z in zip(
            bins.edges[:-1], bins.edges[1:], counts.expected, counts.observed, counts.z, strict=True
        )
    )


def _p_value(statistic: float, dof: int) -> float:
    """Upper tail of the chi-square distribution, with no degrees of freedom a point mass at 0."""
    if dof == 0:
        return 0.0 if statistic > 0.0 else 1.0
    return float(scipy.stats.chi2.sf(statistic, dof))


def _row_sums(log: Draws, values: FloatArray) -> FloatArray:
    """Sum of every row's `values`; numpy's reduceat has no notion of an empty row."""
    rows = scipy.sparse.csr_array(
        (values, np.zeros(len(values), dtype=np.int64), log.offsets), shape=(log.n, 1)
    )
    return np.asarray(rows @ np.ones(1))


def _floats(name: str, values: ArrayLike) -> FloatArray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(name, f"expected numbers: {error}") from error


def _integers(name: str, values: ArrayLike) -> IntArray:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise InvalidInputError(name, f"expected integers, got {array.dtype}")
    return array.astype(np.int64)


def _integer_codes(name: str, values: ArrayLike | None, n: int) -> tuple[IntArray, IntArray]:
    """Distinct values, sorted, and every value's index into them; all 0 if None."""
    if values is None:
        return np.zeros(1, dtype=np.int64), np.zeros(n, dtype=np.int64)
    array = _integers(name, values)
    if array.shape != (n,):
        raise InvalidInputError(name, f"expected {n} values, got shape {array.shape}")
    return _compact(array)


def _compact(values: IntArray) -> tuple[IntArray, IntArray]:
    """Distinct values, sorted, and every value's index into them."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    if high - low > len(values) + _DENSE_CODES:
        return np.unique_inverse(values)
    # Sorting ten million numbers takes a second; a table of those that occur doesn't.
    shifted = values - low
    present = np.bincount(shifted) > 0
    return np.flatnonzero(present) + low, (np.cumsum(present) - 1)[shifted]
