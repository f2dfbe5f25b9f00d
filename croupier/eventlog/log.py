"""What every event log keeps to, whatever it stores its records in.

A log is one or several partitions, each a sequence of records. A record has a *position* in its
partition, for as long as the log lives, and positions grow. Whoever reads keeps the position after
the last record that it got and asks again; whoever has copied everything below a position somewhere
safe may release it. Records of one key are always in one partition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from croupier.eventlog.kafka.config import KafkaConfig
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Event, encode_event, event_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from croupier.eventlog.kafka.topics import Stream

__all__ = (
    "FIRST_POSITION",
    "Backend",
    "Durability",
    "EventLog",
    "LogConfig",
    "LogEntry",
    "LogPartition",
    "LogWriter",
    "Record",
)

FIRST_POSITION = 1

Durability: TypeAlias = Literal["commit", "buffered"]
"""``commit``: acknowledged once it is on disk; ``buffered``: once it is in memory."""

Backend: TypeAlias = Literal["sqlite", "kafka"]
"""``sqlite``: a folder of this machine; ``kafka``: a cluster that any number of machines share."""


class Record(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One event on its way into a log.

    Attributes
    ----------
    loop
        The decision problem it belongs to.
    kind
        The event's tag: ``decision``, ``outcome``, ``activation``, ``judgement``,
        ``acknowledgement`` or ``override``.
    key
        What a partitioned log keeps in order: the decision_id, or the id of what an auditor says.
    payload
        The encoded event.

    Raises
    ------
    InvalidInputError
        If `loop`, `kind` or `key` can't be written as UTF-8 (lone surrogates). Found here, it
        can't spoil the other records that are appended along with it.
    """

    loop: str
    kind: str
    key: str
    payload: bytes

    def __post_init__(self) -> None:
        try:
            self.loop.encode()
            self.kind.encode()
            self.key.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                "record", f"expected loop, kind and key without lone surrogates: {error}"
            ) from error

    @classmethod
    def of(cls, event: Event) -> Self:
        """Encode an event as the record that every log stores."""
        tag = str(event.__struct_config__.tag)
        return cls(event.loop, tag, event_key(event), encode_event(event))


class LogEntry(msgspec.Struct, frozen=True, gc=False):
    """One record as it is held by a log.

    Attributes
    ----------
    position
        Its place in its partition.
    loop, kind, key, payload
        See :class:`Record`.
    flaw
        Why it can't be taken for a record, as far as the log can tell; None if nothing is wrong.
    """

    position: int
    loop: str
    kind: str
    key: str
    payload: bytes
    flaw: str | None = None


class LogWriter(ABC):
    """Where records are appended to.

    Every method may be called from any thread. A log that was opened before a ``fork`` must not be
    used in the child: open another one there.
    """

    @property
    @abstractmethod
    def max_payload_bytes(self) -> int:
        """The largest payload that this log accepts, in bytes."""

    @abstractmethod
    def append(self, records: Sequence[Record]) -> int | None:
        """Append records in this order.

        They are durable when this returns, to the degree that the log was opened for. Without any
        records nothing is written, but it is still an error if the log can't be written now.

        Parameters
        ----------
        records
            What to append.

        Returns
        -------
        int or None
            The position after the last of them, where the log is one sequence.

        Raises
        ------
        LogUnavailableError
            If they can't be written now. A log on one machine then has none of them; of one that
            is shared some or all may be found afterwards. Readers drop such repeats by id.
        InvalidInputError
            If a payload is larger than `max_payload_bytes`. Nothing was written.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back files and connections. Closing twice is harmless; using it after is not."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class LogPartition(ABC):
    """A sequence of records that is read by position.

    Every method may be called from any thread.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What tells it from the log's other partitions, for as long as the log lives."""

    @property
    def loop(self) -> str | None:
        """The loop that all its records belong to; None if it has those of any loop."""
        return None

    @property
    def stream(self) -> Stream | None:
        """What all its records are; None if it has records of every kind."""
        return None

    @property
    def number(self) -> int | None:
        """Its number, which is the same for all streams of a key; None if the log has no others."""
        return None

    @property
    def expires(self) -> bool:
        """Whether records may go by themselves after a time, released or not."""
        return False

    @abstractmethod
    def read(self, position: int, *, limit: int) -> list[LogEntry]:
        """Read what stands at a position and after it, in order.

        An entry that becomes visible later never has a smaller position than one that was already
        read, or than the :meth:`end` that was told before. So a reader that continues after the
        last entry it got misses nothing.

        Parameters
        ----------
        position
            Where to begin, at least :meth:`start`.
        limit
            Largest number of entries to return, at least 1.

        Returns
        -------
        list of LogEntry
            Up to `limit` entries; fewer only if nothing more stood up to the end as it was when
            this was called.

        Raises
        ------
        InvalidInputError
            If `position` was released already or is below the first, or if `limit` is below 1.
        LogUnavailableError
            If the log can't be read now.
        """

    @abstractmethod
    def start(self) -> int:
        """First position that is still held; equal to :meth:`end` if none is.

        Raises
        ------
        LogUnavailableError
            If the log can't be read now.
        """

    @abstractmethod
    def end(self) -> int:
        """Position that no record that can be read now has or comes after.

        Raises
        ------
        LogUnavailableError
            If the log can't be read now.
        """

    def set_aside(self, entries: Sequence[tuple[LogEntry, InvalidInputError]]) -> None:
        """Keep entries that can't be read where somebody will find them, so that others go on.

        They are kept for good when this returns. Unless a log has a place for them, it refuses.

        Parameters
        ----------
        entries
            As they were read, and what is wrong with each.

        Raises
        ------
        InvalidInputError
            If there is no such place.
        LogUnavailableError
            If they can't be kept now. Some may have been; their origins tell repeats.
        """
        for entry, error in entries:
            raise InvalidInputError(
                f"log position {entry.position}: {error.field}", error.expected
            ) from error

    @abstractmethod
    def release(self, position: int) -> int:
        """Let go of the records below a position, in whole segments.

        A segment that holds any record at `position` or after it stays, and so does the one that
        is written to. So does one that is being read right now; the next call gets it.

        Parameters
        ----------
        position
            The first position that is still needed.

        Returns
        -------
        int
            How many segments were removed.

        Raises
        ------
        LogUnavailableError
            If segments can't be removed now.
        """


class EventLog(LogWriter):
    """An append-only log that several processes write and read at once."""

    @abstractmethod
    def partitions(self) -> Sequence[LogPartition]:
        """What it consists of, always in the same order; more may be added at the end.

        Raises
        ------
        LogUnavailableError
            If the log can't be read now.
        """


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How events are logged.

    Attributes
    ----------
    durability
        ``commit``: an event is acknowledged once it survives a power failure. ``buffered``: once
        it is in memory; a crash loses what has not been written yet.
    segment_rows
        Records in a segment before the next one is begun; space is given back by segments.
    busy_timeout_s
        How long to wait for another writer, in seconds.
    max_batch
        Most records that are grouped into one commit.
    max_pending
        Most records that may wait to be written; beyond that the log is unavailable.
    max_pending_bytes
        Likewise, of their payloads; a single append may have more if nothing else waits.
    backend
        Where the log is kept.
    kafka
        How, with the backend ``kafka``.
    """

    durability: Durability = "commit"
    segment_rows: int = 1_000_000
    busy_timeout_s: float = 5.0
    max_batch: int = 512
    max_pending: int = 8192
    max_pending_bytes: int = 134_217_728
    backend: Backend = "sqlite"
    kafka: KafkaConfig = KafkaConfig()

    def __post_init__(self) -> None:
        if self.segment_rows < 1:
            raise ValueError(f"segment_rows must be at least 1, got {self.segment_rows}")
        if not 0 < self.busy_timeout_s <= 3600:
            raise ValueError(f"busy_timeout_s must be in (0, 3600], got {self.busy_timeout_s}")
        if self.max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {self.max_batch}")
        if self.max_pending < self.max_batch:
            raise ValueError(
                f"max_pending must be at least max_batch ({self.max_batch}), got {self.max_pending}"
            )
        if self.max_pending_bytes < 1:
            raise ValueError(f"max_pending_bytes must be at least 1, got {self.max_pending_bytes}")
