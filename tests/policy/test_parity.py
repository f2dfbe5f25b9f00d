"""Our pmfs against Vowpal Wabbit's from the same estimates, and where it is wrong.

Vowpal Wabbit computes in float32, and its probabilities carry an error of about 1e-7; comparisons
are to 1e-6.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from benchmarks.parity import compare, defects
from benchmarks.vowpal_wabbit import PinnedExplorer
from croupier.policy.exploration import EpsilonGreedy, SquareCB

POLICIES = [
    "epsilon_greedy",
    "softmax",
    "squarecb",
    "bagging",
    "cover",
    "regcb elimination",
    "regcb optimistic",
]

compare_once = functools.cache(compare)


@pytest.mark.parametrize("policy", POLICIES)
def test_gives_vowpal_wabbits_pmf(policy: str) -> None:
    (parity,) = [each for each in compare_once(500) if each.policy == policy]
    assert parity.inputs >= 500
    assert parity.largest_difference < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_gives_vowpal_wabbits_pmf_on_ten_thousand_inputs(policy: str) -> None:
    (parity,) = [each for each in compare_once(10_000, 1) if each.policy == policy]
    assert parity.inputs >= 10_000
    assert parity.largest_difference < 1e-6


def test_every_policy_is_compared() -> None:
    assert [each.policy for each in compare_once(500)] == POLICIES


def test_shares_ties_as_vowpal_wabbit_does_under_epsilon_greedy() -> None:
    costs = np.array([0.5, 0.75, 0.5, 0.5])
    theirs = PinnedExplorer("--epsilon 0.1").pmf(costs)
    np.testing.assert_allclose(EpsilonGreedy(epsilon=0.1).pmf(-costs), theirs, rtol=0, atol=1e-6)


def test_both_are_uniform_before_any_data_under_squarecb() -> None:
    costs = np.array([0.1, 0.5, 0.9])
    theirs = PinnedExplorer("--squarecb").pmf(costs)
    np.testing.assert_allclose(SquareCB().pmf(-costs), theirs, rtol=0, atol=1e-6)


class TestWhatVowpalWabbitGetsWrong:
    """Each of these holds as long as Vowpal Wabbit is wrong; ours is right by its definition."""

    DEFECTS = {each.policy: each for each in defects()}  # noqa: RUF012

    @pytest.mark.parametrize("policy", DEFECTS)
    def test_ours_is_a_distribution_and_theirs_differs(self, policy: str) -> None:
        defect = self.DEFECTS[policy]
        assert abs(sum(defect.ours) - 1.0) <= 1e-12
        assert min(defect.ours) >= 0.0
        assert np.abs(np.subtract(defect.ours, defect.theirs)).max() > 0.01

    def test_elimination_gives_a_negative_probability(self) -> None:
        assert min(self.DEFECTS["squarecb --elim"].theirs) < -1.0

    def test_regcb_is_greedy_before_any_data_where_nothing_is_known(self) -> None:
        defect = self.DEFECTS["regcb elimination"]
        assert max(defect.theirs) == pytest.approx(1.0)
        assert defect.ours == pytest.approx([1 / 3] * 3)

    def test_optimistic_regcb_sums_to_two_where_two_bounds_are_clipped(self) -> None:
        defect = self.DEFECTS["regcb optimistic"]
        assert sum(defect.theirs) == pytest.approx(2.0)
        assert sum(defect.ours) == 1.0
        # The one whose bound is higher before it is clipped.
        assert max(defect.ours) == defect.ours[np.argmin(defect.costs)]

    def test_epsilon_greedy_takes_different_costs_for_ties(self) -> None:
        defect = self.DEFECTS["epsilon_greedy"]
        assert defect.theirs[0] == pytest.approx(defect.theirs[1])
        assert defect.ours == pytest.approx([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3])
