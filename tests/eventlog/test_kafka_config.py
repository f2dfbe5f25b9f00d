"""What a cluster is configured with is looked at before anybody is asked."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from croupier.eventlog.kafka.config import KafkaConfig, KafkaSecurity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bootstrap_servers": []}, "bootstrap_servers must name at least one host:port"),
        ({"bootstrap_servers": [""]}, "bootstrap_servers must name at least one host:port"),
        ({"topic_prefix": "a/b"}, "topic_prefix must be"),
        ({"partitions": 0}, "partitions must be at least 1, got 0"),
        ({"replication": 0}, "replication must be at least 1, got 0"),
        ({"min_insync": 2}, "min_insync must be between 1 and replication (1), got 2"),
        ({"retention_s": 0}, "retention_s must be at least 1, got 0"),
        ({"linger_ms": -1}, "linger_ms must be in [0, 10000], got -1"),
        ({"linger_ms": 2000}, "linger_ms must be below delivery_timeout_s (2.0 s), got 2000"),
        ({"batch_bytes": 0}, "batch_bytes must be at least 1, got 0"),
        ({"max_message_bytes": 1000}, "max_message_bytes must be in [65536, 67108864], got 1000"),
        ({"delivery_timeout_s": 0}, "delivery_timeout_s must be in (0, 3600], got 0.0"),
        ({"spill_max_bytes": 1000}, "spill_max_bytes must be at least 1048576, got 1000"),
        ({"client": "librdkafka"}, "client"),
        ({"compression": "brotli"}, "compression"),
        ({"bootstrap": "a:1"}, "unknown field `bootstrap`"),
    ],
)
def test_a_configuration_says_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=re.escape(message)):
        msgspec.convert(options, KafkaConfig)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "SASL_SSL"}, "username and password must be given with SASL_SSL"),
        ({"cert_file": "a.pem"}, "cert_file and key_file must be given together"),
    ],
)
def test_credentials_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=re.escape(message)):
        msgspec.convert(options, KafkaSecurity)


def test_the_default_configuration_loses_nothing() -> None:
    config = KafkaConfig()
    assert config.retention_s is None
    assert config.spill_max_bytes == 4 * 2**30
