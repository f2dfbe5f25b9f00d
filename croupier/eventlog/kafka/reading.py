"""Reading the topics of a Kafka cluster by position, and what is done with what can't be read.

A position is an offset. Only what is committed is read, so the end is the last stable offset: it
stops before the first record of a transaction that is still open. Offsets have gaps, where the
marks of transactions are and what was in transactions that were aborted; so entries that follow
each other may be further apart than 1, and the end may be beyond the last entry by more.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager
from logging import getLogger
from typing import TYPE_CHECKING

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import (
    AuthorizationError,
    KafkaError,
    OffsetOutOfRangeError,
    PolicyViolationError,
    for_code,
)

from croupier.eventlog.kafka.connection import (
    admin,
    client_settings,
    ensure_topics,
    milliseconds,
    open_client,
    reason,
)
from croupier.eventlog.kafka.topics import (
    DEAD_LETTERS,
    KIND_HEADER,
    LOGGED,
    OFFSET_HEADER,
    PARTITION_HEADER,
    REASON_HEADER,
    SCHEMA_HEADER,
    SCHEMA_VERSION,
    TOPIC_HEADER,
    kinds_of,
    topic,
)
from croupier.eventlog.kafka.writer import KafkaWriter, Message, produce_client
from croupier.eventlog.log import EventLog, LogEntry, LogPartition
from croupier.policy.errors import InvalidInputError, LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from croupier.eventlog.kafka.config import KafkaConfig
    from croupier.eventlog.kafka.topics import Stream
    from croupier.eventlog.kafka.writer import ProduceClient
    from croupier.eventlog.log import Record

__all__ = ("KafkaEntry", "KafkaLog", "KafkaPartition")

_UNKNOWN_TOPIC = 3
# Brokers that don't answer for so long are away. An election of leaders takes a few seconds.
_PATIENCE_S = 15.0
_POLL_MS = 200
# Of one partition that is fetched at once. What is fetched and not read is fetched again when the
# partition has its next turn.
_FETCH_BYTES = 8 * 2**20
_LONGEST_REASON = 1000

_logger = getLogger(__name__)


class KafkaEntry(LogEntry, frozen=True, gc=False):
    """A message as it stands in a topic.

    Attributes
    ----------
    raw_key, raw_value, headers
        Its bytes, which need not be a record's.
    """

    raw_key: bytes | None = None
    raw_value: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


class KafkaLog(EventLog):
    """The topics of several loops as one log.

    It connects when it is first used. Reads of several threads take turns.

    Parameters
    ----------
    config
        The cluster.
    loops
        Whose topics.

    Raises
    ------
    ConfigError
        If a file of certificates or keys isn't there.
    """

    def __init__(self, config: KafkaConfig, loops: Collection[str]) -> None:
        client_settings(config)
        self.config = config
        self.loops = tuple(loops)
        self._writer = KafkaWriter(config, self.loops)
        self._consumer: KafkaConsumer | None = None
        self._dead: ProduceClient | None = None
        self._lock = threading.Lock()
        self._closed = False

    def __reduce__(self) -> tuple[type[KafkaLog], tuple[KafkaConfig, tuple[str, ...]]]:
        """What it was opened with: another process opens it for itself."""
        return type(self), (self.config, self.loops)

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload that fits into a message."""
        return self._writer.max_payload_bytes

    def append(self, records: Sequence[Record]) -> None:
        """Append records, each next to others of its loop and key; see LogWriter."""
        self._writer.append(records)

    def partitions(self) -> Sequence[KafkaPartition]:
        """Those of all topics there are, by loop, stream and number; topics may be missing."""
        names = {
            topic(self.config.topic_prefix, loop, stream): (loop, stream)
            for loop in self.loops
            for stream in LOGGED
        }
        counts = self._counts(list(names))
        return [
            KafkaPartition(self, loop, stream, number)
            for name, (loop, stream) in names.items()
            for number in range(counts.get(name, 0))
        ]

    def partition(self, loop: str, stream: Stream, number: int) -> KafkaPartition:
        """One of them, whether it is there or not."""
        return KafkaPartition(self, loop, stream, number)

    def ends(self, partitions: Iterable[KafkaPartition]) -> dict[KafkaPartition, int]:
        """Ends of several partitions at once.

        Raises
        ------
        LogUnavailableError
            If the brokers don't tell.
        """
        places = {each.place: each for each in partitions}
        if not places:
            return {}
        with self._reading() as consumer:
            found = consumer.end_offsets(list(places), timeout_ms=milliseconds(_PATIENCE_S))
        return {places[place]: int(end) for place, end in found.items()}

    def close(self) -> None:  # noqa: D102 - see LogWriter
        self._writer.close()
        with self._lock:
            self._closed = True
            self._drop()
            if self._dead is not None:
                self._dead.close()
                self._dead = None

    def read(self, place: TopicPartition, position: int, limit: int) -> list[Any]:
        """Messages of a partition, at a position and after it; see LogPartition.read."""
        with self._reading() as consumer:
            (end,) = consumer.end_offsets([place], timeout_ms=milliseconds(_PATIENCE_S)).values()
            if position >= end:
                return []
            if consumer.assignment() != {place}:
                consumer.assign([place])
                consumer.seek(place, position)
            elif consumer.position(place, timeout_ms=0) != position:
                consumer.seek(place, position)
            try:
                return _collect(consumer, place, end, limit)
            except OffsetOutOfRangeError:
                starts = consumer.beginning_offsets([place], timeout_ms=milliseconds(_PATIENCE_S))
        raise InvalidInputError(
            "position",
            f"expected at least {starts[place]}, the first that is still held, got {position}",
        )

    def start(self, place: TopicPartition) -> int:
        """First offset that a partition still has."""
        with self._reading() as consumer:
            found = consumer.beginning_offsets([place], timeout_ms=milliseconds(_PATIENCE_S))
        return int(found[place])

    def bury(self, loop: str, messages: Sequence[Message]) -> None:
        """Put messages into a loop's topic of dead letters; they are acknowledged on return.

        Raises
        ------
        LogUnavailableError
            If they can't be put there.
        """
        deadline = time.monotonic() + self.config.delivery_timeout_s
        with self._lock:
            self._check_open()
            if self._dead is None:
                ensure_topics(self.config, [loop], (DEAD_LETTERS,))
                self._dead = produce_client(self.config)
            try:
                self._dead.produce(messages, deadline)
            except BaseException:
                # It is of no use any more.
                self._dead.close()
                self._dead = None
                raise

    def release(self, place: TopicPartition, position: int) -> bool:
        """Have the brokers delete a partition's records below a position; whether it has moved."""
        before = self.start(place)
        if position <= before:
            return False
        with closing(admin(self.config)) as client:
            try:
                found = client.delete_records({place: position})[place]
                if found["error_code"]:
                    raise for_code(found["error_code"])(place)
            except (AuthorizationError, PolicyViolationError) as error:
                _logger.warning(
                    "records of %s below %d stay for as long as the topic keeps them: %s",
                    place.topic,
                    position,
                    reason(error),
                )
                return False
            except (KafkaError, OSError) as error:
                raise LogUnavailableError(f"deleting records failed: {reason(error)}") from error
        return int(found["low_watermark"]) > before

    def _counts(self, names: Sequence[str]) -> Mapping[str, int]:
        """How many partitions each topic has; missing topics are left out."""
        found: dict[str, int] = {}
        if not names:
            return found
        with closing(admin(self.config)) as client:
            try:
                for each in client.describe_topics(names):
                    if each["error_code"] == _UNKNOWN_TOPIC:
                        continue
                    if each["error_code"]:
                        raise for_code(each["error_code"])(each["name"])
                    found[each["name"]] = len(each["partitions"])
            except (KafkaError, OSError) as error:
                raise LogUnavailableError(f"asking for topics failed: {reason(error)}") from error
        return found

    @contextmanager
    def _reading(self) -> Iterator[KafkaConsumer]:
        """The consumer, for one thread at a time; none is kept that has failed."""
        with self._lock:
            self._check_open()
            if self._consumer is None:
                self._consumer = self._connect()
            try:
                yield self._consumer
            except (KafkaError, OSError, KeyError) as error:
                # kafka-python trips over a partition that no broker has told the end of in time.
                self._drop()
                raise LogUnavailableError(f"reading from Kafka failed: {reason(error)}") from error
            except BaseException:
                self._drop()
                raise

    def _connect(self) -> KafkaConsumer:
        return open_client(
            KafkaConsumer,
            isolation_level="read_committed",
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            # Nobody is to be moved to other records than he asked for.
            auto_offset_reset="none",
            bootstrap_timeout_ms=milliseconds(self.config.delivery_timeout_s),
            max_partition_fetch_bytes=max(_FETCH_BYTES, self.config.max_message_bytes),
            metrics_enabled=False,
            **client_settings(self.config),
        )

    def _drop(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close(autocommit=False, timeout_ms=0)

    def _check_open(self) -> None:
        if self._closed:
            raise LogUnavailableError("the log is closed")


class KafkaPartition(LogPartition):
    """One partition of a loop's topic. It is equal to any other object that stands for the same.

    Parameters
    ----------
    log
        That it belongs to.
    loop, stream, number
        Which one.
    """

    def __init__(self, log: KafkaLog, loop: str, stream: Stream, number: int) -> None:
        self._log = log
        self._loop = loop
        self._stream: Stream = stream
        self.place = TopicPartition(topic(log.config.topic_prefix, loop, stream), number)
        self._kinds = frozenset(kind.encode() for kind in kinds_of(stream))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KafkaPartition) and self.place == other.place

    def __hash__(self) -> int:
        return hash(self.place)

    def __repr__(self) -> str:
        return f"<KafkaPartition {self.name}>"

    @property
    def name(self) -> str:
        """``<topic>-<number>``."""
        return f"{self.place.topic}-{self.place.partition}"

    @property
    def loop(self) -> str:  # noqa: D102 - see LogPartition
        return self._loop

    @property
    def stream(self) -> Stream:  # noqa: D102 - see LogPartition
        return self._stream

    @property
    def number(self) -> int:  # noqa: D102 - see LogPartition
        return int(self.place.partition)

    @property
    def expires(self) -> bool:
        """Topics forget by themselves, by age, if they are told to."""
        return True

    def read(self, position: int, *, limit: int) -> list[LogEntry]:  # noqa: D102 - see LogPartition
        if limit < 1:
            raise InvalidInputError("limit", f"expected at least 1, got {limit}")
        return [self._entry(each) for each in self._log.read(self.place, position, limit)]

    def start(self) -> int:  # noqa: D102 - see LogPartition
        return self._log.start(self.place)

    def end(self) -> int:  # noqa: D102 - see LogPartition
        return self._log.ends([self])[self]

    def set_aside(self, entries: Sequence[tuple[LogEntry, InvalidInputError]]) -> None:
        """Put them into the loop's topic of dead letters, byte for byte, with what is wrong.

        A key or value that is missing is empty there.
        """
        dead = topic(self._log.config.topic_prefix, self._loop, DEAD_LETTERS)
        messages = []
        for entry, error in entries:
            assert isinstance(entry, KafkaEntry)
            origin = [
                (TOPIC_HEADER, self.place.topic.encode()),
                (PARTITION_HEADER, str(self.place.partition).encode()),
                (OFFSET_HEADER, str(entry.position).encode()),
                (REASON_HEADER, str(error)[:_LONGEST_REASON].encode(errors="replace")),
            ]
            key, value = entry.raw_key or b"", entry.raw_value or b""
            messages.append(Message(dead, key, value, [*entry.headers, *origin]))
        if messages:
            self._log.bury(self._loop, messages)

    def release(self, position: int) -> int:
        """Have the brokers delete the records below a position, where they allow it.

        They delete by position and not by segment, so this gives 1 if anything has gone and else 0.
        """
        return int(self._log.release(self.place, position))

    def _entry(self, message: Any) -> KafkaEntry:
        headers = tuple(message.headers)
        told = dict(headers)
        key, value = message.key, message.value
        kind = told.get(KIND_HEADER, b"")
        schema = told.get(SCHEMA_HEADER, SCHEMA_VERSION)
        flaw = None
        if schema != SCHEMA_VERSION:
            flaw = f"expected schema version {SCHEMA_VERSION.decode()}, got {schema!r}"
        elif kind and kind not in self._kinds:
            kinds = ", ".join(sorted(each.decode() for each in self._kinds))
            flaw = f"expected a record of kind {kinds}, got {kind!r}"
        elif value is None:
            flaw = "expected a value, got none"
        elif key is None:
            flaw = "expected a key, got none"
        return KafkaEntry(
            position=message.offset,
            loop=self._loop,
            kind=kind.decode(errors="replace"),
            key=(key or b"").decode(errors="replace"),
            payload=value or b"",
            flaw=flaw,
            raw_key=key,
            raw_value=value,
            headers=headers,
        )


def _collect(consumer: KafkaConsumer, place: TopicPartition, end: int, limit: int) -> list[Any]:
    """Messages from where the consumer stands up to a limit, or to all there were."""
    messages: list[Any] = []
    position = consumer.position(place, timeout_ms=0)
    deadline = time.monotonic() + _PATIENCE_S
    while len(messages) < limit and position < end:
        for found in consumer.poll(_POLL_MS, max_records=limit - len(messages)).values():
            messages += found
        # Moves on over what isn't to be seen, too.
        moved = consumer.position(place, timeout_ms=0)
        if moved != position:
            position, deadline = moved, time.monotonic() + _PATIENCE_S
        elif time.monotonic() > deadline:
            raise LogUnavailableError(
                f"nothing came of {place.topic}-{place.partition} from {position} on, "
                f"which ends at {end}, for {_PATIENCE_S:g} s"
            )
    return messages
