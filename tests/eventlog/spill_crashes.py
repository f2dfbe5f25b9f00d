"""Run by a test: kill a process at every single line of ``spilling.py`` that it runs through.

A child appends while the log is away, sees it come back, and appends again when everything was
brought over. The first child is killed with SIGKILL before the first line that it executes, in
whichever of its threads, the next one before the second, and so on until one comes through. After
each, another process finds what is left: the log has to hold what was acknowledged, in order.

Usage: ``spill_crashes.py DIRECTORY``. Prints how many children were killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from croupier.eventlog import spilling
from croupier.eventlog.spilling import SpillingWriter
from croupier.eventlog.sqlite import SqliteEventLog
from tests.eventlog.helpers import keys, read_all, records
from tests.eventlog.spiller import AwayableLog

if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

BATCHES = (1, 3, 2)
ROOM = 2**30


def open_writer(directory: Path) -> tuple[AwayableLog, SpillingWriter]:
    log = AwayableLog(directory / "log", directory / "away")
    return log, SpillingWriter(log, directory / "spill", max_bytes=ROOM)


def settle(writer: SpillingWriter) -> None:
    deadline = time.monotonic() + 60
    while writer.state.spilling:
        assert time.monotonic() < deadline, "it was never brought over"
        time.sleep(0.001)


def write(directory: Path, acknowledge: int) -> None:
    log, writer = open_writer(directory)
    log.away = True
    for batch, count in enumerate(BATCHES):
        if batch == len(BATCHES) - 1:
            log.away = False
            settle(writer)
        writer.append(records(sum(BATCHES[:batch]), count))
        os.write(acknowledge, bytes([batch]))
    writer.close()


def die_at(line: int) -> None:
    """Kill this process before the given number of lines of ``spilling.py`` was executed."""
    left = line
    passed: set[int] = set()
    lock = threading.Lock()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG001
        nonlocal left
        if frame.f_code.co_filename != spilling.__file__:
            return None
        with lock:
            if event == "line" and frame.f_lineno not in passed:
                passed.add(frame.f_lineno)
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)


def check(directory: Path, acknowledged: int) -> None:
    """Compare what comes to the log with what its writer was told."""
    log, writer = open_writer(directory)
    log.away = False
    settle(writer)
    writer.close()
    with SqliteEventLog(directory / "log") as found:
        kept = list(dict.fromkeys(keys(read_all(found))))
    counts = [sum(BATCHES[:batch]) for batch in range(len(BATCHES) + 1)]
    # The batch that it died over may be there, or not, but never a part of it.
    assert len(kept) in counts[acknowledged : acknowledged + 2], (acknowledged, kept)
    assert kept == [f"d{number}" for number in range(len(kept))], kept


def survived(directory: Path, line: int) -> bool:
    """Have a child die at a line, and check what it leaves; whether it came through instead."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        die_at(line)
        write(directory, writing)
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        acknowledged = len(pipe.read())
    check(directory, acknowledged)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        return True
    return False


def main() -> None:
    spilling._FIRST_RETRY_S = spilling._LAST_RETRY_S = 0.002
    root = Path(sys.argv[1])
    line = 1
    while True:
        directory = root / str(line)
        directory.mkdir()
        if survived(directory, line):
            break
        rmtree(directory)
        line += 1
    print(line - 1)


if __name__ == "__main__":
    main()
