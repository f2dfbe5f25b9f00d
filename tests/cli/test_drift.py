"""The command that compares generations' logs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from croupier.cli.commands import app
from croupier.offline.lake import Lake
from croupier.policy.exploration import EpsilonGreedy
from tests.offline.worlds import World, random_world

if TYPE_CHECKING:
    from pathlib import Path

    from tests.command_line import Complain


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three generations, the last of them in a world that pays less."""
    world = random_world(3, 4, seed=3)
    poorer = World(np.maximum(0.0, world.rewards - 0.3))
    lake = Lake(tmp_path / "lake")
    for number, where in enumerate((world, world, poorer), start=1):
        policy = world.generation(number, EpsilonGreedy(epsilon=0.5))
        lake.append("interactions", where.log(policy, 600, seed=number, first=600 * number))
    (tmp_path / "croupier.toml").write_text("[loops.shop]\n")
    return tmp_path


def test_it_says_what_has_changed(data: Path) -> None:
    where = ["drift", "--config", str(data / "croupier.toml"), "--data-dir", str(data)]
    told = CliRunner().invoke(app, [*where, "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)["shop"]
    assert [each["significant"] for each in found["rewards"]] == [False, True]
    assert not any(each["significant"] for each in found["features"])
    shown = CliRunner().invoke(app, where)
    assert "what the uniform policy would have earned" in shown.stdout
    assert "2 to 3" in shown.stdout


def test_too_little_and_too_much_is_one_line(data: Path, complain: Complain) -> None:
    where = ("--config", str(data / "croupier.toml"), "--data-dir", str(data))
    assert (
        complain("drift", *where, "--level", "0") == "level: expected a number in (0, 1), got 0.0"
    )
    Lake(data / "lake").delete("interactions", "generation > 1")
    assert "two generations with 50 interactions each, got 1" in complain("drift", *where)
