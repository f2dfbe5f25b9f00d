"""Run by a test: join a lake in children that are killed over and over, until one gets through.

Usage: ``joining.py LAKE AS_OF HELD SEED KILLS``. Prints for every kill what had been begun: ``r``,
reading; ``w``, writing what was joined; ``c``, the commit.

A child says what it is about to do, stretch by stretch. It is killed a moment after it has said so
for some time, so that on a machine of any speed it has come some way.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.policy.loop import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import polars as pl

    from croupier.offline.lake import TableName

CONFIG = LoopConfig(attribution_window="12 h")
LONGEST_S = 0.02
# What a child reads at least before it writes.
READS = 30


class SpeakingLake(Lake):
    """Writes a byte to a pipe before every step of a join."""

    def __init__(self, root: Path, pipe: int) -> None:
        super().__init__(root)
        self.pipe = pipe
        self.doing = b"r"

    def read(self, table: TableName, files: Sequence[Path], **options: Any) -> pl.LazyFrame:
        os.write(self.pipe, self.doing)
        return super().read(table, files, **options)

    def append_stream(
        self, table: TableName, frames: Iterator[pl.DataFrame], marks: Mapping[str, int]
    ) -> None:
        self.doing = b"w"

        def spoken() -> Iterator[pl.DataFrame]:
            yield from frames
            os.write(self.pipe, b"c")

        super().append_stream(table, spoken(), marks)


def child(root: Path, as_of: int, held: int, pipe: int) -> None:
    lake = SpeakingLake(root, pipe)
    with lake.lock():
        join(lake, "shop", CONFIG, as_of, held=held)


def killed_at(root: Path, as_of: int, held: int, rng: random.Random) -> str | None:
    """Let a child do some steps; what it was about then, or None if it came through before."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        child(root, as_of, held, write_end)
        os._exit(0)
    os.close(write_end)
    # A third of them while it reads, a third when it writes, a third at the commit.
    until, left = rng.choice(
        [(b"rwc", rng.randint(1, READS)), (b"wc", rng.randint(1, 9)), (b"c", 1)]
    )
    doing = b""
    while left and (said := os.read(read_end, 1)):
        doing = said
        left -= said in until
    time.sleep(rng.uniform(0.0, LONGEST_S))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(read_end)
    assert os.WIFSIGNALED(status) or status == 0, f"the child failed with status {status}"
    return doing.decode() if os.WIFSIGNALED(status) else None


def main() -> None:
    root = Path(sys.argv[1])
    as_of, held, seed, kills = map(int, sys.argv[2:])
    rng = random.Random(seed)
    # Nothing here touches a lake: a fork is safe as long as the libraries have started no threads.
    found = [killed_at(root, as_of, held, rng) for _ in range(kills)]
    print("".join(each or "" for each in found))


if __name__ == "__main__":
    main()
