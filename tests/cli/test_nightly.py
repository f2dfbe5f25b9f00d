"""``croupier nightly`` as it is left to itself: again and again, and locked against a second."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from croupier.offline.lake import Lake
from croupier.policy.loop import LoopConfig
from tests.offline.shop import Shop
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.command_line import Complain

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning"),
]

CONFIG = """\
data_dir = "data"

[loops.shop]
attribution_window = "1 min"
exploration = { kind = "epsilon_greedy", epsilon = 0.3 }
oracle = { kind = "sklearn" }
"""
STAMPED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \S")


@pytest.fixture
def directory(tmp_path: Path, empty_registry: Path) -> Path:
    """A directory with a log of an hour ago, and nothing in the lake."""
    (tmp_path / "croupier.toml").write_text(CONFIG)
    (tmp_path / "data").mkdir()
    shutil.copy(empty_registry, tmp_path / "data")
    decisions(tmp_path, 400, minutes_ago=60)
    return tmp_path


def decisions(directory: Path, count: int, *, minutes_ago: int, after: int = 0) -> None:
    """Log decisions from some time ago on, numbered on from those before them."""
    now = time.time_ns() // 1000 - minutes_ago * 60_000_000
    loops = {"shop": LoopConfig(attribution_window="1 min")}
    shop = Shop(directory / "data", random_world(3, 4, seed=3), loops=loops, now=now)
    shop.count = after
    shop.day(count)


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "croupier", "nightly", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
    )


@contextmanager
def going(directory: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = start(directory, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def done(directory: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(directory, *arguments)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def line_with(process: subprocess.Popen[str], text: str) -> str:
    """The next line with a text; all lines up to it begin with a time."""
    assert process.stdout is not None
    for line in process.stdout:
        assert STAMPED.match(line), line
        if text in line:
            return line
    assert process.stderr is not None
    raise AssertionError(f"it ended before it said {text!r}: {process.stderr.read()}")


def night_of(process: subprocess.Popen[str]) -> int:
    """The process that does a night at the moment, or will soon."""
    while process.poll() is None:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes()
            except OSError:
                continue
            if b"spawn_main" in command:
                return int(child)
    raise AssertionError("it has ended")


def generations(directory: Path) -> list[int]:
    rows = Lake(directory / "data" / "lake").scan("generations", "shop").collect()
    return sorted(rows["generation"])


def test_nights_follow_each_other_whatever_happens_to_one(directory: Path) -> None:
    lake, config = Lake(directory / "data" / "lake"), directory / "croupier.toml"
    with going(directory, "--every", "1 s") as process:
        line_with(process, "the first night begins at ")
        assert "judged on " in line_with(process, "generation 1 trained")
        line_with(process, " is done; the next one begins at ")
        # Nothing has come: nothing is trained.
        line_with(process, "shop: nothing trained, nothing judged: nothing has come since")

        config.write_text(CONFIG.replace('"1 min"', '"soon"'))
        said = line_with(process, " failed: ")
        assert "attribution_window: a duration is a number and one of" in said
        line_with(process, " failed, 2 in a row: ")
        config.write_text(CONFIG)
        line_with(process, " is done; ")

        with lake.lock():
            line_with(process, "waiting: another process is writing to the lake in ")
        line_with(process, " is done; ")

        code, out, err = done(directory, "--every", "1 s")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "error: another process does the nights of " in err

        os.kill(night_of(process), signal.SIGKILL)
        line_with(process, "failed: its process was ended by signal 9; the next one begins at ")
        process.terminate()
        line_with(process, "stopped")
        assert process.wait(timeout=600) == 0
    assert generations(directory) == [0, 1]


@pytest.mark.parametrize(
    "how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_stop_in_the_night_ends_both_and_the_next_goes_on(
    directory: Path, how: signal.Signals
) -> None:
    with going(directory, "--every", "1 h") as process:
        line_with(process, "the first night begins at ")
        night = night_of(process)
        process.send_signal(how)
        line_with(process, "stopped")
        assert process.wait(timeout=600) == 0
        assert not Path(f"/proc/{night}").exists()
    code, out, err = done(directory, "--json")
    assert code == 0, err
    (found,) = json.loads(out)["loops"]
    assert (found["challenger"], found["failed"]) == (1, None)
    assert generations(directory) == [0, 1]


def test_it_waits_for_its_time(directory: Path) -> None:
    minutes = int(time.time() // 60) % 1440
    later = (minutes + 720) % 1440
    at = f"{later // 60:02}:{later % 60:02}"
    with going(directory, "--every", "24 h", "--at", at) as process:
        assert f"T{at}:00Z; stop with" in line_with(process, "the first night begins at ")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=600) == 0
    assert generations(directory) == []


def test_every_night_is_an_object_for_programs(directory: Path) -> None:
    with going(directory, "--every", "1 s", "--json") as process:
        assert process.stdout is not None
        first, second = (json.loads(process.stdout.readline())["loops"][0] for _ in range(2))
    assert (first["challenger"], first["failed"]) == (1, None)
    assert second["challenger"] is None
    assert second["skipped"] == "nothing has come since generation 1 was trained"


def test_a_single_night_says_in_one_line_why_it_can_not_go_on(directory: Path) -> None:
    lake = Lake(directory / "data" / "lake")
    with lake.lock():
        for arguments in ([], ["--wait", "1 ms"]):
            code, out, err = done(directory, *arguments)
            assert code == 2
            assert err.splitlines()[-1].startswith("error: another process is writing to the lake")
            assert (out != "") == ("--wait" in arguments)
    assert done(directory)[0] == 0
    # Something to learn, whatever day it is: what isn't new isn't read again.
    decisions(directory, 100, minutes_ago=20, after=400)
    for damaged in (directory / "data" / "lake" / "interactions").rglob("*.parquet"):
        damaged.write_bytes(damaged.read_bytes()[:100])
    code, _, err = done(directory)
    assert (code, "Traceback" in err) == (2, False)
    assert err.splitlines()[-1].startswith("error: the night can't go on: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--at", "02:30"], "at: expected --every with it"),
        (["--every", "soon"], "every: a duration is"),
        (["--wait", "soon"], "wait: a duration is"),
    ],
)
def test_what_is_no_schedule_is_one_line(
    tmp_path: Path, complain: Complain, arguments: list[str], said: str
) -> None:
    (tmp_path / "croupier.toml").write_text(CONFIG)
    config = ["--config", str(tmp_path / "croupier.toml")]
    assert complain("nightly", *arguments, *config).startswith(said)
