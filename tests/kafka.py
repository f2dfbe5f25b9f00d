"""A real Kafka for tests: started once a session, and only if a test asks for it.

Tests share the broker, so each works below a topic prefix of its own, and in groups and
transactions named after it. Where Java or Maven is missing, these tests are skipped, and in CI they
fail.
"""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest

from croupier.eventlog.kafka.broker import Cluster, Runtime
from croupier.eventlog.kafka.config import KafkaConfig
from croupier.policy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("kafka", "kafka_config", "kafka_runtime", "topic_prefix")


@pytest.fixture(scope="session")
def kafka_runtime() -> Runtime:
    """Java and Kafka's jars."""
    try:
        return Runtime.find()
    except ConfigError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"Kafka can't be run here: {error}")


@pytest.fixture(scope="session")
def kafka(kafka_runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node, for every test that leaves it running."""
    folder = tmp_path_factory.mktemp("kafka") / "shared"
    cluster = Cluster.create(folder, runtime=kafka_runtime)
    cluster.start()
    yield cluster
    cluster.kill()


@pytest.fixture
def topic_prefix() -> str:
    """What the names of a test's topics, groups and transactions begin with."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def kafka_config(kafka: Cluster, topic_prefix: str) -> KafkaConfig:
    """How a test reaches the broker, below its own prefix."""
    return KafkaConfig(
        bootstrap_servers=kafka.bootstrap_servers, topic_prefix=topic_prefix, partitions=3
    )
