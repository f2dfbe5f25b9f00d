"""The late-arrival curve, and what it does to learning and judging."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import polars as pl
import pytest
from scipy import stats

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.delays import delay_curve, estimate_delays, settled_interactions
from croupier.offline.guardrails import guardrail_reward
from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.offline.sink import sink
from croupier.policy.guardrails import Guardrail
from croupier.policy.loop import LoopConfig
from tests.offline.logs import EPOCH_US, append, decision, outcome

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.policy.events import Event

DAY_S = 86_400.0
OLDEST_S = 10 * DAY_S
MEAN_S = 2 * DAY_S
GUARDED = LoopConfig(guardrails={"worth": Guardrail()})


def come_share(delay_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponential delays, of those that come within ten days."""
    return np.asarray(np.expm1(-delay_s / MEAN_S) / np.expm1(-OLDEST_S / MEAN_S))


def seen(rng: np.random.Generator, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Delays of the outcomes that have come, and ages; decisions are made all the time."""
    ages, delays = rng.uniform(0, OLDEST_S, count), rng.exponential(MEAN_S, count)
    come = delays <= ages
    return delays[come], ages[come]


def test_the_curve_is_that_of_the_delays_not_of_those_that_were_fast() -> None:
    """At each of four delays: the estimate within 5 standard errors. False alarm: 3e-6."""
    delays, ages = seen(np.random.default_rng(1), 100_000)
    curve = estimate_delays(delays, ages)
    at = np.array([0.25, 1, 2, 5]) * DAY_S
    places = np.searchsorted(curve.delays_s, at, side="right") - 1
    error = (np.array(curve.upper) - np.array(curve.lower))[places] / (2 * stats.norm.isf(0.025))
    assert (np.abs(curve.share_by(at) - come_share(at)) < 5 * error).all()
    naive = np.searchsorted(np.sort(delays), at) / len(delays)
    assert (naive - come_share(at) > 20 * error).all()
    assert curve.share_by([-1.0, OLDEST_S]).tolist() == [0.0, 1.0]
    assert curve.delay_of(0.5) == pytest.approx(np.log(2) * MEAN_S, rel=0.05)
    assert len(curve.thinned(20).share) == 20


def test_the_interval_covers() -> None:
    """95 % of 400 intervals, each at another delay. False alarm: 1e-4."""
    hits = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        curve = estimate_delays(*seen(rng, 2_000))
        at = rng.uniform(0.5, 5) * DAY_S
        place = int(np.searchsorted(curve.delays_s, at, side="right")) - 1
        share = float(come_share(np.array(at)))
        hits += curve.lower[place] <= share <= curve.upper[place]
    assert stats.binomtest(hits, 400, 0.95).pvalue > 1e-4


def test_nothing_and_little_are_no_trouble() -> None:
    assert estimate_delays([], []).share_by([1.0]).tolist() == [1.0]
    assert estimate_delays([], []).delay_of(0.95) == 0.0
    one = estimate_delays([3.0], [2.0])
    assert (one.share_by([2.9, 3.0]).tolist(), one.delay_of(0.9)) == ([0.0, 1.0], 3.0)
    # One that came at once, when nothing else could have been seen yet.
    two = estimate_delays([0.0, 5.0], [1.0, 9.0])
    assert (two.share, two.lower) == ([0.0, 1.0], [0.0, 1.0])


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Ten days of decisions of which 60 % are worth 1, half a day or so later."""
    folder: Path = tmp_path_factory.mktemp("delays")
    rng = np.random.default_rng(3)
    lake = Lake(folder / "lake")
    now = EPOCH_US + int(OLDEST_S * 1e6)
    events: list[Event] = []
    for number, age in enumerate(rng.uniform(0.1 * DAY_S, OLDEST_S, 6_000)):
        ts = now - int(age * 1e6)
        events.append(decision(f"d{number}", ts))
        at = ts + int(rng.exponential(MEAN_S) * 1e6)
        if rng.random() < 0.6 and at < now:
            told = {"worth": 1.0} if number % 2 else {}
            events.append(outcome(f"d{number}", f"o{number}", at, guardrails=told))
    with SqliteEventLog(folder / "log", synchronous="normal") as log:
        append(log, events)
        sink(log, lake)
    join(lake, "shop", GUARDED, now)
    return lake


def final_mean() -> float:
    """Of what comes within ten days, on which the curve is normed."""
    return 0.6 * float(-np.expm1(-OLDEST_S / MEAN_S))


@pytest.mark.parametrize("censoring", ["hold_back", "weight"])
def test_the_mean_is_that_of_the_final_rewards(
    joined: Lake, censoring: Literal["hold_back", "weight"]
) -> None:
    """Within 5 standard errors, which `none` misses by far. False alarm: 1e-6 each.

    Holding back leaves out at most 5 % of the rewards of the youngest that it keeps.
    """
    uncorrected = settled_interactions(joined, "shop", LoopConfig()).collect()["reward"]
    assert uncorrected.to_numpy().mean() < final_mean() - 0.1
    config = LoopConfig(censoring=censoring)
    rewards = settled_interactions(joined, "shop", config).collect()["reward"].to_numpy()
    # The curve itself is an estimate, whose error doubles the variance at most.
    error = np.sqrt(2) * rewards.std() / np.sqrt(len(rewards))
    bias = 0.05 * final_mean() if censoring == "hold_back" else 0.0
    assert final_mean() - bias - 5 * error < rewards.mean() < final_mean() + 5 * error


def test_correcting_changes_nothing_but_rewards(joined: Lake) -> None:
    """Defaults stay, and so does everything of a version that was read before."""
    plain = settled_interactions(joined, "shop", LoopConfig()).sort("offset").collect()
    config = LoopConfig(censoring="weight")
    version = joined.version("interactions")
    weighted = (
        settled_interactions(joined, "shop", config, version=version).sort("offset").collect()
    )
    both = plain.join(weighted, on="decision_id", suffix="_w", maintain_order="left")
    assert (both["reward_w"] >= both["reward"]).all()
    assert both.filter(pl.col("outcomes") == 0)["reward_w"].unique().to_list() == [0.0]
    assert weighted["reward"].to_numpy().max() <= 5.0
    assert plain.columns == weighted.columns
    # Guardrails are corrected where that is asked for, in the same way.
    before = plain.filter(pl.col("offset").is_in(weighted["offset"].implode()))["guardrails"]
    assert weighted["guardrails"].equals(before)
    guarded = msgspec.structs.replace(GUARDED, censoring="weight")
    worth = (
        settled_interactions(joined, "shop", guarded, version=version)
        .sort("offset")
        .select(pl.exclude("guardrails"), worth=guardrail_reward("worth"))
        .collect()
    )
    assert worth["reward"].equals(weighted["reward"])
    told = worth["decision_id"].str.strip_prefix("d").cast(pl.Int64) % 2 == 1
    assert worth["worth"].equals((worth["reward"] * told.cast(pl.Float64)).alias("worth"))
    held = settled_interactions(joined, "shop", LoopConfig(censoring="hold_back")).collect()
    curve = delay_curve(joined, "shop", LoopConfig())
    limit = EPOCH_US + (OLDEST_S - curve.delay_of(0.95)) * 1e6
    assert held["ts"].dt.epoch("us").to_numpy().max() <= limit
    assert 0.05 * len(plain) < len(held) < 0.8 * len(plain)


def test_imported_interactions_are_left_alone(tmp_path: Path, joined: Lake) -> None:
    """They were never joined, so nobody knows how old they were."""
    lake = Lake(tmp_path / "lake")
    lake.append("interactions", joined.scan("interactions").collect())
    config = LoopConfig(censoring="hold_back")
    assert len(settled_interactions(lake, "shop", config).collect()) == 6_000
