"""Run by a test: sink a log in children that are killed over and over, until one gets through.

Usage: ``sinking.py LOG LAKE BATCH SEED``. Prints how many children were killed at a commit.

A child says when it is about to commit. One of its next commits is its last: it is killed a moment
after it said so, so that on a machine of any speed it has come some way, and the kill comes before,
within or after what the commit does.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.lake import Lake
from croupier.offline.sink import sink

if TYPE_CHECKING:
    from croupier.offline.lake import TableName

LONGEST_S = 0.04


class SpeakingLake(Lake):
    """Writes a byte to a pipe before every commit."""

    def __init__(self, root: Path, pipe: int) -> None:
        super().__init__(root)
        self.pipe = pipe

    def append(self, table: TableName, *args: Any, **kwargs: Any) -> None:
        os.write(self.pipe, b".")
        super().append(table, *args, **kwargs)


def child(log: Path, lake: Path, batch: int, pipe: int) -> None:
    into = SpeakingLake(lake, pipe)
    with SqliteEventLog(log) as records, into.lock():
        sink(records, into, batch=batch)


def was_killed(log: Path, lake: Path, batch: int, rng: random.Random) -> bool:
    """Let a child live for some commits; False if it came through before."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        child(log, lake, batch, write_end)
        os._exit(0)
    os.close(write_end)
    for _ in range(rng.randint(1, 5)):
        os.read(read_end, 1)
    time.sleep(rng.uniform(0.0, LONGEST_S))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(read_end)
    assert os.WIFSIGNALED(status) or status == 0, f"the child failed with status {status}"
    return os.WIFSIGNALED(status)


def main() -> None:
    log, lake = map(Path, sys.argv[1:3])
    batch, seed = map(int, sys.argv[3:])
    rng = random.Random(seed)
    killed = 0
    # Nothing here touches a lake: a fork is safe as long as the libraries have started no threads.
    while was_killed(log, lake, batch, rng):
        killed += 1
    print(killed)


if __name__ == "__main__":
    main()
