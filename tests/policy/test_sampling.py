"""Drawing: replayed bit for bit, with exactly the logged probability, and independently.

The statistical tests hash fixed ids, so they pass or fail the same way every time; each states the
probability with which a perfect source of random numbers would have failed it.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from croupier.policy.errors import InvalidInputError
from croupier.policy.sampling import draw, draw_key, uniform_of_key
from tests.policy.strategies import pmfs

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEPS = 2**53

KEYS = st.integers(0, 2**64 - 1).map(lambda number: f"{number:016x}")

FIRST, LAST = "0" * 16, "f" * 16


def key_of_step(step: int) -> str:
    """A key that stands for ``step / 2**53``."""
    return f"{step << 11:016x}"


class TestKey:
    @pytest.mark.parametrize(
        ("parts", "key"),
        [
            (("news", 1, "decision-1"), "2e1a2938d6396f9f"),
            (("news", 2, "decision-1"), "f2b35222dac4bbb5"),
            (("shop", 1, "decision-1"), "1aee07cef8decd55"),
            (("news", 1, "decision-1", "top"), "d30fcc5440297457"),
            (("news", 0, "Entscheidung-ß-選択"), "060bc4767eb086c9"),
        ],
    )
    def test_is_what_it_was_in_every_log_so_far(
        self, parts: tuple[str, int, str] | tuple[str, int, str, str], key: str
    ) -> None:
        # Should this fail: a changed hash makes the draws of existing logs irreproducible.
        assert draw_key(*parts) == key

    @given(
        st.lists(
            st.tuples(st.text(), st.integers(0, 99), st.text(), st.none() | st.text()),
            min_size=2,
            max_size=20,
            unique=True,
        )
    )
    @settings(deadline=None)
    def test_differs_wherever_the_parts_do(
        self, draws: list[tuple[str, int, str, str | None]]
    ) -> None:
        assert len({draw_key(*parts) for parts in draws}) == len(draws)

    def test_does_not_confuse_where_one_part_ends(self) -> None:
        keys = {
            draw_key("a", 1, "1b"),
            draw_key("a", 11, "b"),
            draw_key("a1", 1, "b"),
            draw_key("a", 1, "1", "b"),
            draw_key("a", 1, "1b", ""),
        }
        assert len(keys) == 5

    def test_is_keyed_by_a_secret(self) -> None:
        secrets = (b"", b"a", b"b" * 16, b"b" * 64)
        keys = {draw_key("news", 1, "d", secret=secret) for secret in secrets}
        assert len(keys) == len(secrets)
        assert draw_key("news", 1, "d", secret=b"") == draw_key("news", 1, "d")

    def test_refuses_what_is_not_unicode(self) -> None:
        with pytest.raises(InvalidInputError, match="valid Unicode"):
            draw_key("news", 1, "\ud800")


class TestUniform:
    @given(KEYS)
    @settings(deadline=None)
    def test_is_exactly_the_top_53_bits(self, key: str) -> None:
        assert Fraction(uniform_of_key(key)) == Fraction(int(key, 16) // 2**11, STEPS)

    def test_stays_below_1(self) -> None:
        assert uniform_of_key(FIRST) == 0.0
        assert uniform_of_key(LAST) == 1.0 - 2.0**-53

    def test_golden_value(self) -> None:
        assert uniform_of_key("8000000000000000") == 0.5
        assert uniform_of_key(draw_key("news", 1, "decision-1")) == 0.18008668553941265

    def test_is_uniform(self) -> None:
        """Kolmogorov and Smirnov's test over 100,000 decisions; false-alarm rate 1e-4."""
        numbers = uniforms([draw_key("news", 1, f"decision-{i}") for i in range(100_000)])
        assert stats.kstest(numbers, "uniform").pvalue > 1e-4


class TestDraw:
    @given(pmfs(), KEYS)
    @settings(deadline=None, max_examples=150)
    def test_never_takes_an_action_of_probability_0(
        self, pmf: NDArray[np.float64], key: str
    ) -> None:
        for each in (key, FIRST, LAST):
            assert pmf[draw(pmf, each)] > 0.0

    @pytest.mark.parametrize(
        "pmf",
        [
            [0.5, 0.5, 0.0, 0.0],
            [0.0, 1.0, 0.0],
            [0.1] * 10 + [0.0] * 5,
            [1 / 3, 1 / 3, 1 / 3 - 1e-10, 0.0],
            [0.7, 0.1, 0.2 + 1e-10, 0.0],
            [0.0, 1e-320, 1.0, 1e-320, 0.0],
        ],
        ids=str,
    )
    def test_never_takes_one_at_the_ends(self, pmf: list[float]) -> None:
        for step in (0, 1, STEPS - 2, STEPS - 1):
            assert pmf[draw(np.array(pmf), key_of_step(step))] > 0.0

    @given(pmfs(), KEYS)
    @settings(deadline=None)
    def test_replays(self, pmf: NDArray[np.float64], key: str) -> None:
        assert draw(pmf, key) == draw(np.array(pmf.tolist()), key)

    @given(pmfs())
    @settings(deadline=None)
    def test_has_exactly_the_logged_probability(self, pmf: NDArray[np.float64]) -> None:
        """Count, not estimate: all of the 2^53 numbers that a key can stand for."""
        below = [0, *(steps_up_to(pmf, index) for index in range(pmf.size))]
        for index, probability in enumerate(pmf):
            share = Fraction(below[index + 1] - below[index], STEPS)
            # A step of the grid on either side, and the rounding of the cumulative sum.
            assert abs(share - Fraction(float(probability))) <= Fraction(2 + pmf.size, STEPS)
        assert below[-1] == STEPS

    def test_golden_draws(self) -> None:
        pmf = np.array([0.1, 0.2, 0.3, 0.4])
        drawn = [draw(pmf, draw_key("news", 3, f"decision-{i}")) for i in range(20)]
        assert drawn == [1, 1, 2, 2, 1, 2, 1, 0, 3, 3, 2, 2, 2, 3, 2, 2, 2, 0, 3, 1]

    def test_frequencies_are_the_pmf(self) -> None:
        """Pearson's chi-square over 100,000 keys; false-alarm rate 1e-4."""
        pmf = np.array([0.005, 0.0, 0.02, 0.6, 0.1, 0.1, 0.0, 0.15, 0.025, 0.0])
        n = 100_000
        drawn = [draw(pmf, draw_key("shop", 7, f"order {i}")) for i in range(n)]
        counts = np.bincount(drawn, minlength=pmf.size)
        possible = pmf > 0.0
        assert counts[~possible].sum() == 0
        expected = pmf[possible] * n
        assert stats.chisquare(counts[possible], expected).pvalue > 1e-4


class TestIndependence:
    """Fixed ids; for a perfect source each test fails with probability below 2e-4."""

    N = 30_000

    def test_of_consecutive_decisions(self) -> None:
        numbers = uniforms([draw_key("news", 1, str(i)) for i in range(self.N)])
        for lag in (1, 2, 10):
            assert_independent(numbers[:-lag], numbers[lag:])

    def test_of_generations_loops_and_slots(self) -> None:
        ids = [str(i) for i in range(self.N)]
        plain = uniforms([draw_key("news", 1, each) for each in ids])
        for other in (
            [draw_key("news", 2, each) for each in ids],
            [draw_key("shop", 1, each) for each in ids],
            [draw_key("news", 1, each, "0") for each in ids],
        ):
            assert_independent(plain, uniforms(other))

    def test_of_a_users_decisions_whatever_the_secret(self) -> None:
        """A hash of the user alone would give all of a user's decisions the same number.

        The correlation between a user's numbers is 0 but for chance; false-alarm rate 1e-6 for each
        secret.
        """
        users, visits = 3000, 10
        for secret in (b"", b"x" * 32):
            numbers = np.array(
                [
                    uniform_of_key(draw_key("news", 1, f"user-{user}/{visit}", secret=secret))
                    for user in range(users)
                    for visit in range(visits)
                ]
            ).reshape(users, visits)
            spread_of_means = numbers.mean(axis=1).var(ddof=1) * visits * 12.0
            # Means of independent numbers: (users - 1) times this is close to chi-square.
            assert abs(spread_of_means - 1.0) < 4.9 * np.sqrt(2.0 / (users - 1))

    def test_of_the_slots_of_a_decision(self) -> None:
        first, second = (
            uniforms([draw_key("news", 1, str(i), slot) for i in range(self.N)])
            for slot in ("0", "1")
        )
        assert_independent(first, second)


def uniforms(keys: list[str]) -> NDArray[np.float64]:
    return np.array([uniform_of_key(key) for key in keys])


def assert_independent(left: NDArray[np.float64], right: NDArray[np.float64]) -> None:
    """Correlation, and a chi-square on a 10 × 10 grid, each at a false-alarm rate of 1e-4."""
    assert stats.pearsonr(left, right).pvalue > 1e-4
    grid, _, _ = np.histogram2d(left, right, bins=10, range=[[0, 1], [0, 1]])
    assert stats.chisquare(grid.ravel()).pvalue > 1e-4


def steps_up_to(pmf: NDArray[np.float64], index: int) -> int:
    """How many of the 2^53 numbers draw `index` or an action before it, found by halving."""
    low, high = 0, STEPS
    while low < high:
        middle = (low + high) // 2
        if draw(pmf, key_of_step(middle)) <= index:
            low = middle + 1
        else:
            high = middle
    return low
