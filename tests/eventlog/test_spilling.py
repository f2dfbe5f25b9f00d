"""Any history of a log that goes away and comes back leaves in it, in order, what was appended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from croupier.eventlog import spilling
from croupier.eventlog.appender import Appender
from croupier.eventlog.spilling import SpillingWriter, SpillState, spill_state, spilling_since
from croupier.eventlog.sqlite import MAX_PAYLOAD_BYTES, SqliteEventLog
from croupier.policy.errors import InvalidInputError, LogUnavailableError
from tests.eventlog.helpers import MEMORY, SCRIPTS, keys, read_all, record, records, wait_until
from tests.eventlog.spiller import AwayableLog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from croupier.eventlog.log import Record

ROOM = 2**30


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have forwarders look for the log more often than is good for a network."""
    monkeypatch.setattr(spilling, "_FIRST_RETRY_S", 0.002)
    monkeypatch.setattr(spilling, "_LAST_RETRY_S", 0.01)


@pytest.fixture
def home(memory_directory: Path) -> AwayableLog:
    return AwayableLog(memory_directory / "log", memory_directory / "away")


@pytest.fixture
def spill(memory_directory: Path) -> Path:
    return memory_directory / "spill"


@pytest.fixture
def writer(home: AwayableLog, spill: Path) -> Iterator[SpillingWriter]:
    with SpillingWriter(home, spill, max_bytes=ROOM) as writer:
        yield writer


def another(home: AwayableLog, spill: Path, *, max_bytes: int = ROOM) -> SpillingWriter:
    """What a second process would have."""
    return SpillingWriter(AwayableLog(home.folder, home.flag), spill, max_bytes=max_bytes)


def stored(home: AwayableLog) -> list[str]:
    """Keys in the log, which may be written to, without repeats of what was there before."""
    with SqliteEventLog(home.folder) as log:
        return list(dict.fromkeys(keys(read_all(log, grows=True))))


def settle(writer: SpillingWriter) -> None:
    wait_until(lambda: not writer.state.spilling)


def fill(writer: SpillingWriter) -> int:
    """Append until there is no more room, and say how many records there was room for."""
    number = 0

    def append() -> None:
        nonlocal number
        for number in range(10_000):
            writer.append([record(number, 1000)])

    with pytest.raises(LogUnavailableError, match="at most 300000 may"):
        append()
    return number


def names(count: int) -> list[str]:
    return [f"d{number}" for number in range(count)]


class SpillMachine(RuleBasedStateMachine):
    """Two writers that share a log and a spill, next to the list of what they have appended."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY)
        self.root = Path(self.folder.name)
        self.model: list[str] = []
        self.home = AwayableLog(self.root / "log", self.root / "away")
        self.writers = [another(self.home, self.root / "spill") for _ in range(2)]

    @rule(which=st.integers(0, 1), count=st.integers(0, 100))
    def append(self, which: int, count: int) -> None:
        batch = records(len(self.model), count)
        self.writers[which].append(batch)
        self.model += keys_of(batch)

    @rule(away=st.booleans())
    def switch(self, away: bool) -> None:
        self.home.away = away

    @rule(which=st.integers(0, 1))
    def lose_an_acknowledgement(self, which: int) -> None:
        log = self.writers[which]._log
        assert isinstance(log, AwayableLog)
        log.deaf = 1

    @rule(which=st.integers(0, 1))
    def restart(self, which: int) -> None:
        self.writers[which].close()
        self.writers[which] = another(self.home, self.root / "spill")

    @rule()
    def come_back(self) -> None:
        self.home.away = False
        for writer in self.writers:
            settle(writer)
        assert stored(self.home) == self.model

    def teardown(self) -> None:
        self.come_back()
        for writer in self.writers:
            writer.close()
        self.home.close()
        self.folder.cleanup()


def keys_of(batch: list[Record]) -> list[str]:
    return [each.key for each in batch]


SpillMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


TestHistories = SpillMachine.TestCase


def test_a_log_that_is_there_gets_everything_at_once(
    writer: SpillingWriter, home: AwayableLog, spill: Path
) -> None:
    writer.append(records(0, 3))
    assert stored(home) == names(3)
    assert writer.state == SpillState()
    assert sorted(path.name for path in spill.iterdir()) in ([], ["append.lock"])


def test_while_the_log_is_away_records_are_on_disk(
    writer: SpillingWriter, home: AwayableLog, spill: Path
) -> None:
    before = time.time()
    home.away = True
    writer.append(records(0, 3))
    writer.append(records(3, 2))
    state = writer.state
    assert state.spilling
    assert state.since is not None
    assert before <= state.since <= time.time()
    wait_until(lambda: writer.state.records == 5)
    assert writer.state.error == "the log is away"
    assert spill_state(spill).records == 5
    assert spilling_since(spill) == state.since
    assert stored(home) == []
    home.away = False
    settle(writer)
    assert stored(home) == names(5)
    assert spill_state(spill) == SpillState() == writer.state
    assert spilling_since(spill) is None
    assert not [path for path in spill.iterdir() if path.is_dir()]


def test_nothing_overtakes_what_was_spilled(writer: SpillingWriter, home: AwayableLog) -> None:
    home.away = True
    writer.append(records(0, 500))
    home.away = False
    for number in range(500, 1500):
        writer.append([record(number)])
    settle(writer)
    assert stored(home) == names(1500)


def test_several_writers_spill_together(
    writer: SpillingWriter, home: AwayableLog, spill: Path
) -> None:
    home.away = True
    writer.append(records(0, 3))
    with another(home, spill) as other:
        # Its own log would take it, if it asked.
        home.away = False
        assert isinstance(other._log, AwayableLog)
        writer._closed.set()
        other.append(records(3, 3))
        settle(other)
    assert stored(home) == names(6)


def test_what_a_process_has_left_behind_is_forwarded(home: AwayableLog, spill: Path) -> None:
    home.away = True
    with another(home, spill) as first:
        first.append(records(0, 700))
    home.away = False
    with another(home, spill) as second:
        assert second.state.spilling or stored(home) == names(700)
        second.append(records(700, 1))
        settle(second)
    assert stored(home) == names(701)


def test_forwarding_goes_on_where_it_ended(home: AwayableLog, spill: Path) -> None:
    home.away = True
    with another(home, spill) as first:
        first.append(records(0, 700))
        assert isinstance(first._log, AwayableLog)
        first._log.budget = 1
        home.away = False
        wait_until(lambda: stored(home) != [])
        home.away = True
    home.away = False
    with another(home, spill) as second:
        settle(second)
    with SqliteEventLog(home.folder) as log:
        assert keys(read_all(log)) == names(700)


def test_without_a_mark_everything_is_forwarded_again(home: AwayableLog, spill: Path) -> None:
    home.away = True
    with another(home, spill) as first:
        first.append(records(0, 10))
    (mark,) = spill.glob("*/forwarded")
    mark.write_bytes(b"0000")
    home.away = False
    with another(home, spill) as second:
        settle(second)
    assert stored(home) == names(10)


def test_a_full_spill_is_an_unavailable_log(home: AwayableLog, spill: Path) -> None:
    home.away = True
    with another(home, spill, max_bytes=300_000) as writer:
        kept = fill(writer)
        assert 5 < kept < 300
        with pytest.raises(LogUnavailableError):
            writer.append([record(kept, 300_000)])
        home.away = False
        settle(writer)
        writer.append([record(kept)])
    assert stored(home) == names(kept + 1)


def test_asking_a_full_spill_whether_it_can_be_written(home: AwayableLog, spill: Path) -> None:
    home.away = True
    with another(home, spill, max_bytes=300_000) as writer:
        fill(writer)
        with pytest.raises(LogUnavailableError):
            writer.append(records(0, 100))
        home.away = False
        settle(writer)
        writer.append([])


def test_a_spill_that_can_not_be_written_is_an_unavailable_log(
    writer: SpillingWriter, home: AwayableLog, spill: Path
) -> None:
    home.away = True
    spill.rename(spill.with_name("elsewhere"))
    spill.write_text("a file")
    with pytest.raises(LogUnavailableError, match="spill"):
        writer.append(records(0, 1))
    spill.unlink()
    spill.with_name("elsewhere").rename(spill)
    writer.append(records(0, 1))
    home.away = False
    settle(writer)
    assert stored(home) == names(1)


def test_asking_a_log_that_is_away_begins_to_spill(
    writer: SpillingWriter, home: AwayableLog
) -> None:
    home.away = True
    writer.append([])
    assert writer.state.spilling
    home.away = False
    settle(writer)


def test_beginning_without_the_log(writer: SpillingWriter, home: AwayableLog) -> None:
    home.away = True
    writer.begin(LogUnavailableError("nobody there"))
    assert writer.state.spilling
    asked = home.asked
    writer.append(records(0, 1))
    # The forwarder asks now and then, whoever appends doesn't.
    assert home.asked - asked < 50
    home.away = False
    settle(writer)
    assert stored(home) == names(1)


def test_large_records_are_forwarded_a_few_at_a_time(
    writer: SpillingWriter, home: AwayableLog
) -> None:
    home.away = True
    for number in range(12):
        writer.append([record(number, 2**20)])
    home.away = False
    settle(writer)
    assert stored(home) == names(12)
    assert writer._limit <= 4


def test_a_payload_that_is_too_large_is_refused(writer: SpillingWriter) -> None:
    assert writer.max_payload_bytes == MAX_PAYLOAD_BYTES
    with pytest.raises(InvalidInputError):
        writer.append([record(0, MAX_PAYLOAD_BYTES + 1)])


def test_max_bytes_is_at_least_1(home: AwayableLog, spill: Path) -> None:
    with pytest.raises(InvalidInputError):
        SpillingWriter(home, spill, max_bytes=0)


def test_a_closed_writer_refuses(home: AwayableLog, spill: Path) -> None:
    writer = another(home, spill)
    writer.close()
    writer.close()
    with pytest.raises(LogUnavailableError, match="closed"):
        writer.append(records(0, 1))
    with pytest.raises(LogUnavailableError, match="closed"):
        writer.begin(LogUnavailableError("x"))


def test_a_fault_of_the_forwarder_is_told_and_survived(
    writer: SpillingWriter, home: AwayableLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.away = True
    writer.append(records(0, 1))
    with monkeypatch.context() as broken:
        broken.setattr(spilling, "_record", None)
        home.away = False
        wait_until(lambda: "NoneType" in (writer.state.error or ""))
    settle(writer)
    assert stored(home) == names(1)


def test_state_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert spill_state(tmp_path / "spill") == SpillState()
    assert spilling_since(tmp_path / "spill") is None
    assert not (tmp_path / "spill").exists()


def test_threads_that_append_keep_their_order(writer: SpillingWriter, home: AwayableLog) -> None:
    def append(name: int) -> None:
        for number in range(60):
            writer.append([record(1000 * name + number)])

    threads = [threading.Thread(target=append, args=(name,)) for name in range(1, 4)]
    for thread in threads:
        thread.start()
    for away in (True, False) * 10:
        home.away = away
        time.sleep(0.005)
    for thread in threads:
        thread.join()
    settle(writer)
    found = [int(key[1:]) for key in stored(home)]
    for name in range(1, 4):
        assert [each for each in found if each // 1000 == name] == [
            1000 * name + number for number in range(60)
        ]
    assert len(found) == 180


def test_an_appender_over_it_acknowledges_all_the_time(
    writer: SpillingWriter, home: AwayableLog
) -> None:
    with Appender(writer, max_batch=16, max_pending=10_000, durability="commit") as appender:
        futures = []
        for number in range(300):
            home.away = number % 100 > 50
            futures.append(appender.submit(record(number)))
        for future in futures:
            future.result(60)
        assert appender.last_error is None
    home.away = False
    settle(writer)
    assert stored(home) == names(300)


def test_killed_processes_lose_nothing(home: AwayableLog, spill: Path) -> None:
    """Two processes append, and are killed again and again while the log comes and goes."""
    acknowledged: list[str] = []
    for life in range(6):
        home.away = life % 3 != 2
        running = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.eventlog.spiller",
                    *map(str, (home.folder, home.flag, spill, f"{life}{name}")),
                ],
                stdout=subprocess.PIPE,
                cwd=SCRIPTS.parents[1],
            )
            for name in "ab"
        ]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        time.sleep(0.15)
        home.away = not home.away
        time.sleep(0.15)
        for process in running:
            os.kill(process.pid, signal.SIGKILL)
        for process in running:
            said, _ = process.communicate()
            acknowledged += said.decode().splitlines()
    assert len(acknowledged) > 100
    home.away = False
    with closing(another(home, spill)) as writer:
        settle(writer)
    found = stored(home)
    assert set(acknowledged) <= set(found)
    for writer_name in {key[:2] for key in acknowledged}:
        numbers = [int(key[3:]) for key in found if key[:2] == writer_name]
        assert numbers == sorted(numbers)


def test_a_crash_at_any_line_loses_nothing(memory_directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.eventlog.spill_crashes", str(memory_directory)],
        capture_output=True,
        text=True,
        check=False,
        cwd=SCRIPTS.parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 120
