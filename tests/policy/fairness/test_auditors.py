"""Panels against the definition by counting, judged pairs, and gaps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from croupier.policy.errors import InvalidInputError
from croupier.policy.fairness.auditors import (
    ABSTAINS,
    JudgedPairs,
    Metric,
    Panel,
    gap_of,
    panel_distance,
    required_votes,
    violates,
)

_UNIT = st.floats(0.0, 1.0)


@given(
    distances=st.lists(st.one_of(_UNIT, st.just(math.nan)), min_size=1, max_size=9),
    gap=_UNIT,
    alpha=st.floats(0.0, 0.5),
    gamma=st.floats(0.01, 1.0),
)
def test_a_panel_sees_what_the_share_of_its_auditors_sees(
    distances: list[float], gap: float, alpha: float, gamma: float
) -> None:
    judging = [each for each in distances if not math.isnan(each)]
    seeing = sum(gap > each + alpha for each in judging)
    # The rounding that required_votes allows for: a share that is γ but for the last bits.
    by_count = (
        bool(judging) and seeing >= 1 and seeing / len(judging) >= gamma - 1e-9 / len(judging)
    )

    found = violates(gap, panel_distance(distances, gamma), alpha)

    assert bool(found) is by_count


@given(m=st.integers(1, 200), k=st.integers(1, 200))
def test_a_share_that_is_reached_exactly_is_reached(m: int, k: int) -> None:
    if k <= m:
        assert required_votes(k / m, m) == k


@given(arrays(np.float64, (4, 6), elements=_UNIT), st.floats(0.01, 1.0))
def test_many_pairs_are_judged_as_each_by_itself(distances: np.ndarray, gamma: float) -> None:
    together = panel_distance(distances, gamma)

    assert together.tolist() == [float(panel_distance(each, gamma)) for each in distances.T]


def test_the_extremes_are_the_strictest_auditor_and_unanimity() -> None:
    distances = [0.4, 0.1, 0.9, 0.2]

    assert panel_distance(distances, 0.25) == 0.1
    assert panel_distance(distances, 0.5) == 0.2
    assert panel_distance(distances, 1.0) == 0.9


def test_nothing_violates_what_nobody_judges() -> None:
    assert panel_distance([ABSTAINS, ABSTAINS], 0.5) == math.inf
    assert not violates(1.0, math.inf, 0.0)


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.1, math.nan])
def test_a_share_out_of_range_is_refused(gamma: float) -> None:
    with pytest.raises(InvalidInputError, match="gamma"):
        panel_distance([0.5], gamma)


def test_a_panel_without_auditors_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="auditors"):
        panel_distance(np.zeros((0, 3)), 0.5)


def test_a_person_abstains_on_what_she_has_not_judged() -> None:
    person = JudgedPairs(10, [3, 7, 3], [5, 2, 5], [0.2, 1.0, 0.4])

    found = person.distances(np.array([5, 3, 2, 0]), np.array([3, 5, 7, 1]))

    assert found[:3].tolist() == [0.4, 0.4, 1.0]
    assert math.isnan(found[3])
    assert [each.tolist() for each in person.pairs] == [[2, 3], [7, 5]]


def test_who_has_judged_nothing_abstains_on_everything() -> None:
    nobody = JudgedPairs(4, [], [], [])

    assert np.isnan(nobody.distances(np.array([0, 1]), np.array([2, 3]))).all()


def test_a_judgement_out_of_range_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="distances"):
        JudgedPairs(4, [0], [1], [1.5])


def test_a_metric_is_euclidean_and_at_most_one() -> None:
    metric = Metric(np.array([[0.0, 0.0], [0.3, 0.4], [9.0, 0.0]]))

    found = metric.distances(np.array([0, 0, 1]), np.array([1, 2, 1]))

    assert found.tolist() == pytest.approx([0.5, 1.0, 0.0])


def test_gaps_of_probabilities() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.4, 0.5])

    assert gap_of("any")(p, q) == pytest.approx(0.4)
    assert gap_of("total_variation")(p, q) == pytest.approx(0.4)
    assert gap_of("any")(p[None], np.stack([p])).tolist() == [0.0]
    with pytest.raises(InvalidInputError, match="gap"):
        gap_of("median")


def test_a_block_holds_what_its_pairs_do() -> None:
    rng = np.random.default_rng(3)
    people = JudgedPairs(7, [1, 5, 0], [2, 3, 6], [0.2, 0.9, 0.0])
    panel = Panel([Metric(rng.normal(size=(7, 2))), people, Metric(rng.normal(size=(7, 3)))], 0.6)
    rows = np.array([5, 0, 2])

    block = panel.block(rows)

    first, second = np.broadcast_arrays(rows[:, None], np.arange(7)[None, :])
    np.testing.assert_allclose(block, panel.distances(first, second), atol=1e-12)
