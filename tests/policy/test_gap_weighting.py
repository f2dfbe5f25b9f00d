"""FALCON and FastCB against their formulas in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from croupier.policy.errors import ScoringError
from croupier.policy.estimates import Estimates
from croupier.policy.exploration import Conservative, Falcon, FastCB, RegCB, SquareCB
from tests.policy.strategies import OPTIMISTIC, estimates

ROWS = st.integers(0, 10**9)
SCORES = st.lists(st.integers(0, 1000), min_size=1, max_size=12)


class TestOptimism:
    @given(OPTIMISTIC, estimates(), ROWS)
    @settings(deadline=None, max_examples=200)
    def test_probability_grows_with_the_upper_end(
        self, exploration: SquareCB, believed: Estimates, rows: int
    ) -> None:
        assert believed.deviation is not None
        pmf = exploration.pmf(believed, training_rows=rows)
        assert abs(pmf.sum() - 1.0) <= 1e-12
        radius = regcb_of(exploration).radius(rows, pmf.size)
        upper = believed.mean + radius * believed.deviation
        assert (np.diff(pmf[np.argsort(upper)]) >= -1e-14).all()

    @given(OPTIMISTIC, estimates(), st.integers(1, 10**9))
    @settings(deadline=None, max_examples=200)
    def test_is_gap_weighting_of_regcb_s_upper_ends(
        self, exploration: SquareCB, believed: Estimates, rows: int
    ) -> None:
        assert believed.deviation is not None
        radius = regcb_of(exploration).radius(rows, believed.mean.size)
        plain = msgspec.structs.replace(exploration, optimism=0.0)
        np.testing.assert_array_equal(
            exploration.pmf(believed, training_rows=rows),
            plain.pmf(believed.mean + radius * believed.deviation, training_rows=rows),
        )

    @given(OPTIMISTIC, estimates(), ROWS)
    @settings(deadline=None)
    def test_is_plain_where_there_is_none_or_the_oracle_tells_no_deviation(
        self, exploration: SquareCB, believed: Estimates, rows: int
    ) -> None:
        plain = msgspec.structs.replace(exploration, optimism=0.0)
        expected = plain.pmf(believed.mean, training_rows=rows)
        for given_ in (
            plain.pmf(believed, training_rows=rows),
            exploration.pmf(believed.mean, training_rows=rows),
        ):
            np.testing.assert_array_equal(given_, expected)

    @given(
        estimates(),
        st.integers(0, 10**9),
        st.sampled_from([0.001, 0.01, 1.0]),
        st.sampled_from([0.0, 0.5]),
    )
    @settings(deadline=None, max_examples=200)
    def test_a_large_gamma_is_the_optimistic_regcb(
        self, believed: Estimates, rows: int, optimism: float, exponent: float
    ) -> None:
        exploration = SquareCB(gamma_scale=1e300, gamma_exponent=exponent, optimism=optimism)
        regcb = regcb_of(exploration)
        assert believed.deviation is not None
        upper = believed.mean + regcb.radius(rows, believed.mean.size) * believed.deviation
        apart = upper.max() - upper
        assume((apart[apart > 0.0] > 1e-200).all())
        np.testing.assert_allclose(
            exploration.pmf(believed, training_rows=rows),
            regcb.pmf(believed, training_rows=rows),
            rtol=0,
            atol=1e-12,
        )

    def test_by_numbers(self) -> None:
        exploration = SquareCB(gamma_scale=5.0, optimism=0.25, reward_min=-1.0)
        # γ = 20; the radius is the root of 0.25 · ln(48) · 2².
        radius = math.sqrt(math.log(48))
        believed = Estimates(np.array([0.5, 0.9, 0.8]), np.array([0.3, 0.0, 0.1]))
        upper = [0.5 + 0.3 * radius, 0.9, 0.8 + 0.1 * radius]
        assert upper[0] > upper[2] > upper[1]
        second, third = (1 / (3 + 20 * (upper[0] - upper[place])) for place in (2, 1))
        np.testing.assert_allclose(
            exploration.pmf(believed, training_rows=16), [1 - second - third, third, second]
        )

    @pytest.mark.parametrize("exponent", [0.0, 0.5])
    def test_is_uniform_before_any_data(self, exponent: float) -> None:
        believed = Estimates(np.array([0.9, 0.1]), np.array([1.0, 0.2]))
        exploration = SquareCB(gamma_exponent=exponent, optimism=0.01)
        assert exploration.pmf(believed).tolist() == [0.5, 0.5]

    def test_asks_for_deviations_and_does_without(self) -> None:
        deviation = frozenset({"deviation"})
        careful = Conservative(inner=SquareCB(optimism=0.01))
        assert not SquareCB().wants
        assert not SquareCB(optimism=0.01).needs
        assert not careful.needs
        assert SquareCB(optimism=0.01).wants == careful.wants == deviation
        assert Conservative(inner=SquareCB(), radius=1.0).wants == deviation
        assert RegCB().wants == RegCB().needs == deviation

    def test_looks_at_the_deviations_that_there_are(self) -> None:
        exploration = SquareCB(optimism=0.01)
        for bad, message in ((math.nan, "not finite"), (-0.1, "below 0")):
            with pytest.raises(ScoringError, match=message):
                exploration.pmf(Estimates(np.zeros(2), np.array([0.1, bad])), training_rows=9)

    def test_is_plain_weights_where_an_oracle_tells_but_the_mean(self) -> None:
        assert SquareCB().greediness(100, 3) == 100.0
        assert SquareCB(optimism=0.01).greediness(100, 3) == 100.0

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"optimism": -0.1}, r"optimism must be in \[0, inf\), got -0.1"),
            ({"optimism": math.inf}, r"optimism must be in \[0, inf\), got inf"),
            ({"reward_max": 0.0}, "reward_min must be below reward_max"),
            ({"reward_min": math.nan}, "reward_min must be finite"),
        ],
    )
    def test_names_a_bad_parameter(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SquareCB(**fields)


def regcb_of(exploration: SquareCB) -> RegCB:
    """The one that has the same upper ends."""
    return RegCB(
        variant="optimistic",
        mellowness=exploration.optimism,
        reward_min=exploration.reward_min,
        reward_max=exploration.reward_max,
    )


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
