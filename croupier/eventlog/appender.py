"""Group commit: one thread that writes whatever many others have submitted since its last append.

A commit to disk costs about the same for one record as for a hundred. So nobody waits for company:
a record that finds the log idle is written at once, and those that arrive meanwhile make up the
next append. Where nobody waits at all, in a buffered log, an append is worth a few milliseconds of
gathering, since every one takes processor time from those who decide.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from logging import getLogger
from typing import TYPE_CHECKING

from croupier.eventlog.log import Durability, LogConfig, LogWriter, Record
from croupier.policy.errors import InvalidInputError, LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

__all__ = ("NOTHING_TO_WRITE", "Appender")

_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 2.0
_GATHERING_S = 0.01
_NICENESS = 5

_NEVER = 2**63

_logger = getLogger(__name__)


class Appender:
    """Writes records to a log from one thread of its own, many to an append.

    Records are written in the order in which they were submitted. All records of an append share
    one future, so that resolving it costs the same for one record as for hundreds. Nobody can
    cancel it: what has been submitted is going to be written.

    Parameters
    ----------
    log
        Where to. It stays open when the appender is closed.
    max_batch
        Most records in an append, unless a single ``submit_many`` has more: it is never split.
    max_pending
        Most records that may wait, those that are being written included.
    max_pending_bytes
        Most bytes of payload that may wait; one submission may have more if nothing else waits.
    durability
        ``commit``: a future resolves when its records are durable, and gets the error if they
        couldn't be written. ``buffered``: it is resolved from the start, and records that couldn't
        be written are tried again until they are, or until the appender is closed.
    observe
        Told how long an append took, in seconds, if it worked.

    Raises
    ------
    InvalidInputError
        If `max_batch`, `max_pending` or `max_pending_bytes` is out of range.
    """

    def __init__(
        self,
        log: LogWriter,
        *,
        max_batch: int,
        max_pending: int,
        durability: Durability,
        max_pending_bytes: int = LogConfig().max_pending_bytes,
        observe: Callable[[float], None] = lambda _: None,
    ) -> None:
        if max_batch < 1:
            raise InvalidInputError("max_batch", f"expected at least 1, got {max_batch}")
        if max_pending < max_batch:
            raise InvalidInputError(
                "max_pending", f"expected at least max_batch ({max_batch}), got {max_pending}"
            )
        if max_pending_bytes < 1:
            raise InvalidInputError(
                "max_pending_bytes", f"expected at least 1, got {max_pending_bytes}"
            )
        self._log = log
        self._max_payload_bytes = log.max_payload_bytes
        self._max_batch = max_batch
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_bytes
        self._durability: Durability = durability
        self._observe = observe
        # Guards everything below, and wakes the thread.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._batches: deque[_Batch] = deque()
        self._depth = 0
        self._bytes = 0
        # How many records wake the thread.
        self._wanted = _NEVER
        self._closed = False
        self._abandoned = False
        self._last_error: Exception | None = None
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="croupier-appender", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        log: LogWriter,
        config: LogConfig | None = None,
        *,
        observe: Callable[[float], None] = lambda _: None,
    ) -> Self:
        """Start an appender the way a configuration says."""
        config = config or LogConfig()
        return cls(
            log,
            max_batch=config.max_batch,
            max_pending=config.max_pending,
            max_pending_bytes=config.max_pending_bytes,
            durability=config.durability,
            observe=observe,
        )

    @property
    def depth(self) -> int:
        """How many records are waiting or being written."""
        return self._depth

    @property
    def last_error(self) -> Exception | None:
        """Why the log couldn't be written the last time; None if it could.

        After a failure the log is tried every now and then even if nothing is submitted, so that
        this tells when it is back.
        """
        return self._last_error

    def submit(self, record: Record, *, wake: bool = True) -> Future[None]:
        """Hand over one record.

        Parameters
        ----------
        record
            What to append.
        wake
            Whether the thread should see to it. Who hands over several one after the other may
            leave that to :meth:`wake`, so that they get into one append.

        Returns
        -------
        concurrent.futures.Future
            Done when the record is durable, or at once if the log is buffered. Its exception is a
            LogUnavailableError if the record wasn't written. Others may share it.

        Raises
        ------
        LogUnavailableError
            If too many records are waiting already, or if the appender is closed.
        InvalidInputError
            If the payload is too large for the log.
        """
        if len(record.payload) > self._max_payload_bytes or os.getpid() != self._pid:
            self._check((record,))
        with self._lock:
            size = len(record.payload)
            if self._closed or self._is_full(1, size):
                raise self._refusal(1)
            self._depth += 1
            self._bytes += size
            batches = self._batches
            if batches and len(batches[-1].records) < self._max_batch:
                batch = batches[-1]
                batch.records.append(record)
            else:
                batch = _Batch((record,))
                batches.append(batch)
            batch.size += size
            if wake and self._wanted <= self._depth:
                self._changed.notify_all()
        return NOTHING_TO_WRITE if self._durability == "buffered" else batch.future

    def wake(self) -> None:
        """Have the thread see to what was handed over."""
        with self._lock:
            if self._wanted <= self._depth:
                self._changed.notify_all()

    def submit_many(self, records: Sequence[Record]) -> Future[None]:
        """Hand over several records that are written in one append, all or none.

        Parameters
        ----------
        records
            What to append, in this order.

        Returns
        -------
        concurrent.futures.Future
            See :meth:`submit`.

        Raises
        ------
        LogUnavailableError
            If too many records are waiting already, or if the appender is closed.
        InvalidInputError
            If a payload is too large for the log, or if there are more records than may ever wait.
        """
        size = self._check(records)
        with self._lock:
            if self._closed or self._is_full(len(records), size):
                raise self._refusal(len(records))
            if not records:
                return NOTHING_TO_WRITE
            self._depth += len(records)
            self._bytes += size
            batch = self._add(records)
            batch.size += size
            if self._wanted <= self._depth:
                self._changed.notify_all()
        return NOTHING_TO_WRITE if self._durability == "buffered" else batch.future

    def close(self, timeout: float = 10.0) -> None:
        """Write what is waiting, and stop. Closing twice is harmless.

        Parameters
        ----------
        timeout
            How long that may take, in seconds.

        Raises
        ------
        LogUnavailableError
            If records were left unwritten. Futures that wait for them get the same error.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        with self._lock:
            left = self._depth
            self._abandoned = True
            batches, self._batches = self._batches, deque()
            self._depth -= sum(len(batch.records) for batch in batches)
            self._bytes -= sum(batch.size for batch in batches)
            self._changed.notify_all()
        if left:
            error = LogUnavailableError(
                f"the log was closed with {left} records unwritten: "
                f"{self._last_error or f'{timeout} s were not enough'}"
            )
            for batch in batches:
                batch.future.set_exception(error)
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, records: Sequence[Record]) -> int:
        """Refuse what could never be written; gives the size of the payloads."""
        if os.getpid() != self._pid:
            # Threads don't survive a fork: nobody would ever write it.
            raise LogUnavailableError(
                "the log's appender was started before a fork; start another one in this process"
            )
        if len(records) > self._max_pending:
            raise InvalidInputError(
                "records", f"expected at most {self._max_pending}, got {len(records)}"
            )
        size = 0
        for record in records:
            size += len(record.payload)
            if len(record.payload) > self._max_payload_bytes:
                # Refused by the log, it would take the rest of its batch down with it.
                raise InvalidInputError(
                    "record.payload",
                    f"expected at most {self._max_payload_bytes} bytes, got {len(record.payload)}",
                )
        return size

    def _is_full(self, records: int, size: int) -> bool:
        """Whether so many more records, or bytes of them, may not wait."""
        if self._depth + records > self._max_pending:
            return True
        return bool(self._bytes) and self._bytes + size > self._max_pending_bytes

    def _refusal(self, records: int) -> LogUnavailableError:
        if self._closed:
            return LogUnavailableError("the log's appender is closed")
        if self._depth + records > self._max_pending:
            waiting = f"{self._depth} records are waiting, at most {self._max_pending}"
        else:
            waiting = f"{self._bytes} bytes are waiting, at most {self._max_pending_bytes}"
        return LogUnavailableError(f"the log can't keep up: {waiting} may")

    def _add(self, records: Sequence[Record]) -> _Batch:
        """Put records into the last batch if they fit there, else into a new one."""
        if self._batches:
            batch = self._batches[-1]
            if len(batch.records) + len(records) <= self._max_batch:
                batch.records.extend(records)
                return batch
        batch = _Batch(records)
        self._batches.append(batch)
        return batch

    # The thread.

    def _run(self) -> None:
        if self._durability == "buffered":
            _yield_to_others()
        while (batch := self._next()) is not None:
            error = self._write(batch)
            with self._lock:
                self._depth -= len(batch.records)
                self._bytes -= batch.size
            if error is None:
                batch.future.set_result(None)
            else:
                batch.future.set_exception(error)

    def _next(self) -> _Batch | None:
        """Wait for a batch; None when there will be no more."""
        pause = _FIRST_RETRY_S
        while True:
            with self._lock:
                if not self._batches and not self._closed:
                    self._sleep(1, None if self._last_error is None else pause)
                if self._batches:
                    if self._durability == "buffered" and not self._closed:
                        self._sleep(self._max_batch, _GATHERING_S)
                    return self._batches.popleft()
                if self._closed:
                    return None
            if self._last_error is not None:
                # Nobody submits to a service that says it isn't ready: ask the log itself.
                self._append([])
                pause = min(2 * pause, _LAST_RETRY_S)

    def _sleep(self, wanted: int, seconds: float | None) -> None:
        """Wait for so many records, for the end, or for some time; under the lock."""
        if self._depth < wanted:
            self._wanted = wanted
            self._changed.wait(seconds)
            self._wanted = _NEVER

    def _write(self, batch: _Batch) -> LogUnavailableError | None:
        """Append a batch, again and again if it was acknowledged already; says what went wrong."""
        error = self._append(batch.records)
        pause = _FIRST_RETRY_S
        while error is not None and self._durability == "buffered" and self._wait(pause):
            error = self._append(batch.records)
            pause = min(2 * pause, _LAST_RETRY_S)
        return error

    def _wait(self, seconds: float) -> bool:
        """Wait before another attempt; False if there should be none."""
        deadline = time.monotonic() + seconds
        with self._lock:
            while not self._abandoned:
                now = time.monotonic()
                if self._closed:
                    # Whoever closes is waiting too, and not for long.
                    deadline = min(deadline, now + _FIRST_RETRY_S)
                if now >= deadline:
                    return True
                self._changed.wait(deadline - now)
            return False

    def _append(self, records: Sequence[Record]) -> LogUnavailableError | None:
        began = time.perf_counter()
        try:
            self._log.append(records)
            self._observe(time.perf_counter() - began)
        except LogUnavailableError as error:
            if self._last_error is None:
                _logger.warning(
                    "the log can't be written: %s", error, extra={"event": "log_unavailable"}
                )
            self._last_error = error
            return error
        except Exception as error:
            # A fault of ours. The thread has to outlive it, or every later record would wait.
            _logger.exception("appending to the log failed")
            self._last_error = error
            unavailable = LogUnavailableError(f"appending to the log failed: {error!r}")
            unavailable.__cause__ = error
            return unavailable
        if self._last_error is not None:
            _logger.info("the log can be written again", extra={"event": "log_available"})
            self._last_error = None
        return None


class _Batch:
    """Records that are appended together, and the future of them all."""

    __slots__ = ("future", "records", "size")

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)
        self.size = 0
        self.future = _running_future()


def _yield_to_others() -> None:
    """Have this thread give way to those that decide, where the system knows threads apart.

    Nobody waits for a buffered record. It still gets a quarter of a processor that is never idle,
    about twice of what it needs to keep up.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _running_future() -> Future[None]:
    """Make a future that can't be cancelled: one waiter who gives up must not speak for all."""
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()
    return future


NOTHING_TO_WRITE = _running_future()
"""The future of no records, and of those that nobody waits for."""
NOTHING_TO_WRITE.set_result(None)
