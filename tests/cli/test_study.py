"""``croupier study``, as it is run from a checkout."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.command_line import Complain

CROUPIER = [sys.executable, "-m", "croupier"]
SMALL = ["--generations", "8", "--seeds", "2", "--set", "per_day=80", "--set", "panel=60"]
SMALL += ["--burn-in", "2"]
ARMS = ["--arm", "igw", "--arm", "igw, uniform log"]


def study(
    output: Path, *arguments: str, name: str = "oscillation"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CROUPIER, "study", name, "--output", str(output), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_study_leaves_series_figure_and_summary_and_goes_on(tmp_path: Path) -> None:
    done = study(tmp_path / "out", *SMALL, *ARMS, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert [each["arm"] for each in summary["arms"]] == ["igw", "igw, uniform log"]
    assert summary["control"] == "igw, uniform log"
    for each in summary["arms"]:
        assert each["seeds"] == 2
        assert each["gain"]["error"] > 0.0
        assert 0.0 < each["test"]["p_values"]["alternation"] <= 1.0
        assert each["regret"]["value"] < 1.1
    plain, control = summary["arms"]
    assert 0.0 < plain["bootstrap_test"]["p_values"]["spread"] <= 1.0
    assert control["bootstrap_test"] is None
    assert (tmp_path / "out" / "oscillation.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "oscillation.json").read_bytes()) == summary
    series = pl.read_delta(str(tmp_path / "out" / "series"))
    assert len(series) == 2 * 2 * 8
    # A third seed is all that is left to do, and the others stay as they are.
    more = study(tmp_path / "out", *SMALL, *ARMS, "--seeds", "3", "--jobs", "1")
    assert more.returncode == 0, more.stderr
    assert "8 generations, the first 2 left out" in more.stdout
    grown = pl.read_delta(str(tmp_path / "out" / "series"))
    assert len(grown) == 3 * 2 * 8
    kept = grown.filter(pl.col("seed") < 2).sort("arm", "seed", "generation")
    assert kept.equals(series.sort("arm", "seed", "generation"))


def test_processes_of_a_study_that_was_killed_end_too(tmp_path: Path) -> None:
    token = f"study-{tmp_path.name}-{time.time_ns()}"
    long = ["--generations", "400", "--seeds", "2", "--set", "per_day=200", "--jobs", "2"]
    killed = subprocess.Popen(
        [*CROUPIER, "study", "oscillation", "--output", str(tmp_path), *long, "--arm", "igw"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "CROUPIER_TEST_TOKEN": token},
    )
    # This process, its pool's tracker of resources, and two workers.
    wait_until(lambda: len(processes_of(token)) >= 4)
    killed.kill()
    killed.wait()
    wait_until(lambda: not processes_of(token))


def processes_of(token: str) -> list[str]:
    """Those that have a token in their environment."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if token.encode() in (each / "environ").read_bytes():
                found.append(each.name)
    return found


def wait_until(true: Callable[[], bool], patience_s: float = 240.0) -> None:
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arm", "none"], "arm: expected one of uniform, "),
        (["--oracle", "none"], "oracle: expected one of logistic, ridge, vowpal_wabbit"),
        (["--set", "approval"], "set: expected name=number, got 'approval'"),
        (["--set", "approval=2"], "parameters: examples.payments:study: approval must be in"),
        (["--set", "none=2"], "parameters: examples.payments:study: "),
        (["--environment", "none:none"], "environment: expected the module:function of one"),
        (["--environment", "examples.payments"], "environment: expected the module:function"),
        (["--generations", "8", "--burn-in", "3"], "burn_in: expected at least 6 generations"),
    ],
)
def test_what_can_not_be_studied_is_one_line(
    tmp_path: Path, complain: Complain, arguments: list[str], said: str
) -> None:
    output = tmp_path / "out"
    line = complain("study", "oscillation", "--output", str(output), *arguments)
    assert line.startswith(said)
    assert not output.exists()


QUICK = ["--world", "mortgages", "--rounds", "64", "--instances", "20"]


def test_a_study_of_fairness_leaves_series_figure_and_summary_and_goes_on(tmp_path: Path) -> None:
    arms = ["--arm", "exp2", "--arm", "exp2, all labels"]
    done = study(tmp_path / "out", *QUICK, *arms, "--seeds", "2", "--json", name="fairness")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert [each["arm"] for each in summary["arms"]] == ["exp2", "exp2, all labels"]
    assert (summary["rounds"], summary["instances"]) == (64, 20)
    for each in summary["arms"]:
        assert each["seeds"] == 2
        assert 0.0 < each["error"]["value"] < 1.0
        # In so few rounds there may be no violation to fit a growth to.
        growth = each["violations_growth"]
        assert growth is None or growth["lower"] <= growth["exponent"] <= growth["upper"]
    assert [each["world"] for each in summary["sidedness"]] == ["mortgages"]
    assert (tmp_path / "out" / "fairness.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "fairness.json").read_bytes()) == summary
    series = pl.read_delta(str(tmp_path / "out" / "series"))
    # One arm more is all that is left to do, and the others stay as they are.
    arms += ["--arm", "epsilon greedy"]
    more = study(tmp_path / "out", *QUICK, *arms, "--seeds", "2", "--jobs", "1", name="fairness")
    assert more.returncode == 0, more.stderr
    assert "mortgages: 64 rounds of 20, 2 seeds" in more.stdout
    assert "epsilon greedy" in more.stdout
    grown = pl.read_delta(str(tmp_path / "out" / "series"))
    assert len(grown) * 2 == len(series) * 3
    order = ["arm", "seed", "rounds"]
    kept = grown.filter(pl.col("arm") != "epsilon greedy").sort(order)
    assert kept.equals(series.sort(order))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--world", "none"], "world: expected one of planted, mortgages; got 'none'"),
        (["--arm", "none"], "arm: expected one of exp2, exp2, all labels, ftpl"),
    ],
)
def test_a_study_of_fairness_that_can_not_be_is_one_line(
    tmp_path: Path, complain: Complain, arguments: list[str], said: str
) -> None:
    output = tmp_path / "out"
    assert complain("study", "fairness", "--output", str(output), *arguments).startswith(said)
    assert not output.exists()
