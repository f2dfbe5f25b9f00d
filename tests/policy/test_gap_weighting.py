"""FALCON and FastCB against their formulas in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from croupier.policy.exploration import Falcon, FastCB, SquareCB

SCORES = st.lists(st.integers(0, 1000), min_size=1, max_size=12)


@given(SCORES, st.integers(1, 10**7))
def test_falcon_is_gap_weighting_with_its_own_gamma(thousandths: list[int], rows: int) -> None:
    scores = np.array(thousandths) / 1000.0
    falcon = Falcon(scale=0.7, log_class_size=5.0, delta=0.1)
    gamma = 0.7 * math.sqrt(scores.size * rows / (5.0 + math.log(rows / 0.1)))
    assert falcon.gamma(rows, scores.size) == pytest.approx(gamma, rel=1e-14)
    same = SquareCB(gamma_scale=gamma, gamma_exponent=0.0)
    np.testing.assert_allclose(
        falcon.pmf(scores, training_rows=rows), same.pmf(scores), rtol=0, atol=1e-15
    )


def test_falcon_without_data_is_uniform() -> None:
    np.testing.assert_array_equal(Falcon().pmf(np.array([0.1, 0.9])), [0.5, 0.5])


def test_falcon_counts_only_eligible_actions() -> None:
    scores = np.array([0.2, 0.9, 0.4, 0.4])
    eligible = np.array([True, False, True, True])
    full = Falcon().pmf(scores, eligible, training_rows=400)
    alone = Falcon().pmf(scores[eligible], training_rows=400)
    np.testing.assert_array_equal(full[eligible], alone)
    assert full[1] == 0.0


def fastcb_by_hand(losses: list[Fraction], gamma: Fraction, floor: Fraction) -> list[Fraction]:
    """Foster and Krishnamurthy's weighting with the best loss floored, ties shared."""
    k, best = len(losses), min(losses)
    least = max(best, floor)
    weights = [least / (k * least + gamma * (loss - best)) for loss in losses]
    others = sum((w for w, loss in zip(weights, losses, strict=True) if loss > best), Fraction(0))
    share = (1 - others) / losses.count(best)
    return [w if loss > best else share for w, loss in zip(weights, losses, strict=True)]


@given(SCORES, st.integers(1, 10_000))
def test_fastcb_equals_the_formula(thousandths: list[int], gamma: int) -> None:
    losses = [1 - Fraction(each, 1000) for each in thousandths]
    expected = fastcb_by_hand(losses, Fraction(gamma), Fraction(1, 100))
    pmf = FastCB(gamma=float(gamma)).pmf(np.array(thousandths) / 1000.0)
    np.testing.assert_allclose(pmf, [float(each) for each in expected], rtol=1e-9, atol=1e-15)


def test_fastcb_explores_less_where_failures_are_rarer() -> None:
    gaps = np.array([0.0, -0.05, -0.05])
    rare, frequent = FastCB().pmf(0.99 + gaps), FastCB().pmf(0.5 + gaps)
    assert rare[0] > frequent[0]


def test_fastcb_still_explores_where_nothing_seems_to_fail() -> None:
    pmf = FastCB(loss_floor=0.02).pmf(np.array([1.0, 0.5]))
    assert pmf[1] == pytest.approx(0.02 / (2 * 0.02 + 20.0 * 0.5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gamma": 0.0}, "gamma must be in"),
        ({"loss_floor": 0.0}, "loss_floor must be in"),
        ({"reward_min": 1.0, "reward_max": 1.0}, "reward_min must be below"),
        ({"reward_max": math.inf}, "must be finite"),
    ],
)
def test_fastcb_names_a_bad_parameter(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastCB(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 0.0}, "scale must be in"),
        ({"log_class_size": -1.0}, "log_class_size must be in"),
        ({"delta": 1.0}, "delta must be in"),
    ],
)
def test_falcon_names_a_bad_parameter(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Falcon(**fields)
