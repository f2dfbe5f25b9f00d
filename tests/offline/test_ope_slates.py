"""Slates: exact on every slate of a small problem, under the assumption of each estimator."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from scipy import stats

from croupier.offline.ope.slates import SlateBatch, SlateEstimator, SlateKind
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Callable

# Two items in each of three slots, filled independently.
LOGGING = np.array([[0.7, 0.3], [0.4, 0.6], [0.5, 0.5]])
TARGET = np.array([[0.2, 0.8], [0.9, 0.1], [0.3, 0.7]])
FACTORS = np.array([1.0, 0.6, 0.3])
ITEM = np.array([[0.2, 0.7], [0.5, 0.1], [0.4, 0.9]])


def independent(slate: tuple[int, ...]) -> list[float]:
    """A position's reward depends on what stands there."""
    return [float(ITEM[position, item]) for position, item in enumerate(slate)]


def cascade(slate: tuple[int, ...]) -> list[float]:
    """Also on what stands before it."""
    return [
        float(ITEM[position, item]) * math.prod(0.5 + 0.5 * above for above in slate[:position])
        for position, item in enumerate(slate)
    ]


def anything(slate: tuple[int, ...]) -> list[float]:
    """On the whole slate."""
    whole = 1.0 + sum(slate) * slate[2]
    return [float(ITEM[position, item]) * whole for position, item in enumerate(slate)]


def everything(
    rewards: Callable[[tuple[int, ...]], list[float]], kind: SlateKind
) -> tuple[float, float]:
    """Expectation of an estimator over every slate, and the true value."""
    mean = value = 0.0
    for slate in itertools.product((0, 1), repeat=3):
        p, target = (
            np.array([policy[position, item] for position, item in enumerate(slate)])
            for policy in (LOGGING, TARGET)
        )
        reward = np.array(rewards(slate))
        estimator = SlateEstimator(kind, 3, factors=FACTORS)
        twice = SlateBatch(
            reward=np.tile(reward, (2, 1)),
            propensity=np.tile(p, (2, 1)),
            target_probability=np.tile(target, (2, 1)),
        )
        mean += float(p.prod()) * estimator.add(twice).result().value
        value += float(target.prod() * (FACTORS @ reward))
    return mean, value


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("sips", (independent, cascade, anything), ()),
        ("rips", (independent, cascade), (anything,)),
        ("iips", (independent,), (cascade, anything)),
        ("pi", (independent,), (cascade, anything)),
    ],
)
def test_each_is_unbiased_under_its_own_assumption(
    kind: SlateKind,
    right: tuple[Callable[[tuple[int, ...]], list[float]], ...],
    wrong: tuple[Callable[[tuple[int, ...]], list[float]], ...],
) -> None:
    for rewards in right:
        mean, value = everything(rewards, kind)
        assert mean == pytest.approx(value, abs=1e-12)
    for rewards in wrong:
        mean, value = everything(rewards, kind)
        assert abs(mean - value) > 1e-3


def log(n: int, seed: int, *, keep: bool = False) -> SlateBatch:
    rng = np.random.default_rng(seed)
    slates = (rng.random((n, 3)) < LOGGING[:, 1]).astype(int)
    positions = np.arange(3)
    return SlateBatch(
        reward=(rng.random((n, 3)) < ITEM[positions, slates]).astype(np.float64),
        propensity=LOGGING[positions, slates],
        target_probability=TARGET[positions, slates],
        keep_prob=rng.uniform(0.3, 1.0, n) if keep else None,
    )


def part(batch: SlateBatch, index: np.ndarray) -> SlateBatch:
    return SlateBatch(
        reward=batch.reward[index],
        propensity=batch.propensity[index],
        target_probability=batch.target_probability[index],
        keep_prob=None if batch.keep_prob is None else batch.keep_prob[index],
    )


@pytest.mark.parametrize("kind", get_args(SlateKind))
@pytest.mark.parametrize("normalised", [False, True])
def test_merging_is_adding_in_any_order(kind: SlateKind, normalised: bool) -> None:
    whole = log(300, 1, keep=True)
    one = SlateEstimator(kind, 3, normalised=normalised).add(whole).result()
    pieces = [
        SlateEstimator(kind, 3, normalised=normalised).add(part(whole, index))
        for index in np.array_split(np.random.default_rng(2).permutation(300), 3)
    ]
    merged = pieces[1].merge(pieces[2]).merge(pieces[0]).result()
    for name in ("value", "lower", "upper"):
        assert getattr(merged, name) == pytest.approx(getattr(one, name), rel=1e-9)


@pytest.mark.parametrize("kind", get_args(SlateKind))
@pytest.mark.parametrize("normalised", [False, True])
def test_the_intervals_cover(kind: SlateKind, normalised: bool) -> None:
    """A million to one that a fresh seed would say less, were the coverage 93%."""
    value = float((TARGET * ITEM).sum())
    covered = 0
    for seed in range(200):
        estimate = SlateEstimator(kind, 3, normalised=normalised).add(log(800, seed)).result()
        covered += estimate.lower <= value <= estimate.upper
    assert covered >= stats.binom.ppf(1e-6, 200, 0.93)


def test_the_self_normalised_form_moves_with_the_rewards() -> None:
    batch = log(200, 3)
    moved = SlateBatch(
        reward=batch.reward + 1.0,
        propensity=batch.propensity,
        target_probability=batch.target_probability,
    )
    for kind in get_args(SlateKind):
        before, after = (
            SlateEstimator(kind, 3, factors=FACTORS, normalised=True).add(each).result()
            for each in (batch, moved)
        )
        assert after.value == pytest.approx(before.value + FACTORS.sum(), rel=1e-9)
        assert after.upper - after.lower == pytest.approx(before.upper - before.lower, rel=1e-6)


def test_what_it_refuses() -> None:
    good = {"reward": [[1.0, 0.0]], "propensity": [[0.5, 0.5]], "target_probability": [[0.5, 1.0]]}
    for name, wrong in (
        ("reward", [1.0, 0.0]),
        ("reward", [[math.nan, 0.0]]),
        ("propensity", [[0.0, 0.5]]),
        ("propensity", [[0.5]]),
        ("target_probability", [[0.5, 1.5]]),
        ("keep_prob", [0.0]),
    ):
        with pytest.raises(InvalidInputError, match=name):
            SlateBatch(**(good | {name: wrong}))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="kind"):
        SlateEstimator("best", 2)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="positions"):
        SlateEstimator("pi", 0)
    with pytest.raises(InvalidInputError, match="factors"):
        SlateEstimator("pi", 2, factors=[1.0])
    with pytest.raises(InvalidInputError, match="positions"):
        SlateEstimator("pi", 3).add(SlateBatch(**good))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="other"):
        SlateEstimator("pi", 3).merge(SlateEstimator("iips", 3))
    with pytest.raises(NotEnoughDataError):
        SlateEstimator("pi", 2).add(SlateBatch(**good)).result()  # type: ignore[arg-type]
