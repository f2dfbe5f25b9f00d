"""Bootstrap intervals of streams: every row is drawn a Poisson number of times."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Generic, Self

import numpy as np

from croupier.offline.ope.accumulators import Accumulator, BatchT, Estimate
from croupier.offline.ope.batches import LoggedBatch, PairedBatch
from croupier.offline.ope.intervals import require_confidence
from croupier.policy.errors import InvalidInputError, NoIntervalError, NotEnoughDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.offline.ope.intervals import FloatArray

__all__ = ("Bootstrap",)

# One hash makes four counts, of 16 bits each.
_PER_HASH, _BITS = 4, 16
_LEVELS = 1 << _BITS
_CELLS = 4_000_000
# Beyond this share of replicates without a value, percentiles of the others mean nothing.
_UNDEFINED = 0.01


class Bootstrap(Generic[BatchT]):
    """Percentile interval of any estimator or difference, from B replicates of its column means.

    In replicate b a row counts ``N_b ~ Poisson(1)`` times, which for long logs is drawing n rows
    with replacement, but needs no n. The counts are a hash of the seed, the replicate and the row's
    `row_id`: whoever counts the row, in whatever order, gives it the same counts, so that merged
    parts are one pass, and two estimators with the same seed see the same replicates.

    A large-sample interval like the normal one, without a formula for the variance, and no better
    at rare rewards: what the log hasn't seen, no replicate shows.

    Source: Chamandy, Muralidharan, Najmi & Naidu, "Estimating Uncertainty for Massive Data
    Streams", Google 2012; Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of
    Statistics 1979.

    Parameters
    ----------
    accumulator
        An estimator or difference, of which only the parameters are used; its `interval` isn't.
    replicates
        B, at least 100.
    seed
        In [0, 2**63).

    Raises
    ------
    InvalidInputError
        If a parameter is out of its range; it names the parameter.
    """

    def __init__(
        self, accumulator: Accumulator[BatchT], *, replicates: int = 1000, seed: int = 0
    ) -> None:
        if replicates < 100:
            raise InvalidInputError("replicates", f"expected at least 100, got {replicates}")
        if not 0 <= seed < 1 << 63:
            raise InvalidInputError("seed", f"expected a number in [0, 2**63), got {seed}")
        self.accumulator: Accumulator[BatchT] = copy.copy(accumulator)
        self.accumulator.tally_ = None
        self.replicates = replicates
        self.seed = seed
        self.sums_: FloatArray | None = None

    def parameters(self) -> tuple[object, ...]:
        """The constructor's parameters; only bootstraps with equal ones can be merged."""
        kind = type(self.accumulator)
        return (kind, self.accumulator.parameters(), self.replicates, self.seed)

    def add(self, batch: BatchT) -> Self:
        """Count the rows of `batch`, which have a `row_id`.

        Raises
        ------
        InvalidInputError
            If the batch lacks what the estimator needs, or `row_id`. Nothing is counted.
        """
        row_id = _row_id(batch)
        if row_id is None:
            raise InvalidInputError("row_id", "expected numbers that tell the rows apart")
        columns = self.accumulator.columns(batch)
        self.accumulator.add(batch)
        sums = np.zeros((self.replicates, columns.shape[1]))
        step = max(1, _CELLS // self.replicates)
        for start in range(0, len(columns), step):
            counts = poisson_counts(row_id[start : start + step], self.replicates, self.seed)
            sums += counts.T.astype(np.float64) @ columns[start : start + step]
        self.sums_ = sums if self.sums_ is None else self.sums_ + sums
        return self

    def merge(self, other: Self) -> Self:
        """Count the rows that `other` counted; `other` stays as it is.

        Raises
        ------
        InvalidInputError
            If `other` has other parameters.
        """
        if other.parameters() != self.parameters():
            raise InvalidInputError("other", "expected the same Bootstrap parameters")
        self.accumulator.merge(other.accumulator)
        if other.sums_ is not None:
            self.sums_ = other.sums_.copy() if self.sums_ is None else self.sums_ + other.sums_
        return self

    def result(self, confidence: float = 0.95) -> Estimate:
        """Estimate with the percentile interval.

        Parameters
        ----------
        confidence
            Nominal coverage, in (0, 1).

        Raises
        ------
        InvalidInputError
            If `confidence` is not in (0, 1).
        NotEnoughDataError
            If fewer than 2 rows were counted, or the value is not defined.
        NoIntervalError
            If more than one in a hundred replicates has no value (``replicates-undefined``).
        """
        require_confidence(confidence)
        tally = self.accumulator.tally_
        if self.sums_ is None or tally is None or tally.moments.n < 2:
            raise NotEnoughDataError("an estimate with an interval needs at least 2 rows")
        value, _ = self.accumulator.point(tally.moments.mean)
        values = [each for each in map(self._value, self.sums_) if each is not None]
        if len(values) < (1.0 - _UNDEFINED) * self.replicates:
            raise NoIntervalError(
                "replicates-undefined",
                f"expected a value in every replicate, got {len(values)} of {self.replicates}",
            )
        tail = (1.0 - confidence) / 2.0
        lower, upper = np.quantile(values, (tail, 1.0 - tail))
        interval = (float(lower), float(upper))
        return self.accumulator.estimate(value, interval, confidence, "bootstrap")

    def _value(self, sums: FloatArray) -> float | None:
        """Value of a replicate; None if it drew no row that the policy could have made."""
        if sums[0] <= 0.0:
            return None
        try:
            return self.accumulator.point(sums)[0]
        except NotEnoughDataError:
            return None


def _row_id(batch: LoggedBatch | PairedBatch) -> NDArray[np.uint64] | None:
    return batch.b.row_id if isinstance(batch, PairedBatch) else batch.row_id


def poisson_counts(row_id: NDArray[np.uint64], replicates: int, seed: int) -> NDArray[np.uint8]:
    """How often every row counts in every replicate, shape (n, replicates)."""
    hashes = -(-replicates // _PER_HASH)
    with np.errstate(over="ignore"):
        rows = _mixed(row_id + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15))
        blocks = _mixed(np.arange(1, hashes + 1, dtype=np.uint64) + np.uint64(seed))
        mixed = _mixed(rows[:, None] ^ blocks[None, :])
    parts = mixed.view(np.uint16).reshape(len(row_id), hashes * _PER_HASH)
    return _TABLE[parts[:, :replicates]]


def _mixed(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit numbers whose output looks random.

    The finaliser of SplitMix64: Steele, Lea & Flood, "Fast Splittable Pseudorandom Number
    Generators", OOPSLA 2014.
    """
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _poisson_table() -> NDArray[np.uint8]:
    """Quantiles of Poisson(1) at the middles of 2^16 levels."""
    levels = (np.arange(_LEVELS) + 0.5) / _LEVELS
    terms = np.exp(-1.0) / np.cumprod(np.concatenate(([1.0], np.arange(1.0, 12.0))))
    return np.searchsorted(np.cumsum(terms), levels).astype(np.uint8)


_TABLE = _poisson_table()
