"""Logs of several generations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from croupier.offline.ope import DR, IPS, SNIPS, LoggedBatch, Weighted, balance
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from tests.offline.ope_logs import batch

LOGGERS = np.array([[0.96, 0.04], [0.3, 0.7]])
TARGET = np.array([0.2, 0.8])
RATES = np.array([0.3, 0.6])
VALUE = float(TARGET @ RATES)


def rows_of_a_log(actions: tuple[int, ...], rewards: tuple[float, ...]) -> LoggedBatch:
    """Row i was drawn by generation i % 2."""
    action, generation = np.array(actions), np.arange(len(actions)) % 2
    return LoggedBatch(
        reward=np.array(rewards),
        propensity=LOGGERS[generation, action],
        target_probability=TARGET[action],
    )


def balanced(rows: LoggedBatch, actions: tuple[int, ...]) -> LoggedBatch:
    return balance(rows, LOGGERS[:, list(actions)].T, (0.5, 0.5))


def test_balanced_ips_is_unbiased_and_varies_less_than_naive() -> None:
    """By enumeration of every log of two rows of each of two generations."""
    moments = np.zeros((2, 3))
    for actions in itertools.product((0, 1), repeat=4):
        for rewards in itertools.product((0.0, 1.0), repeat=4):
            p = math.prod(
                LOGGERS[i % 2, a] * (RATES[a] if r else 1.0 - RATES[a])
                for i, (a, r) in enumerate(zip(actions, rewards, strict=True))
            )
            rows = rows_of_a_log(actions, rewards)
            for kind, each in enumerate((rows, balanced(rows, actions))):
                value = IPS(interval="normal").add(each).result().value
                moments[kind] += p * np.array([1.0, value, value**2])
    assert moments[:, 0] == pytest.approx(1.0)
    assert moments[:, 1] == pytest.approx(VALUE, abs=1e-12)
    naive, mixture = moments[:, 2] - moments[:, 1] ** 2
    assert mixture < 0.35 * naive


def long_log(seed: int, n: int = 1000) -> tuple[LoggedBatch, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    generation = np.arange(n) % 2
    action = (rng.random(n) < LOGGERS[generation, 1]).astype(int)
    reward = (rng.random(n) < RATES[action]).astype(np.float64)
    rows = LoggedBatch(
        reward=reward, propensity=LOGGERS[generation, action], target_probability=TARGET[action]
    )
    return rows, action, generation


def parts_of(rows: LoggedBatch, generation: np.ndarray) -> list[LoggedBatch]:
    return [
        LoggedBatch(
            reward=rows.reward[generation == g],
            propensity=rows.propensity[generation == g],
            target_probability=rows.target_probability[generation == g],
        )
        for g in (0, 1)
    ]


@pytest.mark.parametrize("by", ["weights", "payoffs"])
def test_weighted_covers_and_is_narrower_than_naive(by: str) -> None:
    covered, naive_width, width = 0, 0.0, 0.0
    for seed in range(200):
        rows, _, generation = long_log(seed)
        weighted = Weighted(lambda: SNIPS(interval="delta"), by=by)  # type: ignore[arg-type]
        for g, part in enumerate(parts_of(rows, generation)):
            weighted.add(part, g)
        estimate = weighted.result()
        naive = SNIPS(interval="delta").add(rows).result()
        covered += estimate.lower <= VALUE <= estimate.upper
        width += estimate.upper - estimate.lower
        naive_width += naive.upper - naive.lower
    # A binomial quantile: at a coverage of 93%, one seed in a million has fewer.
    assert covered >= 166
    assert width < 0.75 * naive_width


def plain() -> IPS:
    return IPS(interval="normal")


def test_weighted_is_the_mean_of_what_it_combines() -> None:
    rows, _, generation = long_log(3)
    first, second = parts_of(rows, generation)
    singles = [plain().add(part).result() for part in (first, second)]
    # n / mean(w^2): rows of weight 1 that vary as much.
    precision = [each.ess / each.mean_weight**2 for each in singles]
    estimate = Weighted(plain).add(first, 0).add(second, 1).result()
    expected = np.average([each.value for each in singles], weights=precision)
    assert estimate.value == pytest.approx(expected, rel=1e-9)
    variance = sum(
        (p * (each.upper - each.lower) / 2.0) ** 2
        for p, each in zip(precision, singles, strict=True)
    )
    half = math.sqrt(variance) / sum(precision)
    assert estimate.upper - estimate.value == pytest.approx(half, rel=1e-9)
    assert estimate.n == len(rows)
    merged = Weighted(plain).add(second, 1).merge(Weighted(plain).add(first, 0)).result()
    assert merged.value == pytest.approx(estimate.value, rel=1e-12)
    assert merged.upper == pytest.approx(estimate.upper, rel=1e-12)


def test_what_they_refuse() -> None:
    rows = batch()
    with pytest.raises(InvalidInputError, match="shares"):
        balance(rows, np.full((4, 2), 0.5), (0.5, 0.6))
    with pytest.raises(InvalidInputError, match="propensities: expected shape"):
        balance(rows, np.full((4, 3), 0.5), (0.5, 0.5))
    with pytest.raises(InvalidInputError, match="row 1"):
        balance(rows, np.full((4, 2), 0.5), (0.5, 0.5))
    with pytest.raises(InvalidInputError, match="make"):
        Weighted(IPS)
    with pytest.raises(InvalidInputError, match="by"):
        Weighted(plain, by="luck")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="other"):
        Weighted(plain).merge(Weighted(plain, by="payoffs"))
    with pytest.raises(InvalidInputError, match="q_logged"):
        Weighted(lambda: DR(interval="normal")).add(
            LoggedBatch(reward=[1.0], propensity=[1.0], target_probability=[1.0]),  # type: ignore[arg-type]
            0,
        )
    with pytest.raises(NotEnoughDataError):
        Weighted(plain).result()
