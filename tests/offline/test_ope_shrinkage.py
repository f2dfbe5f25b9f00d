"""Estimators with smaller weights, the direct method and self-normalised doubly robust."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from croupier.offline.ope import (
    DM,
    DR,
    IPS,
    SNDR,
    ClippedDR,
    ClippedIPS,
    Difference,
    DRos,
    Estimator,
    LoggedBatch,
    ShrunkIPS,
    SubgaussianDR,
    SubgaussianIPS,
    SwitchDR,
)
from croupier.policy.errors import InvalidInputError
from tests.offline.ope_logs import (
    KEEP,
    PROPENSITY,
    Q_LOGGED,
    Q_TARGET,
    REWARD,
    TARGET,
    TINY_VALUE,
    batch,
    batches,
    enumerate_logs,
    paired,
    rows_of,
    same,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from croupier.offline.ope.shrinkage import Reweighed

FACTORIES: tuple[Callable[[], Estimator], ...] = (
    SNDR,
    lambda: SNDR(interval="delta"),
    DM,
    lambda: ClippedIPS(1.5),
    lambda: ClippedDR(1.5, interval="normal"),
    lambda: ShrunkIPS(4.0, interval="normal"),
    lambda: DRos(4.0),
    lambda: SwitchDR(1.5),
    lambda: SubgaussianIPS(0.3, interval="outer"),
    lambda: SubgaussianDR(0.3, interval="normal"),
    lambda: ClippedDR(1.5, interval="outer"),
)
W = TARGET / PROPENSITY


@pytest.mark.parametrize(
    ("estimator", "payoff"),
    [
        (DM(), Q_TARGET),
        (ClippedIPS(1.5), np.minimum(W, 1.5) * REWARD),
        (ClippedDR(1.5), Q_TARGET + np.minimum(W, 1.5) * (REWARD - Q_LOGGED)),
        (ShrunkIPS(4.0), 4.0 * W / (W**2 + 4.0) * REWARD),
        (DRos(4.0), Q_TARGET + 4.0 * W / (W**2 + 4.0) * (REWARD - Q_LOGGED)),
        (SwitchDR(1.5), Q_TARGET + np.where(W <= 1.5, W, 0.0) * (REWARD - Q_LOGGED)),
        (SubgaussianIPS(0.3), W / (0.7 + 0.3 * W) * REWARD),
        (SubgaussianDR(0.3), Q_TARGET + W / (0.7 + 0.3 * W) * (REWARD - Q_LOGGED)),
    ],
)
def test_closed_forms(estimator: Estimator, payoff: np.ndarray) -> None:
    estimate = estimator.add(batch()).result()
    assert estimate.value == pytest.approx(float(payoff.mean()), rel=1e-12)
    c = 1.0 / KEEP
    thinned = type(estimator).__new__(type(estimator))
    thinned.__dict__ = estimator.__dict__ | {"tally_": None}
    thinned.add(batch(keep_prob=KEEP))
    assert thinned.result().value == pytest.approx(float((c * payoff).sum() / c.sum()), rel=1e-12)


def test_sndr_and_its_interval_hold_the_random_denominators() -> None:
    c, residual = 1.0 / KEEP, REWARD - Q_LOGGED
    second = (c * W * residual).sum() / (c * W).sum()
    value = (c * Q_TARGET).sum() / c.sum() + second
    estimate = SNDR(interval="delta").add(batch(keep_prob=KEEP)).result()
    assert estimate.value == pytest.approx(value, rel=1e-12)
    first = c * (Q_TARGET - (c * Q_TARGET).sum() / c.sum()) / c.mean()
    influence = first + c * W * (residual - second) / (c * W).mean()
    half = stats.norm.ppf(0.975) * influence.std(ddof=1) / 2.0
    assert estimate.upper - estimate.value == pytest.approx(half, rel=1e-12)


@pytest.mark.parametrize(
    ("limit", "whole"),
    [
        (ClippedIPS(math.inf), IPS()),
        (ShrunkIPS(math.inf), IPS()),
        (SubgaussianIPS(0.0), IPS()),
        (ClippedDR(math.inf), DR()),
        (SwitchDR(math.inf), DR()),
        (DRos(math.inf), DR()),
        (SubgaussianDR(0.0), DR()),
        (DRos(0.0), DM()),
        (SwitchDR(0.0), DM()),
        (ClippedDR(0.0), DM()),
    ],
)
def test_the_ends_of_the_parameter_are_other_estimators(limit: Estimator, whole: Estimator) -> None:
    assert limit.add(batch()).result().value == pytest.approx(
        whole.add(batch()).result().value, rel=1e-12
    )


@pytest.mark.parametrize(
    "make",
    [ClippedIPS, ClippedDR, ShrunkIPS, DRos, SwitchDR, SubgaussianIPS, SubgaussianDR],
)
@pytest.mark.parametrize("parameter", [-0.1, math.nan])
def test_the_parameter_has_a_range(make: type[Reweighed], parameter: float) -> None:
    with pytest.raises(InvalidInputError, match="parameter"):
        make(parameter)
    if make in {SubgaussianIPS, SubgaussianDR}:
        with pytest.raises(InvalidInputError, match="parameter"):
            make(1.1)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("parameter", [0.5, 1.0, 2.0])
def test_the_bias_is_what_the_formula_says(n: int, parameter: float) -> None:
    """By enumeration of every log: ``-E[(w - f(w)) r]``, whatever the number of rows."""
    rows = enumerate_logs(1)
    bias = -sum(
        p * float(((row.weight - np.minimum(row.weight, parameter)) * row.reward)[0])
        for p, row in rows
    )
    mean = sum(
        p * ClippedIPS(parameter, interval="normal").add(log).result().value
        for p, log in enumerate_logs(n)
    )
    assert mean == pytest.approx(TINY_VALUE + bias, abs=1e-12)


@pytest.mark.parametrize("kind", [ClippedIPS, ClippedDR, SwitchDR, DRos, ShrunkIPS])
@pytest.mark.parametrize("parameter", [0.3, 1.0, 2.5])
def test_the_outer_ends_have_the_value_between_their_means(
    kind: type[Reweighed], parameter: float
) -> None:
    """On the exact distribution of a row: no sampling error is left, only the bias."""
    probability, rows = zip(*enumerate_logs(1), strict=True)
    copies = np.round(np.array(probability) * 1e5).astype(int)
    assert copies.sum() == 100_000
    whole = LoggedBatch(
        **{
            name: np.repeat([float(getattr(row, name)[0]) for row in rows], copies)
            for name in ("reward", "propensity", "target_probability", "q_logged", "q_target")
        }
    )
    estimate = kind(parameter, interval="outer").add(whole).result(1e-9)
    assert estimate.lower <= TINY_VALUE + 1e-9
    assert estimate.upper >= TINY_VALUE - 1e-9
    assert abs(estimate.value - TINY_VALUE) > 1e-4


@pytest.mark.parametrize("parameter", [0.2, 0.9])
def test_the_outer_ends_hold_weights_made_larger(parameter: float) -> None:
    test_the_outer_ends_have_the_value_between_their_means(SubgaussianIPS, parameter)


def test_a_biased_estimator_says_so() -> None:
    assert "own-expectation" in ClippedIPS(1.0, interval="normal").add(batch()).result().doubts
    assert ClippedIPS(1.0, interval="outer").add(batch()).result().doubts == ("few-rewards",)
    assert ClippedIPS(1.0).add(batch()).result().doubts == ()
    paired_up = Difference(ClippedIPS(1.0, interval="normal")).add(paired(batch())).result()
    assert "own-expectation" in paired_up.doubts


@pytest.mark.parametrize("factory", FACTORIES)
@given(rows=batches(), cut=st.integers(0, 20), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_merging_is_adding_in_any_order(
    factory: Callable[[], Estimator], rows: LoggedBatch, cut: int, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(rows))
    one = factory().add(rows)
    parts = [factory().add(rows_of(rows, each)) for each in (order[:cut], order[cut:])]
    same(parts[0].merge(parts[1]), one)
    estimate, wide = one.result(0.5), one.result(0.99)
    assert wide.lower <= estimate.lower <= estimate.value <= estimate.upper <= wide.upper
    if estimate.interval != "outer":
        both = Difference(factory()).add(paired(rows))
        halves = [
            Difference(factory()).add(
                replace(paired(rows), **{s: rows_of(getattr(paired(rows), s), part) for s in "ab"})
            )
            for part in (order[:cut], order[cut:])
        ]
        same(halves[1].merge(halves[0]), both)


@given(rows=batches(keep=False), shift=st.floats(-3.0, 3.0))
@settings(max_examples=25, deadline=None)
def test_sndr_moves_with_the_rewards(rows: LoggedBatch, shift: float) -> None:
    """A constant on all rewards and predictions, or on rewards only."""
    moved = replace(rows, reward=rows.reward + shift)
    before, after = (SNDR(interval="delta").add(each).result() for each in (rows, moved))
    assert after.value == pytest.approx(before.value + shift, abs=1e-9)
    assert after.upper - after.lower == pytest.approx(before.upper - before.lower, abs=1e-7)


def test_other_parameters_are_not_merged() -> None:
    with pytest.raises(InvalidInputError, match="other"):
        ClippedIPS(1.0).merge(ClippedIPS(2.0))
    with pytest.raises(InvalidInputError, match="outer"):
        Difference(ClippedIPS(1.0, interval="outer"))
