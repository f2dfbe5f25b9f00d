"""Statistics of successive generations: closed forms, false alarms, and what is found."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from croupier.offline.oscillation import gaussian_noise, oscillation_test, swings
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

SWINGING = [0.8, 0.9, 0.8, 0.9, 0.8, 0.9, 0.8, 0.9]
LEVEL = 0.05


def test_a_series_that_swings_has_the_figures_of_one() -> None:
    found = swings(SWINGING)
    # Four differences of .1 and three of -.1: the mean is .1 / 7.
    squares = 7 * 0.01 - 7 * (0.1 / 7) ** 2
    assert found.spread == pytest.approx(math.sqrt(squares / 6))
    assert found.sign_changes == 1.0
    up, down = 0.1 - 0.1 / 7, -0.1 - 0.1 / 7
    assert found.autocorrelation == pytest.approx(6 * up * down / squares)
    assert found.alternation > 0.8
    assert found.peak_to_trough == pytest.approx(0.1)
    assert found.returns == 1.0


def test_a_series_that_climbs_does_not_swing() -> None:
    found = swings(np.linspace(0.1, 0.8, 8))
    assert found.spread == pytest.approx(0.0, abs=1e-12)
    assert (found.sign_changes, found.returns) == (0.0, 0.0)
    assert found.peak_to_trough == pytest.approx(0.7)


def test_of_several_series_it_is_the_mean() -> None:
    both = swings(np.array([SWINGING, np.linspace(0.1, 0.8, 8)]))
    assert both.sign_changes == 0.5
    assert both.peak_to_trough == pytest.approx(0.4)


def test_independent_values_look_like_oscillation() -> None:
    # What the literature on series knows: differences of white noise change their sign with
    # probability 2/3 and have a lag-1 autocorrelation of -1/2; 10,000 series, 4 standard errors.
    values = np.random.default_rng(0).standard_normal((10_000, 50))
    found = swings(values)
    assert found.sign_changes == pytest.approx(2 / 3, abs=4 * 0.06 / 100)
    assert found.autocorrelation == pytest.approx(-0.5, abs=0.02)
    assert found.alternation == pytest.approx(0.0, abs=0.05)
    assert found.spread == pytest.approx(math.sqrt(2), rel=0.02)


@given(
    st.lists(st.floats(-1.0, 1.0), min_size=6, max_size=20),
    st.floats(-5.0, 5.0),
    st.floats(0.1, 10.0),
)
@settings(max_examples=100, deadline=None)
def test_units_do_not_matter(values: list[float], shift: float, scale: float) -> None:
    values = [round(each, 3) for each in values]
    if np.ptp(np.diff(values)) < 1e-3:
        return
    one = swings(values)
    other = swings([shift + scale * each for each in values])
    assert other.spread == pytest.approx(scale * one.spread, rel=1e-6, abs=1e-9)
    assert other.peak_to_trough == pytest.approx(scale * one.peak_to_trough, rel=1e-6, abs=1e-9)
    assert other.autocorrelation == pytest.approx(one.autocorrelation, abs=1e-6)
    assert 0.0 <= one.sign_changes <= 1.0
    assert 0.0 <= one.returns <= one.sign_changes
    assert -1.0 <= one.autocorrelation <= 1.0


def _alarms(values: np.ndarray, errors: np.ndarray) -> float:
    """Share of the series that are called oscillating."""
    noise = gaussian_noise(errors, samples=500, random_state=1)
    alarms = [
        oscillation_test(each, noise, draws=400, level=LEVEL, random_state=number).oscillates
        for number, each in enumerate(values)
    ]
    return float(np.mean(alarms))


@pytest.mark.parametrize("slope", [0.0, 0.02])
def test_noise_is_not_called_oscillation(slope: float) -> None:
    # 400 steady series of 12 generations: more alarms than binomial(400, .05) gives once in 1,000
    # such tests would be a test that is too easily alarmed.
    rng = np.random.default_rng(2)
    errors = rng.uniform(0.005, 0.02, 12)
    values = 0.5 + slope * np.arange(12) + errors * rng.standard_normal((400, 12))
    assert _alarms(values, errors) <= stats.binom.isf(0.001, 400, LEVEL) / 400


def test_variation_in_another_order_is_not_called_oscillation() -> None:
    # Values that wander far beyond their noise, and not up and down.
    rng = np.random.default_rng(3)
    values = 0.5 + 0.05 * rng.standard_normal((400, 12)).cumsum(axis=1)
    assert _alarms(values, np.full(12, 0.005)) <= stats.binom.isf(0.001, 400, LEVEL) / 400


def test_oscillation_is_found() -> None:
    rng = np.random.default_rng(4)
    errors = np.full(12, 0.01)
    swing = 0.02 * np.array([1.0, -1.0] * 6)
    values = 0.5 + swing + errors * rng.standard_normal((200, 12))
    assert _alarms(values, errors) > 0.9


def test_many_series_show_what_one_can_not() -> None:
    rng = np.random.default_rng(5)
    errors = np.full((30, 12), 0.01)
    values = 0.5 + 0.005 * np.array([1.0, -1.0] * 6) + errors * rng.standard_normal((30, 12))
    found = oscillation_test(values, gaussian_noise(errors, samples=200))
    assert found.oscillates
    assert (found.series, found.generations) == (30, 12)
    assert found.seen.spread > found.expected.spread
    alone = oscillation_test(values[0], gaussian_noise(errors[0], samples=200))
    assert alone.p_values.alternation > found.p_values.alternation


def test_the_same_seed_gives_the_same_figures() -> None:
    noise = gaussian_noise(np.full(8, 0.01))
    one, again, other = (oscillation_test(SWINGING, noise, random_state=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.expected != other.expected


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"values": [[[1.0]]]}, "values"),
        ({"values": [math.nan] * 8}, "values"),
        ({"noise": np.zeros((7, 3))}, "noise"),
        ({"noise": np.zeros((8, 0))}, "noise"),
        ({"noise": np.full((8, 2), math.inf)}, "noise"),
        ({"draws": 99}, "draws"),
        ({"level": 1.0}, "level"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], field: str) -> None:
    given: dict[str, Any] = {"values": SWINGING, "noise": np.zeros((8, 3))} | changes
    with pytest.raises(InvalidInputError) as caught:
        oscillation_test(**given)
    assert caught.value.field == field
    with pytest.raises(InvalidInputError):
        gaussian_noise([-1.0])


def test_five_generations_are_too_few() -> None:
    with pytest.raises(NotEnoughDataError, match="from 6 on, got 5"):
        swings(SWINGING[:5])
