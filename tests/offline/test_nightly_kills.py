"""Nights whose process is killed at any moment, and what the next one makes of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.lake import Lake
from croupier.offline.registry import Registry
from croupier.offline.verify import verify_loop
from croupier.policy.exploration import EpsilonGreedy
from croupier.policy.generation import registered_model_name
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import SklearnConfig
from tests.offline.shop import MINUTE, Shop
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from croupier.offline.lake import TableName

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

CONFIG = """\
data_dir = "data"

[loops.shop]
attribution_window = "1 min"
log_retention = "5 d"
exploration = { kind = "epsilon_greedy", epsilon = 0.3 }
oracle = { kind = "sklearn" }

[loops.mail]
attribution_window = "1 min"
exploration = { kind = "epsilon_greedy", epsilon = 0.3 }
oracle = { kind = "vowpal_wabbit", encoder = { bits = 12 } }
"""
LOOPS = {
    name: LoopConfig(
        exploration=EpsilonGreedy(epsilon=0.3), oracle=SklearnConfig(), attribution_window="1 min"
    )
    for name in ("shop", "mail")
}
DAY = 24 * 60 * MINUTE
WORLD = random_world(3, 4, seed=3)
ACTIONS = WORLD.request(0, "any").actions
ROOT = Path(__file__).parents[2]
# What differs from run to run: times, and ids of MLflow's.
_OWN = ("created", "promoted", "judged", "run_id")
# What was realised is of the interactions that are left: a night after the one that has forgotten
# some counts fewer.
_LEFT = (
    "decisions",
    "decisions_made",
    "realised_mean",
    "realised_lower",
    "realised_upper",
    "propensity_p_value",
)


@dataclass(frozen=True)
class Place:
    """A directory in which a night is due, and a copy of it from before.

    Attributes
    ----------
    work, before
        Where nights are done, always the same since MLflow keeps paths; and how it was.
    steps
        Of an undisturbed night: the step of every moment, from the first.
    seconds
        How long it took.
    end
        The state that it came to.
    """

    work: Path
    before: Path
    steps: list[str]
    seconds: float
    end: dict[str, Any]

    def reset(self) -> None:
        shutil.rmtree(self.work)
        shutil.copytree(self.before, self.work)


def croupier(work: Path, *arguments: str, module: str = "croupier") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            *module.split(),
            *arguments,
            "--config",
            str(work / "croupier.toml"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=work,
        env=os.environ
        | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        },
    )


def done(work: Path, *arguments: str) -> dict[str, Any]:
    process = croupier(work, *arguments, "--json")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    facts: dict[str, Any] = json.loads(out)
    return facts


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Two loops with a night behind them and two days since, of which one is to be forgotten."""
    work = tmp_path_factory.mktemp("work") / "here"
    (work / "data").mkdir(parents=True)
    (work / "croupier.toml").write_text(CONFIG)
    now = time.time_ns() // 1000
    shop = Shop(work / "data", WORLD, loops=LOOPS, now=now - 10 * DAY)
    _days(shop, 150)
    # Its configuration forgets nothing.
    shop.night()
    for ago in (2, 1):
        shop.now = now - ago * DAY
        _days(shop, 900)
    before = work.parent / "before"
    shutil.copytree(work, before)
    told = work.parent / "steps.json"
    started = time.monotonic()
    process = croupier(work, "nightly", "--json", module=f"tests.offline.dying 0 {told}")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    report = json.loads(out)
    assert [night["verdict"]["promote"] for night in report["loops"]] == [True, True], report
    assert report["retention"]["decisions"] == {"shop": 150}
    return Place(
        work, before, json.loads(told.read_text()), time.monotonic() - started, state(work)
    )


def _days(shop: Shop, decisions: int) -> None:
    start = shop.now
    for loop in LOOPS:
        shop.now = start
        shop.day(decisions, loop)


def state(work: Path) -> dict[str, Any]:
    """Everything that a night is for, but for times and for ids that MLflow makes."""
    lake, registry = Lake(work / "data" / "lake"), _registry(work)
    tables: dict[str, Any] = {
        table: _rows(lake, table) for table in ("decisions", "outcomes", "interactions")
    }
    generations = lake.scan("generations").sort("loop", "generation").collect()
    return {
        **tables,
        "generations": generations.drop(*_OWN, *_LEFT).to_dicts(),
        "registry": {loop: _registered(registry, loop, generations) for loop in LOOPS},
        "left over": _left_over(work),
    }


def _registry(work: Path) -> Registry:
    """Of a copy: MLflow keeps a database open, also once another file has taken its place."""
    aside = Path(tempfile.mkdtemp(dir=work.parent)) / "mlflow.db"
    shutil.copy(work / "data" / "mlflow.db", aside)
    return Registry(f"sqlite:///{aside}", work / "data" / "mlartifacts")


def _rows(lake: Lake, table: TableName) -> list[dict[str, Any]]:
    return lake.scan(table).sort("loop", "offset", "decision_id").collect().to_dicts()


def _registered(registry: Registry, loop: str, generations: pl.DataFrame) -> dict[str, Any]:
    """Versions with what their generations hold, aliases, and whether all runs are whole."""
    client, name = registry._tracking.client(), registered_model_name(loop)
    versions = client.search_model_versions(f"name='{name}'")
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id])
    rows = generations.filter(pl.col("loop") == loop, pl.col("generation") > 0)
    assert sorted(run.info.run_id for run in runs) == sorted(each.run_id for each in versions)
    assert sorted(rows["run_id"]) == sorted(each.run_id for each in versions)
    numbers = registry.numbers(loop)
    assert numbers == list(range(1, len(numbers) + 1))
    loaded = {number: registry.load(loop, number) for number in numbers}
    oracles = {
        number: [generation.pmf({"x": f"x{x}"}, ACTIONS) for x in range(3)]
        for number, generation in loaded.items()
    }
    return {
        "numbers": {int(each.version): each.tags["generation"] for each in versions},
        "statuses": sorted(run.info.status for run in runs),
        "aliases": dict(client.get_registered_model(name).aliases),
        "params": {
            run.info.run_name: {k: v for k, v in run.data.params.items() if k != "created_us"}
            for run in runs
        },
        "oracles": str(oracles),
    }


def _left_over(work: Path) -> list[str]:
    """What is put aside while something is being done."""
    found = [*(work / "data").glob(".mlflow-*"), *(work / "data" / "lake").glob(".join/*")]
    return sorted(path.name for path in found)


def moments(place: Place, count: int, seed: int) -> list[int]:
    """Moments of a night, each in another step than the one before as long as there are others."""
    rng = random.Random(seed)
    by_step: dict[str, list[int]] = {}
    for moment, step in enumerate(place.steps, 1):
        by_step.setdefault(step, []).append(moment)
    names = sorted(by_step)
    rng.shuffle(names)
    return [rng.choice(by_step[names[n % len(names)]]) for n in range(count)]


def check_after_a_kill(place: Place, what: str) -> None:
    """The lake is sound at once, and the next night comes to the undisturbed one's end."""
    lake = Lake(place.work / "data" / "lake")
    with SqliteEventLog(place.work / "data" / "log") as log, lake.lock():
        for loop, config in LOOPS.items():
            found = verify_loop(lake, log, loop, config)
            assert found.sound, f"{found} after {what}"
    done(place.work, "nightly")
    end = state(place.work)
    for part, expected in place.end.items():
        assert end[part] == expected, f"{part} after {what}"


def killed_at(place: Place, moment: int) -> None:
    told = place.work.parent / "killed.json"
    process = croupier(place.work, "nightly", module=f"tests.offline.dying {moment} {told}")
    out, err = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL, out + err


@pytest.mark.parametrize(
    ("count", "seed"),
    [
        pytest.param(1, 1, marks=pytest.mark.timeout(1800)),
        pytest.param(3, 1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
        pytest.param(10, 2, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
        pytest.param(30, 3, marks=[pytest.mark.slow, pytest.mark.timeout(7200)]),
    ],
)
def test_a_night_that_is_killed_at_any_step_is_made_up_for(
    place: Place, count: int, seed: int
) -> None:
    seed = int(os.environ.get("CROUPIER_KILL_SEED", seed))
    for moment in moments(place, count, seed):
        place.reset()
        killed_at(place, moment)
        step = place.steps[moment - 1]
        print(f"killed at moment {moment:,} of {len(place.steps):,}: {step}")
        check_after_a_kill(place, f"a kill at moment {moment} of seed {seed}, in {step}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_night_that_is_killed_by_the_clock_is_made_up_for(place: Place) -> None:
    """Ten times from outside, at moments spread over the time that an undisturbed night takes."""
    rng = random.Random(int(os.environ.get("CROUPIER_KILL_SEED", "4")))
    killed = 0
    for share in (rng.uniform(n / 10, (n + 1) / 10) for n in range(10)):
        place.reset()
        process = croupier(place.work, "nightly")
        try:
            process.wait(timeout=share * place.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        process.communicate(timeout=600)
        check_after_a_kill(place, f"a kill after {share:.0%} of the time")
    print(f"{killed} of 10 were still at work")
