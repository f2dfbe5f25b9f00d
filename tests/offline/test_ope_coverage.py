"""Coverage: how often an interval holds the true value, in problems whose value is known.

The seeds are fixed, so a test always gives the same verdict on the same code. Each bound is a
binomial quantile: were the coverage exactly what the test demands, a fresh seed would trip it with
a probability of one in a million.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from croupier.offline.ope import (
    DR,
    IPS,
    SNIPS,
    Difference,
    Estimate,
    Estimator,
    LoggedBatch,
    PairedBatch,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FloatArray: TypeAlias = NDArray[np.float64]

FALSE_ALARM = 1e-6

LOGGING = np.array([0.6, 0.2, 0.1, 0.07, 0.03])
TARGET = np.array([0.05, 0.1, 0.15, 0.3, 0.4])
WEIGHTS = (0.0, float((TARGET / LOGGING).max()))


@dataclass(frozen=True, eq=False)
class Problem:
    """A bandit without context: logging policy, evaluated policies a and b, rates of reward 1."""

    logging: FloatArray
    a: FloatArray
    b: FloatArray
    rates: FloatArray
    n: int

    @property
    def value(self) -> float:
        return float(self.b @ self.rates)

    @property
    def difference(self) -> float:
        return float((self.b - self.a) @ self.rates)

    def log(
        self, rng: np.random.Generator, keep: Callable[..., FloatArray] | None = None
    ) -> PairedBatch:
        """n decisions, each kept with probability ``keep(action, reward)``."""
        action = rng.choice(len(self.logging), self.n, p=self.logging)
        reward = (rng.random(self.n) < self.rates[action]).astype(np.float64)
        columns: dict[str, Any] = {}
        if keep is not None:
            keep_prob = keep(action, reward)
            kept = rng.random(self.n) < keep_prob
            action, reward = action[kept], reward[kept]
            columns["keep_prob"] = keep_prob[kept]
        columns |= {
            "reward": reward,
            "propensity": self.logging[action],
            "q_logged": self.rates[action],
        }
        a, b = (
            LoggedBatch(
                target_probability=policy[action],
                q_target=np.full(len(action), float(policy @ self.rates)),
                **columns,
            )
            for policy in (self.a, self.b)
        )
        return PairedBatch(a=a, b=b)


def peers(rate: float, n: int = 2000) -> Problem:
    """Five actions, all with the same rate of reward: the setting of our survey of peers."""
    return Problem(LOGGING, np.full(5, 0.2), TARGET, np.full(5, rate), n)


class Study:
    """What comes of many logs: how often the interval holds the value, and its mean width."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.covered = 0
        self.repetitions = 0
        self.total_width = 0.0

    def count(self, estimate: Estimate) -> None:
        self.repetitions += 1
        self.covered += estimate.lower - 1e-12 <= self.value <= estimate.upper + 1e-12
        self.total_width += estimate.upper - estimate.lower

    @property
    def coverage(self) -> float:
        return self.covered / self.repetitions

    @property
    def width(self) -> float:
        return self.total_width / self.repetitions

    def require(self, coverage: float, false_alarm: float = FALSE_ALARM) -> None:
        least = stats.binom.ppf(false_alarm, self.repetitions, coverage)
        assert self.covered >= least, (self.coverage, coverage)


ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "ips": lambda: IPS(weight_range=WEIGHTS),
    "ips unbounded": IPS,
    "ips normal": lambda: IPS(interval="normal"),
    "snips": lambda: SNIPS(weight_range=WEIGHTS),
    "snips delta": lambda: SNIPS(interval="delta"),
    "dr": lambda: DR(weight_range=WEIGHTS),
    "dr normal": lambda: DR(interval="normal"),
}


def run(
    problem: Problem,
    names: tuple[str, ...],
    repetitions: int,
    seed: int,
    keep: Callable[..., FloatArray] | None = None,
) -> dict[str, Study]:
    """Study the named estimators of policy b's value on the same logs."""
    rng = np.random.default_rng(seed)
    studies = {name: Study(problem.value) for name in names}
    for _ in range(repetitions):
        log = problem.log(rng, keep)
        for name in names:
            studies[name].count(ESTIMATORS[name]().add(log.b).result())
    return studies


def run_differences(
    problem: Problem, names: tuple[str, ...], repetitions: int, seed: int
) -> dict[str, Study]:
    """The same for the difference of policy b's value from policy a's."""
    rng = np.random.default_rng(seed)
    studies = {name: Study(problem.difference) for name in names}
    for _ in range(repetitions):
        log = problem.log(rng)
        for name in names:
            studies[name].count(Difference(ESTIMATORS[name]()).add(log).result())
    return studies


# --- short forms, in every run --------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.02, 0.8])
def test_the_default_intervals_cover(rate: float) -> None:
    for one in run(peers(rate), ("ips", "ips unbounded", "snips", "dr"), 250, 31).values():
        one.require(0.95)


def test_large_sample_intervals_cover_frequent_rewards_only() -> None:
    names = ("ips normal", "snips delta", "dr normal")
    frequent, rare = (run(peers(rate), names, 300, 32) for rate in (0.8, 0.02))
    for name in names:
        frequent[name].require(0.93)
        assert rare[name].coverage < 0.9
    # With the denominator frozen, as in st-tech/zr-obp#187, it would be .188.
    assert frequent["snips delta"].width == pytest.approx(0.0905, rel=0.05)


@pytest.mark.parametrize("rate", [0.02, 0.8])
def test_the_default_intervals_of_a_difference_cover(rate: float) -> None:
    for one in run_differences(peers(rate), ("ips", "snips", "dr"), 150, 33).values():
        one.require(0.95)


def test_the_logging_policy_itself_is_covered() -> None:
    """Weights that don't vary give the unseen row at the largest weight no hold (peers: 63%)."""
    problem = Problem(LOGGING, LOGGING, LOGGING, np.full(5, 0.002), 500)
    rng = np.random.default_rng(34)
    one = Study(problem.value)
    for _ in range(400):
        one.count(SNIPS(weight_range=(0.0, 5.0)).add(problem.log(rng).b).result())
    one.require(0.95)
    assert one.width < 0.012


def keep_a_third(action: FloatArray, reward: FloatArray) -> FloatArray:  # noqa: ARG001
    return np.full(len(action), 1.0 / 3.0)


def keep_clicks(action: FloatArray, reward: FloatArray) -> FloatArray:  # noqa: ARG001
    return np.where(reward > 0.0, 1.0, 0.1)


def keep_by_action(action: FloatArray, reward: FloatArray) -> FloatArray:  # noqa: ARG001
    return np.where(action == 0, 0.1, 0.9)


@pytest.mark.parametrize("keep", [keep_a_third, keep_clicks, keep_by_action])
@pytest.mark.parametrize("rate", [0.05, 0.6])
def test_subsampled_logs_are_covered(keep: Callable[..., FloatArray], rate: float) -> None:
    for one in run(peers(rate, 5000), ("snips", "dr"), 100, 35, keep).values():
        one.require(0.95)


# --- full forms -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "n", "expected"),
    [
        (
            0.02,
            2000,
            {
                "ips": (0.95, 0.0415),
                "ips unbounded": (0.95, 0.1215),
                "snips": (0.95, 0.0415),
                "dr": (0.95, 0.0415),
            },
        ),
        (
            0.8,
            2000,
            {
                "ips": (0.95, 0.1040),
                "snips": (0.95, 0.0990),
                "dr": (0.95, 0.0990),
                "ips normal": (0.94, 0.1935),
                "snips delta": (0.93, 0.0910),
                "dr normal": (0.93, 0.0915),
            },
        ),
        (0.02, 10_000, {"ips": (0.95, 0.0161), "snips": (0.95, 0.0161), "dr": (0.95, 0.0161)}),
    ],
)
def test_coverage_and_width_in_the_peers_setting(
    rate: float, n: int, expected: dict[str, tuple[float, float]]
) -> None:
    studies = run(peers(rate, n), tuple(expected), 2000, 41)
    for name, (coverage, width) in expected.items():
        studies[name].require(coverage)
        assert studies[name].width == pytest.approx(width, rel=0.03), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.02, {"ips": 0.0348, "snips": 0.0348, "dr": 0.0348}),
        (0.8, {"ips": 0.0571, "snips": 0.0547, "dr": 0.0547}),
    ],
)
def test_coverage_and_width_of_a_difference(rate: float, expected: dict[str, float]) -> None:
    studies = run_differences(peers(rate), tuple(expected), 2000, 42)
    for name, width in expected.items():
        studies[name].require(0.95)
        assert studies[name].width == pytest.approx(width, rel=0.03), name


def random_problem(rng: np.random.Generator) -> Problem:
    """Two to eleven actions; policies close, far, deterministic or equal to the logging policy."""
    k = int(rng.integers(2, 12))
    logging = 0.98 * rng.dirichlet(np.full(k, 0.5)) + 0.02 / k
    if rng.random() < 0.3:
        logging = np.full(k, 0.1 / k)
        logging[0] += 0.9
    a, b = rng.dirichlet(np.full(k, 0.5), 2)
    shape = rng.random()
    if shape < 0.4:
        mixing = rng.choice([0.05, 0.2])
        b = (1.0 - mixing) * a + mixing * b
    elif shape < 0.6:
        a = logging
    elif shape < 0.75:
        a, b = np.eye(k)[rng.integers(k, size=2)]
    base = rng.choice([0.002, 0.01, 0.03, 0.1, 0.5, 0.9])
    rates = np.minimum(base * np.exp(0.5 * rng.standard_normal(k)), 0.99)
    return Problem(logging, a, b, rates, int(rng.choice([300, 1000, 3000])))


@pytest.mark.slow
def test_random_problems_are_covered() -> None:
    """150 problems of 200 logs: none is missed, and on average the coverage is above nominal."""
    problems, repetitions = 150, 200
    coverages = []
    for seed in range(problems):
        rng = np.random.default_rng([51, seed])
        problem = random_problem(rng)
        a, b = (
            SNIPS(weight_range=(0.0, max(1.0, float((policy / problem.logging).max()))))
            for policy in (problem.a, problem.b)
        )
        single, difference = Study(problem.value), Study(problem.difference)
        for _ in range(repetitions):
            log = problem.log(rng)
            # Without a row that a policy would have made, SNIPS has no value and says so.
            if log.b.target_probability.any() and log.a.target_probability.any():
                single.count(SNIPS(weight_range=b.weight_range).add(log.b).result())
                difference.count(Difference(a, b).add(log).result())
        for one in (single, difference):
            one.require(0.95, FALSE_ALARM / problems)
            coverages.append(one.coverage)
    assert np.quantile(coverages, 0.05) > 0.935
    assert np.mean(coverages) > 0.97
