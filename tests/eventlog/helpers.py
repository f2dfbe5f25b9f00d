"""What the tests of the event log share."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from croupier.eventlog.log import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from croupier.eventlog.log import LogEntry, LogPartition

SCRIPTS = Path(__file__).parent

# Where to put the logs of tests that would sync thousands of times. It makes no difference to
# them: what a killed process wrote is in the kernel, on a disk or in memory.
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


def record(number: int, size: int = 20) -> Record:
    """Make a record that can be told from every other."""
    return Record("checkout", "decision", f"d{number}", f"{number};".encode().ljust(size, b"x"))


def records(first: int, count: int) -> list[Record]:
    return [record(number) for number in range(first, first + count)]


def keys(entries: list[LogEntry]) -> list[str]:
    return [entry.key for entry in entries]


def read_all(log: LogPartition, limit: int = 1000, *, grows: bool = False) -> list[LogEntry]:
    """Read from the start to the end, and check that the positions have no gap.

    The end may have moved on after the last look at a log that grows.
    """
    entries: list[LogEntry] = []
    position = start = log.start()
    while found := log.read(position, limit=limit):
        entries += found
        position = found[-1].position + 1
    assert [entry.position for entry in entries] == list(range(start, position))
    assert position <= log.end() if grows else position == log.end()
    return entries


def segments(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.db"))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold SQLite's own write lock on a segment, as a stray tool might."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something another thread is about to do."""
    deadline = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)
