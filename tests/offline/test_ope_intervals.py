"""The empirical-likelihood interval against its definition and against a peer."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import optimize, stats

from croupier.offline.ope import DR, IPS, SNIPS, Difference, LoggedBatch, PairedBatch
from croupier.offline.ope.intervals import Moments, Unseen, empirical_likelihood_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

LOGGING = np.array([0.6, 0.2, 0.1, 0.07, 0.03])
TARGET = np.array([0.05, 0.1, 0.15, 0.3, 0.4])
WEIGHT_MAX = float((TARGET / LOGGING).max())


def log_of(with_reward: tuple[int, ...], without: tuple[int, ...]) -> LoggedBatch:
    """Rebuild a log from its numbers of rows per action, with reward 1 and with reward 0."""
    action = np.repeat(np.tile(np.arange(5), 2), with_reward + without)
    reward = np.repeat((1.0, 0.0), (sum(with_reward), sum(without)))
    return LoggedBatch(reward=reward, propensity=LOGGING[action], target_probability=TARGET[action])


# From vw-estimators 0.2.2 (bandits.cressieread.Interval, alpha .05, rewards in [0, 1]), on logs
# drawn with numpy's default_rng of the seed given: choice(5, n, p=LOGGING), then random(n) < rate.
# Seeds 3 (rate .3, n 300), 7 and 8 (rate .02, n 2000), 9 (rate .8, n 2000).
PEER = [
    (
        (57, 30, 11, 5, 1),
        (117, 40, 22, 14, 3),
        (0.17491244806716785, 0.45995238992243503),
        (0.12624680014753797, 0.6380328390061625),
    ),
    (
        (25, 11, 4, 3, 0),
        (1178, 381, 208, 139, 51),
        (0.005387358123612719, 0.035886622963412336),
        (0.0052173082566000836, 0.16190669256681012),
    ),
    (
        (20, 7, 7, 0, 1),
        (1213, 395, 197, 107, 53),
        (0.0024791211926888726, 0.042921177812515664),
        (0.0008139871474659235, 0.22024237354992227),
    ),
    (
        (978, 332, 154, 86, 44),
        (224, 94, 44, 32, 12),
        (0.7172188078729431, 0.8180757658258777),
        (0.6248750830897876, 0.8370212914564285),
    ),
]


@pytest.mark.parametrize(("clicks", "rest", "bounded", "unbounded"), PEER)
def test_the_interval_agrees_with_vw_estimators(
    clicks: tuple[int, ...],
    rest: tuple[int, ...],
    bounded: tuple[float, float],
    unbounded: tuple[float, float],
) -> None:
    rows = log_of(clicks, rest)
    for weight_max, expected in ((WEIGHT_MAX, bounded), (math.inf, unbounded)):
        estimate = SNIPS(weight_range=(0.0, weight_max)).add(rows).result()
        assert (estimate.lower, estimate.upper) == pytest.approx(expected, rel=1e-10)


# As above, from logs whose weights sum to more than n (seeds 1 and 4, rates .02 and .002; 2, rate
# .8). There the peer puts its first unseen row at the smallest weight and allows the one at the
# largest only what remains of the chi-square: a profile over the unseen row's place. We take the
# union over its places, whose sole fault is to be wider.
PEER_NARROWER = [
    (
        (29, 8, 3, 3, 1),
        (1173, 384, 197, 145, 57),
        (0.003339467209898068, 0.04466539958529728),
    ),
    ((3, 1, 0, 0, 0), (1181, 397, 209, 153, 56), (0.0, 0.01976599367947102)),
    (
        (953, 315, 143, 116, 49),
        (240, 86, 51, 37, 10),
        (0.7364762582496518, 0.8330720404631368),
    ),
]


@pytest.mark.parametrize(("clicks", "rest", "peer"), PEER_NARROWER)
def test_the_interval_holds_that_of_vw_estimators(
    clicks: tuple[int, ...], rest: tuple[int, ...], peer: tuple[float, float]
) -> None:
    estimate = SNIPS(weight_range=(0.0, WEIGHT_MAX)).add(log_of(clicks, rest)).result()
    assert estimate.lower <= peer[0]
    assert estimate.upper >= peer[1]
    assert estimate.upper - estimate.lower < 1.015 * (peer[1] - peer[0])


def distance(functions: FloatArray) -> float:
    """Smallest ``sum (M p - 1)^2`` with ``sum p = 1`` and ``p @ functions = 0``, by Lagrange."""
    m, k = functions.shape
    constraints = np.vstack((np.ones(m), functions.T))
    system = np.block(
        [[2.0 * m**2 * np.eye(m), constraints.T], [constraints, np.zeros((k + 1,) * 2)]]
    )
    right = np.concatenate((np.full(m, 2.0 * m), [1.0], np.zeros(k)))
    p = np.linalg.solve(system, right)[:m]
    assert p.sum() == pytest.approx(1.0)
    return float(((m * p - 1.0) ** 2).sum())


def test_the_ends_solve_the_likelihood_equation() -> None:
    """The definition, solved row by row with keep weights, against the closed form from sums."""
    rng = np.random.default_rng(5)
    n = 40
    keep, weight = 1.0 / rng.uniform(0.2, 1.0, n), rng.exponential(1.0, n)
    payoff = keep * weight * rng.random(n)
    for unseen_row in ((3.0, 4.0, 1.0), (2.0, 0.0, 0.0)):
        extra_keep, extra_weight, extra_reward = unseen_row
        unseen = Unseen(extra_keep, ((extra_weight,),), (1,), (extra_reward, extra_reward))
        lower, upper = empirical_likelihood_interval(
            Moments.of(np.column_stack((keep, keep * weight, payoff))), unseen, 0.95, (-9.0, 9.0)
        )
        c = np.append(keep, extra_keep)
        g = np.append(keep * (weight - 1.0), extra_keep * (extra_weight - 1.0))
        u = np.append(payoff, extra_keep * extra_weight * extra_reward)

        def profile(v: float, c: FloatArray = c, g: FloatArray = g, u: FloatArray = u) -> float:
            return distance(np.column_stack((g, u - v * c)))

        least = distance(g[:, None])
        quantile = float(stats.f.isf(0.05, 1, n))
        assert profile(lower) - least == pytest.approx(quantile, rel=1e-8)
        assert profile(upper) - least == pytest.approx(quantile, rel=1e-8)
        best = optimize.minimize_scalar(profile, bounds=(lower, upper), method="bounded")
        assert best.fun == pytest.approx(least, rel=1e-6)


def test_infinite_weight_is_the_limit_of_large_ones() -> None:
    rows = log_of((57, 30, 11, 5, 1), (117, 40, 22, 14, 3))
    uniform = LoggedBatch(
        reward=rows.reward,
        propensity=rows.propensity,
        target_probability=np.full(len(rows), 0.2),
    )
    pair = PairedBatch(a=uniform, b=rows)
    huge = SNIPS(weight_range=(0.0, 1e7))
    for limit, near in (
        (SNIPS().add(rows).result(), huge.add(rows).result()),
        (Difference(SNIPS()).add(pair).result(), Difference(huge).add(pair).result()),
    ):
        assert near.lower == pytest.approx(limit.lower, rel=1e-5)
        assert near.upper == pytest.approx(limit.upper, rel=1e-5)


def test_a_wider_weight_range_does_not_narrow_the_interval() -> None:
    """But for a few percent, since only the ends of the range and a few points in it are tried."""
    for clicks, rest, _, _ in PEER:
        rows = log_of(clicks, rest)
        bounds = [
            SNIPS(weight_range=(0.0, top)).add(rows).result()
            for top in (WEIGHT_MAX, 20.0, 50.0, 1000.0, math.inf)
        ]
        widths = [each.upper - each.lower for each in bounds]
        assert all(wide > 0.95 * narrow for narrow, wide in itertools.pairwise(widths))


def test_an_unseen_click_keeps_the_interval_open() -> None:
    """No click in 500 rows of the logging policy: near the exact binomial bound, not [0, 0]."""
    ones = np.ones(500)
    rows = LoggedBatch(reward=0.0 * ones, propensity=0.5 * ones, target_probability=0.5 * ones)
    exact = 1.0 - 0.025 ** (1.0 / 500.0)
    for weight_max in (1.0, 5.0, math.inf):
        for kind in (IPS, SNIPS):
            estimate = kind(weight_range=(0.0, weight_max)).add(rows).result()
            assert estimate.lower == 0.0
            assert 0.75 * exact < estimate.upper < 1.25 * exact
    assert IPS(interval="normal").add(rows).result().upper == 0.0


def test_known_weights_keep_the_unseen_row_known() -> None:
    """The log's own policy compared with itself has no uncertainty; with another one it has."""
    rows = log_of((57, 30, 11, 5, 1), (117, 40, 22, 14, 3))
    logging = LoggedBatch(
        reward=rows.reward, propensity=rows.propensity, target_probability=rows.propensity
    )
    own = IPS(weight_range=(1.0, 1.0))
    nothing = Difference(own).add(PairedBatch(a=logging, b=logging)).result()
    assert nothing.upper - nothing.lower < 1e-9
    something = Difference(own, IPS(weight_range=(0.0, WEIGHT_MAX)))
    estimate = something.add(PairedBatch(a=logging, b=rows)).result()
    assert estimate.upper - estimate.lower > 0.1


def test_a_difference_of_close_policies_has_a_far_narrower_interval() -> None:
    rows = log_of((978, 332, 154, 86, 44), (224, 94, 44, 32, 12))
    close = LoggedBatch(
        reward=rows.reward,
        propensity=rows.propensity,
        target_probability=0.9 * rows.target_probability + 0.1 * 0.2,
    )
    single = SNIPS(weight_range=(0.0, WEIGHT_MAX)).add(rows).result()
    paired = Difference(SNIPS(weight_range=(0.0, WEIGHT_MAX))).add(PairedBatch(a=rows, b=close))
    estimate = paired.result()
    assert estimate.upper - estimate.lower < 0.15 * (single.upper - single.lower)


def test_a_good_model_narrows_the_interval_of_dr() -> None:
    """Plenty of rows, for the unseen row is what decides the width of few."""
    n = 200_000
    rng = np.random.default_rng(6)
    q = np.array([0.9, 0.5, 0.3, 0.2, 0.05])
    action = rng.choice(5, n, p=LOGGING)
    widths = []
    for model in (q, np.full(5, 0.5)):
        rows = LoggedBatch(
            reward=q[action],
            propensity=LOGGING[action],
            target_probability=TARGET[action],
            q_logged=model[action],
            q_target=np.full(n, TARGET @ model),
        )
        estimate = DR(weight_range=(0.0, WEIGHT_MAX)).add(rows).result()
        assert estimate.lower <= TARGET @ q <= estimate.upper
        widths.append(estimate.upper - estimate.lower)
    assert widths[0] < 0.5 * widths[1]


def test_moments_merge_and_transform() -> None:
    rng = np.random.default_rng(8)
    columns = rng.normal([1.0, 100.0, -5.0], 1.0, (50, 3))
    whole = Moments.of(columns)
    merged = (
        Moments.of(columns[:20]).merge(Moments.of(columns[20:20])).merge(Moments.of(columns[20:]))
    )
    np.testing.assert_allclose(merged.mean, columns.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(merged.scatter, 49.0 * np.cov(columns.T), rtol=1e-11)
    matrix = np.array([[1.0, -1.0, 0.0], [0.0, 2.0, 1.0]])
    np.testing.assert_allclose(
        whole.transform(matrix).scatter, Moments.of(columns @ matrix.T).scatter, rtol=1e-11
    )
    empty = Moments.of(columns[:0])
    assert empty.merge(empty).n == 0
