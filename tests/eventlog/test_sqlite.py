"""What is particular to the SQLite log: its files, and what it does when they fail it."""

from __future__ import annotations

import logging
import resource
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from croupier.eventlog.log import LogConfig
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.policy.errors import InvalidInputError, LogUnavailableError
from tests.eventlog.helpers import (
    SCRIPTS,
    keys,
    locked,
    read_all,
    record,
    records,
    segments,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST, SECOND, THIRD = (f"{base:020d}.db" for base in (1, 6, 11))
DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture
def log(directory: Path) -> Iterator[SqliteEventLog]:
    with SqliteEventLog(directory, segment_rows=5, busy_timeout_s=60) as log:
        yield log


def fill(log: SqliteEventLog, count: int) -> None:
    for number in range(count):
        log.append([record(number)])


# Files.


def test_segments_are_named_by_their_first_position(log: SqliteEventLog, directory: Path) -> None:
    assert segments(directory) == []
    fill(log, 12)
    assert segments(directory) == [FIRST, SECOND, THIRD]


def test_a_batch_is_never_split_between_segments(log: SqliteEventLog, directory: Path) -> None:
    log.append(records(0, 4))
    log.append(records(4, 9))
    log.append(records(13, 1))
    assert segments(directory) == [FIRST, f"{14:020d}.db"]


def test_a_configuration_opens_a_log(directory: Path) -> None:
    config = LogConfig(durability="buffered", segment_rows=2)
    with SqliteEventLog.open(directory, config) as log:
        fill(log, 3)
    assert len(segments(directory)) == 2
    with SqliteEventLog.open(directory) as log:
        assert keys(read_all(log)) == ["d0", "d1", "d2"]


@pytest.mark.parametrize(("synchronous", "level"), [("full", 2), ("normal", 1)])
def test_appends_are_synced_as_told(directory: Path, synchronous: str, level: int) -> None:
    with SqliteEventLog(directory, synchronous=synchronous) as log:  # type: ignore[arg-type]
        fill(log, 1)
        assert log._writer is not None
        connection = log._writer.connection
        assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"segment_rows": 0}, "segment_rows"),
        ({"busy_timeout_s": 0}, "busy_timeout_s"),
        ({"synchronous": "off"}, "synchronous"),
    ],
)
def test_options_out_of_range_are_refused(
    directory: Path, options: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        SqliteEventLog(directory, **options)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_odd_folder_names_work(tmp_path: Path) -> None:
    directory = tmp_path / "a b?c#d%20e" / "log"
    with SqliteEventLog(directory, segment_rows=5) as log:
        fill(log, 7)
        assert len(read_all(log)) == 7
    assert segments(directory) == [FIRST, SECOND]


def test_a_relative_folder_outlives_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with SqliteEventLog("log", segment_rows=5) as log:
        monkeypatch.chdir("/")
        fill(log, 7)
    assert segments(tmp_path / "log") == [FIRST, SECOND]


def test_closing_leaves_plain_databases(log: SqliteEventLog, directory: Path) -> None:
    fill(log, 12)
    read_all(log)
    log.close()
    assert {path.name for path in directory.iterdir()} == {FIRST, SECOND, THIRD, "writer.lock"}


def test_the_write_ahead_log_stays_small(directory: Path) -> None:
    with SqliteEventLog(directory) as log:
        for first in range(0, 24_000, 500):
            log.append([record(number, 1500) for number in range(first, first + 500)])
        (wal,) = directory.glob("*.db-wal")
        assert wal.stat().st_size < 16 * 2**20
        assert (directory / FIRST).stat().st_size > 24 * 2**20


# Several instances, as if in several processes.


def test_instances_continue_each_other(log: SqliteEventLog, directory: Path) -> None:
    with SqliteEventLog(directory, segment_rows=3) as other:
        for number in range(20):
            (log, other)[number % 2].append([record(number)])
            assert log.end() == other.end() == number + 2
        expected = [f"d{number}" for number in range(20)]
        assert keys(read_all(log)) == keys(read_all(other)) == expected


def test_a_writer_that_slept_through_releases_goes_on_at_the_end(
    log: SqliteEventLog, directory: Path
) -> None:
    with SqliteEventLog(directory, segment_rows=5) as other:
        other.append([record(0)])
        for number in range(1, 12):
            log.append([record(number)])
        assert log.release(11) == 2
        assert other.append([record(12)]) == 14
        assert segments(directory) == [THIRD]
        assert keys(read_all(log)) == ["d10", "d11", "d12"]


def test_a_reader_that_slept_through_releases_is_told(log: SqliteEventLog, directory: Path) -> None:
    fill(log, 12)
    with SqliteEventLog(directory) as reader:
        assert keys(reader.read(1, limit=1)) == ["d0"]
        log.release(11)
        with pytest.raises(InvalidInputError, match="at least 11"):
            reader.read(2, limit=1)
        assert reader.start() == 11


class _SlowReader(SqliteEventLog):
    """A log that others release just before or just after it opened a segment to read."""

    def __init__(self, directory: Path, other: SqliteEventLog, *, before: bool) -> None:
        super().__init__(directory)
        self.other = other
        self.before = before

    def _reader(self, base: int) -> sqlite3.Connection:
        if self.before:
            self.other.release(11)
        connection = super()._reader(base)
        self.other.release(11)
        return connection


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("position", [1, 3, 6])
def test_a_segment_that_vanishes_under_a_reader(
    log: SqliteEventLog, directory: Path, position: int, before: bool
) -> None:
    fill(log, 12)
    with _SlowReader(directory, log, before=before) as reader:
        with pytest.raises(InvalidInputError, match="at least 11"):
            reader.read(position, limit=100)
        assert keys(reader.read(11, limit=100)) == ["d10", "d11"]
        assert (reader.start(), reader.end()) == (11, 13)


def test_a_segment_that_is_being_read_is_released_later(
    log: SqliteEventLog, directory: Path
) -> None:
    log.append(records(0, 5))
    with closing(sqlite3.connect(directory / FIRST, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM batches").fetchone()
        log.append(records(5, 5))
        log.append(records(10, 1))
        assert log.release(100) == 0
        reader.execute("COMMIT")
        assert log.release(100) == 2


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="needs /proc")
def test_deleted_segments_are_let_go(log: SqliteEventLog, directory: Path) -> None:
    def held() -> list[str]:
        links = [str(path.readlink()) for path in DESCRIPTORS.iterdir() if path.is_symlink()]
        return [link for link in links if str(directory) in link and link.endswith("(deleted)")]

    fill(log, 12)
    read_all(log)
    with SqliteEventLog(directory) as other:
        other.read(1, limit=7)
        log.release(11)
        assert held()
        other.end()
        assert held() == []


def test_leftovers_of_deleted_segments_are_swept(log: SqliteEventLog, directory: Path) -> None:
    fill(log, 12)
    log.release(11)
    strays = [directory / f"{FIRST}-wal", directory / f"{SECOND}-shm"]
    for stray in strays:
        stray.write_bytes(b"left by a reader that came too late")
    log.release(11)
    assert not any(stray.exists() for stray in strays)
    assert keys(read_all(log)) == ["d10", "d11"]


def test_a_half_made_segment_is_swept(log: SqliteEventLog, directory: Path) -> None:
    log.append(records(0, 5))
    for name in ("segment.tmp", "segment.tmp-wal", "segment.tmp-journal"):
        (directory / name).write_bytes(b"the beginning of a segment whose writer died")
    log.append([record(5)])
    assert keys(read_all(log)) == [f"d{number}" for number in range(6)]
    assert not list(directory.glob("segment.tmp*"))


def test_a_segment_whose_other_name_was_left_is_kept(log: SqliteEventLog, directory: Path) -> None:
    fill(log, 3)
    (directory / "segment.tmp").hardlink_to(directory / FIRST)
    fill(log, 3)
    assert len(read_all(log)) == 6


# Trouble.


def test_another_lock_on_the_segment_is_waited_for_and_reported(
    log: SqliteEventLog, directory: Path
) -> None:
    log.append([record(0)])
    with SqliteEventLog(directory, busy_timeout_s=0.05) as waiter:
        with locked(directory / FIRST):
            with pytest.raises(LogUnavailableError, match="SQLITE_BUSY: database is locked"):
                waiter.append([record(1)])
            assert keys(read_all(waiter)) == ["d0"]
        log.append([record(2)])
        assert keys(read_all(waiter)) == ["d0", "d2"]


def test_a_writer_that_holds_the_log_is_reported(directory: Path) -> None:
    with (
        SqliteEventLog(directory) as holder,
        SqliteEventLog(directory, busy_timeout_s=0.05) as waiter,
    ):
        holder.append([record(0)])
        with holder._writing("holding the log"):
            with pytest.raises(LogUnavailableError, match="other writers held the log"):
                waiter.append([record(1)])
            with pytest.raises(LogUnavailableError, match="other writers held the log"):
                waiter.release(1)
            assert keys(read_all(waiter)) == ["d0"]
        waiter.append([record(2)])
        assert keys(read_all(holder)) == ["d0", "d2"]


def test_a_thread_that_holds_the_log_is_reported(directory: Path) -> None:
    inside, leave = threading.Event(), threading.Event()
    with SqliteEventLog(directory, busy_timeout_s=0.05) as log:

        def hold() -> None:
            with log._writing("holding the log"):
                inside.set()
                leave.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        try:
            inside.wait()
            with pytest.raises(LogUnavailableError, match="other writers held the log"):
                log.append([record(0)])
        finally:
            leave.set()
            thread.join()
        assert log.append([record(1)]) == 2


class _SmallDisk(SqliteEventLog):
    """A log whose segments can't grow beyond a number of pages."""

    pages = 2**30

    def _prepare_writer(self, connection: sqlite3.Connection) -> None:
        super()._prepare_writer(connection)
        connection.execute(f"PRAGMA max_page_count = {self.pages}").fetchall()


def test_a_full_disk_leaves_nothing_half_written(directory: Path) -> None:
    with _SmallDisk(directory) as log:
        log.pages = 20
        log.append(records(0, 3))
        with pytest.raises(LogUnavailableError, match="SQLITE_FULL"):
            log.append([record(number, 1500) for number in range(3, 1000)])
        assert keys(read_all(log)) == ["d0", "d1", "d2"]
        assert log.append(records(3, 1)) == 5
        log.pages = 2**30
        log._drop_writer()
        log.append([record(number, 1500) for number in range(4, 1000)])
        assert keys(read_all(log)) == [f"d{number}" for number in range(1000)]


@contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    """Let the kernel refuse to make any file of this process larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [8192, 40_000, 100_000])
def test_a_write_error_leaves_nothing_half_written(directory: Path, size: int) -> None:
    """Too little for the first segment, for its write-ahead log, for a batch in it."""
    with SqliteEventLog(directory) as log:
        with _file_size_limit(size), pytest.raises(LogUnavailableError, match="SQLITE_"):
            log.append([record(number, 1500) for number in range(1000)])
        assert log.end() == 1
        log.append(records(0, 2))
        assert keys(read_all(log)) == ["d0", "d1"]


def test_a_failed_checkpoint_does_not_fail_the_append(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The records are safe in the write-ahead log, only it can't be emptied yet."""
    batch = [record(number, 1500) for number in range(500)]
    with SqliteEventLog(directory) as log:
        while not (directory / FIRST).exists() or (directory / FIRST).stat().st_size < 2**20:
            log.append(batch)
        # A checkpoint was made, and the write-ahead log is overwritten from its beginning. Fill
        # half of it: it will have room for more, but the database won't for what is in there.
        end = 0
        for _ in range(6):
            end = log.append(batch)
        (wal,) = directory.glob("*.db-wal")
        with caplog.at_level(logging.WARNING), _file_size_limit(wal.stat().st_size):
            assert log._writer is not None
            log._writer._wal_bytes = 2**30
            assert log.append(batch[:1]) == end + 1
        assert "checkpoint of segment 1 failed: SQLITE_" in caplog.text
        assert len(read_all(log)) == end
    with SqliteEventLog(directory) as log:
        assert len(read_all(log)) == end


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(LogUnavailableError, match="making the log's folder failed"):
            SqliteEventLog(directory)


def test_a_folder_that_was_deleted(log: SqliteEventLog, directory: Path) -> None:
    directory.rmdir()
    for use in (log.start, log.end, lambda: log.append([record(0)]), lambda: log.read(1, limit=1)):
        with pytest.raises(LogUnavailableError, match="No such file"):
            use()


def test_a_folder_that_was_moved_away(log: SqliteEventLog, directory: Path) -> None:
    log.append([record(1)])
    away = directory.with_name("away")
    directory.rename(away)
    with pytest.raises(LogUnavailableError):
        log.append([record(2)])
    # Back where it was, and then exchanged for an empty one.
    away.rename(directory)
    log.append([record(3)])
    directory.rename(away)
    directory.mkdir()
    log.append([record(4)])
    assert keys(read_all(log)) == ["d4"]
    with SqliteEventLog(away) as moved:
        assert keys(read_all(moved)) == ["d1", "d3"]


def test_a_file_that_is_no_database(log: SqliteEventLog, directory: Path) -> None:
    (directory / FIRST).write_bytes(b"not a database, whatever its name says" * 100)
    for use in (log.end, lambda: log.append([record(0)]), lambda: log.read(1, limit=1)):
        with pytest.raises(LogUnavailableError, match="SQLITE_NOTADB"):
            use()


def test_a_database_of_something_else(log: SqliteEventLog, directory: Path) -> None:
    with closing(sqlite3.connect(directory / FIRST)) as connection:
        connection.execute("CREATE TABLE records (position)")
    for use in (log.end, lambda: log.append([record(0)]), lambda: log.read(1, limit=1)):
        with pytest.raises(LogUnavailableError, match="not a log segment"):
            use()


def test_a_later_layout_is_refused(log: SqliteEventLog, directory: Path) -> None:
    fill(log, 1)
    log.close()
    with closing(sqlite3.connect(directory / FIRST)) as connection:
        connection.execute("PRAGMA user_version = 3")
    with (
        SqliteEventLog(directory) as other,
        pytest.raises(LogUnavailableError, match="this version of Croupier"),
    ):
        other.end()


@pytest.mark.parametrize("missing", [1, 3, 5])
def test_a_hole_is_reported_and_not_skipped(
    log: SqliteEventLog, directory: Path, missing: int
) -> None:
    fill(log, 7)
    with closing(sqlite3.connect(directory / FIRST, isolation_level=None)) as connection:
        connection.execute("DELETE FROM batches WHERE position = ?", (missing,))
        connection.execute("UPDATE segment SET sealed_end = 6")
    with pytest.raises(LogUnavailableError, match="damaged"):
        log.read(1, limit=100)


def test_a_fork_has_to_open_its_own() -> None:
    script = SCRIPTS / "forking.py"
    result = subprocess.run([sys.executable, script], check=False, timeout=60)
    assert result.returncode == 0


def test_other_connections_come_and_go(log: SqliteEventLog, directory: Path) -> None:
    """Last ones out checkpoint by themselves; that must neither lose nor block anything."""
    stop = threading.Event()
    seen: list[int] = []

    def come_and_go() -> None:
        while not stop.is_set():
            with SqliteEventLog(directory) as reader:
                seen.append(len(reader.read(1, limit=1000)))

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for number in range(100):
            log.append([record(number)])
            log._drop_writer()
        wait_until(lambda: bool(seen) and seen[-1] == 100)
    finally:
        stop.set()
        thread.join()
    assert seen == sorted(seen)
    assert keys(read_all(log)) == [f"d{number}" for number in range(100)]


def test_records_of_an_append_are_read_from_any_of_them(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append is stored as a few rows; where one ends and the next begins doesn't show."""
    monkeypatch.setattr("croupier.eventlog.sqlite.ROW_BYTES", 500)
    with SqliteEventLog(directory, segment_rows=20) as log:
        for first, count in ((0, 1), (1, 7), (8, 12), (20, 3)):
            log.append(records(first, count))
        for start in range(1, 24):
            for limit in (1, 2, 5, 100):
                entries = log.read(start, limit=limit)
                assert [each.position for each in entries] == list(range(start, 24))[:limit]
                assert keys(entries) == [f"d{each.position - 1}" for each in entries]


def test_a_batch_that_is_shorter_than_it_says(log: SqliteEventLog, directory: Path) -> None:
    log.append(records(0, 3))
    with closing(sqlite3.connect(directory / FIRST, isolation_level=None)) as connection:
        connection.execute("UPDATE batches SET count = 4")
    with pytest.raises(LogUnavailableError, match="a batch of 4 records holds 3"):
        log.read(1, limit=100)
