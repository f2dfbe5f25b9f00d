"""Several processes on one log, and what is left of it when they are killed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import pytest

from croupier.eventlog.sqlite import SqliteEventLog
from tests.eventlog.helpers import SCRIPTS, keys, read_all, record, segments
from tests.eventlog.writer import payload

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.eventlog.log import LogEntry


def start_writer(
    directory: Path, name: str, *, appends: int, batch: int, segment_rows: int
) -> subprocess.Popen[bytes]:
    arguments = [str(directory), name, str(appends), str(batch), str(segment_rows)]
    # Unbuffered, or acknowledgements would be left in a buffer that communicate() passes by.
    return subprocess.Popen(
        [sys.executable, SCRIPTS / "writer.py", *arguments], stdout=subprocess.PIPE, bufsize=0
    )


def finish(process: subprocess.Popen[bytes]) -> int:
    """Wait for a writer, and return how many records it said were durable."""
    output, _ = process.communicate(timeout=120)
    lines = output.splitlines()
    return int(lines[-1]) if lines else 0


def by_writer(entries: list[LogEntry]) -> dict[str, list[int]]:
    """Group the numbers of the records by their writer, in the order of the log."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        name, number = entry.key.split(":")
        assert entry.payload == payload(entry.key)
        numbers[name].append(int(number))
    return numbers


@pytest.mark.parametrize("segment_rows", [50, 1_000_000])
def test_a_reader_tails_several_writers_and_misses_nothing(
    memory_directory: Path, segment_rows: int
) -> None:
    """It releases what it has read while the others write on, as the sink does."""
    directory = memory_directory
    with SqliteEventLog(directory, busy_timeout_s=60) as log:
        writers = {
            name: start_writer(directory, name, appends=150, batch=5, segment_rows=segment_rows)
            for name in ("a", "b", "c", "d")
        }
        entries: list[LogEntry] = []
        while True:
            finished = all(writer.poll() is not None for writer in writers.values())
            found = log.read(len(entries) + 1, limit=37)
            assert [entry.position for entry in found] == list(
                range(len(entries) + 1, len(entries) + 1 + len(found))
            )
            entries += found
            log.release(len(entries) + 1)
            if finished and not found:
                break
        acknowledged = {name: finish(writer) for name, writer in writers.items()}
        assert all(writer.returncode == 0 for writer in writers.values())
        assert log.end() == len(entries) + 1
    # Numbers of a writer in their order, each once, none missing.
    assert by_writer(entries) == {name: list(range(count)) for name, count in acknowledged.items()}
    if segment_rows == 50:
        assert len(segments(directory)) <= 2


@pytest.mark.parametrize(
    ("segment_rows", "batch"), [(3, 2), (200, 8)], ids=["at rotations", "within segments"]
)
def test_acknowledged_records_survive_sigkill(
    memory_directory: Path, segment_rows: int, batch: int
) -> None:
    """Writers are killed over and over, while others of them write and none of them expects it."""
    directory = memory_directory
    rng = random.Random(segment_rows)
    acknowledged: dict[str, int] = {}
    for generation in range(10):
        writers = {
            f"{generation}-{which}": start_writer(
                directory,
                f"{generation}-{which}",
                appends=1_000_000,
                batch=batch,
                segment_rows=segment_rows,
            )
            for which in range(3)
        }
        for name, writer in writers.items():
            # However fast the machine is: somewhere within an append after this many.
            assert writer.stdout is not None
            for _ in range(rng.randint(0, 25)):
                acknowledged[name] = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
        for name, writer in writers.items():
            acknowledged[name] = max(acknowledged.get(name, 0), finish(writer))
            assert writer.returncode == -signal.SIGKILL

    with SqliteEventLog(directory, segment_rows=segment_rows) as log:
        found = by_writer(read_all(log))
        for name, count in acknowledged.items():
            numbers = found.get(name, [])
            assert numbers == list(range(len(numbers)))
            # What was appended but not acknowledged yet is at most one batch.
            assert count <= len(numbers) <= count + batch
        assert sum(acknowledged.values()) > 300
        end = log.end()
        assert log.append([record(number) for number in range(5)]) == end + 5
        assert keys(log.read(end, limit=10)) == [f"d{number}" for number in range(5)]


def test_no_line_is_a_bad_one_to_be_killed_at(memory_directory: Path) -> None:
    result = subprocess.run(
        [sys.executable, SCRIPTS / "crashes.py", memory_directory],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    # Creation, appends, a seal and a release: far more lines than this.
    assert int(result.stdout) > 200


def test_keys_of_the_writers_are_unique() -> None:
    """Guards the tests above: a payload has to tell records apart."""
    assert Counter(payload(f"w:{number}") for number in range(100)).most_common(1)[0][1] == 1
