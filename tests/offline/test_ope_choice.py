"""Estimators and intervals by their names: parts are the whole, and what doesn't apply says why."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from scipy import stats

from croupier.offline.ope import (
    DR,
    IPS,
    SNIPS,
    ClippedIPS,
    Difference,
    DRos,
    LoggedBatch,
    PairedBatch,
    Slope,
    candidates,
)
from croupier.offline.ope.choice import (
    EstimatorKind,
    IntervalKind,
    Measure,
    estimator_kind,
    interval_kind,
    needs_model,
    tuned,
)
from croupier.policy.errors import InvalidInputError

KINDS: tuple[EstimatorKind, ...] = get_args(EstimatorKind)
INTERVALS: tuple[IntervalKind, ...] = get_args(IntervalKind)
RANGES: Any = {"reward_range": (0.0, 1.0), "weight_range": (0.0, 4.0)}


def rows(seed: int, n: int, which: slice = slice(None)) -> PairedBatch:
    """Uniform draws of four actions; two policies, and a reward model that is half right."""
    rng = np.random.default_rng(seed)
    reward = (rng.random(n) < 0.4).astype(np.float64)
    q = np.full(n, 0.3)
    shared = {
        "reward": reward[which],
        "propensity": np.full(n, 0.25)[which],
        "q_logged": q[which],
        "row_id": np.arange(n, dtype=np.uint64)[which],
    }
    a, b = (rng.dirichlet(np.ones(4), n)[:, 0] for _ in range(2))
    return PairedBatch(
        a=LoggedBatch(target_probability=a[which], q_target=q[which], **shared),
        b=LoggedBatch(target_probability=b[which], q_target=q[which] + 0.1, **shared),
    )


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_parts_are_the_whole(kind: EstimatorKind, interval: IntervalKind) -> None:
    """Of values and of differences, with an interval or with the same reason for none."""
    n = 400
    whole = rows(1, n)
    first, second = (tuned(kind, batch, **RANGES) for batch in (whole.a, whole.b))
    value: Measure[LoggedBatch] = Measure(first, interval)
    difference: Measure[PairedBatch] = Measure(Difference(first, second), interval)
    value.add(whole.a)
    difference.add(whole)
    values, differences = [], []
    for part in (slice(0, 150), slice(150, 151), slice(151, n)):
        batch = rows(1, n, part)
        of_value: Measure[LoggedBatch] = Measure(first, interval)
        of_difference: Measure[PairedBatch] = Measure(Difference(first, second), interval)
        values.append(of_value.add(batch.a))
        differences.append(of_difference.add(batch))
    for measure, parts in ((value, values), (difference, differences)):
        merged = parts[0].merge(parts[1]).merge(parts[2])  # type: ignore[arg-type]
        one, other = measure.result(0.9), merged.result(0.9)
        assert other.value == pytest.approx(one.value, abs=1e-12)
        assert (other.estimate is None, other.why_none) == (one.estimate is None, one.why_none)
        assert (one.estimate is None) == (one.why_none is not None)
        if one.estimate is not None and other.estimate is not None:
            # The predictions of a sequence begin anew in every part, which is as valid.
            apart = 0.05 if interval == "confidence-sequence" else 1e-9
            assert other.estimate.lower == pytest.approx(one.estimate.lower, abs=apart)
            assert other.estimate.upper == pytest.approx(one.estimate.upper, abs=apart)
            assert other.estimate.n == one.estimate.n == n


@pytest.mark.parametrize(
    ("kind", "interval", "reason"),
    [
        ("snips", "empirical-bernstein", "not-of-estimator"),
        ("dr", "clopper-pearson", "not-of-estimator"),
        ("ips", "clopper-pearson", "payoffs-not-binary"),
        ("clipped-ips", "confidence-sequence", "expected IPS, SNIPS, DR, SNDR or a Difference"),
        ("ips", "outer", "not-of-estimator"),
    ],
)
def test_an_interval_that_does_not_apply_says_why(
    kind: EstimatorKind, interval: IntervalKind, reason: str
) -> None:
    batch = rows(2, 100).a
    measure: Measure[LoggedBatch] = Measure(tuned(kind, batch, **RANGES), interval)
    found = measure.add(batch).result(0.95)
    assert found.estimate is None
    assert found.why_none is not None
    assert reason in found.why_none
    assert found.value is not None


def test_a_sequence_of_a_reward_model_needs_bounded_weights() -> None:
    batch = rows(2, 100).a
    estimator = tuned("dr", batch, reward_range=(0.0, 1.0), weight_range=(0.0, np.inf))
    measure: Measure[LoggedBatch] = Measure(estimator, "confidence-sequence")
    found = measure.add(batch).result(0.95)
    assert found.why_none == "weight_range: expected a finite one for DR"
    assert found.value == DR().add(batch).result().value


def test_values_are_those_of_the_classes() -> None:
    batch = rows(3, 300).a
    for kind, other in (("ips", IPS(**RANGES)), ("snips", SNIPS(**RANGES)), ("dr", DR(**RANGES))):
        measure: Measure[LoggedBatch] = Measure(
            tuned(estimator_kind(kind), batch, **RANGES), "empirical-likelihood"
        )
        assert measure.add(batch).result(0.9).estimate == other.add(batch).result(0.9)


def test_parameters_are_those_of_slope() -> None:
    batch = rows(3, 300).a
    slope = Slope(candidates(DRos(1.0, **RANGES), 4.0)).add(batch)
    chosen = next(each for each in slope.candidates() if each.chosen)
    assert tuned("dros", batch, **RANGES).name == chosen.estimator
    # Whatever made the log has nothing to be shrunk, and is worth the mean reward.
    own = LoggedBatch(
        reward=batch.reward, propensity=batch.propensity, target_probability=batch.propensity
    )
    for kind in KINDS:
        if not needs_model(kind):
            unit = tuned(kind, own, reward_range=(0.0, 1.0), weight_range=(1.0, 1.0))
            assert unit.add(own).result().value == pytest.approx(batch.reward.mean(), abs=1e-12)


def test_the_p_value_is_that_of_the_normal_test() -> None:
    """``2 P(Z > |d| / s)``, against scipy's."""
    pair = rows(4, 500)
    a, b = IPS(interval="normal"), IPS(interval="normal")
    difference = Difference(a, b)
    measure: Measure[PairedBatch] = Measure(difference, "normal")
    measure.add(pair)
    payoff = (pair.b.weight - pair.a.weight) * pair.a.reward
    exact = payoff.mean() / stats.sem(payoff)
    assert measure.p_value() == pytest.approx(2.0 * stats.norm.sf(abs(exact)), rel=1e-9)
    nothing: Measure[LoggedBatch] = Measure(ClippedIPS(1.0), "confidence-sequence")
    assert nothing.add(pair.a).p_value() is None


def test_names() -> None:
    assert estimator_kind(" Clipped_DR ") == "clipped-dr"
    assert [estimator_kind(each) for each in ("clipped", "shrunk", "switch")] == [
        "clipped-ips",
        "shrunk-ips",
        "switch-dr",
    ]
    assert interval_kind("empirical_likelihood") == "empirical-likelihood"
    assert interval_kind("sequence") == "confidence-sequence"
    with pytest.raises(InvalidInputError, match="estimator: expected one of ips, snips"):
        estimator_kind("best")
    with pytest.raises(InvalidInputError, match="interval: expected one of empirical-likelihood"):
        interval_kind("wide")
