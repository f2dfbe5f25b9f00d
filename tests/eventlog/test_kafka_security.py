"""TLS, SCRAM and permissions, against a broker that insists on them, with both clients."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import confluent_kafka
import msgspec
import pytest
from kafka import KafkaConsumer
from kafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError

from croupier.eventlog.kafka.connection import (
    client_settings,
    confluent_settings,
    ensure_topics,
    open_client,
)
from croupier.eventlog.kafka.writer import KafkaWriter
from croupier.eventlog.log import Record
from croupier.policy.errors import ConfigError, LogUnavailableError
from tests.kafka import ADMIN, SCORER, SINK

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.eventlog.kafka.config import KafkaConfig
    from tests.kafka import SecureKafka

CLIENTS = ["kafka-python", "confluent-kafka"]

# kafka-python leaves a socket whose handshake has failed to the garbage collector.
pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore:unclosed <ssl:ResourceWarning"),
]


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def prefix(secure_kafka: SecureKafka, topic_prefix: str) -> str:
    """Topics that an administrator has made, for the scorer to write to and the sink to read."""
    ensure_topics(secure_kafka.config(ADMIN, topic_prefix), ["shop"])
    secure_kafka.allow(topic_prefix)
    return topic_prefix


def write(config: KafkaConfig, client: str, loop: str = "shop") -> None:
    config = msgspec.structs.replace(config, client=client)
    with KafkaWriter(config, [loop]) as writer:
        writer.append([Record(loop, "decision", f"d{number}", b"{}") for number in range(9)])


def read(config: KafkaConfig, client: str, group: str) -> list[bytes]:
    """Keys of nine records, as a member of a group."""
    topic = f"{config.topic_prefix}.shop.decisions"
    if client == "confluent-kafka":
        return _read_confluent(config, topic, group)
    consumer = open_client(
        KafkaConsumer, group_id=group, auto_offset_reset="earliest", **client_settings(config)
    )
    with closing(consumer):
        consumer.subscribe([topic])
        keys: list[bytes] = []
        while len(keys) < 9:
            keys += [each.key for batch in consumer.poll(500).values() for each in batch]
        consumer.commit()
        return sorted(keys)


def _read_confluent(config: KafkaConfig, topic: str, group: str) -> list[bytes]:
    consumer = confluent_kafka.Consumer(
        {"group.id": group, "auto.offset.reset": "earliest", **confluent_settings(config)}
    )
    with closing(consumer):
        consumer.subscribe([topic])
        keys: list[bytes] = []
        while len(keys) < 9:
            for message in consumer.consume(9, 0.5):
                error = message.error()
                if error is not None:
                    raise confluent_kafka.KafkaException(error)
                keys.append(message.key() or b"")
        consumer.commit(asynchronous=False)
        return sorted(keys)


def test_the_scorer_writes_and_the_sink_reads(
    secure_kafka: SecureKafka, prefix: str, client: str
) -> None:
    write(secure_kafka.config(SCORER, prefix), client)
    found = read(secure_kafka.config(SINK, prefix), client, f"{prefix}-sinks")
    assert found == [f"d{number}".encode() for number in range(9)]


def test_the_sink_may_not_write(secure_kafka: SecureKafka, prefix: str, client: str) -> None:
    with pytest.raises(LogUnavailableError, match=r"^writing to Kafka failed: .*[Aa]uthorization"):
        write(secure_kafka.config(SINK, prefix), client)


def test_the_scorer_may_not_read(secure_kafka: SecureKafka, prefix: str, client: str) -> None:
    refused = (
        TopicAuthorizationFailedError,
        GroupAuthorizationFailedError,
        confluent_kafka.KafkaException,
    )
    with pytest.raises(refused, match=r"[Aa]uthorization ?[Ff]ailed"):
        read(secure_kafka.config(SCORER, prefix), client, f"{prefix}-sinks")


def test_a_scorer_without_permission_is_told_the_topic(
    secure_kafka: SecureKafka, topic_prefix: str, client: str
) -> None:
    ensure_topics(secure_kafka.config(ADMIN, topic_prefix), ["shop"])
    topic = rf"{topic_prefix}\.shop\.decisions"
    with pytest.raises(LogUnavailableError, match=rf"TopicAuthorizationFailedError: {topic}$"):
        write(secure_kafka.config(SCORER, topic_prefix), client)


def test_a_scorer_that_may_not_make_topics_is_told_the_topic(
    secure_kafka: SecureKafka, prefix: str, client: str
) -> None:
    topic = rf"{prefix}\.new\.decisions"
    with pytest.raises(LogUnavailableError, match=rf"^making topic {topic} failed: TopicAuth"):
        write(secure_kafka.config(SCORER, prefix), client, loop="new")


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"password": "wrong"}, "password"),
        ({"username": "nobody"}, "username"),
        ({"sasl_mechanism": "SCRAM-SHA-256"}, "sasl_mechanism"),
        ({"protocol": "SASL_PLAINTEXT"}, "protocol"),
        ({"ca_file": None}, "ca_file"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_named(
    changes: dict[str, Any], fields: str, secure_kafka: SecureKafka, prefix: str
) -> None:
    config = msgspec.structs.replace(
        secure_kafka.config(SCORER, prefix, **changes), delivery_timeout_s=1.0
    )
    with pytest.raises(LogUnavailableError) as refused:
        write(config, "kafka-python")
    said = str(refused.value)
    assert said.startswith("connecting to Kafka failed: ")
    assert fields in said.partition("(due to log.kafka.security.")[2]
    assert "wrong" not in said


def test_a_file_that_is_missing(secure_kafka: SecureKafka, prefix: str, tmp_path: Path) -> None:
    config = secure_kafka.config(SCORER, prefix, ca_file=str(tmp_path / "missing.pem"))
    with pytest.raises(ConfigError, match=r"^log\.kafka\.security\.ca_file: expected a file, got "):
        write(config, "kafka-python")
