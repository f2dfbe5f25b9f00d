"""Explorations that ask how sure the oracle is: their properties, and closed forms."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from croupier.policy.errors import ScoringError
from croupier.policy.estimates import Estimates
from croupier.policy.exploration import (
    Bagging,
    Conservative,
    Cover,
    Exploration,
    Greedy,
    RegCB,
    SquareCB,
    Thompson,
    Uniform,
    apply_floor,
)
from croupier.policy.loop import LoopConfig
from tests.policy.strategies import CONSERVATIVE, UNCERTAIN, estimates, masks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray: TypeAlias = NDArray[np.float64]

ROWS = st.integers(0, 10**9)


class TestEveryPmf:
    @given(st.data(), UNCERTAIN | CONSERVATIVE, estimates(), ROWS)
    @settings(deadline=None, max_examples=200)
    def test_is_a_distribution_over_the_eligible_actions_that_keeps_the_floor(
        self, data: st.DataObject, exploration: Exploration, believed: Estimates, rows: int
    ) -> None:
        eligible = data.draw(masks(believed.mean.size))
        baseline = int(np.flatnonzero(eligible)[-1])
        pmf = exploration.pmf(believed, eligible, training_rows=rows, baseline=baseline)
        assert pmf.shape == believed.mean.shape
        assert pmf.dtype == np.float64
        assert abs(pmf.sum() - 1.0) <= 1e-9
        assert (pmf >= 0.0).all()
        assert (pmf[~eligible] == 0.0).all()
        assert pmf[eligible].min() >= min(exploration.floor, 1.0 / np.count_nonzero(eligible))

    @given(st.data(), UNCERTAIN | CONSERVATIVE, estimates(), ROWS)
    @settings(deadline=None, max_examples=100)
    def test_is_that_of_the_eligible_actions_by_themselves(
        self, data: st.DataObject, exploration: Exploration, believed: Estimates, rows: int
    ) -> None:
        eligible = data.draw(masks(believed.mean.size))
        among = np.flatnonzero(eligible)
        pmf = exploration.pmf(believed, eligible, training_rows=rows, baseline=int(among[0]))
        alone = exploration.pmf(believed.of(among), training_rows=rows, baseline=0)
        np.testing.assert_array_equal(pmf[among], alone)

    @pytest.mark.parametrize(
        ("exploration", "missing"),
        [
            (RegCB(), "deviation"),
            (Bagging(), "members"),
            (Cover(), "members"),
            (Thompson(), "covariance"),
            (Thompson(correlated=False), "deviation"),
            (Conservative(inner=Bagging()), "members"),
            (Conservative(inner=SquareCB(), radius=1.0), "deviation"),
        ],
        ids=str,
    )
    def test_says_what_the_oracle_does_not_tell(
        self, exploration: Exploration, missing: str
    ) -> None:
        with pytest.raises(ScoringError, match=f"does not estimate.*{missing}"):
            exploration.pmf(np.zeros(3), training_rows=1, baseline=0)
        table = msgspec.to_builtins(exploration)
        with pytest.raises(msgspec.ValidationError, match=f"{missing}.*auto does not"):
            msgspec.convert({"exploration": table}, LoopConfig)

    @pytest.mark.parametrize(
        ("exploration", "bad"),
        [
            (RegCB(), Estimates(np.zeros(2), deviation=np.array([0.1, np.inf]))),
            (Thompson(), Estimates(np.zeros(2), covariance=np.full((2, 2), np.nan))),
            (Bagging(), Estimates(np.zeros(2), members=np.array([[0.0, 1.0], [np.nan, 0.0]]))),
            (Bagging(), Estimates(np.array([np.nan, 0.0]), members=np.zeros((3, 2)))),
        ],
        ids=str,
    )
    def test_refuses_uncertainty_that_is_not_finite(
        self, exploration: Exploration, bad: Estimates
    ) -> None:
        with pytest.raises(ScoringError, match="not finite"):
            exploration.pmf(bad)

    def test_refuses_a_standard_error_below_0(self) -> None:
        with pytest.raises(ScoringError, match="below 0"):
            RegCB().pmf(Estimates(np.zeros(2), np.array([0.1, -0.1])))

    @pytest.mark.parametrize(
        ("exploration", "warned"),
        [
            (Greedy(), True),
            (Greedy(floor=0.01), False),
            (RegCB(), True),
            (Bagging(floor=0.01), False),
            (Cover(), False),
            (Cover(epsilon=0.0), True),
            (Thompson(), True),
            (Conservative(inner=SquareCB()), True),
            (SquareCB(), False),
        ],
        ids=str,
    )
    def test_warns_where_a_log_could_not_be_evaluated(
        self, exploration: Exploration, warned: bool
    ) -> None:
        assert (exploration.caution is not None) == warned

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"kind": "regcb", "variant": "greedy"}, "variant"),
            ({"kind": "regcb", "mellowness": -1}, r"mellowness must be in \[0, inf\), got -1"),
            ({"kind": "regcb", "reward_min": 1}, "reward_min must be below reward_max"),
            ({"kind": "cover", "epsilon": 2}, r"epsilon must be in \[0, 1\], got 2"),
            ({"kind": "thompson", "scale": -1}, r"scale must be in \[0, inf\), got -1"),
            ({"kind": "thompson", "samples": 10}, r"samples must be in \[100, 1e\+06\], got 10"),
            ({"kind": "conservative"}, "missing required field `inner`"),
            (
                {"kind": "conservative", "inner": {"kind": "squarecb"}, "alpha": 2},
                r"alpha must be in \[0, 1\], got 2",
            ),
            (
                {"kind": "conservative", "inner": {"kind": "conservative"}},
                "Invalid value 'conservative'.*inner.kind",
            ),
        ],
        ids=str,
    )
    def test_names_what_is_wrong(self, table: dict[str, Any], message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.convert(table, Exploration)


def test_describes_what_is_inside() -> None:
    exploration = Conservative(inner=SquareCB(gamma_scale=2.0), alpha=0.05)
    assert exploration.describe() == "conservative(inner=squarecb(gamma_scale=2), alpha=0.05)"


class TestRegCB:
    def test_interval_is_what_the_good_fits_predict(self) -> None:
        """The interval's end is the largest prediction of a θ whose loss is within Δ of the least.

        Found here by numerical optimization under that constraint.
        """
        rng = np.random.default_rng(0)
        design, rewards = rng.normal(size=(40, 3)), rng.random(40)
        precision = np.eye(3) + design.T @ design
        fitted = np.linalg.solve(precision, design.T @ rewards)
        exploration = RegCB(mellowness=0.05, reward_min=-50.0, reward_max=50.0)
        radius = exploration.radius(40, 4)
        assert radius == pytest.approx(100 * math.sqrt(0.05 * math.log(160)))

        def loss(theta: Any) -> list[float]:
            return [float(((design @ theta - rewards) ** 2).sum() + theta @ theta)]

        within = optimize.NonlinearConstraint(loss, -np.inf, loss(fitted)[0] + radius**2)
        for x in rng.normal(size=(5, 3)):
            deviation = math.sqrt(x @ np.linalg.solve(precision, x))
            best = optimize.minimize(
                np.dot, fitted, args=(-x,), constraints=[within], method="SLSQP"
            )
            assert -best.fun == pytest.approx(x @ fitted + radius * deviation, rel=1e-5)

    def test_eliminates_who_cannot_be_best(self) -> None:
        believed = Estimates(np.array([0.9, 0.8, 0.2]), np.array([0.01, 0.06, 0.05]))
        pmf = RegCB(mellowness=1.0).pmf(believed, training_rows=20)
        half = math.sqrt(math.log(60)) * np.array([0.01, 0.06, 0.05])
        alive = believed.mean + half >= (believed.mean - half).max()
        assert alive.tolist() == [True, True, False]
        assert pmf.tolist() == [0.5, 0.5, 0.0]

    def test_optimist_plays_the_highest_upper_end(self) -> None:
        believed = Estimates(np.array([0.5, 0.4, 0.3]), np.array([0.0, 0.1, 0.2]))
        optimist = RegCB(variant="optimistic")
        assert optimist.pmf(believed, training_rows=1).tolist() == [1.0, 0.0, 0.0]
        wide = RegCB(variant="optimistic", mellowness=1.0)
        assert wide.pmf(believed, training_rows=1).tolist() == [0.0, 0.0, 1.0]

    def test_optimist_tells_bounds_apart_that_are_clipped_alike(self) -> None:
        believed = Estimates(np.array([0.8, 0.9, 0.1]), np.array([0.5, 0.5, 0.0]))
        optimist = RegCB(variant="optimistic", mellowness=1.0)
        assert optimist.pmf(believed, training_rows=10).tolist() == [0.0, 1.0, 0.0]
        tied = Estimates(np.array([0.9, 0.9, 0.1]), np.array([0.5, 0.5, 0.0]))
        assert optimist.pmf(tied, training_rows=10).tolist() == [0.5, 0.5, 0.0]

    @pytest.mark.parametrize("variant", ["elimination", "optimistic"])
    def test_is_uniform_before_any_data(self, variant: Any) -> None:
        believed = Estimates(np.array([0.9, 0.1]), np.array([1.0, 1.0]))
        assert RegCB(variant=variant).pmf(believed, training_rows=0).tolist() == [0.5, 0.5]

    @given(estimates(), st.floats(0.0, 10.0), st.floats(0.0, 10.0))
    def test_a_mellower_one_eliminates_no_more(
        self, believed: Estimates, one: float, other: float
    ) -> None:
        strict, mellow = (
            RegCB(mellowness=each).pmf(believed, training_rows=50) > 0.0
            for each in sorted((one, other))
        )
        assert (mellow | ~strict).all()


class TestVotes:
    @given(estimates())
    def test_bagging_counts_exactly(self, believed: Estimates) -> None:
        assert believed.members is not None
        counts = [Fraction(0)] * believed.mean.size
        for member in believed.members.tolist():
            best = [index for index, score in enumerate(member) if score == max(member)]
            for index in best:
                counts[index] += Fraction(1, len(best))
        expected = [float(count / len(believed.members)) for count in counts]
        np.testing.assert_allclose(Bagging().pmf(believed), expected, rtol=0, atol=1e-15)

    @pytest.mark.parametrize(
        ("rows", "floor"), [(0, 1 / 4), (3, 1 / 4), (100, 1 / 20), (10**6, 5e-4)]
    )
    def test_covers_floor_falls_with_the_data(self, rows: int, floor: float) -> None:
        believed = Estimates(np.zeros(4), members=np.eye(4)[[0, 0, 0, 1]])
        pmf = Cover().pmf(believed, training_rows=rows)
        expected = apply_floor(np.array([0.75, 0.25, 0.0, 0.0]), floor)
        np.testing.assert_allclose(pmf, expected, atol=1e-15)

    def test_covers_fixed_epsilon_is_shared_by_all(self) -> None:
        believed = Estimates(np.zeros(4), members=np.eye(4)[[0, 0, 0, 1]])
        pmf = Cover(epsilon=0.4).pmf(believed, training_rows=10**6)
        np.testing.assert_allclose(pmf, apply_floor(np.array([0.75, 0.25, 0, 0]), 0.1), atol=1e-15)


def posterior(rng: np.random.Generator, actions: int) -> Estimates:
    """A posterior whose errors share two causes, unevenly."""
    causes = rng.normal(size=(actions, 2)) * 0.1
    covariance = causes @ causes.T + np.diag(10.0 ** rng.uniform(-4, -1, actions))
    return Estimates(0.3 * rng.random(actions), np.sqrt(np.diag(covariance)), covariance)


class TestThompson:
    @pytest.mark.parametrize("actions", [2, 3, 10])
    def test_quadrature_agrees_with_an_adaptive_one(self, actions: int) -> None:
        rng = np.random.default_rng(actions)
        # The adaptive one takes seconds for many actions.
        for _ in range(5 if actions < 10 else 1):
            mean, deviation = rng.random(actions), 10.0 ** rng.uniform(-3, 0.3, actions)
            pmf = Thompson(scale=1.0, correlated=False).pmf(Estimates(mean, deviation))
            for action in range(actions):
                expected = probability_of_best(mean, deviation, action)
                assert pmf[action] == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize("actions", [2, 30, 1000])
    def test_quadrature_agrees_with_a_simulation(self, actions: int) -> None:
        rng = np.random.default_rng(actions)
        mean, deviation = rng.random(actions), rng.uniform(0.0, 0.5, actions)
        pmf = Thompson(scale=1.0, correlated=False).pmf(Estimates(mean, deviation))
        draws = 20_000
        drawn = mean + deviation * rng.normal(size=(draws, actions))
        counts = np.bincount(drawn.argmax(axis=1), minlength=actions)
        # False-alarm rate 1e-4 for each number of actions.
        assert chi_square_p(counts, pmf * draws) > 1e-4

    def test_needs_neither_a_spread_nor_a_scale(self) -> None:
        def pmf(mean: list[float], deviation: list[float]) -> list[float]:
            believed = Estimates(np.array(mean), np.array(deviation))
            given = Thompson(scale=1.0, correlated=False).pmf(believed)
            return [float(each) for each in given]

        assert pmf([0.0, 0.0, 1.0], [0.0, 0.0, 0.0]) == [0.0, 0.0, 1.0]
        assert pmf([1.0, 1.0, 0.5], [0.0, 0.0, 0.0]) == pytest.approx([0.5, 0.5, 0.0])
        assert pmf([0.2] * 3, [0.1] * 3) == pytest.approx([1 / 3] * 3, abs=1e-15)
        assert pmf([1e300, -1e300], [0.1, 0.1]) == [1.0, 0.0]
        assert pmf([1e-300, 0.0], [1e-300, 0.0])[0] == pytest.approx(stats.norm.cdf(1.0))

    @given(st.floats(-1, 1), st.floats(0.01, 1), st.floats(0.01, 1), st.floats(-0.99, 0.99))
    def test_two_actions_have_a_closed_form(
        self, gap: float, first: float, second: float, correlation: float
    ) -> None:
        shared = correlation * first * second
        covariance = np.array([[first**2, shared], [shared, second**2]])
        believed = Estimates(np.array([gap, 0.0]), np.array([first, second]), covariance)
        pmf = Thompson(scale=0.5).pmf(believed)
        spread = 0.5 * math.sqrt(first**2 + second**2 - 2 * shared)
        assert pmf[0] == pytest.approx(stats.norm.cdf(gap / spread), abs=1e-12)

    def test_what_all_actions_share_cancels(self) -> None:
        rng = np.random.default_rng(0)
        mean, deviation = rng.random(6), rng.uniform(0.1, 0.5, 6)
        alone = Thompson(correlated=False, scale=1.0).pmf(Estimates(mean, deviation))
        covariance = np.diag(deviation**2) + 3.0
        believed = Estimates(mean, np.sqrt(np.diag(covariance)), covariance)
        np.testing.assert_allclose(Thompson(scale=1.0).pmf(believed), alone, atol=1e-9)
        apart = Thompson(correlated=False, scale=1.0).pmf(believed)
        assert np.abs(apart - alone).max() > 0.1

    @pytest.mark.parametrize("actions", [3, 5, 20])
    def test_sampled_pmf_is_within_its_bounds_of_the_posteriors(self, actions: int) -> None:
        # Both bounds fail with probability 1e-3 at most; the reference's own error is allowed for.
        rng = np.random.default_rng(actions)
        draws = 200_000
        for seed in range(5):
            believed = posterior(rng, actions)
            assert believed.covariance is not None
            exploration = Thompson(scale=1.0, seed=seed)
            pmf = exploration.pmf(believed)
            drawn = rng.multivariate_normal(believed.mean, believed.covariance, size=draws)
            limit = np.bincount(drawn.argmax(axis=1), minlength=actions) / draws
            bounds = exploration.approximation(pmf)
            assert bounds is not None
            own = 4.0 * math.sqrt(0.25 / draws)
            assert np.abs(pmf - limit).max() <= bounds.largest + own
            assert 0.5 * np.abs(pmf - limit).sum() <= bounds.total_variation + actions * own
            # The standard errors are no mere formality either: five of them are never exceeded.
            slack = 5.0 * np.sqrt(limit * (1 - limit) / exploration.samples) + 1e-3
            assert (np.abs(pmf - limit) <= slack + own).all()

    def test_bounds_shrink_with_the_samples(self) -> None:
        pmf = np.full(10, 0.1)
        few, many = (Thompson(samples=n).approximation(pmf) for n in (100, 10_000))
        assert few is not None
        assert many is not None
        assert many.largest == pytest.approx(few.largest / 10)
        assert many.total_variation == pytest.approx(few.total_variation / 10)
        assert many.standard_error == pytest.approx(few.standard_error / 10)
        inside = Conservative(inner=Thompson(samples=100)).approximation(pmf)
        assert inside is not None
        assert inside.largest == few.largest
        for exact in (Thompson(correlated=False), SquareCB(), Conservative(inner=SquareCB())):
            assert exact.approximation(pmf) is None
        assert Thompson().approximation(np.array([0.5, 0.5])) is None

    def test_sampled_pmf_follows_the_actions_when_they_are_permuted(self) -> None:
        rng = np.random.default_rng(3)
        for actions in (3, 8, 40):
            believed = posterior(rng, actions)
            order = rng.permutation(actions)
            np.testing.assert_array_equal(
                Thompson().pmf(believed.of(order)), Thompson().pmf(believed)[order]
            )

    def test_without_a_scale_is_greedy(self) -> None:
        believed = posterior(np.random.default_rng(4), 6)
        expected = (believed.mean == believed.mean.max()).astype(float)
        for correlated in (False, True):
            pmf = Thompson(scale=0.0, correlated=correlated).pmf(believed)
            np.testing.assert_array_equal(pmf, expected)


def probability_of_best(mean: FloatArray, deviation: FloatArray, action: int) -> float:
    others = np.arange(mean.size) != action

    def density(x: float) -> float:
        below = stats.norm.cdf(x, mean[others], deviation[others]).prod()
        return float(stats.norm.pdf(x, mean[action], deviation[action]) * below)

    ends = np.unique(np.concatenate([mean, mean - 8 * deviation, mean + 8 * deviation]))
    pieces = (
        integrate.quad(density, left, right, epsabs=1e-12, limit=200)[0]
        for left, right in itertools.pairwise(ends)
    )
    return float(sum(pieces))


def chi_square_p(counts: NDArray[np.int64], expected: FloatArray) -> float:
    """P-value of counts against what was expected, the rare actions taken together."""
    rare = expected < 5.0
    observed = np.append(counts[~rare], counts[rare].sum())
    hoped = np.append(expected[~rare], expected[rare].sum())
    kept = hoped > 0.0
    assert observed[~kept].sum() == 0
    return float(stats.chisquare(observed[kept], hoped[kept]).pvalue)


class TestConservative:
    @given(CONSERVATIVE, estimates(), st.integers(1, 1000), st.floats(0.0, 0.5), st.data())
    @settings(deadline=None, max_examples=200)
    def test_counts_on_no_less_than_the_threshold(
        self,
        exploration: Conservative,
        believed: Estimates,
        rows: int,
        budget: float,
        data: st.DataObject,
    ) -> None:
        exploration = msgspec.structs.replace(exploration, floor=0.0)
        baseline = data.draw(st.integers(0, believed.mean.size - 1))
        pmf = exploration.pmf(believed, training_rows=rows, baseline=baseline, budget=budget)
        inner = exploration.inner.pmf(believed, training_rows=rows, baseline=baseline)
        assert believed.deviation is not None
        low = exploration.reward_min
        counted = np.maximum(believed.mean - exploration.radius * believed.deviation, low)
        known = max(float(believed.mean[baseline]), low)
        allowed = max(exploration.alpha * (known - low) + budget, 0.0)
        # p = ρ·baseline + (1 - ρ)·inner for one ρ, recovered from any entry that tells it.
        apart = np.arange(pmf.size) != baseline
        explored = pmf[apart].sum() / inner[apart].sum() if inner[apart].sum() > 0 else 0.0
        np.testing.assert_allclose(pmf[apart], explored * inner[apart], atol=1e-12)
        lost = known - float(inner @ counted)
        assert explored * lost <= allowed + 1e-9
        # And no more of the baseline than that takes.
        if inner[apart].sum() > 0 and explored < 1.0 - 1e-9:
            assert explored * lost >= allowed - 1e-9

    def test_by_hand(self) -> None:
        # Uniform is predicted to earn 0.4 and the baseline 0.6: of the 0.2 that would be lost,
        # alpha allows 0.06 and the budget 0.04, which is half.
        exploration = Conservative(inner=Uniform(), alpha=0.1)
        believed = Estimates(np.array([0.6, 0.2]))
        pmf = exploration.pmf(believed, training_rows=1, baseline=0, budget=0.04)
        np.testing.assert_allclose(pmf, [0.75, 0.25])

    def test_is_its_inner_where_that_is_as_good(self) -> None:
        believed = Estimates(np.array([0.2, 0.9, 0.4]))
        inner = SquareCB(gamma_scale=100.0)
        exploration = Conservative(inner=inner, alpha=0.0)
        pmf = exploration.pmf(believed, training_rows=100, baseline=0)
        np.testing.assert_array_equal(pmf, inner.pmf(believed.mean, training_rows=100))

    def test_doubts_what_is_uncertain(self) -> None:
        believed = Estimates(np.array([0.5, 0.9]), np.array([0.01, 0.4]))
        sure = Conservative(inner=Greedy(), alpha=0.0)
        careful = Conservative(inner=Greedy(), alpha=0.0, radius=2.0)
        assert sure.pmf(believed, training_rows=9, baseline=0).tolist() == [0.0, 1.0]
        assert careful.pmf(believed, training_rows=9, baseline=0).tolist() == [1.0, 0.0]

    def test_explores_a_share_of_alpha_before_any_data(self) -> None:
        exploration = Conservative(inner=Uniform(), alpha=0.2)
        pmf = exploration.pmf(np.zeros(4), training_rows=0, baseline=2)
        np.testing.assert_allclose(pmf, [0.05, 0.05, 0.85, 0.05])

    def test_needs_a_baseline_that_is_eligible(self) -> None:
        exploration = Conservative(inner=Uniform())
        with pytest.raises(ScoringError, match="needs to know the baseline"):
            exploration.pmf(np.zeros(2))
        with pytest.raises(ScoringError, match="baseline is not eligible"):
            exploration.pmf(np.zeros(2), np.array([True, False]), baseline=1)
