"""An event log in a folder of SQLite files, for one machine and any number of its processes.

A log is cut into segments, each a database named by its first position
(``00000000000000000001.db``). Only the last one is written to. An append that finds it full seals
it, which is to store its end in it, and then begins the successor. A sealed segment never changes
again, and is deleted as a whole once it isn't needed.

Why appended records stay:

- An append is one transaction with explicit positions, so that a crash leaves all of it or nothing.
- A segment is built under another name and linked into place when it is complete. A crash between
  a seal and the creation of the successor leaves the successor to the next append. A seal is
  always synced, so that a power failure can't take it back while it leaves the successor.
- Everything that writes holds an advisory lock on ``writer.lock``, checkpoints included. SQLite's
  own lock would do for appends alone, but up to version 3.51.2 SQLite can lose committed
  transactions if a checkpoint runs while another connection restarts the write-ahead log
  (https://sqlite.org/wal.html#the_wal_reset_bug). Here the two can't meet. The kernel drops the
  lock with the process that held it, however that process ended.
- A segment's write-ahead log is emptied before the segment is deleted, and the database goes
  before its sidecars. Whoever opened it a moment before finds the seal in the database itself.

It needs a local POSIX file system: neither SQLite's write-ahead log nor the lock works over NFS.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from bisect import bisect_right
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import msgspec

from croupier.eventlog.files import exclusive, sync_directory
from croupier.eventlog.layouts import (
    LOCK_NAME,
    PAGE_BYTES,
    ROW_BYTES,
    check_layout,
    lay_out,
    prepare,
)
from croupier.eventlog.log import FIRST_POSITION, EventLog, LogConfig, LogEntry, LogPartition
from croupier.policy.errors import InvalidInputError, LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import Self

    from croupier.eventlog.log import Record

__all__ = ("MAX_PAYLOAD_BYTES", "SqliteEventLog", "Synchronous")

MAX_PAYLOAD_BYTES = 64 * 2**20

Synchronous: TypeAlias = Literal["full", "normal"]
"""``full``: an append survives a power failure. ``normal``: it survives the death of any process.

After a power failure, a log that is written in ``normal`` mode may be shorter than a reader saw it
before, and gives out the missing positions anew. The reader has to notice that its position is
beyond the end, or it will miss records.
"""

_CHECKPOINT_BYTES = 8 * 2**20
_WAL_LIMIT_BYTES = 64 * 2**20
# The one being read, and its predecessor for a second reader that is a little behind.
_OPEN_READERS = 2
_LARGEST_INTEGER = 2**63 - 1  # of SQLite's

_TEMPORARY_NAME = "segment.tmp"
_SEGMENT_NAME = re.compile(r"(\d{20})\.db")
_SIDECAR_NAME = re.compile(r"(\d{20})\.db-(?:wal|shm)")

_END = "(SELECT position + count FROM batches ORDER BY position DESC LIMIT 1)"
_STATE = f"SELECT base, sealed_end, {_END} FROM segment"  # noqa: S608 - a constant
_SEAL = f"UPDATE segment SET sealed_end = {_END}"  # noqa: S608
_INSERT = "INSERT INTO batches VALUES (?, ?, ?)"
_READ = """
SELECT position, count, records FROM batches
WHERE position >= (SELECT max(position) FROM batches WHERE position <= ?) ORDER BY position
"""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[tuple[str, str, str, bytes]])

_logger = getLogger(__name__)


class SqliteEventLog(EventLog, LogPartition):
    """An event log in a folder of SQLite files.

    Several processes may open the same folder, to write and to read. Threads may share one
    instance: its appends take turns, and so do its reads, but the two don't wait for each other.

    Parameters
    ----------
    directory
        The folder; made if it is missing. Its files belong to this class alone.
    segment_rows
        A segment that holds as many records or more is sealed.
    busy_timeout_s
        How long an append waits for writers in this and in other processes, in seconds each.
    synchronous
        ``full`` syncs every append to disk before it returns. ``normal`` leaves that to the
        operating system: an append outlives the process, but maybe not a power failure.

    Raises
    ------
    LogUnavailableError
        If the folder can't be made.
    InvalidInputError
        If `segment_rows`, `busy_timeout_s` or `synchronous` is out of range.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        segment_rows: int = 1_000_000,
        busy_timeout_s: float = 5.0,
        synchronous: Synchronous = "full",
    ) -> None:
        if segment_rows < 1:
            raise InvalidInputError("segment_rows", f"expected at least 1, got {segment_rows}")
        if not 0 < busy_timeout_s <= 3600:
            raise InvalidInputError(
                "busy_timeout_s", f"expected a number in (0, 3600], got {busy_timeout_s}"
            )
        if synchronous not in get_args(Synchronous):
            raise InvalidInputError(
                "synchronous", f"expected one of {get_args(Synchronous)}, got {synchronous!r}"
            )
        self._segment_rows = segment_rows
        self._busy_timeout_s = busy_timeout_s
        self._synchronous: Synchronous = synchronous
        self._segments = _Segments(Path(directory).absolute())
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._writer: _Writer | None = None
        self._readers: dict[int, sqlite3.Connection] = {}
        self._closed = False
        self._pid = os.getpid()
        with _reported("making the log's folder"):
            self._segments.make_directory()

    @classmethod
    def open(cls, directory: str | Path, config: LogConfig | None = None) -> Self:
        """Open the log of a folder the way a configuration says.

        Appends are synced under either durability. Under ``buffered`` nobody waits for that, and
        readers can rely on a position that they have seen.
        """
        config = config or LogConfig()
        return cls(
            directory, segment_rows=config.segment_rows, busy_timeout_s=config.busy_timeout_s
        )

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload that this log accepts, in bytes."""
        return MAX_PAYLOAD_BYTES

    @property
    def name(self) -> str:
        """Its own name, since it is the only partition."""
        return "log"

    def partitions(self) -> Sequence[LogPartition]:
        """The log itself: one sequence, whose positions are continuous from 1."""
        return (self,)

    def append(self, records: Sequence[Record]) -> int:
        """Append records next to each other, all of them or none; see LogWriter."""
        sizes = [len(record.payload) for record in records]
        if sizes and max(sizes) > MAX_PAYLOAD_BYTES:
            raise InvalidInputError(
                "records", f"expected payloads of at most {MAX_PAYLOAD_BYTES} bytes"
            )
        with self._writing("appending to the log"):
            writer, end = self._begin_append()
            position = end
            for batch in _rows(records, sizes):
                writer.connection.execute(_INSERT, (position, len(batch), _encoder.encode(batch)))
                position += len(batch)
            writer.connection.execute("COMMIT")
            writer.count(sum(sizes))
        return position

    def read(self, position: int, *, limit: int) -> list[LogEntry]:  # noqa: D102 - see LogPartition
        if limit < 1:
            raise InvalidInputError("limit", f"expected at least 1, got {limit}")
        limit = min(limit, _LARGEST_INTEGER)
        position = min(position, _LARGEST_INTEGER)
        with self._reading("reading the log"):
            while True:
                bases = self._current_bases()
                start = bases[0] if bases else FIRST_POSITION
                if position < start:
                    raise InvalidInputError(
                        "position",
                        f"expected at least {start}, the first that is still held, got {position}",
                    )
                with suppress(_SegmentGoneError):
                    return self._collect(bases, position, limit)

    def start(self) -> int:  # noqa: D102 - see LogPartition
        with self._reading("reading the log's start"):
            bases = self._current_bases()
            return bases[0] if bases else FIRST_POSITION

    def end(self) -> int:  # noqa: D102 - see LogPartition
        with self._reading("reading the log's end"):
            while True:
                bases = self._current_bases()
                if not bases:
                    return FIRST_POSITION
                with suppress(_SegmentGoneError):
                    _, state = self._read_segment(bases[-1], bases[-1], 0)
                    return state.end

    def release(self, position: int) -> int:  # noqa: D102 - see LogPartition
        removed = 0
        with self._writing("releasing segments"):
            # The last segment is never in question: it is nobody's predecessor.
            for base, successor in pairwise(self._segments.bases()):
                if successor > position or not self._settle(base):
                    break
                if self._writer is not None and self._writer.base == base:
                    self._drop_writer()
                with self._read_lock:
                    self._drop_reader(base)
                self._segments.remove(base)
                removed += 1
            self._segments.sweep()
        return removed

    def close(self) -> None:  # noqa: D102 - see LogPartition
        self._closed = True
        if os.getpid() != self._pid:
            # A child's copies: the locks may be held by threads that it doesn't have.
            return
        with self._write_lock:
            self._drop_writer()
        with self._read_lock:
            for base in list(self._readers):
                self._drop_reader(base)

    # Writing: under the write lock of this instance and the lock of all processes.

    @contextmanager
    def _writing(self, doing: str) -> Iterator[None]:
        """Keep every other writer out, and start afresh after an error."""
        self._check_process()
        deadline = time.monotonic() + self._busy_timeout_s
        if not self._write_lock.acquire(timeout=self._busy_timeout_s):
            raise self._too_busy(doing)
        try:
            self._check_open()
            with _reported(doing), self._segments.exclusive(deadline) as entered:
                if not entered:
                    raise self._too_busy(doing)
                try:
                    yield
                except BaseException:
                    # Closing rolls back, and a new connection is free of what ailed this one.
                    self._drop_writer()
                    raise
        finally:
            self._write_lock.release()

    def _begin_append(self) -> tuple[_Writer, int]:
        """Begin a transaction on the segment that is written to, and say where it ends."""
        while True:
            if self._writer is not None and not self._segments.holds(
                self._writer.base, self._writer.inode
            ):
                # Somebody moved the folder away: what goes to its files is not in this log.
                self._drop_writer()
            if self._writer is None:
                self._writer = self._open_writer()
            writer = self._writer
            writer.connection.execute("BEGIN IMMEDIATE")
            state = _state(writer.connection)
            if state.sealed_end is None and state.end - writer.base < self._segment_rows:
                return writer, state.end
            writer.connection.execute("ROLLBACK")
            if state.sealed_end is None:
                self._seal(writer.connection)
            _empty_wal(writer.connection)
            self._drop_writer()
            # Others may have gone on by whole segments, and released some of them, meanwhile.
            if self._segments.bases()[-1:] == [writer.base]:
                self._segments.create(state.end)

    def _seal(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_SEAL)
        connection.execute("COMMIT")

    def _open_writer(self) -> _Writer:
        bases = self._segments.bases()
        if not bases:
            self._segments.create(FIRST_POSITION)
            bases = [FIRST_POSITION]
        connection = self._connect(bases[-1])
        try:
            self._prepare_writer(connection)
            # Whoever created the segment may have died before its name was on disk.
            self._segments.sync()
            base = bases[-1]
            inode = self._segments.inode(base)
            return _Writer(base, inode, connection, self._segments.wal_bytes(base))
        except BaseException:
            connection.close()
            raise

    def _prepare_writer(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        # On macOS a plain fsync doesn't reach the disk; elsewhere this changes nothing.
        connection.execute("PRAGMA fullfsync = 1")
        # Checkpoints are ours to time, see the module's notes.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")

    def _settle(self, base: int) -> bool:
        """Move all of a sealed segment into its database file; False while it is being read."""
        with closing(self._connect(base)) as connection:
            self._prepare_writer(connection)
            return _empty_wal(connection)

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.connection.close()
            self._writer = None

    # Reading: under the read lock of this instance.

    @contextmanager
    def _reading(self, doing: str) -> Iterator[None]:
        self._check_process()
        with self._read_lock, _reported(doing):
            self._check_open()
            yield

    def _current_bases(self) -> list[int]:
        """List the segments, and let go of those that another process deleted."""
        bases = self._segments.bases()
        for base in set(self._readers).difference(bases):
            self._drop_reader(base)
        return bases

    def _collect(self, bases: list[int], position: int, limit: int) -> list[LogEntry]:
        """Read on from segment to segment until there are enough entries, or no more."""
        entries: list[LogEntry] = []
        for base in bases[bisect_right(bases, position) - 1 :]:
            found, state = self._read_segment(base, position, limit - len(entries))
            entries += found
            position += len(found)
            if len(entries) == limit or state.sealed_end is None:
                break
        return entries

    def _read_segment(
        self, base: int, position: int, limit: int
    ) -> tuple[list[LogEntry], _SegmentState]:
        """Read entries, and the state of the segment at the same moment."""
        path = self._segments.path(base)
        try:
            connection = self._reader(base)
            connection.execute("BEGIN")
            entries = _entries(connection, position, limit)
            state = _state(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            self._drop_reader(base)
            if isinstance(error, sqlite3.Error) and not os.path.lexists(path):
                raise _SegmentGoneError from error
            raise
        if not os.path.lexists(path):
            # Opened between the deletion of the database and of its write-ahead log, it might
            # have looked shorter than it was.
            self._drop_reader(base)
            raise _SegmentGoneError
        expected = max(0, min(limit, state.end - position))
        # Positions are ascending, so the number of them and the last one tell.
        if len(entries) != expected or (
            entries and entries[-1].position != position + expected - 1
        ):
            raise LogUnavailableError(
                f"{path} is damaged: expected positions {position} to {position + expected - 1}, "
                f"found {len(entries)} of them"
            )
        return entries, state

    def _reader(self, base: int) -> sqlite3.Connection:
        connection = self._readers.pop(base, None)
        if connection is None:
            connection = self._connect(base)
            connection.execute("PRAGMA query_only = 1")
        # Last is the one used last: a dictionary keeps the order of insertion.
        self._readers[base] = connection
        for oldest in list(self._readers)[:-_OPEN_READERS]:
            self._drop_reader(oldest)
        return connection

    def _drop_reader(self, base: int) -> None:
        connection = self._readers.pop(base, None)
        if connection is not None:
            connection.close()

    # Both.

    def _connect(self, base: int) -> sqlite3.Connection:
        path = self._segments.path(base)
        # mode=rw doesn't bring back a file that was deleted meanwhile. Connections move between
        # threads, but a lock of this instance keeps each to one thread at a time.
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode=rw",
            uri=True,
            timeout=self._busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            check_layout(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_process(self) -> None:
        # Before a lock is waited for: another thread may have held it at the fork.
        if os.getpid() != self._pid:
            raise LogUnavailableError(
                "the log was opened before a fork; open another one in this process"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise LogUnavailableError("the log is closed")

    def _too_busy(self, doing: str) -> LogUnavailableError:
        return LogUnavailableError(
            f"{doing} failed: other writers held the log for {self._busy_timeout_s} s"
        )


class _SegmentGoneError(Exception):
    """A segment was deleted while it was being read."""


class _SegmentState(NamedTuple):
    """How far a segment goes, and where it was sealed if it was."""

    end: int
    sealed_end: int | None


class _Writer:
    """The connection to the segment that is written to."""

    def __init__(
        self, base: int, inode: int, connection: sqlite3.Connection, wal_bytes: int
    ) -> None:
        self.base = base
        self.inode = inode
        self.connection = connection
        self._wal_bytes = wal_bytes

    def count(self, payload_bytes: int) -> None:
        """Take note of an append, and checkpoint when enough has been written since the last.

        The size of the write-ahead log's file doesn't tell: it is overwritten from its beginning
        after a checkpoint. So every writer counts what it wrote; the estimate may be rough.
        """
        self._wal_bytes += payload_bytes + 3 * PAGE_BYTES
        if self._wal_bytes < _CHECKPOINT_BYTES:
            return
        self._wal_bytes = 0
        try:
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            # The records are safe in the write-ahead log, which only grows until it succeeds.
            _logger.warning("checkpoint of segment %d failed: %s", self.base, _text(error))


class _Segments:
    """The files of a log, and the lock under which they are written to, made and deleted."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def make_directory(self) -> None:
        """Make the folder and those above it, so that they survive a power failure."""
        above = self._directory.parents
        missing = [path for path in (self._directory, *above) if not path.exists()]
        self._directory.mkdir(parents=True, exist_ok=True)
        for path in reversed(missing):
            sync_directory(path.parent)

    def path(self, base: int) -> Path:
        """Where the segment with that first position is, or would be."""
        return self._directory / f"{base:020d}.db"

    def bases(self) -> list[int]:
        """First positions of the segments, ascending."""
        while True:
            names = os.listdir(self._directory)  # noqa: PTH208 - names are all that is needed
            bases = sorted(
                int(match[1]) for name in names if (match := _SEGMENT_NAME.fullmatch(name))
            )
            # The last segment is only ever deleted after it got a successor. So if it is still
            # there, no successor was overlooked that could matter.
            if not bases or os.path.lexists(self.path(bases[-1])):
                return bases

    def inode(self, base: int) -> int:
        """Number of a segment's file, which a file that takes its place doesn't share."""
        return self.path(base).stat().st_ino

    def holds(self, base: int, inode: int) -> bool:
        """Whether a segment is still the file that it was."""
        try:
            return self.inode(base) == inode
        except FileNotFoundError:
            return False

    def wal_bytes(self, base: int) -> int:
        """Size of the write-ahead log's file, in bytes."""
        path = self._sidecar(base, "wal")
        return path.stat().st_size if path.exists() else 0

    def exclusive(self, deadline: float) -> AbstractContextManager[bool]:
        """Keep out every other writer of this and other processes; yields False if that fails."""
        return exclusive(self._directory / LOCK_NAME, deadline)

    def create(self, base: int) -> None:
        """Put an empty segment into place, complete or not at all. Only under the lock."""
        temporary = self._directory / _TEMPORARY_NAME
        for leftover in self._directory.glob(f"{_TEMPORARY_NAME}*"):
            leftover.unlink()
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            prepare(connection)
            connection.execute("BEGIN")
            lay_out(connection)
            connection.execute("INSERT INTO segment VALUES (?, NULL)", (base,))
            connection.execute("COMMIT")
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise LogUnavailableError(
                    f"{self._directory} can't hold an event log: SQLite's write-ahead log doesn't "
                    f"work there (journal mode is {mode})"
                )
        # Unlike a rename, a link can't replace a segment. The lock already sees to that, unless
        # somebody deleted its file.
        with suppress(FileExistsError):
            self.path(base).hardlink_to(temporary)
        temporary.unlink()
        self.sync()

    def remove(self, base: int) -> None:
        """Delete a segment's database. Only under the lock, and in ascending order."""
        self.path(base).unlink()
        # Before the next one goes: a power failure must not bring back a hole.
        self.sync()

    def sweep(self) -> None:
        """Delete what is left of segments that are gone. Only under the lock."""
        bases = self.bases()
        for path in self._directory.iterdir():
            match = _SIDECAR_NAME.fullmatch(path.name)
            if match and bases and int(match[1]) < bases[0]:
                path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Make the names of the files durable."""
        sync_directory(self._directory)

    def _sidecar(self, base: int, suffix: str) -> Path:
        path = self.path(base)
        return path.with_name(f"{path.name}-{suffix}")


def _state(connection: sqlite3.Connection) -> _SegmentState:
    base, sealed_end, end = connection.execute(_STATE).fetchone()
    return _SegmentState(base if end is None else end, sealed_end)


def _rows(records: Sequence[Record], sizes: Sequence[int]) -> Iterator[Sequence[Record]]:
    """Cut records into runs that fit into a row; a record that doesn't has one of its own."""
    start = total = 0
    for position, size in enumerate(sizes):
        if position > start and total + size > ROW_BYTES:
            yield records[start:position]
            start, total = position, 0
        total += size
    if records:
        yield records[start:]


def _entries(connection: sqlite3.Connection, position: int, limit: int) -> list[LogEntry]:
    """The records at a position and after it, as many as there are up to a limit."""
    entries: list[LogEntry] = []
    if limit == 0:
        return entries
    for first, count, encoded in connection.execute(_READ, (position,)):
        records = _decoder.decode(encoded)
        if len(records) != count:
            raise LogUnavailableError(f"a batch of {count} records holds {len(records)}")
        skipped = max(0, position - first)
        chosen = records[skipped : skipped + limit - len(entries)]
        entries += [LogEntry(place, *each) for place, each in enumerate(chosen, first + skipped)]
        if len(entries) == limit:
            break
    return entries


def _empty_wal(connection: sqlite3.Connection) -> bool:
    """Checkpoint everything and cut the write-ahead log to nothing; False if that can't be now."""
    try:
        connection.execute("PRAGMA busy_timeout = 0").fetchall()
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        _logger.warning("checkpoint of a sealed segment failed: %s", _text(error))
        return False
    return not busy


@contextmanager
def _reported(doing: str) -> Iterator[None]:
    """Turn errors of SQLite and the file system into the log's own."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise LogUnavailableError(f"{doing} failed: {_text(error)}") from error


def _text(error: BaseException) -> str:
    name: Any = getattr(error, "sqlite_errorname", None)
    return f"{name}: {error}" if name else str(error)
