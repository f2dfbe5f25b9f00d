"""Exploration: the properties that every pmf has, and closed forms worked out another way."""

from __future__ import annotations

import tomllib
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from croupier.policy.errors import ScoringError
from croupier.policy.exploration import (
    EpsilonGreedy,
    Exploration,
    Falcon,
    FastCB,
    Greedy,
    Softmax,
    SquareCB,
    Uniform,
    apply_floor,
)
from tests.policy.strategies import EXPLORATIONS, PROBABILITIES, masks, pmfs, score_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS = st.integers(0, 10**12)

ONE_OF_EACH: list[Exploration] = [
    Uniform(),
    Greedy(floor=1e-5),
    EpsilonGreedy(epsilon=0.1),
    Softmax(temperature=0.02),
    SquareCB(gamma_scale=100.0),
    SquareCB(gamma_scale=1e6, floor=1e-5),
    SquareCB(gamma_scale=1e6, floor=1e-5, floor_method="mix"),
    Falcon(),
    FastCB(),
]


class TestEveryPmf:
    @given(st.data(), EXPLORATIONS, score_arrays(), ROWS)
    @settings(deadline=None, max_examples=200)
    def test_is_a_distribution_over_the_eligible_actions_that_keeps_the_floor(
        self, data: st.DataObject, exploration: Exploration, scores: NDArray[np.float64], rows: int
    ) -> None:
        eligible = data.draw(masks(scores.size))
        pmf = exploration.pmf(scores, eligible, training_rows=rows)
        assert pmf.shape == scores.shape
        assert pmf.dtype == np.float64
        assert abs(pmf.sum() - 1.0) <= 1e-12
        assert pmf.max() <= 1.0 + 1e-15
        assert (pmf[~eligible] == 0.0).all()
        assert pmf[eligible].min() >= min(exploration.floor, 1.0 / np.count_nonzero(eligible))

    @given(st.data(), EXPLORATIONS, score_arrays(), ROWS)
    @settings(deadline=None, max_examples=200)
    def test_follows_the_actions_when_they_are_permuted(
        self, data: st.DataObject, exploration: Exploration, scores: NDArray[np.float64], rows: int
    ) -> None:
        eligible = data.draw(masks(scores.size))
        order = np.array(data.draw(st.permutations(range(scores.size))))
        permuted = exploration.pmf(scores[order], eligible[order], training_rows=rows)
        straight = exploration.pmf(scores, eligible, training_rows=rows)
        np.testing.assert_allclose(permuted, straight[order], rtol=0, atol=1e-14)

    @given(EXPLORATIONS, score_arrays(), ROWS)
    @settings(deadline=None, max_examples=200)
    def test_grows_with_the_score_and_treats_ties_alike(
        self, exploration: Exploration, scores: NDArray[np.float64], rows: int
    ) -> None:
        pmf = exploration.pmf(scores, training_rows=rows)
        order = np.argsort(scores)
        assert (np.diff(pmf[order]) >= -1e-14).all()
        for score in scores:
            assert np.ptp(pmf[scores == score]) == 0.0

    @given(st.data(), EXPLORATIONS, score_arrays(), ROWS)
    @settings(deadline=None)
    def test_does_not_look_at_excluded_actions(
        self, data: st.DataObject, exploration: Exploration, scores: NDArray[np.float64], rows: int
    ) -> None:
        eligible = data.draw(masks(scores.size))
        hidden = np.where(eligible, scores, data.draw(st.sampled_from([np.nan, np.inf, 1e300])))
        np.testing.assert_array_equal(
            exploration.pmf(hidden, eligible, training_rows=rows),
            exploration.pmf(scores, eligible, training_rows=rows),
        )

    @given(EXPLORATIONS, st.floats(-1e300, 1e300), ROWS)
    @settings(deadline=None)
    def test_is_certain_of_a_single_action(
        self, exploration: Exploration, score: float, rows: int
    ) -> None:
        assert exploration.pmf(np.array([score]), training_rows=rows).tolist() == [1.0]

    @pytest.mark.parametrize("exploration", ONE_OF_EACH, ids=lambda each: each.describe())
    def test_holds_for_ten_thousand_actions(self, exploration: Exploration) -> None:
        scores = np.random.default_rng(1).normal(size=10_000)
        pmf = exploration.pmf(scores, training_rows=1_000_000)
        assert abs(pmf.sum() - 1.0) <= 1e-12
        assert pmf.min() >= exploration.floor
        assert (np.diff(pmf[np.argsort(scores)]) >= -1e-14).all()

    @pytest.mark.parametrize("exploration", ONE_OF_EACH, ids=lambda each: each.describe())
    @pytest.mark.parametrize(
        "scores",
        [
            [1e300, -1e300, 0.0],
            [1.7e308, -1.7e308, 1.7e308],
            [1e-300, 0.0, -1e-300],
            [5e-324, 0.0, 5e-324],
        ],
        ids=str,
    )
    def test_holds_for_extreme_scores(self, exploration: Exploration, scores: list[float]) -> None:
        pmf = exploration.pmf(np.array(scores), training_rows=100)
        assert abs(pmf.sum() - 1.0) <= 1e-15
        assert pmf.min() >= exploration.floor

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize(
        "exploration",
        [Greedy(), EpsilonGreedy(), Softmax(), SquareCB()],
        ids=lambda e: e.describe(),
    )
    def test_is_refused_for_an_eligible_score_that_is_not_finite(
        self, exploration: Exploration, bad: float
    ) -> None:
        scores = np.array([0.1, bad, 0.3])
        with pytest.raises(ScoringError, match="not finite"):
            exploration.pmf(scores)
        excluded = exploration.pmf(scores, np.array([True, False, True]))
        assert excluded[1] == 0.0

    @pytest.mark.parametrize("exploration", ONE_OF_EACH, ids=lambda each: each.describe())
    def test_is_refused_where_no_action_is_eligible(self, exploration: Exploration) -> None:
        with pytest.raises(ScoringError, match="no action is eligible"):
            exploration.pmf(np.zeros(3), np.zeros(3, dtype=bool))
        with pytest.raises(ScoringError, match="no action is eligible"):
            exploration.pmf(np.zeros(0))

    @given(EXPLORATIONS, score_arrays(), ROWS)
    @settings(deadline=None)
    def test_leaves_its_arguments_alone(
        self, exploration: Exploration, scores: NDArray[np.float64], rows: int
    ) -> None:
        before = scores.copy()
        exploration.pmf(scores, training_rows=rows)
        np.testing.assert_array_equal(scores, before)


class TestClosedForms:
    def test_uniform(self) -> None:
        pmf = Uniform().pmf(np.array([np.nan, 1.0, 2.0, 3.0]))
        assert pmf.tolist() == [0.25, 0.25, 0.25, 0.25]

    def test_greedy_shares_ties(self) -> None:
        assert Greedy().pmf(np.array([1.0, 3.0, 3.0])).tolist() == [0.0, 0.5, 0.5]

    @given(PROBABILITIES, score_arrays())
    @settings(deadline=None)
    def test_epsilon_greedy(self, epsilon: float, scores: NDArray[np.float64]) -> None:
        best = [score == scores.max() for score in scores]
        by_hand = [
            Fraction(epsilon) / len(best) + (1 - Fraction(epsilon)) * is_best / sum(best)
            for is_best in best
        ]
        pmf = EpsilonGreedy(epsilon=epsilon).pmf(scores)
        np.testing.assert_allclose(pmf, [float(p) for p in by_hand], rtol=1e-15, atol=0)

    @given(st.floats(1e-3, 10.0), score_arrays(st.floats(-1.0, 1.0)))
    @settings(deadline=None)
    def test_softmax(self, temperature: float, scores: NDArray[np.float64]) -> None:
        pmf = Softmax(temperature=temperature).pmf(scores)
        np.testing.assert_allclose(pmf, softmax(scores / temperature), rtol=1e-12, atol=0)

    @given(
        st.floats(0.0, 1e4),
        st.sampled_from([0.0, 0.5, 1.0]),
        st.integers(0, 1000),
        score_arrays(st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.5, 1.0]))),
    )
    @settings(deadline=None)
    def test_squarecb(
        self, scale: float, exponent: float, root: int, scores: NDArray[np.float64]
    ) -> None:
        # Squares, so that the schedule's power is a whole number.
        gamma = Fraction(scale) * root ** round(2 * exponent)
        exact = [Fraction(float(score)) for score in scores]
        by_hand = squarecb_by_hand(exact, gamma)
        exploration = SquareCB(gamma_scale=scale, gamma_exponent=exponent)
        pmf = exploration.pmf(scores, training_rows=root**2)
        np.testing.assert_allclose(pmf, [float(p) for p in by_hand], rtol=1e-12, atol=1e-15)

    def test_squarecb_by_numbers(self) -> None:
        exploration = SquareCB(gamma_scale=5.0, gamma_exponent=0.5)
        assert exploration.gamma(16) == 20.0
        pmf = exploration.pmf(np.array([0.5, 0.9, 0.85]), training_rows=16)
        # 1 / (3 + 20 · 0.4) = 1/11 and 1 / (3 + 20 · 0.05) = 1/4; the best has the rest.
        np.testing.assert_allclose(pmf, [1 / 11, 29 / 44, 1 / 4], rtol=1e-14)

    @given(score_arrays(), ROWS)
    @settings(deadline=None)
    def test_squarecb_without_greediness_is_uniform(
        self, scores: NDArray[np.float64], rows: int
    ) -> None:
        pmf = SquareCB(gamma_scale=0.0).pmf(scores, training_rows=rows)
        np.testing.assert_allclose(pmf, 1.0 / scores.size, rtol=1e-12)

    def test_squarecb_without_data_is_uniform_unless_gamma_is_fixed(self) -> None:
        scores = np.array([0.0, 1.0])
        assert SquareCB(gamma_scale=10.0).pmf(scores).tolist() == [0.5, 0.5]
        fixed = SquareCB(gamma_scale=10.0, gamma_exponent=0.0).pmf(scores)
        np.testing.assert_allclose(fixed, [1 / 12, 11 / 12], rtol=1e-14)


class TestFloor:
    @given(pmfs(), PROBABILITIES)
    @settings(deadline=None, max_examples=200)
    def test_projection_is_the_nearest_point(self, pmf: NDArray[np.float64], floor: float) -> None:
        projected = apply_floor(pmf, floor, "project")
        lowered = min(floor, 1.0 / pmf.size)
        np.testing.assert_allclose(projected, project_by_bisection(pmf, lowered), atol=1e-13)
        # Nearest, if and only if no corner of the polytope lies on the same side as the pmf.
        free = 1.0 - pmf.size * lowered
        corners = lowered + free * np.eye(pmf.size)
        assert ((corners - projected) @ (pmf - projected)).max() <= 1e-13

    @given(pmfs(), PROBABILITIES)
    @settings(deadline=None)
    def test_mixing_by_hand(self, pmf: NDArray[np.float64], floor: float) -> None:
        lowered = min(Fraction(floor), Fraction(1, pmf.size))
        by_hand = [lowered + (1 - pmf.size * lowered) * Fraction(float(p)) for p in pmf]
        np.testing.assert_allclose(
            apply_floor(pmf, floor, "mix"), [float(p) for p in by_hand], rtol=0, atol=1e-15
        )

    @given(pmfs(), PROBABILITIES)
    @settings(deadline=None)
    def test_projection_costs_the_best_action_no_more_than_mixing(
        self, pmf: NDArray[np.float64], floor: float
    ) -> None:
        projected = apply_floor(pmf, floor, "project").max()
        assert projected >= apply_floor(pmf, floor, "mix").max() - 1e-14

    @given(pmfs(), st.sampled_from(["project", "mix"]))
    @settings(deadline=None)
    def test_of_nothing_changes_nothing(
        self, pmf: NDArray[np.float64], method: Literal["project", "mix"]
    ) -> None:
        np.testing.assert_array_equal(apply_floor(pmf, 0.0, method), pmf)

    @given(pmfs(), st.sampled_from(["project", "mix"]))
    @settings(deadline=None)
    def test_of_everything_is_uniform(
        self, pmf: NDArray[np.float64], method: Literal["project", "mix"]
    ) -> None:
        np.testing.assert_allclose(apply_floor(pmf, 1.0, method), 1.0 / pmf.size, atol=1e-15)

    @pytest.mark.parametrize("size", [3, 6, 7, 49, 98, 103, 107, 9999])
    @pytest.mark.parametrize("method", ["project", "mix"])
    def test_of_one_share_each_survives_rounding(
        self, size: int, method: Literal["project", "mix"]
    ) -> None:
        # For these sizes, size · (1 / size) is not 1 in floating point, or only just.
        certain = np.eye(1, size).ravel()
        for floor in (1 / size, np.nextafter(1 / size, 0), np.nextafter(1 / size, 1)):
            pmf = apply_floor(certain, float(floor), method)
            assert abs(pmf.sum() - 1.0) <= 1e-12
            assert pmf.min() >= min(floor, 1 / size)


class TestConfiguration:
    @given(EXPLORATIONS)
    @settings(deadline=None)
    def test_round_trips_through_json(self, exploration: Exploration) -> None:
        encoded = msgspec.json.encode(exploration)
        assert msgspec.json.decode(encoded, type=Exploration) == exploration

    @pytest.mark.parametrize(
        ("toml", "expected"),
        [
            ('{kind = "uniform"}', Uniform()),
            (
                '{kind = "greedy", floor = 0.01, floor_method = "mix"}',
                Greedy(floor=0.01, floor_method="mix"),
            ),
            ('{kind = "epsilon_greedy", epsilon = 1}', EpsilonGreedy(epsilon=1.0)),
            ('{kind = "softmax", temperature = 0.5}', Softmax(temperature=0.5)),
            ('{kind = "squarecb", gamma_scale = 5}', SquareCB(gamma_scale=5.0)),
        ],
    )
    def test_reads_toml(self, toml: str, expected: Exploration) -> None:
        table = tomllib.loads(f"exploration = {toml}")["exploration"]
        assert convert(table) == expected

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"kind": "squarecb", "gama_scale": 5}, "gama_scale"),
            ({"kind": "ucb"}, "Invalid value 'ucb'.*kind"),
            ({"gamma_scale": 5}, "missing required field `kind`"),
            ({"kind": "greedy", "floor": 1.5}, r"floor must be in \[0, 1\], got 1.5"),
            ({"kind": "greedy", "floor": float("nan")}, r"floor must be in \[0, 1\], got nan"),
            ({"kind": "greedy", "floor_method": "clip"}, "floor_method"),
            ({"kind": "epsilon_greedy", "epsilon": -0.1}, r"epsilon must be in \[0, 1\], got -0.1"),
            ({"kind": "epsilon_greedy", "epsilon": "0.1"}, "epsilon"),
            ({"kind": "softmax", "temperature": 0}, r"temperature must be in \(0, inf\), got 0"),
            ({"kind": "softmax", "temperature": float("inf")}, r"temperature .*got inf"),
            ({"kind": "squarecb", "gamma_scale": -1}, r"gamma_scale must be in \[0, inf\), got -1"),
            ({"kind": "squarecb", "gamma_exponent": 2}, r"gamma_exponent must be in \[0, 1\]"),
        ],
        ids=str,
    )
    def test_names_what_is_wrong(self, table: dict[str, Any], message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            convert(table)

    @pytest.mark.parametrize(
        ("exploration", "line"),
        [
            (Uniform(), "uniform"),
            (SquareCB(), "squarecb"),
            (SquareCB(gamma_scale=1000.0, floor=0.005), "squarecb(gamma_scale=1000, floor=0.005)"),
            (Greedy(floor=0.1, floor_method="mix"), "greedy(floor=0.1, floor_method=mix)"),
            (Softmax(temperature=1e-7), "softmax(temperature=1e-07)"),
        ],
    )
    def test_describes_itself_in_a_line(self, exploration: Exploration, line: str) -> None:
        assert exploration.describe() == line


def squarecb_by_hand(scores: list[Fraction], gamma: Fraction) -> list[Fraction]:
    """Inverse gap weighting in exact arithmetic: the mean over all ways to name the best."""
    best = [index for index, score in enumerate(scores) if score == max(scores)]
    total = [Fraction(0)] * len(scores)
    for named in best:
        others = {
            index: 1 / (len(scores) + gamma * (scores[named] - score))
            for index, score in enumerate(scores)
            if index != named
        }
        for index, probability in others.items():
            total[index] += probability / len(best)
        total[named] += (1 - sum(others.values(), Fraction(0))) / len(best)
    return total


def project_by_bisection(pmf: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """Move the pmf down by τ, but nowhere below the floor; τ is found by halving."""
    low, high = -1.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if np.maximum(pmf - middle, floor).sum() > 1.0:
            low = middle
        else:
            high = middle
    return np.maximum(pmf - high, floor)


def convert(table: dict[str, Any]) -> Exploration:
    exploration: Exploration = msgspec.convert(table, Exploration)
    return exploration
