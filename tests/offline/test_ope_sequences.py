"""Confidence sequences: the mixture, the bounds, and coverage at every time at once.

Seeds are fixed; bounds are binomial quantiles that a fresh seed would trip with a probability of
one in a million, were the coverage exactly nominal.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import integrate, stats

from croupier.offline.ope import (
    DR,
    IPS,
    SNIPS,
    ClippedIPS,
    ConfidenceSequence,
    Difference,
    LoggedBatch,
    PairedBatch,
)
from croupier.offline.ope.sequences import log_wealth
from croupier.policy.errors import InvalidInputError, NoIntervalError, NotEnoughDataError
from tests.offline.ope_logs import KEEP, batch, rows_of

if TYPE_CHECKING:
    from croupier.offline.ope import Estimator

FALSE_ALARM = 1e-6
LOGGING = np.array([0.6, 0.2, 0.1, 0.07, 0.03])
TARGET = np.array([0.05, 0.1, 0.15, 0.3, 0.4])
KNOWN: dict[str, Any] = {"weight_range": (0.0, 20.0)}


def adaptive_log(rng: np.random.Generator, rates: np.ndarray, n: int) -> PairedBatch:
    """A logging policy that learns from its own rewards in ten generations, with a floor."""
    wins, plays = np.ones(5), np.full(5, 2.0)
    parts: list[tuple[np.ndarray, ...]] = []
    for _ in range(10):
        greedy = np.eye(5)[np.argmax(wins / plays)]
        logging = 0.3 * greedy + 0.7 * LOGGING
        action = rng.choice(5, n // 10, p=logging)
        reward = (rng.random(n // 10) < rates[action]).astype(np.float64)
        np.add.at(wins, action, reward)
        np.add.at(plays, action, 1.0)
        parts.append((action, reward, logging[action]))
    action, reward, propensity = (np.concatenate(each) for each in zip(*parts, strict=True))
    a, b = (
        LoggedBatch(
            reward=reward,
            propensity=propensity,
            target_probability=policy[action],
            q_logged=np.full(n, 0.5),
            q_target=np.full(n, 0.5),
        )
        for policy in (np.full(5, 0.2), TARGET)
    )
    return PairedBatch(a=a, b=b)


def held_always(sequence: ConfidenceSequence[Any], rows: Any, value: float) -> bool:
    """Whether the intervals of all rows hold the value."""
    for (x, time, variance), mean in zip(sequence.path(rows).sides, (value, -value), strict=True):
        total = np.cumsum(x) - mean * np.cumsum(time)
        wealth = log_wealth(total, np.cumsum(variance), sequence.rho)
        if wealth.max() > math.log(40.0):
            return False
    return True


@pytest.mark.parametrize("rho", [0.5, 1.0, 5.0])
@pytest.mark.parametrize(("total", "variance"), [(3.0, 2.0), (0.0, 4.0), (10.0, 30.0), (-1.0, 5.0)])
def test_the_mixture_is_the_integral_of_its_parts(
    rho: float, total: float, variance: float
) -> None:
    """``exp(l s - psi(l) v)`` over the density that the closed form comes from, by quadrature."""

    def part(share: float) -> float:
        psi = -math.log1p(-share) - share
        return math.exp(share * total - psi * variance)

    def density(share: float) -> float:
        # (1 - l) has a truncated gamma density of shape and rate rho, on (0, 1].
        return float((1.0 - share) ** (rho - 1.0) * math.exp(-rho * (1.0 - share)))

    norm = integrate.quad(density, 0.0, 1.0)[0]
    mixed = integrate.quad(lambda share: part(share) * density(share), 0.0, 1.0)[0] / norm
    assert float(log_wealth(total, variance, rho)) == pytest.approx(math.log(mixed), abs=1e-6)


def test_the_parts_start_at_1_and_do_not_grow_on_average() -> None:
    """For an x of two values with mean m, every prediction in [0, 1] and l below 1, exactly."""
    for largest in (1.5, 4.0, 30.0):
        for mean in (0.02, 0.5, 0.9):
            p = mean / largest
            for prediction in (0.0, 0.3, 1.0):
                for share in (0.05, 0.5, 0.95):
                    psi = -math.log1p(-share) - share
                    expected = sum(
                        chance * math.exp(share * (x - mean) - psi * (x - prediction) ** 2)
                        for x, chance in ((0.0, 1.0 - p), (largest, p))
                    )
                    assert expected <= 1.0 + 1e-12


def test_a_prediction_above_1_breaks_the_inequality() -> None:
    """As vw-estimators makes them after a large weight; so predictions are cut here."""
    share, mean, prediction, largest = 0.9, 1.0, 2.0, 2.0
    psi = -math.log1p(-share) - share
    expected = sum(
        0.5 * math.exp(share * (x - mean) - psi * (x - prediction) ** 2) for x in (0.0, largest)
    )
    assert expected > 1.2
    rows = LoggedBatch(reward=np.ones(3), propensity=np.full(3, 0.1), target_probability=np.ones(3))
    lower_side = ConfidenceSequence(IPS()).path(rows).sides[0]
    # x is 10; with predictions cut at 1, the later squares are (10 - 1)^2.
    assert lower_side[2][1:] == pytest.approx([81.0, 81.0])


ESTIMATORS: dict[str, Estimator] = {
    "bounded": IPS(weight_range=(0.0, 20.0)),
    "unbounded": IPS(),
    "model": DR(weight_range=(0.0, 20.0)),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("rate", [0.05, 0.8])
def test_the_bounds_cover_at_every_time_of_an_adaptive_log(name: str, rate: float) -> None:
    estimator = ESTIMATORS[name]
    rng = np.random.default_rng([61, len(name), int(100 * rate)])
    rates = rate * np.array([0.6, 0.8, 1.0, 1.1, 1.2])
    logs, held, held_difference = 150, 0, 0
    for _ in range(logs):
        rows = adaptive_log(rng, rates, 1000)
        held += held_always(ConfidenceSequence(estimator), rows.b, float(TARGET @ rates))
        held_difference += held_always(
            ConfidenceSequence(Difference(estimator)), rows, float((TARGET - 0.2) @ rates)
        )
    least = stats.binom.ppf(FALSE_ALARM, logs, 0.95)
    assert held >= least
    assert held_difference >= least


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_bounds_cover_at_every_time_in_long_logs(name: str) -> None:
    estimator = ESTIMATORS[name]
    rng = np.random.default_rng([62, len(name)])
    rates = np.array([0.03, 0.1, 0.2, 0.05, 0.15])
    logs, held = 1000, 0
    for _ in range(logs):
        rows = adaptive_log(rng, rates, 10_000)
        held += held_always(ConfidenceSequence(estimator), rows.b, float(TARGET @ rates))
    assert held >= stats.binom.ppf(FALSE_ALARM, logs, 0.95)


def test_results_solve_the_wealth_for_its_threshold() -> None:
    rng = np.random.default_rng(63)
    rows = adaptive_log(rng, np.full(5, 0.4), 2000)
    for estimator in ESTIMATORS.values():
        for sequence, given in (
            (ConfidenceSequence(estimator), rows.b),
            (ConfidenceSequence(Difference(estimator)), rows),
        ):
            estimate = sequence.add(given).result()  # type: ignore[arg-type]
            for side, end in zip(sequence.sides_, (estimate.lower, -estimate.upper), strict=True):
                total = side.total - end * side.time
                wealth = float(log_wealth(total, side.variance, 1.0))
                assert wealth == pytest.approx(math.log(40.0), abs=1e-6)
            assert estimate.interval == "confidence-sequence"


def test_known_weights_and_frequent_rewards_make_it_narrower() -> None:
    rows = adaptive_log(np.random.default_rng(64), np.full(5, 0.8), 5000)
    known, unknown = (
        ConfidenceSequence(each).add(rows.b).result()
        for each in (SNIPS(weight_range=(0.0, 20.0)), SNIPS())
    )
    assert known.upper - known.lower < 0.7 * (unknown.upper - unknown.lower)


def test_batches_are_one_pass_and_merged_parts_are_sums() -> None:
    rows = adaptive_log(np.random.default_rng(65), np.full(5, 0.3), 1000)
    for make in (lambda: IPS(**KNOWN), IPS, lambda: DR(**KNOWN)):
        whole = ConfidenceSequence(make()).add(rows.b)
        steps = ConfidenceSequence(make())
        for part in np.array_split(np.arange(1000), 7):
            steps.add(rows_of(rows.b, part))
        assert steps.result().lower == pytest.approx(whole.result().lower, rel=1e-9)
        assert steps.result().upper == pytest.approx(whole.result().upper, rel=1e-9)
        first, second = (
            ConfidenceSequence(make()).add(rows_of(rows.b, slice(start, None, 2)))
            for start in (0, 1)
        )
        sums = [
            one.total + other.total + one.variance + other.variance
            for one, other in zip(first.sides_, second.sides_, strict=True)
        ]
        merged = second.merge(first)
        assert [each.total + each.variance for each in merged.sides_] == pytest.approx(sums)
        estimate = merged.result()
        assert estimate.value == pytest.approx(whole.result().value, rel=1e-12)
        # Predictions of half the rows are hardly worse than those of all.
        assert estimate.upper - estimate.lower == pytest.approx(
            whole.result().upper - whole.result().lower, rel=0.05
        )


def test_the_unit_of_the_reward_does_not_matter() -> None:
    rows = adaptive_log(np.random.default_rng(66), np.full(5, 0.3), 500).b
    moved = LoggedBatch(
        reward=4.0 * rows.reward - 1.0,
        propensity=rows.propensity,
        target_probability=rows.target_probability,
    )
    before = ConfidenceSequence(SNIPS()).add(rows).result()
    after = ConfidenceSequence(SNIPS(reward_range=(-1.0, 3.0))).add(moved).result()
    assert after.lower == pytest.approx(4.0 * before.lower - 1.0, abs=1e-9)
    assert after.upper == pytest.approx(4.0 * before.upper - 1.0, abs=1e-9)


def test_what_it_refuses() -> None:
    with pytest.raises(InvalidInputError, match="accumulator"):
        ConfidenceSequence(ClippedIPS(2.0))
    with pytest.raises(InvalidInputError, match="rho"):
        ConfidenceSequence(IPS(), rho=0.0)
    with pytest.raises(InvalidInputError, match="weight_range"):
        ConfidenceSequence(DR()).add(batch())
    with pytest.raises(InvalidInputError, match="q_logged"):
        ConfidenceSequence(DR(**KNOWN)).add(batch(q_logged=[2.0, 0.0, 0.0, 0.0]))
    with pytest.raises(InvalidInputError, match="reward"):
        ConfidenceSequence(IPS(reward_range=(0.0, 0.5))).add(batch())
    with pytest.raises(InvalidInputError, match="other"):
        ConfidenceSequence(IPS()).merge(ConfidenceSequence(IPS(), rho=2.0))
    with pytest.raises(NotEnoughDataError):
        ConfidenceSequence(IPS()).result()
    with pytest.raises(NoIntervalError) as caught:
        ConfidenceSequence(IPS()).add(batch(keep_prob=KEEP)).result()
    assert caught.value.reason == "keep-probabilities-vary"
