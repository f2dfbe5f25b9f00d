"""Differences between groups: against closed forms, other implementations, and simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy
from fairlearn.metrics import MetricFrame, mean_prediction

from croupier.offline.fairness.disparities import (
    Interval,
    contrast,
    interval_of,
    largest_gaps,
    max_t,
)
from croupier.offline.ope import IPS, LoggedBatch
from croupier.offline.realised import Moments

UNIT = (0.0, 1.0)


def of(values: np.ndarray) -> Moments:
    return Moments.of(np.asarray(values, dtype=np.float64), np.ones(len(values)))


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.5, 1.0])
def test_an_interval_is_the_one_of_empirical_likelihood(rate: float) -> None:
    values = (np.arange(200) < 200 * rate).astype(np.float64)
    batch = LoggedBatch(
        reward=values, propensity=np.full(200, 0.5), target_probability=np.full(200, 0.5)
    )
    expected = IPS(weight_range=(1.0, 1.0)).add(batch).result(0.9)
    found = interval_of(of(values), UNIT, 0.9)
    assert found.value == pytest.approx(expected.value)
    assert found.lower == pytest.approx(expected.lower)
    assert found.upper == pytest.approx(expected.upper)


def test_a_contrast_of_large_groups_is_the_test_of_welch() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.5, 0.05, 40_000), rng.normal(0.5005, 0.1, 30_000)
    found = contrast(of(first), of(second), UNIT, 0.95)
    expected = scipy.stats.ttest_ind(first, second, equal_var=False)
    ends = expected.confidence_interval(0.95)
    # A row more makes it a little larger, never smaller.
    assert expected.pvalue <= found.p_value <= 1.1 * expected.pvalue
    assert found.difference.lower == pytest.approx(ends.low, abs=1e-4)
    assert found.difference.upper == pytest.approx(ends.high, abs=1e-4)
    assert found.standard_error == pytest.approx(
        np.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second)), rel=1e-6
    )


def test_a_test_and_its_interval_agree() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        first, second = rng.random(30) < 0.2, rng.random(200) < 0.5
        found = contrast(of(first), of(second), UNIT, 0.9)
        outside = found.difference.lower > 0.0 or found.difference.upper < 0.0
        assert outside is (found.p_value < 0.1)


def test_a_small_group_without_a_reward_proves_nothing() -> None:
    many = (np.arange(5000) < 10).astype(np.float64)
    assert contrast(of(np.zeros(30)), of(many), UNIT, 0.95).p_value == 1.0
    # Nor does one with a single one.
    assert contrast(of(np.eye(30)[0]), of(many), UNIT, 0.95).p_value > 0.2


def false_alarms(rate: float, small: int, large: int, runs: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    alarms = 0
    for _ in range(runs):
        first, second = rng.random(small) < rate, rng.random(large) < rate
        alarms += contrast(of(first), of(second), UNIT, 0.95).p_value <= 0.05
    return alarms / runs


@pytest.mark.parametrize("rate", [0.002, 0.05, 0.5, 0.95])
@pytest.mark.parametrize(("small", "large"), [(20, 20), (20, 2000), (500, 5000)])
def test_equal_groups_are_called_different_at_most_as_often_as_said(
    rate: float, small: int, large: int
) -> None:
    # Above .08 it happens once in a thousand times at a true rate of 5 %, in 500 runs.
    assert false_alarms(rate, small, large, 500, seed=3) <= 0.08


def test_weights_are_counted() -> None:
    """Half of the rows are kept with probability 1/4, and are those with the higher rewards."""
    rng = np.random.default_rng(4)
    values = np.concatenate([rng.random(1000) < 0.6, rng.random(1000) < 0.2]).astype(np.float64)
    weights = np.repeat([4.0, 1.0], 1000)
    found = interval_of(Moments.of(values, weights), UNIT, 0.95)
    assert found.value == pytest.approx((weights @ values) / weights.sum())
    assert found.lower < 0.8 * 0.6 + 0.2 * 0.2 < found.upper
    assert found.upper - found.lower < 0.08


def test_gaps_are_those_of_fairlearn_on_every_decision() -> None:
    rng = np.random.default_rng(5)
    group = rng.choice(["f", "m", "x"], 500)
    values, weights = rng.random(500), rng.choice([1.0, 4.0], 500)
    frame = MetricFrame(
        metrics=mean_prediction,
        y_true=np.zeros(500),
        y_pred=values,
        sensitive_features=group,
        sample_params={"sample_weight": weights},
    )
    names = sorted(set(group.tolist()))
    moments = [Moments.of(values[group == name], weights[group == name]) for name in names]
    weight = [each.weight for each in moments]
    gap = largest_gaps(names, {"reward": [each.mean for each in moments]}, weight)["reward"]
    assert gap.difference == pytest.approx(frame.difference(method="between_groups"))
    assert gap.ratio == pytest.approx(frame.ratio(method="between_groups"))
    assert (gap.highest, gap.lowest) == (frame.by_group.idxmax(), frame.by_group.idxmin())
    means = {"apart": [-0.1, 0.2], "nothing": [0.0, 0.0], "half": [0.2, 0.1]}
    found = largest_gaps(["a", "b"], means, [1.0, 1.0])
    assert [each.ratio for each in found.values()] == [None, None, 0.5]


def test_intervals_at_once_are_as_wide_as_their_correlations_ask() -> None:
    # Independent ones: Sidak.
    alone = max_t([np.eye(1)] * 5, None, 0.95)
    assert alone == pytest.approx(0.95 ** (1 / 5), abs=0.002)
    # All the same: nothing to correct.
    same = max_t([np.ones((4, 4))], None, 0.95)
    assert same == pytest.approx(0.95, abs=0.005)
    # All pairs of four equal means: Tukey's studentized range.
    pairs = [(i, j) for i in range(4) for j in range(i)]
    found = max_t([np.eye(1)] * 4, pairs, 0.95)
    tukey = scipy.stats.studentized_range.ppf(0.95, 4, 1e6) / np.sqrt(2.0)
    assert scipy.stats.norm.ppf(0.5 + found / 2) == pytest.approx(tukey, abs=0.03)
    # What doesn't vary needs no room.
    assert max_t([np.zeros((2, 2))] * 2, None, 0.95) == 0.95


def test_an_interval_holds_its_value() -> None:
    found = interval_of(of(np.ones(3)), UNIT, 0.95)
    assert isinstance(found, Interval)
    assert found.lower <= found.value == found.upper == 1.0
