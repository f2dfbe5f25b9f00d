"""Writing to the topics of a Kafka cluster, with either of two clients.

An append sends its records and waits until the cluster has acknowledged all of them, each by as
many copies as the topic asks for. The client numbers what it sends (Kafka's idempotent producer),
so that its own repeats are dropped by the brokers and records of a key stay in order.

After any failure the client is thrown away, and the next append begins with a new one, whose
numbers begin anew. What the old one still had under way may have been stored all the same, so
whoever sends it again may store it twice. Readers drop repeats by id.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from importlib.util import find_spec
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from kafka import KafkaProducer
from kafka.errors import KafkaError

from croupier.eventlog.kafka.connection import (
    client_settings,
    confluent_settings,
    ensure_topics,
    milliseconds,
    open_client,
    reason,
)
from croupier.eventlog.kafka.topics import (
    KIND_HEADER,
    SCHEMA_HEADER,
    SCHEMA_VERSION,
    stream_of,
    topic,
)
from croupier.eventlog.log import LogWriter
from croupier.policy.errors import ConfigError, InvalidInputError, LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import confluent_kafka

    from croupier.eventlog.kafka.config import KafkaConfig
    from croupier.eventlog.log import Record

__all__ = ("KafkaWriter", "Message", "ProduceClient", "message_of", "produce_client")

# What key, headers and the frame of a message take at most; a key has up to 256 characters.
_FRAME_BYTES = 8192
# Beyond the client's own deadline, for it to say what went wrong.
_GRACE_S = 0.5
_CLOSING_S = 0.1
_GATHERING_MS = 100
_POLL_S = 0.05


class Message(NamedTuple):
    """A record as Kafka has it."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


def message_of(record: Record, prefix: str) -> Message:
    """The message that stands for a record, in a topic whose name begins with a prefix.

    Raises
    ------
    InvalidInputError
        If no event is of the record's kind.
    """
    return Message(
        topic(prefix, record.loop, stream_of(record.kind)),
        record.key.encode(),
        record.payload,
        [(SCHEMA_HEADER, SCHEMA_VERSION), (KIND_HEADER, record.kind.encode())],
    )


class ProduceClient(Protocol):
    """Somebody's code that talks to the brokers. One thread at a time calls it."""

    def produce(self, messages: Sequence[Message], deadline: float) -> None:
        """Have the cluster acknowledge all messages, those of a key in this order.

        Parameters
        ----------
        messages
            What to send.
        deadline
            When to give up, by :func:`time.monotonic`.

        Raises
        ------
        LogUnavailableError
            If one of them isn't acknowledged. The client is of no use any more then.
        """

    def close(self) -> None:
        """Let go of what is under way, and of threads and connections."""


def produce_client(config: KafkaConfig) -> ProduceClient:
    """The client that a configuration asks for.

    Raises
    ------
    ConfigError
        If it isn't installed, or if a file of certificates or keys isn't there.
    LogUnavailableError
        If the cluster can't be reached.
    """
    if config.client == "confluent-kafka":
        _require_confluent()
        return _ConfluentClient(config)
    return _PythonClient(config)


class KafkaWriter(LogWriter):
    """Appends to the topics of loops.

    It connects with its first append, or with :meth:`connect`, and makes the topics that are
    missing. Appends of several threads take turns.

    Parameters
    ----------
    config
        The cluster.
    loops
        Whose topics there have to be.

    Raises
    ------
    ConfigError
        If the client that the configuration asks for isn't installed, or if a file of certificates
        or keys isn't there.
    """

    def __init__(self, config: KafkaConfig, loops: Collection[str]) -> None:
        client_settings(config)
        if config.client == "confluent-kafka":
            _require_confluent()
        self._config = config
        self._loops = tuple(loops)
        self._max_payload_bytes = config.max_message_bytes - _FRAME_BYTES
        self._client: ProduceClient | None = None
        # One append at a time, so that a retry can't overtake what another thread sends.
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._pid = os.getpid()

    @property
    def config(self) -> KafkaConfig:
        """The cluster, and how it is written to."""
        return self._config

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload that fits into a message."""
        return self._max_payload_bytes

    def connect(self) -> None:
        """Connect, and make the topics that are missing. Connected already, look after them anew.

        Raises
        ------
        ConfigError
            If the topics don't fit the configuration; see :func:`ensure_topics`.
        LogUnavailableError
            If the cluster can't be reached, or doesn't allow it.
        """
        with self._using():
            self._connect()

    def append(self, records: Sequence[Record]) -> None:
        """Append records, each next to others of its loop and key; see LogWriter.

        This takes about ``delivery_timeout_s`` at most, or up to three times as long if it has to
        connect first. Without records it asks the cluster whether it is there.
        """
        messages = self._messages(records)
        with self._using():
            client = self._client
            if client is None or not messages:
                try:
                    client = self._connect()
                except ConfigError as error:
                    raise LogUnavailableError(f"Kafka's topics can't be used: {error}") from error
            if messages:
                deadline = time.monotonic() + self._config.delivery_timeout_s + _GRACE_S
                client.produce(messages, deadline)

    def close(self) -> None:  # noqa: D102 - see LogWriter
        self._closed.set()
        # An append that is under way sees to it by itself.
        if os.getpid() == self._pid and self._lock.acquire(timeout=_POLL_S):
            try:
                self._drop()
            finally:
                self._lock.release()

    def _messages(self, records: Sequence[Record]) -> list[Message]:
        if records and max(len(record.payload) for record in records) > self._max_payload_bytes:
            raise InvalidInputError(
                "records", f"expected payloads of at most {self._max_payload_bytes} bytes"
            )
        prefix = self._config.topic_prefix
        return [message_of(record, prefix) for record in records]

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Keep other threads out, and keep no client that has failed."""
        if os.getpid() != self._pid:
            raise LogUnavailableError(
                "the log was opened before a fork; open another one in this process"
            )
        with self._lock:
            if self._closed.is_set():
                raise LogUnavailableError("the log is closed")
            try:
                yield
            except BaseException:
                self._drop()
                raise
            finally:
                if self._closed.is_set():
                    self._drop()

    def _connect(self) -> ProduceClient:
        ensure_topics(self._config, self._loops)
        if self._client is None:
            self._client = produce_client(self._config)
        return self._client

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


class _PythonClient:
    """kafka-python: nothing but Python, and as fast as that is."""

    def __init__(self, config: KafkaConfig) -> None:
        delivery_ms = milliseconds(config.delivery_timeout_s)
        linger_ms = min(_GATHERING_MS, delivery_ms // 4)
        self._producer = open_client(
            KafkaProducer,
            enable_idempotence=True,
            acks="all",
            allow_auto_create_topics=False,
            bootstrap_timeout_ms=delivery_ms,
            max_block_ms=delivery_ms,
            delivery_timeout_ms=delivery_ms,
            request_timeout_ms=max(1, delivery_ms - linger_ms),
            linger_ms=linger_ms,
            batch_size=config.batch_bytes,
            max_request_size=config.max_message_bytes,
            compression_type=None if config.compression == "none" else config.compression,
            metrics_enabled=False,
            **client_settings(config),
        )

    def produce(self, messages: Sequence[Message], deadline: float) -> None:
        send = self._producer.send
        try:
            futures = [send(each.topic, each.value, each.key, each.headers) for each in messages]
            # Its thread is woken for every batch that it is given. Given them at once, it wakes
            # once, and takes a quarter less of the processor.
            self._producer.flush(max(0.0, deadline - time.monotonic()))
            for future in futures:
                future.get(max(0.0, deadline - time.monotonic()))
        except (KafkaError, OSError, ValueError) as error:
            raise LogUnavailableError(f"writing to Kafka failed: {reason(error)}") from error

    def close(self) -> None:
        sender = self._producer._sender  # noqa: SLF001 - close() alone waits for what is under way
        sender.force_close()
        sender.join(_CLOSING_S)
        if sender.is_alive():
            # It waits for a broker that doesn't answer. Nobody has to wait with it.
            threading.Thread(target=self._close_late, name="croupier-closing", daemon=True).start()
        else:
            self._producer.close(timeout=0)

    def _close_late(self) -> None:
        self._producer._sender.join()  # noqa: SLF001
        self._producer.close(timeout=0)


class _ConfluentClient:
    """confluent-kafka: librdkafka, which works without Python's lock."""

    def __init__(self, config: KafkaConfig) -> None:
        import confluent_kafka  # noqa: PLC0415 - an extra

        delivery_ms = milliseconds(config.delivery_timeout_s)
        settings: dict[str, Any] = {
            "enable.idempotence": True,
            "acks": "all",
            # librdkafka's own default hashes keys in another way than all other clients.
            "partitioner": "murmur2_random",
            "allow.auto.create.topics": False,
            "message.timeout.ms": delivery_ms,
            "request.timeout.ms": max(1, delivery_ms - config.linger_ms),
            "linger.ms": config.linger_ms,
            "batch.size": config.batch_bytes,
            "message.max.bytes": config.max_message_bytes,
            "compression.type": config.compression,
            **confluent_settings(config),
        }
        self._errors: list[confluent_kafka.KafkaError] = []
        self._waiting = 0
        self._failed = confluent_kafka.KafkaException
        self._producer = confluent_kafka.Producer(settings, logger=getLogger("kafka.librdkafka"))

    def produce(self, messages: Sequence[Message], deadline: float) -> None:
        try:
            for each in messages:
                self._send(each, deadline)
            while self._waiting and not self._errors and time.monotonic() < deadline:
                self._producer.poll(_POLL_S)
        except (self._failed, BufferError) as error:
            raise LogUnavailableError(f"writing to Kafka failed: {reason(error)}") from error
        if self._errors:
            raise LogUnavailableError(f"writing to Kafka failed: {self._errors[0].str()}")
        if self._waiting:
            raise LogUnavailableError("writing to Kafka failed: it took too long")

    def close(self) -> None:
        self._producer.purge()
        self._producer.flush(0)

    def _send(self, message: Message, deadline: float) -> None:
        while True:
            try:
                self._producer.produce(
                    message.topic,
                    message.value,
                    message.key,
                    on_delivery=self._delivered,
                    headers=[*message.headers],
                )
            except BufferError:
                # The client holds as much as it may.
                if time.monotonic() >= deadline:
                    raise
                self._producer.poll(_POLL_S)
            else:
                self._waiting += 1
                return

    def _delivered(
        self, error: confluent_kafka.KafkaError | None, _: confluent_kafka.Message
    ) -> None:
        self._waiting -= 1
        if error is not None:
            self._errors.append(error)


def _require_confluent() -> None:
    if find_spec("confluent_kafka") is None:
        raise ConfigError(
            "log.kafka.client",
            "expected confluent-kafka to be installed: pip install 'croupier[confluent]'",
        )
