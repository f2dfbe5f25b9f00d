"""``croupier lake compact``, a process of its own, beside a running sink and between joins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.interactions import current_interactions
from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.offline.realised import realised
from croupier.offline.sink import sink
from croupier.policy.loop import LoopConfig
from tests.offline.logs import EPOCH_US, SUNK, append, mixed_events, table

if TYPE_CHECKING:
    from typing import IO

ROOT = Path(__file__).parents[2]
WINDOW = LoopConfig(attribution_window="1 h")
LATER = EPOCH_US + 10**12
CONFIG = """\
data_dir = "data"

[loops.shop]
attribution_window = "1 h"
"""


def compact(directory: Path) -> int:
    """Run the command; how many files fewer there are."""
    config = directory / "croupier.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "croupier", "lake", "compact", "--json"]
    done = subprocess.run(
        [*command, "--config", str(config)],
        check=False,
        capture_output=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return sum(msgspec.json.decode(done.stdout, type=dict[str, int]).values())


def rounds(said: IO[str], count: int) -> int:
    """Wait until the sink has gone through so many rounds more."""
    last = ""
    for _ in range(count):
        last = said.readline()
    assert last, "the sink has ended"
    return int(last)


def test_a_sink_goes_on_while_its_days_are_compacted(tmp_path: Path) -> None:
    """Whatever the two do at the same time, the lake is the one that a sink alone has made."""
    lake = Lake(tmp_path / "data" / "lake")
    script = [
        sys.executable,
        "-m",
        "tests.offline.sinking_on",
        str(tmp_path / "log"),
        str(lake.root),
        "1",
    ]
    with subprocess.Popen(
        script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        first = rounds(child.stdout, 3)
        fewer = []
        for _ in range(3):
            fewer.append(compact(tmp_path))
            # It sinks on into the days that were compacted just now.
            rounds(child.stdout, 2)
            assert child.poll() is None
        join(lake, "shop", WINDOW, LATER)
        fewer.append(compact(tmp_path))
        child.stdin.close()
        rest = child.stdout.readlines()
    assert child.returncode == 0
    assert min(fewer) > 0, fewer
    assert int(rest[-1]) > first + 6
    join(lake, "shop", WINDOW, LATER)
    whole = Lake(tmp_path / "whole")
    with SqliteEventLog(tmp_path / "log") as log:
        sink(log, whole)
    join(whole, "shop", WINDOW, LATER)
    for name in SUNK:
        assert table(lake.root, name).equals(table(whole.root, name)), name
    one, other = (
        current_interactions(each, "shop").drop("revision").sort("offset", "slot").collect()
        for each in (lake, whole)
    )
    assert one.equals(other)


def test_compaction_between_nights_is_not_taken_for_new_rows(tmp_path: Path) -> None:
    """Neither by the join nor by what adds up what generations earned."""
    lake = Lake(tmp_path / "data" / "lake")
    with SqliteEventLog(tmp_path / "log") as log:
        events = mixed_events(600, seed=2)
        for start in range(0, 600, 200):
            append(log, events[start : start + 200])
            sink(log, lake, batch=25)
            join(lake, "shop", WINDOW, LATER)
            before = realised(lake, "shop")
            assert compact(tmp_path) > 0
            again = join(lake, "shop", WINDOW, LATER)
            assert (again.joined, again.revised) == (0, 0)
            after = realised(lake, "shop")
            assert list(after) == list(before)
            for number, found in before.items():
                assert after[number].moments.rows == found.moments.rows
                assert after[number].moments.mean == pytest.approx(found.moments.mean)
                p_value = pytest.approx(found.propensity_p_value)
                assert after[number].propensity_p_value == p_value
