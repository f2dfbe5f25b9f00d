"""The adjusted doubly robust estimator: its formula, what it doesn't change with, its variance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from croupier.offline.ope import (
    DR,
    IPS,
    SNDR,
    SNIPS,
    AdjustedDR,
    Difference,
    Estimator,
    LoggedBatch,
)
from croupier.policy.errors import InvalidInputError
from tests.offline.ope_logs import batch, batches, paired, rows_of, same

MU = np.array([[0.8, 0.15, 0.05], [0.3, 0.3, 0.4]])
PI = np.array([[0.1, 0.5, 0.4], [0.2, 0.7, 0.1]])
RATES = np.array([[0.9, 0.8, 0.6], [0.2, 0.3, 0.5]])
VALUE = float((PI * RATES).sum(axis=1).mean())


def log(n: int, seed: int, model: np.ndarray) -> LoggedBatch:
    """Two contexts and three actions."""
    rng = np.random.default_rng(seed)
    context = rng.integers(2, size=n)
    action = (MU[context].cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return LoggedBatch(
        reward=(rng.random(n) < RATES[context, action]).astype(np.float64),
        propensity=MU[context, action],
        target_probability=PI[context, action],
        q_logged=model[context, action],
        q_target=(PI * model).sum(axis=1)[context],
    )


def value(rows: LoggedBatch, estimator: Estimator | None = None) -> float:
    estimator = AdjustedDR() if estimator is None else estimator
    return estimator.point(estimator.columns(rows).mean(axis=0))[0]


@pytest.mark.parametrize("kept", [False, True])
def test_the_value_solves_the_weighted_regression(kept: bool) -> None:
    rows = log(300, 1, RATES[::-1])
    if kept:
        rows = replace(rows, keep_prob=np.random.default_rng(2).uniform(0.2, 1.0, 300))
    assert rows.q_target is not None
    assert rows.q_logged is not None
    c, w = rows.keep_weight, rows.weight
    payoff = rows.q_target + w * (rows.reward - rows.q_logged)
    controls = np.column_stack((w - 1.0, w * rows.q_logged - rows.q_target))
    found = value(rows)
    # Least squares of the influence c (u - value) on the controls' c g, without a constant.
    coefficients, *_ = np.linalg.lstsq(c[:, None] * controls, c * (payoff - found), rcond=None)
    assert found == pytest.approx(c @ (payoff - controls @ coefficients) / c.sum(), rel=1e-10)


def test_its_error_is_that_of_the_residual() -> None:
    rows = log(500, 3, RATES[::-1])
    estimator = AdjustedDR(interval="delta").add(rows)
    assert rows.q_target is not None
    assert rows.q_logged is not None
    payoff = rows.q_target + rows.weight * (rows.reward - rows.q_logged)
    controls = np.column_stack(
        (np.ones(500), rows.weight - 1.0, rows.weight * rows.q_logged - rows.q_target)
    )
    coefficients, squares, *_ = np.linalg.lstsq(controls, payoff, rcond=None)
    # With everything kept the value is the constant of an ordinary regression.
    found = estimator.result(0.95)
    assert found.value == pytest.approx(coefficients[0], rel=1e-10)
    # Its half width is 1.96 standard errors; the residual's scatter is about 0 or the mean.
    spread = found.upper - found.lower
    error = np.sqrt(squares[0] / 499 / 500)
    assert spread == pytest.approx(2 * 1.959964 * error, rel=2e-2)


@pytest.mark.parametrize("seed", range(20))
def test_a_model_that_is_scaled_or_shifted_gives_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(12, 200))
    rows = LoggedBatch(
        reward=rng.random(n),
        propensity=rng.uniform(0.05, 1.0, n),
        target_probability=rng.random(n),
        keep_prob=rng.uniform(0.1, 1.0, n),
        q_logged=rng.random(n),
        q_target=rng.random(n),
    )
    assert rows.q_logged is not None
    assert rows.q_target is not None
    changed = replace(rows, q_logged=3.0 * rows.q_logged - 1.0, q_target=3.0 * rows.q_target - 1.0)
    assert value(changed) == pytest.approx(value(rows), rel=1e-8, abs=1e-8)
    raised = replace(rows, reward=(rows.reward + 1.0) / 2.0)
    assert value(raised) == pytest.approx((value(rows) + 1.0) / 2.0, rel=1e-8, abs=1e-8)


def test_no_other_has_less_variance_whatever_the_model() -> None:
    estimators = (AdjustedDR(), IPS(), SNIPS(), DR(), SNDR())
    for model in (RATES, RATES[::-1], 0.5 * RATES + 0.4, np.zeros((2, 3))):
        errors = np.array(
            [
                [value(rows, each) - VALUE for each in estimators]
                for rows in (log(1500, seed, model) for seed in range(250))
            ]
        )
        squares = (errors**2).mean(axis=0)
        # To first order no more than the least of them, which is met up to luck.
        assert (squares[0] < 1.1 * squares[1:]).all(), squares
        # It is unbiased but for 1/n: a z-test at one in a million.
        assert abs(errors[:, 0].mean()) < 4.9 * errors[:, 0].std() / np.sqrt(250)


def test_the_delta_interval_covers() -> None:
    held = 0
    for seed in range(400):
        estimate = AdjustedDR(interval="delta").add(log(1500, seed, RATES[::-1])).result(0.9)
        held += estimate.lower <= VALUE <= estimate.upper
    # Of 400 with 0.9, fewer than 330 or more than 388 once in a hundred thousand.
    assert 330 <= held <= 388


@settings(deadline=None, max_examples=40)
@given(batches(least=8))
def test_merging_is_adding(rows: LoggedBatch) -> None:
    half = len(rows) // 2
    parts = [
        AdjustedDR(reward_range=(0.0, 1.0)).add(rows_of(rows, part))
        for part in (slice(None, half), slice(half, None))
    ]
    whole = AdjustedDR().add(rows)
    assert whole.tally_ is not None
    merged = parts[0].merge(parts[1])
    assert merged.tally_ is not None
    np.testing.assert_allclose(merged.tally_.moments.mean, whole.tally_.moments.mean, rtol=1e-11)


def test_subsampling_by_reward_is_undone() -> None:
    errors = []
    for seed in range(200):
        rows = log(3000, seed, RATES[::-1])
        keep = np.where(rows.reward > 0.0, 0.5, 1.0)
        kept = np.random.default_rng(seed + 10_000).random(3000) < keep
        errors.append(value(rows_of(replace(rows, keep_prob=keep), kept)) - VALUE)
    # A z-test at one in a million.
    assert abs(np.mean(errors)) < 4.9 * np.std(errors) / np.sqrt(200)


def test_the_logging_policy_is_worth_the_mean_reward() -> None:
    rows = log(100, 5, np.full((2, 3), 0.3))
    rows = replace(rows, target_probability=rows.propensity)
    assert value(rows) == pytest.approx(rows.reward.mean(), rel=1e-12)


def test_a_difference_of_two_policies() -> None:
    rows = paired(log(400, 6, RATES))
    found = Difference(AdjustedDR()).add(rows).result()
    assert found.value == pytest.approx(value(rows.b) - value(rows.a), rel=1e-9)
    same(Difference(AdjustedDR()).add(rows), Difference(AdjustedDR()).add(rows))


def test_what_it_refuses() -> None:
    with pytest.raises(InvalidInputError, match="q_logged"):
        AdjustedDR().add(batch(q_logged=None, q_target=None))


def test_two_rows_are_not_explained_away() -> None:
    # Two rows and two controls: nothing would be left over.
    rows = rows_of(batch(), [0, 1])
    assert value(rows) == pytest.approx(value(rows, DR()), rel=1e-12)
