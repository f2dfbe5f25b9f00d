"""The Poisson bootstrap: its draws, its merging, its interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from croupier.offline.ope import IPS, SNIPS, Bootstrap, Difference, LoggedBatch, PairedBatch
from croupier.offline.ope.bootstrap import poisson_counts
from croupier.policy.errors import InvalidInputError, NoIntervalError, NotEnoughDataError
from tests.offline.ope_logs import batch, paired, rows_of

FALSE_ALARM = 1e-6


def log(n: int, seed: int) -> LoggedBatch:
    rng = np.random.default_rng(seed)
    action = rng.choice(3, n, p=(0.5, 0.3, 0.2))
    return LoggedBatch(
        reward=(rng.random(n) < 0.6).astype(np.float64),
        propensity=np.array((0.5, 0.3, 0.2))[action],
        target_probability=np.array((0.2, 0.3, 0.5))[action],
        row_id=rng.permutation(n).astype(np.uint64),
    )


def test_the_counts_are_poisson_and_independent() -> None:
    counts = poisson_counts(np.arange(4000, dtype=np.uint64), 200, 7)
    seen = np.bincount(counts.ravel(), minlength=8)[:8]
    expected = stats.poisson.pmf(np.arange(8), 1.0) * counts.size
    assert stats.chisquare(seen[:7], expected[:7] * seen[:7].sum() / expected[:7].sum()).pvalue > (
        FALSE_ALARM
    )
    # Correlations between rows and between replicates are those of independent numbers.
    centred = counts - 1.0
    for table in (centred, centred.T):
        pairs = (table[:, :-1] * table[:, 1:]).mean()
        assert abs(pairs) < stats.norm.isf(FALSE_ALARM / 2) / np.sqrt(counts.size)
    assert not np.array_equal(counts, poisson_counts(np.arange(4000, dtype=np.uint64), 200, 8))


def test_parts_in_any_order_are_one_pass() -> None:
    rows = log(500, 1)
    whole = Bootstrap(SNIPS(), replicates=200, seed=3).add(rows)
    order = np.random.default_rng(2).permutation(500)
    first, second, third = (
        Bootstrap(SNIPS(), replicates=200, seed=3).add(rows_of(rows, part))
        for part in np.array_split(order, 3)
    )
    merged = third.merge(first).merge(second).result()
    assert merged.lower == pytest.approx(whole.result().lower, rel=1e-12)
    assert merged.upper == pytest.approx(whole.result().upper, rel=1e-12)
    assert Bootstrap(SNIPS(), replicates=200, seed=3).merge(whole).result() == whole.result()


def test_the_interval_is_near_that_of_the_delta_method() -> None:
    rows = log(4000, 4)
    for estimator, formula in ((SNIPS(), SNIPS(interval="delta")), (IPS(), IPS(interval="normal"))):
        drawn = Bootstrap(estimator, replicates=2000, seed=1).add(rows).result()
        told = formula.add(rows).result()
        assert drawn.value == told.value
        assert drawn.interval == "bootstrap"
        assert drawn.upper - drawn.lower == pytest.approx(told.upper - told.lower, rel=0.08)


def test_a_difference_is_drawn_in_pairs() -> None:
    rows = log(1000, 5)
    other = LoggedBatch(
        reward=rows.reward,
        propensity=rows.propensity,
        target_probability=0.9 * rows.target_probability + 0.1 * rows.propensity,
        row_id=rows.row_id,
    )
    pair = Bootstrap(Difference(SNIPS()), replicates=500).add(PairedBatch(a=rows, b=other))
    single = Bootstrap(SNIPS(), replicates=500).add(rows).result()
    estimate = pair.result()
    assert estimate.upper - estimate.lower < 0.2 * (single.upper - single.lower)


def test_what_it_refuses() -> None:
    with pytest.raises(InvalidInputError, match="row_id"):
        Bootstrap(IPS()).add(batch())
    with pytest.raises(InvalidInputError, match="row_id"):
        Bootstrap(Difference(IPS())).add(paired(batch()))
    with pytest.raises(InvalidInputError, match="row_id"):
        batch(row_id=[0.5, 1.0, 2.0, 3.0])
    with pytest.raises(InvalidInputError, match="row_id"):
        batch(row_id=[-1, 1, 2, 3])
    with pytest.raises(InvalidInputError, match="replicates"):
        Bootstrap(IPS(), replicates=10)
    with pytest.raises(InvalidInputError, match="seed"):
        Bootstrap(IPS(), seed=-1)
    with pytest.raises(InvalidInputError, match="other"):
        Bootstrap(IPS(), seed=1).merge(Bootstrap(IPS(), seed=2))
    with pytest.raises(NotEnoughDataError):
        Bootstrap(IPS()).result()
    with pytest.raises(InvalidInputError, match="confidence"):
        Bootstrap(IPS()).add(log(50, 6)).result(1.0)


def test_replicates_without_a_value_are_no_interval() -> None:
    """One row of four that the policy could have made: a third of the replicates lack it."""
    rows = batch(target_probability=[0.5, 0.0, 0.0, 0.0], row_id=[1, 2, 3, 4])
    with pytest.raises(NoIntervalError) as caught:
        Bootstrap(SNIPS()).add(rows).result()
    assert caught.value.reason == "replicates-undefined"
