"""Run by a test: kill a writer at every single line of the SQLite log that it runs through.

A child appends to a log of small segments, releases, and appends again. The first child is killed
with SIGKILL before the first line of ``sqlite.py`` that it executes, the next one before the
second, and so on until one comes through. A line that is passed often counts twice: the first and
the second segment differ, later ones don't. After each, the log has to hold what was acknowledged,
nothing twice and no half batch, and has to go on accepting.

Usage: ``crashes.py DIRECTORY``. Prints how many children were killed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from croupier.eventlog import sqlite
from croupier.eventlog.log import Record
from croupier.eventlog.sqlite import SqliteEventLog

if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

SEGMENT_ROWS = 2
BATCHES = (1, 3, 1, 2)


def append(log: SqliteEventLog, name: str, count: int) -> None:
    log.append([Record("checkout", "decision", f"{name}:{n}", b"x" * 100) for n in range(count)])


def write(directory: Path, acknowledge: int) -> None:
    """Append batches over several segments, then release the first."""
    with SqliteEventLog(directory, segment_rows=SEGMENT_ROWS) as log:
        for batch, count in enumerate(BATCHES):
            append(log, str(batch), count)
            os.write(acknowledge, bytes([batch]))
    # Not by the one that appended: this one has yet to open everything.
    with SqliteEventLog(directory) as log:
        log.release(3)


def die_at(line: int) -> None:
    """Kill this process before the given number of lines of ``sqlite.py`` was executed."""
    left = line
    passed: Counter[int] = Counter()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG001
        nonlocal left
        if frame.f_code.co_filename != sqlite.__file__:
            return None
        passed[frame.f_lineno] += event == "line"
        if event == "line" and passed[frame.f_lineno] <= 2:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def survivors(log: SqliteEventLog) -> list[str]:
    entries = log.read(log.start(), limit=100)
    positions = [entry.position for entry in entries]
    assert positions == list(range(log.start(), log.end())), positions
    return [entry.key for entry in entries]


def check(directory: Path, acknowledged: int) -> None:
    """Compare what is in the log with what its writer was told."""
    expected = [f"{batch}:{n}" for batch, count in enumerate(BATCHES) for n in range(count)]
    with SqliteEventLog(directory, segment_rows=SEGMENT_ROWS) as log:
        start, kept = log.start(), survivors(log)
        assert start == 1 or acknowledged == len(BATCHES), f"released {start} before it was told to"
        # The batch that was under way may have made it, as a whole.
        whole = [sum(BATCHES[:batch]) for batch in (acknowledged, acknowledged + 1)]
        assert start - 1 + len(kept) in whole, f"expected {whole} records, found {kept}"
        assert kept == expected[start - 1 : start - 1 + len(kept)], kept
        append(log, "after", 3)
        append(log, "last", 1)
        assert survivors(log) == [*kept, "after:0", "after:1", "after:2", "last:0"]
        log.release(log.end())
        assert survivors(log) == ["last:0"]
    assert len(list(directory.iterdir())) == 2, list(directory.iterdir())


def crash(directory: Path, line: int) -> bool:
    """Let a child die at a line, and check the log; False if the child came through."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        die_at(line)
        write(directory, write_end)
        sys.settrace(None)
        os._exit(0)
    os.close(write_end)
    _, status = os.waitpid(pid, 0)
    # An empty pipe whose writer is gone reads as nothing.
    acknowledged = len(os.read(read_end, 100))
    os.close(read_end)
    check(directory, acknowledged)
    rmtree(directory)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, f"the child failed with status {status}"
    return killed


def main() -> None:
    line = 1
    while crash(Path(sys.argv[1]) / str(line), line):
        line += 1
    print(line - 1)


if __name__ == "__main__":
    main()
