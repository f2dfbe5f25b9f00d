"""Empirical Bernstein and binomial intervals: against their formulas, and when they refuse."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from croupier.offline.ope import DR, IPS, Difference, LoggedBatch
from croupier.policy.errors import InvalidInputError, NoIntervalError
from tests.offline.ope_logs import KEEP, PROPENSITY, REWARD, TARGET, batch, paired

BERNSTEIN = {"interval": "empirical-bernstein", "weight_range": (0.0, 3.0)}
BINOMIAL = {"interval": "clopper-pearson", "weight_range": (0.0, 4.0)}


def half_width(x: np.ndarray, span: float, error: float) -> float:
    n, log = len(x), math.log(2.0 / error)
    return math.sqrt(2.0 * x.var(ddof=1) * log / n) + 7.0 * span * log / (3.0 * (n - 1))


def uniform_log(n: int, rate: float, seed: int) -> LoggedBatch:
    """Uniform draws from four actions, as a policy sees them that always takes the first."""
    rng = np.random.default_rng(seed)
    return LoggedBatch(
        reward=(rng.random(n) < rate).astype(np.float64),
        propensity=np.full(n, 0.25),
        target_probability=(rng.integers(4, size=n) == 0).astype(np.float64),
    )


def test_bernstein_is_the_best_of_the_bounds_of_the_paper() -> None:
    """By Maurer & Pontil's formula, with rewards as they are and turned round."""
    rows = LoggedBatch(
        reward=np.tile(REWARD, 500),
        propensity=np.tile(PROPENSITY, 500),
        target_probability=np.tile(TARGET, 500),
    )
    estimate = IPS(**BERNSTEIN).add(rows).result()  # type: ignore[arg-type]
    w, r = rows.weight, rows.reward
    # Residuals are in [0, 1], so two bounds an end.
    plain, turned = w * r, 1.0 - w * (1.0 - r)
    lowers = [x.mean() - half_width(x, 3.0, 0.05 / 4) for x in (plain, turned)]
    uppers = [x.mean() + half_width(x, 3.0, 0.05 / 4) for x in (plain, turned)]
    assert estimate.lower == pytest.approx(min(max(lowers), estimate.value), rel=1e-9)
    assert estimate.upper == pytest.approx(max(min(uppers), estimate.value), rel=1e-9)


def test_bernstein_of_a_difference_and_of_dr() -> None:
    for made in (
        DR(**BERNSTEIN).add(batch()),  # type: ignore[arg-type]
        Difference(IPS(interval="empirical-bernstein", weight_range=(0.0, 10.0))).add(
            paired(batch())
        ),
    ):
        narrow, wide = made.result(0.5), made.result(0.99)
        assert wide.lower <= narrow.lower <= narrow.value <= narrow.upper <= wide.upper


def test_a_constant_keep_probability_stands_for_nothing() -> None:
    plain, thinned = (
        IPS(**BERNSTEIN).add(rows).result()  # type: ignore[arg-type]
        for rows in (batch(), batch(keep_prob=np.full(4, 0.2)))
    )
    assert thinned.lower == pytest.approx(plain.lower, abs=1e-12)
    assert thinned.upper == pytest.approx(plain.upper, abs=1e-12)


def test_clopper_pearson_is_the_exact_binomial_interval() -> None:
    rows = uniform_log(800, 0.1, 3)
    hits = int((rows.weight * rows.reward > 0.0).sum())
    exact = stats.binomtest(hits, 800).proportion_ci(0.95, method="exact")
    estimate = IPS(**BINOMIAL).add(rows).result()  # type: ignore[arg-type]
    assert estimate.lower == pytest.approx(4.0 * exact.low, rel=1e-9)
    assert estimate.upper == pytest.approx(4.0 * exact.high, rel=1e-9)


def test_clopper_pearson_covers_by_enumeration() -> None:
    """Summed over every possible number of hits, at rates near the ends too."""
    n = 40
    for rate in (0.01, 0.2, 0.9):
        covered = 0.0
        for hits in range(n + 1):
            rows = LoggedBatch(
                reward=np.repeat((1.0, 0.0), (hits, n - hits)),
                propensity=np.full(n, 0.25),
                target_probability=np.ones(n),
            )
            estimate = IPS(**BINOMIAL).add(rows).result()  # type: ignore[arg-type]
            if estimate.lower <= rate <= estimate.upper:
                covered += float(stats.binom.pmf(hits, n, rate / 4.0))
        assert covered >= 0.95


def test_rewards_may_have_any_two_values() -> None:
    rows = uniform_log(300, 0.3, 4)
    moved = LoggedBatch(
        reward=5.0 * rows.reward - 2.0,
        propensity=rows.propensity,
        target_probability=rows.target_probability,
    )
    before = IPS(**BINOMIAL).add(rows).result()  # type: ignore[arg-type]
    after = IPS(reward_range=(-2.0, 3.0), **BINOMIAL).add(moved)  # type: ignore[arg-type]
    interval = after.linear(after.tally_).interval("clopper-pearson", 0.95)  # type: ignore[arg-type]
    assert interval == pytest.approx((5.0 * before.lower - 2.0, 5.0 * before.upper - 2.0))


@pytest.mark.parametrize(
    ("estimator", "rows", "reason"),
    [
        (IPS(interval="empirical-bernstein"), batch(), "weights-unbounded"),
        (IPS(interval="clopper-pearson"), batch(), "weights-unbounded"),
        (IPS(**BERNSTEIN), batch(keep_prob=KEEP), "keep-probabilities-vary"),  # type: ignore[arg-type]
        (IPS(**BINOMIAL), batch(keep_prob=KEEP), "keep-probabilities-vary"),  # type: ignore[arg-type]
        (IPS(**BINOMIAL), batch(), "payoffs-not-binary"),  # type: ignore[arg-type]
    ],
)
def test_a_refusal_has_a_reason(estimator: IPS, rows: LoggedBatch, reason: str) -> None:
    with pytest.raises(NoIntervalError, match="expected") as caught:
        estimator.add(rows).result()
    assert caught.value.reason == reason


def test_the_binomial_interval_is_for_one_policy() -> None:
    binomial = IPS(interval="clopper-pearson", weight_range=(0.0, 10.0))
    with pytest.raises(NoIntervalError) as caught:
        Difference(binomial).add(paired(batch())).result()
    assert caught.value.reason == "reward-model"


def test_rewards_and_weights_outside_their_ranges_are_refused() -> None:
    for interval in ("empirical-bernstein", "clopper-pearson"):
        for ranges, field in (
            ({"reward_range": (0.0, 0.9)}, "reward"),
            ({"weight_range": (0.0, 2.5)}, "target_probability"),
        ):
            with pytest.raises(InvalidInputError, match=field):
                IPS(interval=interval, **ranges).add(batch())


def test_wider_for_more_confidence_and_narrower_for_more_rows() -> None:
    widths = []
    for n in (100, 1_000, 10_000):
        estimate = IPS(interval="empirical-bernstein", weight_range=(0.0, 4.0)).add(
            uniform_log(n, 0.3, 5)
        )
        widths.append(estimate.result().upper - estimate.result().lower)
    assert all(wide > narrow for wide, narrow in itertools.pairwise(widths))
