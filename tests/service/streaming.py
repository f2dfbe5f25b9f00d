"""Asking scorers over Kafka, and looking at what they have committed."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from croupier.eventlog.kafka.connection import client_settings, ensure_topics
from croupier.eventlog.kafka.topics import KIND_HEADER, LOGGED, REPLIES, REQUESTS, topic
from croupier.policy.events import Decision, decode_event
from croupier.service.stream import STATUS_HEADER
from tests.service.running import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kafka.consumer.fetcher import ConsumerRecord

    from croupier.eventlog.kafka.config import KafkaConfig
    from croupier.eventlog.kafka.topics import Stream

SECRET = "000102030405060708090a0b0c0d0e0f"
LOOP = "digits"
DECIDE = {
    "context": {"hour": "nine"},
    "actions": [{"id": name, "features": {"colour": name}} for name in "abcd"],
}


def stream_config(
    kafka: KafkaConfig, *, loop: str = "", stream: str = "", session_timeout: str = "6 s"
) -> str:
    """Configuration of a scorer with one loop, over a test's own topics."""
    servers = json.dumps(list(kafka.bootstrap_servers))
    return f"""
[service]
port = 0
draw_secret = "{SECRET}"

[service.stream]
session_timeout = "{session_timeout}"
{stream}

[log]
backend = "kafka"

[log.kafka]
bootstrap_servers = {servers}
topic_prefix = "{kafka.topic_prefix}"
partitions = {kafka.partitions}

[loops.{LOOP}]
{loop}
"""


class Asker:
    """An application that asks over Kafka, of a loop's scorers."""

    def __init__(self, kafka: KafkaConfig, loop: str = LOOP) -> None:
        self._kafka = kafka
        self._loop = loop
        ensure_topics(kafka, [loop], (*LOGGED, REQUESTS, REPLIES))
        self._producer = KafkaProducer(
            **client_settings(kafka), linger_ms=2, max_request_size=kafka.max_message_bytes
        )
        self._consumer = KafkaConsumer(
            **client_settings(kafka), isolation_level="read_committed", enable_auto_commit=False
        )
        self._futures: list[Any] = []

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.close()
        self._consumer.close()

    def ask(
        self,
        key: str | bytes | None,
        request: Any = DECIDE,
        *,
        kind: str | None = None,
        partition: int | None = None,
    ) -> None:
        """Send a request; bytes and None go as they are."""
        value = request if isinstance(request, bytes | None) else json.dumps(request).encode()
        future = self._producer.send(
            self.topic("requests"),
            value,
            key.encode() if isinstance(key, str) else key,
            [] if kind is None else [(KIND_HEADER, kind.encode())],
            partition,
        )
        self._futures.append(future)

    def sent(self) -> None:
        """Wait until the brokers have everything."""
        for future in self._futures:
            future.get(PATIENCE_S)
        self._futures.clear()

    def topic(self, stream: Stream) -> str:
        return topic(self._kafka.topic_prefix, self._loop, stream)

    def replies(self, count: int) -> list[ConsumerRecord]:
        """The committed replies, once there are so many of them."""
        deadline = time.monotonic() + PATIENCE_S
        while len(found := list(self.committed("replies"))) < count:
            assert time.monotonic() < deadline, f"{len(found)} replies of {count}"
            time.sleep(0.1)
        return found

    def decisions(self) -> list[Decision]:
        """The committed decisions."""
        events = [decode_event(each.value) for each in self.committed("decisions")]
        return [event for event in events if isinstance(event, Decision)]

    def committed(self, stream: Stream) -> Iterator[ConsumerRecord]:
        """What is in a topic and not to be taken back, partition by partition."""
        consumer = self._consumer
        for number in sorted(consumer.partitions_for_topic(self.topic(stream)) or ()):
            partition = TopicPartition(self.topic(stream), number)
            consumer.assign([partition])
            consumer.seek_to_beginning(partition)
            end = consumer.end_offsets([partition])[partition]
            while consumer.position(partition) < end:
                yield from consumer.poll(1000).get(partition, ())


def status(reply: ConsumerRecord) -> int:
    return int(dict(reply.headers)[STATUS_HEADER])


def by_key(messages: Iterable[ConsumerRecord]) -> dict[str, ConsumerRecord]:
    """Messages by key, each of which must be there once."""
    found: dict[str, ConsumerRecord] = {}
    for each in messages:
        key = each.key.decode()
        assert key not in found, f"{key} is there twice"
        found[key] = each
    return found
