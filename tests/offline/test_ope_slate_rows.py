"""Slates as rows: the estimators of slates, with intervals that hold for few clicks and always."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from scipy import stats

from croupier.offline.ope import (
    IPS,
    ConfidenceSequence,
    LoggedBatch,
    SlateBatch,
    SlateEstimator,
    slate_rows,
)
from croupier.offline.ope.slates import SlateKind
from croupier.policy.errors import InvalidInputError

# Two items in each of three slots, filled independently.
LOGGING = np.array([[0.7, 0.3], [0.8, 0.2], [0.9, 0.1]])
TARGET = np.array([[0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
FACTORS = np.array([1.0, 0.6, 0.3])
WEIGHTS = (TARGET / LOGGING).max(axis=1)
KINDS: tuple[SlateKind, ...] = ("sips", "rips", "iips")


def log(n: int, seed: int, rates: np.ndarray, *, keep: bool = False) -> SlateBatch:
    rng = np.random.default_rng(seed)
    slates = (rng.random((n, 3)) < LOGGING[:, 1]).astype(int)
    positions = np.arange(3)
    return SlateBatch(
        reward=(rng.random((n, 3)) < rates[positions, slates]).astype(np.float64),
        propensity=LOGGING[positions, slates],
        target_probability=TARGET[positions, slates],
        keep_prob=rng.uniform(0.3, 1.0, n) if keep else None,
    )


def largest(kind: SlateKind) -> float:
    return float(WEIGHTS.max() if kind == "iips" else WEIGHTS.prod())


def ips(kind: SlateKind, factors: np.ndarray) -> IPS:
    return IPS(reward_range=(0.0, float(factors.sum())), weight_range=(0.0, largest(kind)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [False, True])
def test_ips_of_the_rows_is_the_estimator_of_slates(kind: SlateKind, keep: bool) -> None:
    batch = log(300, 1, np.full((3, 2), 0.4), keep=keep)
    rows = slate_rows(batch, kind, factors=FACTORS)
    assert len(rows) == 300
    expected = SlateEstimator(kind, 3, factors=FACTORS).add(batch).result()
    found = ips(kind, FACTORS).add(rows).result()
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    assert found.n == expected.n
    assert found.mean_weight == pytest.approx(
        float(np.dot(expected.mean_weights, [1.0] if kind == "sips" else FACTORS / FACTORS.sum())),
        rel=1e-12,
    )
    normal = IPS(interval="normal").add(rows).result()
    assert normal.lower == pytest.approx(expected.lower, rel=1e-9)
    assert normal.upper == pytest.approx(expected.upper, rel=1e-9)


def test_positions_without_weight_leave_a_reward_in_range() -> None:
    half = np.full((1, 2), 0.5)
    batch = SlateBatch(
        reward=np.array([[1.0, 0.0]]), propensity=half, target_probability=np.zeros((1, 2))
    )
    rows = slate_rows(batch, "iips", row_id=[7])
    assert rows.weight.tolist() == [0.0]
    assert rows.reward.tolist() == [1.0]
    assert rows.row_id is not None
    assert rows.row_id.tolist() == [7]


@pytest.mark.parametrize("kind", KINDS)
def test_few_clicks_are_covered(kind: SlateKind) -> None:
    """At 2% a normal interval covers far less; a million to one that 93% would look like that."""
    rates = np.full((3, 2), 0.02)
    value = float((FACTORS[:, None] * TARGET * rates).sum())
    held = normal = 0
    for seed in range(300):
        batch = log(500, seed, rates)
        found = ips(kind, FACTORS).add(slate_rows(batch, kind, factors=FACTORS)).result()
        held += found.lower <= value <= found.upper
        rough = SlateEstimator(kind, 3, factors=FACTORS).add(batch).result()
        normal += rough.lower <= value <= rough.upper
    assert held >= stats.binom.ppf(1e-6, 300, 0.93)
    assert held > normal


def test_positions_that_depend_on_each_other_count_once() -> None:
    """All three positions are clicked or none: as rows of their own they cover too little."""
    value = 3 * 0.3
    held = apart = 0
    for seed in range(300):
        batch = log(400, seed, np.zeros((3, 2)))
        clicked = np.random.default_rng(seed + 1000).random(400) < 0.3
        batch = SlateBatch(
            reward=np.repeat(clicked[:, None], 3, axis=1),
            propensity=batch.propensity,
            # A policy that is a little more uniform: all weights are from 0.9 to 1.4.
            target_probability=0.9 * batch.propensity + 0.05,
        )
        found = IPS(reward_range=(0.0, 3.0), weight_range=(0.9, 1.5))
        estimate = found.add(slate_rows(batch, "iips")).result()
        held += estimate.lower <= value <= estimate.upper
        flat = LoggedBatch(
            reward=batch.reward.ravel(),
            propensity=batch.propensity.ravel(),
            target_probability=batch.target_probability.ravel(),
        )
        other = IPS(weight_range=(0.9, 1.5)).add(flat).result()
        apart += 3.0 * other.lower <= value <= 3.0 * other.upper
    assert held >= stats.binom.ppf(1e-6, 300, 0.93)
    assert apart < stats.binom.ppf(1e-6, 300, 0.93)


@pytest.mark.parametrize("kind", KINDS)
def test_a_confidence_sequence_of_slates_holds_at_every_time(kind: SlateKind) -> None:
    rates = np.array([[0.2, 0.3], [0.1, 0.4], [0.3, 0.2]])
    value = float((FACTORS[:, None] * TARGET * rates).sum())
    always, last = 0, []
    for seed in range(80):
        sequence = ConfidenceSequence(ips(kind, FACTORS))
        holds = True
        batch = log(400, seed, rates)
        for part in np.array_split(np.arange(400), 10):
            rows = SlateBatch(
                reward=batch.reward[part],
                propensity=batch.propensity[part],
                target_probability=batch.target_probability[part],
            )
            found = sequence.add(slate_rows(rows, kind, factors=FACTORS)).result()
            holds &= found.lower <= value <= found.upper
        always += holds
        last.append(found.upper - found.lower)
    assert always >= stats.binom.ppf(1e-6, 80, 0.95)
    # It tells something: the range is 1.9.
    assert np.mean(last) < 1.8


def test_what_slate_rows_refuses() -> None:
    batch = log(5, 1, np.full((3, 2), 0.5))
    assert set(get_args(SlateKind)) - set(KINDS) == {"pi"}
    with pytest.raises(InvalidInputError, match="kind"):
        slate_rows(batch, "pi")
    for factors in ([1.0, -0.1, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0], [1.0, math.nan, 1.0]):
        with pytest.raises(InvalidInputError, match="factors"):
            slate_rows(batch, "iips", factors=factors)
