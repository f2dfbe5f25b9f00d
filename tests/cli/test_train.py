"""``croupier train``: rounds of online learning from the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from croupier.offline.lake import Lake
from croupier.offline.retrain import is_judged
from croupier.policy.loop import LoopConfig
from tests.offline.shop import Shop
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from pathlib import Path

    from tests.command_line import Complain

CONFIG = """
data_dir = "data"

[loops.shop]
attribution_window = "1 min"
model_export_frequency = "1 s"

[loops.shop.exploration]
kind = "epsilon_greedy"
epsilon = 0.3

[loops.shop.oracle]
kind = "vowpal_wabbit"
encoder = { bits = 12 }
"""
HOUR_US = 3_600_000_000


@pytest.fixture
def directory(tmp_path: Path, empty_registry: Path) -> Path:
    """A directory with a log of an hour ago, and nothing in the lake."""
    (tmp_path / "croupier.toml").write_text(CONFIG)
    (tmp_path / "data").mkdir()
    shutil.copy(empty_registry, tmp_path / "data")
    now = time.time_ns() // 1000 - HOUR_US
    loops = {"shop": LoopConfig(attribution_window="1 min")}
    Shop(tmp_path / "data", random_world(3, 4, seed=3), loops=loops, now=now).day(400)
    return tmp_path


def command(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "croupier", "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
    )


def done(directory: Path, *arguments: str) -> tuple[int, str, str]:
    process = command(directory, *arguments)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def learned(directory: Path) -> int:
    rows = Lake(directory / "data" / "lake").scan("interactions", "shop")
    return len(rows.filter(~is_judged(0.3)).collect())


def test_a_round_sinks_joins_learns_and_publishes(directory: Path) -> None:
    code, out, err = done(directory, "--once", "--json")
    assert code == 0, err
    (found,) = json.loads(out)
    assert (found["join"]["joined"], found["published"], found["failed"]) == (400, 1, None)
    assert found["learned"] == found["lessons"] == learned(directory)
    assert found["verdict"] is not None
    # There is nothing to publish again.
    code, out, err = done(directory, "--once")
    assert code == 0, err
    assert "nothing was learned since generation 1" in out


def test_it_follows_until_it_is_told_to_stop(directory: Path) -> None:
    process = command(directory, "--follow", "--every", "100 ms", "--json")
    try:
        assert process.stdout is not None
        first: dict[str, Any] = json.loads(process.stdout.readline())
        second = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=240) == 0
    finally:
        process.kill()
        process.communicate()
    assert (first["published"], first["lessons"]) == (1, learned(directory))
    assert (second["learned"], second["published"]) == (0, None)


def test_what_can_not_be_followed_is_refused(directory: Path, complain: Complain) -> None:
    said = complain("train", "--config", str(directory / "croupier.toml"))
    assert said.startswith("follow: expected --follow, or --once")
    told = ("--config", str(directory / "croupier.toml"))
    assert complain("train", "--once", "--every", "soon", *told).startswith("every: ")
    config = CONFIG.replace('kind = "vowpal_wabbit"', 'kind = "sklearn"')
    (directory / "croupier.toml").write_text(config)
    said = complain("train", "--once", *told)
    assert said.startswith("loops.shop.oracle: expected one that learns online")
