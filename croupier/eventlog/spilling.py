"""Going on while the log that others share is away: a spill on this machine's disk.

As long as the log takes what is appended, it goes straight there. A batch that it doesn't take goes
into a folder, synced, and so does everything after it, from every process that shares the folder,
until all of it has been brought over in order. So nobody's records overtake each other, and what
was acknowledged is on disk here or in the log.

The folder holds at most one *episode*, which is a folder in it, named by its beginning: a
:class:`SqliteEventLog` and the position up to which it was forwarded. That there is one is what
makes processes spill. Only one process forwards at a time; any may, and whoever does may die: the
next one goes on from that position. It is remembered after the log has acknowledged what is below
it, so a crash repeats records, which readers drop by id, and loses none.

An episode ends under the lock that appends to it take, after the last of its records was
forwarded, so that no append can come too late for it.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import closing, contextmanager, suppress
from logging import getLogger
from typing import TYPE_CHECKING

import msgspec

from croupier.eventlog.files import exclusive, sync_directory
from croupier.eventlog.log import LogWriter, Record
from croupier.eventlog.sqlite import MAX_PAYLOAD_BYTES, SqliteEventLog
from croupier.policy.errors import InvalidInputError, LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from croupier.eventlog.log import LogEntry

__all__ = ("SpillState", "SpillingWriter", "spill_state", "spilling_since")

# Small, since space is given back by whole segments.
_SEGMENT_ROWS = 20_000
# As long as an append to the log may take that ends an episode, and then some.
_BUSY_TIMEOUT_S = 30.0

_FIRST_READ = 64
_MOST_READ = 2048
_READ_BYTES = 4 * 2**20

_IDLE_S = 1.0
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 2.0
_CLOSING_S = 5.0

_APPEND_LOCK = "append.lock"
_FORWARD_LOCK = "forward.lock"
_LOG = "log"
_FORWARDED = "forwarded"
_DIGITS = 20
_DONE = "done-"

_logger = getLogger(__name__)


class SpillState(msgspec.Struct, frozen=True, kw_only=True):
    """Where appended records go.

    Attributes
    ----------
    spilling
        Whether they go to this machine's disk, the log being away.
    since
        Since when, in seconds of the epoch.
    records
        How many of them the log doesn't have yet.
    error
        Why the log couldn't be written the last time.
    """

    spilling: bool = False
    since: float | None = None
    records: int = 0
    error: str | None = None


class SpillingWriter(LogWriter):
    """Appends to a log, and to a folder while the log is away.

    An append waits as long for a log that goes away as the log itself says. Those after it are
    written to disk at once; a thread of its own looks for the log again and again.

    Parameters
    ----------
    log
        Where records are to go. It is closed along with this.
    directory
        The folder of the spill; made if it is missing. Its files belong to this class alone, and to
        all processes whose `log` is the same.
    max_bytes
        How large an episode may become on disk, about. Beyond it appends fail.

    Raises
    ------
    LogUnavailableError
        If the folder can't be made.
    InvalidInputError
        If `max_bytes` is out of range.
    """

    def __init__(self, log: LogWriter, directory: Path, *, max_bytes: int) -> None:
        if max_bytes < 1:
            raise InvalidInputError("max_bytes", f"expected at least 1, got {max_bytes}")
        self._log = log
        self._folder = _Folder(directory)
        self._max_bytes = max_bytes
        self._max_payload_bytes = min(log.max_payload_bytes, MAX_PAYLOAD_BYTES)
        # One append at a time, so that each sees where the one before it went.
        self._lock = threading.Lock()
        self._appending = _Opened(self._folder)
        self._forwarding = _Opened(self._folder)
        self._waiting = 0
        self._error: str | None = None
        self._limit = _FIRST_READ
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="croupier-forwarder", daemon=True)
        self._thread.start()

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload that both the log and the spill accept, in bytes."""
        return self._max_payload_bytes

    @property
    def state(self) -> SpillState:
        """Where appended records go now. Waits for nothing."""
        try:
            episode = self._folder.episode()
        except LogUnavailableError as error:
            return SpillState(error=str(error))
        if episode is None:
            return SpillState()
        return SpillState(
            spilling=True, since=_began(episode), records=self._waiting, error=self._error
        )

    def begin(self, error: LogUnavailableError) -> None:
        """Spill from now on, because of an error of the log that somebody has just had.

        Raises
        ------
        LogUnavailableError
            If the spill can't be written.
        """
        with self._lock:
            self._check_open()
            self._spilled((), error)

    def append(self, records: Sequence[Record]) -> None:
        """Append records to the log, or else to the spill; see LogWriter."""
        if any(len(record.payload) > self.max_payload_bytes for record in records):
            raise InvalidInputError(
                "records", f"expected payloads of at most {self.max_payload_bytes} bytes"
            )
        error: LogUnavailableError | None = None
        with self._lock:
            self._check_open()
            while True:
                spilling = error is not None or self._folder.episode() is not None
                if spilling and self._spilled(records, error):
                    return
                if not spilling:
                    try:
                        self._log.append(records)
                    except LogUnavailableError as found:
                        error = found
                    else:
                        return

    def close(self) -> None:  # noqa: D102 - see LogWriter
        if os.getpid() != self._pid:
            return
        self._closed.set()
        self._wanted.set()
        self._log.close()
        # It may wait for a log that doesn't answer, and lets go of its files when it ends.
        self._thread.join(_CLOSING_S)
        with self._lock:
            self._appending.close()

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise LogUnavailableError(
                "the log was opened before a fork; open another one in this process"
            )
        if self._closed.is_set():
            raise LogUnavailableError("the log is closed")

    # Appending: under the lock of this instance.

    def _spilled(self, records: Sequence[Record], error: LogUnavailableError | None) -> bool:
        """Append to the episode, or to a new one because of an error; False if there is none."""
        with self._folder.appending():
            name = self._folder.episode()
            if name is None:
                if error is None:
                    return False
                name = self._folder.begin()
                _logger.warning(
                    "the log can't be written, records go to %s: %s",
                    self._folder.path,
                    error,
                    extra={"event": "log_spilling"},
                )
                self._error = str(error)
            episode = self._appending.get(name)
            size = episode.bytes_on_disk() + sum(len(record.payload) for record in records)
            if size > self._max_bytes:
                raise LogUnavailableError(
                    f"the log is away ({self._error or 'another process has found out'}), and "
                    f"{self._folder.path} would hold {size} bytes, at most {self._max_bytes} may"
                )
            episode.log.append(records)
            self._waiting += len(records)
        self._wanted.set()
        return True

    # The thread.

    def _run(self) -> None:
        pause = _FIRST_RETRY_S
        while not self._closed.is_set():
            try:
                forwarded = self._forward()
            except LogUnavailableError as error:
                self._error = str(error)
                forwarded = False
            except Exception as error:
                # A fault of ours. The thread has to outlive it, or nothing would ever go on.
                _logger.exception("forwarding what was spilled failed")
                self._error = repr(error)
                forwarded = False
            if forwarded:
                pause = _FIRST_RETRY_S
                continue
            if self._folder.episode() is None:
                self._wanted.wait(_IDLE_S)
                self._wanted.clear()
                pause = _FIRST_RETRY_S
            else:
                self._limit = _FIRST_READ
                self._closed.wait(pause)
                pause = min(2 * pause, _LAST_RETRY_S)
        self._forwarding.close()

    def _forward(self) -> bool:
        """Bring some records over, and end the episode with the last; False if nobody has to."""
        name = self._folder.episode()
        if name is None:
            self._rest()
            return False
        with self._folder.forwarding() as alone:
            if not alone:
                self._look_on(name)
                return False
            if self._folder.episode() != name:
                return True
            episode = self._forwarding.get(name)
            if not episode.waiting():
                # There is nothing by which to find out whether the log is back.
                self._log.append(())
            if not self._bring_over(episode):
                with self._folder.appending():
                    while self._bring_over(episode):
                        pass
                    self._end(name, episode)
                self._folder.sweep()
        return True

    def _bring_over(self, episode: _Episode) -> bool:
        """Append what comes next to the log, and say whether there may be more of it."""
        position, limit = episode.forwarded(), self._limit
        entries = episode.log.read(position, limit=limit)
        if entries:
            self._log.append([_record(entry) for entry in entries])
            episode.remember(position + len(entries))
            size = sum(len(entry.payload) for entry in entries)
            self._limit = max(1, min(2 * limit, _MOST_READ, _READ_BYTES * len(entries) // size))
        self._waiting = episode.waiting()
        return len(entries) == limit

    def _end(self, name: str, episode: _Episode) -> None:
        """Go back to the log. Under the lock of all appends."""
        records = episode.log.end() - 1
        self._forwarding.close()
        self._folder.end(name)
        self._waiting = 0
        self._error = None
        _logger.info(
            "the log can be written again, %d records were forwarded",
            records,
            extra={"event": "log_forwarded"},
        )

    def _look_on(self, name: str) -> None:
        """See how far another process is. The lock keeps it from ending the episode meanwhile."""
        with self._folder.appending():
            if self._folder.episode() == name:
                self._waiting = self._forwarding.get(name).waiting()

    def _rest(self) -> None:
        """Let go of the files of an episode that has ended."""
        self._waiting = 0
        self._error = None
        self._forwarding.close()
        if self._appending.is_open:
            with self._lock:
                self._appending.close()


def spill_state(directory: Path) -> SpillState:
    """Whether a data directory's processes spill, for one that has no part in it.

    Raises
    ------
    LogUnavailableError
        If the spill can't be read.
    """
    if not directory.is_dir():
        return SpillState()
    folder = _Folder(directory)
    with folder.appending():
        name = folder.episode()
        if name is None:
            return SpillState()
        with closing(_Episode(folder.path / name)) as episode:
            return SpillState(spilling=True, since=_began(name), records=episode.waiting())


def spilling_since(directory: Path) -> float | None:
    """Since when a data directory's processes spill, in seconds of the epoch; touches nothing."""
    try:
        name = _present(os.listdir(directory))  # noqa: PTH208 - names are all that is needed
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if name is None else _began(name)


class _Folder:
    """Where episodes are; there is at most one."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        with _reported("making the spill's folder"):
            self.path.mkdir(parents=True, exist_ok=True)
            self.sweep()

    def episode(self) -> str | None:
        """Name of the present episode."""
        with _reported("looking into the spill's folder"):
            names = os.listdir(self.path)  # noqa: PTH208 - before every append, so it must be fast
        return _present(names)

    @contextmanager
    def appending(self) -> Iterator[None]:
        """Keep out everybody else who appends, or who begins or ends an episode."""
        deadline = time.monotonic() + _BUSY_TIMEOUT_S
        with _reported("locking the spill"), exclusive(self.path / _APPEND_LOCK, deadline) as held:
            if not held:
                raise LogUnavailableError(f"others held {self.path} for {_BUSY_TIMEOUT_S} s")
            yield

    @contextmanager
    def forwarding(self) -> Iterator[bool]:
        """Keep out others who forward; yields False if somebody does already."""
        with _reported("locking the spill"), exclusive(self.path / _FORWARD_LOCK, 0.0) as held:
            yield held

    def begin(self) -> str:
        """Begin an episode."""
        name = f"{time.time_ns():020d}"
        with _reported("beginning to spill"):
            episode = _Episode(self.path / name)
            # From here on its file has its size, whatever becomes of the disk.
            episode.remember(episode.forwarded())
            episode.close()
        return name

    def end(self, name: str) -> None:
        """End an episode, in one step."""
        with _reported("ending to spill"):
            (self.path / name).rename(self.path / f"{_DONE}{name}")
            # Before anything of it goes: a power failure must not bring back a part of it.
            sync_directory(self.path)

    def sweep(self) -> None:
        """Delete what is left of episodes that have ended."""
        for path in self.path.glob(f"{_DONE}*"):
            shutil.rmtree(path, ignore_errors=True)


class _Episode:
    """What was appended while the log was away, and how much of it the log has got since."""

    def __init__(self, path: Path) -> None:
        self.log = SqliteEventLog(
            path / _LOG, segment_rows=_SEGMENT_ROWS, busy_timeout_s=_BUSY_TIMEOUT_S
        )
        self._path = path
        self._position = self._released = self.log.start()
        # Whoever made it may have died before its name was on disk.
        with _reported("opening the spill"):
            sync_directory(path.parent)
            self._file = os.open(path / _FORWARDED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def forwarded(self) -> int:
        """Position of the first record that the log doesn't have."""
        with _reported("reading how far the spill was forwarded"):
            text = os.pread(self._file, _DIGITS, 0)
        # Nothing is written yet, or not all of it: what was forwarded is forwarded again.
        kept = int(text) if len(text) == _DIGITS and text.isdigit() else 0
        self._position = max(self._position, kept)
        return self._position

    def remember(self, position: int) -> None:
        """Keep that the log has what is below a position.

        It is written over what was there, so that a full disk can't keep it from being written.
        """
        self._position = position
        with _reported("keeping how far the spill was forwarded"):
            os.pwrite(self._file, f"{position:0{_DIGITS}d}".encode(), 0)
        if position - self._released >= _SEGMENT_ROWS:
            self.log.release(position)
            self._released = position

    def waiting(self) -> int:
        """How many records the log doesn't have."""
        return max(0, self.log.end() - self.forwarded())

    def bytes_on_disk(self) -> int:
        """How much room it takes."""
        total = 0
        with _reported("measuring the spill"), os.scandir(self._path / _LOG) as files:
            for file in files:
                # One may be deleted meanwhile, since it isn't needed any more.
                with suppress(FileNotFoundError):
                    total += file.stat().st_size
        return total

    def close(self) -> None:
        """Let go of its files."""
        self.log.close()
        os.close(self._file)


class _Opened:
    """The episode that a thread works with, kept open from one time to the next."""

    def __init__(self, folder: _Folder) -> None:
        self._folder = folder
        self._name: str | None = None
        self._episode: _Episode | None = None

    @property
    def is_open(self) -> bool:
        """Whether there are files to be let go of."""
        return self._episode is not None

    def get(self, name: str) -> _Episode:
        """The episode of that name."""
        if self._episode is None or self._name != name:
            self.close()
            self._episode, self._name = _Episode(self._folder.path / name), name
        return self._episode

    def close(self) -> None:
        """Let go of its files."""
        episode, self._episode = self._episode, None
        if episode is not None:
            episode.close()


def _record(entry: LogEntry) -> Record:
    return Record(entry.loop, entry.kind, entry.key, entry.payload)


def _present(names: Iterable[str]) -> str | None:
    """The episode among the names in a folder."""
    return min(filter(str.isdigit, names), default=None)


def _began(episode: str) -> float:
    return int(episode) / 1e9


@contextmanager
def _reported(doing: str) -> Iterator[None]:
    """Turn errors of the file system into the log's own."""
    try:
        yield
    except OSError as error:
        raise LogUnavailableError(f"{doing} failed: {error}") from error
