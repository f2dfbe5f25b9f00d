"""``croupier simulate``: what it prints, and what it refuses."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from croupier.cli import simulate
from croupier.cli.main import main
from croupier.sim2rec.transfer_config import ARMS
from croupier.sim2rec.transfer_runs import RECOMMENDER
from tests.sim2rec.killed_training import CONFIG

if TYPE_CHECKING:
    from pathlib import Path

    from tests.command_line import Complain

YARDSTICKS = ["kale", "balanced", "myopic", "best constant", "best constant per user", "optimum"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["croupier", "simulate", "lts", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0


def test_without_a_level_it_tells_of_constants_and_the_optimum(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--users", "5", "--json")
    rows = json.loads(capfd.readouterr().out)
    assert [row["policy"] for row in rows] == YARDSTICKS
    assert rows[-1]["mean_return"] >= rows[-2]["mean_return"]
    run(monkeypatch, "--users", "5", "--mu-c", "9")
    assert "mu_c = 9, 5 users" in capfd.readouterr().out


# Most of its time goes into compiling five trainings.
@pytest.mark.slow
def test_with_a_level_it_trains_all_arms_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(simulate, "BUDGETS", {"reduced": CONFIG})
    asked = ["--level", "3", "--seeds", "1", "--users", "10", "--jobs", "1"]
    asked += ["--output", str(tmp_path)]
    run(monkeypatch, *asked, "--json")
    study = json.loads(capfd.readouterr().out)
    assert [row["policy"] for row in study["yardsticks"]] == YARDSTICKS
    assert [each["arm"] for each in study["arms"]] == [RECOMMENDER, *(arm.name for arm in ARMS)]
    assert {each["seeds"] for each in study["arms"]} == {1}
    assert json.loads((tmp_path / "lts.json").read_bytes()) == study
    assert (tmp_path / "lts.png").read_bytes().startswith(b"\x89PNG")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "policies").iterdir()}
    run(monkeypatch, *asked)
    said = capfd.readouterr().out
    assert "level 3" in said
    assert "Sim2Rec" in said
    assert "optimum" in said
    assert kept == {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "policies").iterdir()
    }


def test_bad_input_is_one_line(complain: Complain) -> None:
    assert complain("simulate", "lts", "--users", "1") == "users: expected at least 2, got 1"
    assert complain("simulate", "lts", "--level", "5").startswith("level: expected one of 2, 3, 4")
    assert complain("simulate", "lts", "--level", "4", "--budget", "huge").startswith("budget: ")
    assert complain("simulate", "lts", "--level", "4", "--mu-c", "9").startswith("mu_c: ")
