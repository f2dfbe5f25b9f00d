"""A join whose process is killed, at any moment, and is then made again: as if it had not been."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.interactions import current_interactions
from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.offline.sink import sink
from croupier.policy.events import Activation, Event
from croupier.service.scorer import uuid7
from tests.offline.joining import CONFIG
from tests.offline.logs import EPOCH_US, append, decision, outcome

if TYPE_CHECKING:
    import polars as pl

ROOT = Path(__file__).parents[2]
DAY = 86_400_000_000
HELD, KILLS = 60, 6


def of_a_day(day: int, earlier: list[str], rng: random.Random) -> list[Event]:
    """Decisions, some of them deferred, and outcomes, some of which are of an earlier day's."""
    start = EPOCH_US + day * DAY
    events: list[Event] = []
    for number in range(100):
        ts = start + number * DAY // 200
        each = uuid7(ts)
        events.append(decision(each, ts, deferred=rng.random() < 0.1))
        earlier.append(each)
        of, sent = rng.choice(earlier[-300:]), ts + rng.randrange(DAY // 8)
        events.append(outcome(of, f"o{day}-{number}", sent, reward=rng.random()))
        if rng.random() < 0.1:
            events.append(Activation(decision_id=rng.choice(earlier[-150:]), loop="shop", ts=sent))
    return events


def everything(lake: Lake) -> pl.DataFrame:
    """All revisions, since how many there are depends on when it was joined."""
    return lake.scan("interactions").sort("offset", "revision").collect()


@pytest.mark.parametrize(
    ("seed", "days"), [(0, 2), *(pytest.param(seed, 4, marks=pytest.mark.slow) for seed in (0, 1))]
)
def test_a_join_that_is_killed_and_made_again_is_one_that_was_not(
    tmp_path: Path, seed: int, days: int
) -> None:
    killed, whole = Lake(tmp_path / "killed"), Lake(tmp_path / "whole")
    rng = random.Random(seed)
    earlier: list[str] = []
    kills = ""
    with SqliteEventLog(tmp_path / "log") as log:
        for day in range(days):
            append(log, of_a_day(day, earlier, rng))
            for lake in (killed, whole):
                sink(log, lake, batch=40)
            as_of = EPOCH_US + (day + 1) * DAY
            found = killed_some_times(killed.root, as_of, seed * 4 + day)
            kills += found
            join(killed, "shop", CONFIG, as_of, held=HELD)
            join(whole, "shop", CONFIG, as_of, held=HELD)
            assert everything(killed).equals(everything(whole)), (day, found)
            assert not (killed.root / ".join").exists()
    assert (everything(whole)["revision"] > 0).any()
    # Also after a commit nothing is killed that is through; most of the others were.
    assert len(kills) >= days
    assert {"r", "w"} <= set(kills)
    # What dead children wrote and did not commit is in nobody's way.
    at_once = Lake(tmp_path / "at-once")
    with SqliteEventLog(tmp_path / "log") as log:
        sink(log, at_once)
    join(at_once, "shop", CONFIG, EPOCH_US + days * DAY)
    one, other = (
        current_interactions(lake, "shop").drop("revision").sort("offset").collect()
        for lake in (killed, at_once)
    )
    assert one.equals(other)


def killed_some_times(root: Path, as_of: int, seed: int) -> str:
    """Join in processes that are killed; what each of them was about."""
    arguments = [str(each) for each in (root, as_of, HELD, seed, KILLS)]
    result = subprocess.run(
        [sys.executable, "-m", "tests.offline.joining", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
