"""What learned simulators say of served generations, beside what these earned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from croupier.offline.generations import generation_rows, record_generation
from croupier.offline.lake import Lake
from croupier.offline.latest_signals import latest_signals
from croupier.offline.simulator_gap import GenerationGap, gap_of, gap_rows, measure_gaps
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.exploration import Uniform
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.simulators import SimulatorsSection
from croupier.sim2rec.simulated_sessions import simulate_sessions
from tests.offline.logs import EPOCH_US
from tests.sim2rec.lts_sessions import HOUR, SESSIONS, LTSSessions

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = LoopConfig(
    reward_max=100.0,
    sessions=SESSIONS,
    simulators=SimulatorsSection(members=2, steps=300, sessions=600),
)


SERVED = {0: cold_start("feed"), 1: Generation("feed", 1, Uniform(), None, None)}


def test_gaps_equal_their_formulas() -> None:
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(40), 3).astype(np.str_)
    real = rng.normal(10.0, 1.0, 120) + np.repeat(rng.normal(0.0, 2.0, 40), 3)
    simulated = real + 0.5 + np.repeat(rng.normal(0.0, 1.0, 40), 3)
    apart = np.array([[-0.3], [0.3]])
    found = gap_of(3, real, simulated + apart, users, max_gap=0.01, confidence=0.95)
    assert found.disagreement == pytest.approx(0.3)
    assert found.error == pytest.approx(np.sqrt(np.mean((simulated - real) ** 2)))
    # Of equally many sessions each, clustering is the mean of every user's mean.
    difference = (simulated - real).reshape(40, 3).mean(axis=1)
    expected = stats.t.interval(0.95, 39, difference.mean(), stats.sem(difference))
    assert (found.gap_lower, found.gap_upper) == pytest.approx(expected)
    own = real.reshape(40, 3).mean(axis=1)
    assert (found.lower, found.upper) == pytest.approx(
        stats.t.interval(0.95, 39, own.mean(), stats.sem(own))
    )
    beyond = (difference.mean() - 0.01 * real.mean()) / stats.sem(difference)
    assert found.p_value == pytest.approx(stats.t.sf(beyond, 39))
    assert found.errs == (expected[0] > 0.01 * real.mean())
    assert not gap_of(3, real, simulated[None], users, max_gap=0.2, confidence=0.95).errs


def test_simulators_without_a_gap_are_rarely_told_to_have_one() -> None:
    """Intervals of 95% over 400 samples of 25 users, two sessions each."""
    rng = np.random.default_rng(2)
    users = np.repeat(np.arange(25), 2).astype(np.str_)
    held = 0
    for _ in range(400):
        real = rng.normal(10.0, 1.0, 50)
        off = np.repeat(rng.normal(0.0, 2.0, 25), 2) + rng.normal(0.0, 1.0, 50)
        found = gap_of(1, real, (real + off)[None], users, max_gap=0.1, confidence=0.95)
        held += found.gap_lower <= 0.0 <= found.gap_upper
    assert stats.binomtest(held, 400, 0.95).pvalue > 1e-4


@pytest.mark.slow  # a night in tests/cli does the same with one generation
def test_a_night_s_gaps_are_measured_kept_and_told(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    world = LTSSessions(300, seed=3)
    lake.append("interactions", world.log(SERVED[0], EPOCH_US))
    lake.append("interactions", world.log(SERVED[1], EPOCH_US + HOUR))

    def measured() -> list[GenerationGap]:
        return measure_gaps(lake, "feed", CONFIG, SERVED.__getitem__, simulate_sessions, seed=4)

    gaps = measured()
    assert [gap.generation for gap in gaps] == [0, 1]
    for gap in gaps:
        # A session of each of the users held out.
        assert gap.sessions == 90
        assert gap.lower < gap.value < gap.upper
        assert gap.gap == pytest.approx(gap.simulated - gap.value)
        # Simulators that have seen 420 sessions of six steps are off by little.
        assert abs(gap.gap) < 0.15 * gap.value
        # Both answer alike, so the log of each says as much of the other.
        assert gap.off_policy is not None
        assert (gap.off_policy.sessions, gap.unsupported) == (180, None)
        assert gap.off_policy.ess == pytest.approx(180.0)
        assert gap.off_policy.lower < gap.value < gap.off_policy.upper
    for row in gap_rows("feed", gaps, lake.version("interactions")):
        record_generation(lake, row)
    (signal,) = latest_signals(generation_rows(lake, "feed"))
    assert (signal.name, signal.generation) == ("simulators_err", 1)
    assert signal.raised == gaps[1].errs
    assert signal.p_value == pytest.approx(gaps[1].p_value)
    # Nothing has come since, so nothing is learned again.
    assert measured() == []


def test_too_few_users_tell_nothing(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.append("interactions", LTSSessions(15, seed=5).log(SERVED[0], EPOCH_US))
    with pytest.raises(NotEnoughDataError, match="sessions of 20 users, got 15"):
        measure_gaps(lake, "feed", CONFIG, SERVED.__getitem__, simulate_sessions, seed=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sessions": 10}, "sessions must be at least 100"),
        ({"members": 1}, "members must be at least 2"),
        ({"steps": 150}, "steps must be a multiple of 100"),
        ({"held_out": 0.0}, r"held_out must be in \(0, 1\)"),
        ({"max_gap": 0.0}, "max_gap must be above 0"),
    ],
)
def test_a_section_is_checked(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatorsSection(**changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="simulators need sessions"):
        LoopConfig(simulators=SimulatorsSection())
