"""``--engine ray``: the same commands, with the same results."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from croupier.offline.registry import Registry
from tests.cli.test_batch import Command, hour_ago, in_process
from tests.offline.logs import table
from tests.offline.shop import Shop
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from tests.command_line import Complain

pytestmark = [
    # Of MLflow's own making.
    pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning"),
    # Workers take their time to start where others have the machine.
    pytest.mark.timeout(900),
]

CONFIG = """\
data_dir = "data"

[nightly.merge]
partitions = 2
rounds = 4
rows = 100

[loops.shop]
attribution_window = "1 min"
exploration = { kind = "epsilon_greedy", epsilon = 0.3 }
oracle = { kind = "vowpal_wabbit" }
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a configuration, and a log of 600 decisions that nobody has sunk."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    directory = tmp_path / "shop"
    (directory / "data").mkdir(parents=True)
    (directory / "croupier.toml").write_text(CONFIG)
    Shop(directory / "data", random_world(3, 4, seed=3), now=hour_ago()).day(600)
    return directory


def night(directory: Path, *arguments: str) -> dict[str, Any]:
    done = in_process("nightly", "--json", *arguments, cwd=directory)
    assert done.code == 0, done.err
    return done.facts


def test_a_night_and_what_is_asked_after_it(
    shop: Path,
    tmp_path: Path,
    ray_address: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The merged oracle is another one, if a good one; all else is the same."""
    other = Path(shutil.copytree(shop, tmp_path / "other"))
    here = night(shop)
    there = night(other, "--engine", "ray", "--ray-address", ray_address)
    assert there["sink"] == here["sink"]
    assert here["sink"]["decisions"] == 600
    (mine,), (theirs,) = here["loops"], there["loops"]
    assert theirs["join"] == mine["join"]
    assert mine["join"]["joined"] == 600
    joined = [table(each / "data" / "lake", "interactions") for each in (shop, other)]
    assert joined[0].equals(joined[1])
    assert (mine["challenger"], theirs["challenger"]) == (1, 1)
    assert theirs["evaluation"]["rows"] == mine["evaluation"]["rows"]
    values = [each["evaluation"]["policies"][1]["estimates"]["dr"] for each in (mine, theirs)]
    assert abs(values[0]["value"] - values[1]["value"]) < 0.1
    registry = Registry(f"sqlite:///{other / 'data' / 'mlflow.db'}", other / "data/mlartifacts")
    made = registry.load("shop", 1)
    assert made.provenance is not None
    assert made.provenance.merged == (2, 4)

    # Within this process, on the cluster that it is connected to.
    command = Command(other, capsys)
    grid = ["--grid", "exploration.epsilon=[0.1, 0.2]", "--grid", "oracle.learning_rate=[0.1]"]
    policies = ["--policy", "1", "--policy", "logged", "--by", "x"]
    for asked in (["evaluate"], ["evaluate", *policies], ["tune", "shop", *grid]):
        assert command(*asked, "--json", "--engine", "ray").facts == command(*asked, "--json").facts
    assert command("retrain", "--json", "--engine", "ray").facts["shop"]["generation"] == 2


@pytest.mark.usefixtures("ray_engine")
def test_a_cluster_of_this_machine_unless_another_is_named(shop: Path) -> None:
    """It is started and ended with the command."""
    done = in_process("join", "--json", "--engine", "ray", cwd=shop)
    assert done.code == 0, done.err
    assert done.facts["shop"]["joined"] == 600
    assert len(table(shop / "data" / "lake", "interactions")) == 600


def test_says_what_is_missing(complain: Complain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    expected = "engine: expected Ray to be installed for ray: pip install 'croupier[ray]'"
    for command in ("join", "retrain", "evaluate", "nightly", "sink"):
        assert complain(command, "--engine", "ray") == expected
    assert complain("tune", "shop", "--grid", "x", "--engine", "ray") == expected


def test_says_what_doesn_t_go_together(complain: Complain) -> None:
    assert complain("join", "--ray-address", "x") == (
        "ray-address: expected one with --engine ray only"
    )
    assert complain("sink", "--group", "--engine", "ray").startswith(
        "engine: expected local with --group"
    )


@pytest.mark.usefixtures("ray_engine")
def test_says_that_nobody_is_there(complain: Complain) -> None:
    said = complain("join", "--engine", "ray", "--ray-address", "127.0.0.1:1")
    assert said.startswith("ray-address: expected a Ray cluster at 127.0.0.1:1: ")
