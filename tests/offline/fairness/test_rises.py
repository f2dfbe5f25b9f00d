"""Rises of the violation rate: seldom seen where there is none, and seen where there is one."""

from __future__ import annotations

import numpy as np
import pytest

from croupier.offline.fairness.rises import rise_test
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

PAIRS = 1000


def rates(truth: list[float], rng: np.random.Generator) -> np.ndarray:
    return rng.binomial(PAIRS, truth) / PAIRS


def share_of_alarms(truth: list[float], repeats: int, seed: int, level: float = 0.05) -> float:
    rng = np.random.default_rng(seed)
    pairs = np.full(len(truth), float(PAIRS))
    return float(
        np.mean([rise_test(rates(truth, rng), pairs, level=level).rises for _ in range(repeats)])
    )


@pytest.mark.parametrize("rate", [0.0, 0.002, 0.05])
@pytest.mark.parametrize("generations", [2, 8])
def test_a_steady_rate_raises_few_alarms(rate: float, generations: int) -> None:
    # Of 150 tests at 5 %, more than 17 raise an alarm less than once in a thousand times.
    assert share_of_alarms([rate] * generations, 150, seed=generations) <= 17 / 150


def test_a_falling_rate_raises_none() -> None:
    assert share_of_alarms(np.linspace(0.2, 0.05, 8).tolist(), 60, seed=1) == 0.0


def test_a_slow_rise_and_a_jump_are_seen() -> None:
    assert share_of_alarms(np.linspace(0.05, 0.1, 8).tolist(), 60, seed=2, level=0.01) > 0.95
    assert share_of_alarms([0.05] * 7 + [0.1], 60, seed=3, level=0.01) > 0.95


def test_rates_that_are_known_better_count_more() -> None:
    # The last one is high, but of next to no pairs.
    assert not rise_test([0.05, 0.05, 0.4], [5000.0, 5000.0, 2.0]).rises
    assert rise_test([0.05, 0.05, 0.4], [5000.0, 5000.0, 200.0]).rises


def test_bad_input_is_refused() -> None:
    with pytest.raises(NotEnoughDataError, match="2 generations"):
        rise_test([0.1], [100.0])
    with pytest.raises(InvalidInputError, match="rates"):
        rise_test([0.1, 1.1], [100.0, 100.0])
    with pytest.raises(InvalidInputError, match="rates"):
        rise_test([0.1, 0.1], [100.0])
    with pytest.raises(InvalidInputError, match="effective_pairs"):
        rise_test([0.1, 0.1], [100.0, 0.0])
    with pytest.raises(InvalidInputError, match="level"):
        rise_test([0.1, 0.1], [100.0, 100.0], level=0.0)
