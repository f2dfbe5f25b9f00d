"""Nights of a loop whose users are simulated: the gap is measured, kept, told and signalled."""

from __future__ import annotations

import importlib.util
import shutil
from typing import TYPE_CHECKING

import msgspec
import pytest

from croupier.cli.findings import told_by_log
from croupier.offline.generations import generation_rows
from croupier.offline.lake import Lake
from croupier.offline.off_policy_sessions import OffPolicyValue
from croupier.offline.simulator_gap import GenerationGap
from croupier.policy.generation import cold_start
from tests.cli.test_batch import Command, Done, hour_ago, in_process
from tests.sim2rec.lts_sessions import HOUR, LTSSessions

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

CONFIG = """\
data_dir = "data"

[loops.feed]
reward_max = 100.0

[loops.feed.sessions]
user = "user.id"
pause = "20 min"
horizon = 6
state = ["signal", "engagement"]

[loops.feed.simulators]
members = 2
steps = 100
"""


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str], empty_registry: Path) -> Command:
    (tmp_path / "croupier.toml").write_text(CONFIG)
    (tmp_path / "data").mkdir()
    shutil.copy(empty_registry, tmp_path / "data")
    lake = Lake(tmp_path / "data" / "lake")
    log = LTSSessions(250, seed=1).log(cold_start("feed"), hour_ago() - HOUR)
    lake.append("interactions", log)
    return Command(tmp_path, capsys)


def a_night(folder: Path, *arguments: object) -> Done:
    """A process of its own: JAX, once it has worked, lets no other test fork."""
    return in_process("nightly", "--config", folder / "croupier.toml", *arguments, cwd=folder)


def test_a_night_measures_the_gap(command: Command, tmp_path: Path) -> None:
    metrics = tmp_path / "night.prom"
    done = a_night(tmp_path, "--metrics", metrics, "--json")
    assert done.code == 0, done.err
    (night,) = done.facts["loops"]
    assert night["unsimulated"] is None
    (gap,) = night["gaps"]
    assert (gap["generation"], gap["sessions"]) == (0, 75)
    assert gap["gap"] == pytest.approx(gap["simulated"] - gap["value"])
    assert abs(gap["gap"]) < 0.2 * gap["value"]
    # The cold start answered them all: the log says what it has earned, but for a critic.
    told = gap["off_policy"]
    assert told["sessions"] == 75
    assert told["ess"] == pytest.approx(75.0)
    assert told["value"] == pytest.approx(gap["value"], rel=0.05)
    assert told["lower"] < told["value"] < told["upper"]
    assert gap["unsupported"] is None
    row = generation_rows(command.lake, "feed")[0]
    assert row["simulator_gap"] == gap["gap"]
    assert [row[f"off_policy_{name}"] for name in told] == list(told.values())
    assert (row["session_lower"], row["session_upper"]) == (gap["lower"], gap["upper"])
    assert f'croupier_simulator_gap{{loop="feed"}} {gap["gap"]!r}' in metrics.read_text()
    told = command("status", "--json").facts["loops"][0]["signals"]
    assert [(each["name"], each["raised"]) for each in told] == [("simulators_err", gap["errs"])]


def test_without_jax_a_night_says_so_and_goes_on(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "jax" else find(name, *rest),
    )
    done = command("nightly")
    assert done.code == 0, done.err
    said = "warning: feed: simulators were not measured: expected JAX to be installed"
    assert said in done.err
    assert 1 in generation_rows(command.lake, "feed")


def test_what_the_log_says_of_a_generation_is_told() -> None:
    gap = GenerationGap(
        generation=3,
        sessions=40,
        value=30.0,
        lower=28.0,
        upper=32.0,
        simulated=33.0,
        gap=3.0,
        gap_lower=1.0,
        gap_upper=5.0,
        p_value=0.4,
        errs=False,
        error=9.0,
        disagreement=2.0,
        off_policy=OffPolicyValue(value=31.0, lower=30.0, upper=32.0, sessions=120, ess=55.4),
    )
    assert told_by_log(gap) == (
        "by the log generation 3 earns 31 in a session [30.00, 32.00], the simulators +2 "
        "[1.00, 3.00], over 120 sessions worth 55"
    )
    without = msgspec.structs.replace(gap, off_policy=None, unsupported="expected more")
    assert told_by_log(without) == "the log says too little of generation 3: expected more"
