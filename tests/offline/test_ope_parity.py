"""Equal to the Open Bandit Pipeline 0.4.1 and to vw-estimators 0.2.2 where definitions agree.

The figures and the logs that they belong to are in ``data/obp_parity.json``, which
``benchmarks/ope_peers.py`` wrote in an environment that has both packages.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from croupier.offline.ope import (
    DM,
    DR,
    IPS,
    SNDR,
    SNIPS,
    ConfidenceSequence,
    DRos,
    LoggedBatch,
    SlateBatch,
    SlateEstimator,
    SwitchDR,
)
from croupier.policy.errors import NoIntervalError
from tests.offline.ope_logs import rows_of

if TYPE_CHECKING:
    from croupier.offline.ope import Estimator


class Log(msgspec.Struct):
    logging: list[list[float]]
    target: list[list[float]]
    action: list[int]
    reward: list[float]
    q: list[list[float]]


class Slates(msgspec.Struct):
    reward: list[list[float]]
    propensity: list[list[float]]
    target_probability: list[list[float]]


class Frequent(msgspec.Struct):
    logging: list[float]
    target: list[float]
    rows_by_reward_and_action: list[list[int]]
    snipw: tuple[float, float]


class Figures(msgspec.Struct):
    log: Log
    slates: Slates
    obp: dict[str, float]
    obp_intervals: Frequent
    vw: dict[str, float | tuple[float, float]]


FILE = Path(__file__).parent / "data" / "obp_parity.json"
FIGURES = msgspec.json.decode(FILE.read_bytes(), type=Figures)


def rows() -> LoggedBatch:
    log = FIGURES.log
    index, action = np.arange(len(log.action)), np.array(log.action)
    logging, target, q = (np.array(each) for each in (log.logging, log.target, log.q))
    return LoggedBatch(
        reward=np.array(log.reward),
        propensity=logging[index, action],
        target_probability=target[index, action],
        q_logged=q[index, action],
        q_target=(target * q).sum(axis=1),
    )


def slates() -> SlateBatch:
    return SlateBatch(**{f: np.array(getattr(FIGURES.slates, f)) for f in Slates.__struct_fields__})


ESTIMATORS: dict[str, Estimator] = {
    "ips": IPS(),
    "snips": SNIPS(),
    "dm": DM(),
    "dr": DR(),
    "sndr": SNDR(),
    **{f"switch-dr({tau:g})": SwitchDR(tau) for tau in (0.5, 2.0, 10.0)},
    **{f"dros({shrinkage:g})": DRos(shrinkage) for shrinkage in (0.5, 2.0, 10.0)},
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_of_obp(name: str) -> None:
    estimate = ESTIMATORS[name].add(rows()).result()
    assert estimate.value == pytest.approx(FIGURES.obp[name], abs=1e-9)
    assert estimate.estimator == name


@pytest.mark.parametrize("kind", ["sips", "iips", "rips"])
def test_slates_of_obp(kind: str) -> None:
    estimate = SlateEstimator(kind, 3).add(slates()).result()  # type: ignore[arg-type]
    assert estimate.value == pytest.approx(FIGURES.obp[kind], abs=1e-9)


def test_every_figure_of_obp_is_compared() -> None:
    assert set(FIGURES.obp) == {*ESTIMATORS, "sips", "iips", "rips"}


def test_the_interval_of_obp_for_a_ratio_is_twice_as_wide_as_the_ratio_varies() -> None:
    """Its bootstrap keeps the denominator: st-tech/zr-obp#187."""
    frequent = FIGURES.obp_intervals
    zero, one = frequent.rows_by_reward_and_action
    action = np.repeat(np.tile(np.arange(5), 2), zero + one)
    logging, target = np.array(frequent.logging), np.array(frequent.target)
    batch = LoggedBatch(
        reward=np.repeat((0.0, 1.0), (sum(zero), sum(one))),
        propensity=logging[action],
        target_probability=target[action],
    )
    estimate = SNIPS(interval="delta").add(batch).result()
    lower, upper = frequent.snipw
    assert upper - lower > 1.8 * (estimate.upper - estimate.lower)
    # It is the interval of IPS, divided by the mean weight.
    plain = IPS(interval="normal").add(batch).result()
    assert upper - lower == pytest.approx((plain.upper - plain.lower) / plain.mean_weight, rel=0.05)
    # In simulated logs the delta interval covers, see benchmarks/coverage.py.
    weight = batch.weight
    influence = weight * (batch.reward - estimate.value) / weight.mean()
    half = 1.959964 * influence.std(ddof=1) / math.sqrt(len(batch))
    assert estimate.upper - estimate.value == pytest.approx(half, rel=1e-6)


@pytest.mark.parametrize(("name", "estimator"), [("ips", IPS()), ("snips", SNIPS())])
def test_estimates_of_vw_estimators(name: str, estimator: Estimator) -> None:
    assert estimator.add(rows()).result().value == pytest.approx(FIGURES.vw[name], abs=1e-9)


def test_the_normal_interval_of_vw_estimators() -> None:
    estimate = IPS(interval="normal").add(rows()).result()
    assert (estimate.lower, estimate.upper) == pytest.approx(FIGURES.vw["normal"], abs=1e-9)


def test_the_empirical_likelihood_interval_holds_that_of_vw_estimators() -> None:
    """Equal where weights sum to less than n (test_ope_intervals.py); here they sum to more."""
    top, peer = FIGURES.vw["largest_weight"], FIGURES.vw["empirical-likelihood"]
    assert isinstance(top, float)
    assert isinstance(peer, tuple)
    assert rows().weight.mean() > 1.0
    estimate = IPS(weight_range=(0.0, top)).add(rows()).result()
    assert estimate.lower <= peer[0]
    assert estimate.upper >= peer[1]
    assert estimate.upper - estimate.lower < 1.15 * (peer[1] - peer[0])


def test_the_confidence_sequence_of_vw_estimators() -> None:
    """Equal as long as no prediction is cut, as in the order of rising weights."""
    batch = rows()
    batch = rows_of(batch, np.argsort(batch.weight, kind="stable"))
    for payoff in (batch.weight * batch.reward, batch.weight * (1.0 - batch.reward)):
        before = np.concatenate(([0.0], np.cumsum(payoff)[:-1])) + 0.5
        assert (before / np.arange(1, len(batch) + 1)).max() <= 1.0
    estimate = ConfidenceSequence(IPS()).add(batch).result()
    assert (estimate.lower, estimate.upper) == pytest.approx(
        FIGURES.vw["confidence-sequence"], abs=1e-9
    )


def test_the_binomial_interval_of_vw_estimators_has_no_binomial() -> None:
    """It gives one for any weights; ours says that payoffs are not of two kinds."""
    top = FIGURES.vw["largest_weight"]
    assert isinstance(FIGURES.vw["clopper-pearson"], tuple)
    with pytest.raises(NoIntervalError) as caught:
        IPS(interval="clopper-pearson", weight_range=(0.0, top)).add(rows()).result()  # type: ignore[arg-type]
    assert caught.value.reason == "payoffs-not-binary"


def test_the_pseudo_inverse_of_vw_estimators() -> None:
    estimate = SlateEstimator("pi", 3).add(slates()).result()
    assert estimate.value == pytest.approx(FIGURES.vw["pi"], abs=1e-9)
    assert (estimate.lower, estimate.upper) == pytest.approx(FIGURES.vw["pi-normal"], abs=1e-9)
