"""A real Kafka for tests: started once a session, and only if a test asks for it.

Tests share the broker, so each works below a topic prefix of its own, and in groups and
transactions named after it. Where Java or Maven is missing, these tests are skipped, and in CI they
fail.
"""

from __future__ import annotations

import gc
import os
import uuid
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)

from croupier.eventlog.kafka.broker import BrokerListener, Cluster, Runtime
from croupier.eventlog.kafka.config import KafkaConfig, KafkaSecurity
from croupier.eventlog.kafka.connection import admin
from croupier.eventlog.kafka.topics import DEAD_LETTERS, topic
from croupier.policy.errors import ConfigError
from tests.certificates import Certificates, make_certificates

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = (
    "SecureKafka",
    "collected",
    "kafka",
    "kafka_config",
    "kafka_runtime",
    "secure_kafka",
    "topic_prefix",
)

ADMIN, BROKER, SCORER, SINK = "admin", "broker", "scorer", "sink"


@dataclass(frozen=True)
class SecureKafka:
    """One node that wants TLS, SCRAM and permissions.

    It knows an administrator who may do everything, a scorer and a sink, who may do nothing until
    they are allowed to.
    """

    cluster: Cluster
    certificates: Certificates
    passwords: dict[str, str]

    def config(self, user: str, topic_prefix: str, **changes: Any) -> KafkaConfig:
        """How a user gets in; changes are of :class:`KafkaSecurity`."""
        security = {
            "protocol": "SASL_SSL",
            "ca_file": str(self.certificates.authority),
            "username": user,
            "password": self.passwords[user],
            **changes,
        }
        return KafkaConfig(
            bootstrap_servers=self.cluster.bootstrap_servers,
            topic_prefix=topic_prefix,
            partitions=3,
            security=KafkaSecurity(**security),
        )

    def allow(self, topic_prefix: str, loop: str = "shop") -> None:
        """Let the scorer write below a prefix, and the sink read there, in groups named so too.

        The sink may also write to a loop's dead letters.
        """
        topics, groups = (
            ResourcePattern(kind, topic_prefix, ACLResourcePatternType.PREFIXED)
            for kind in (ResourceType.TOPIC, ResourceType.GROUP)
        )
        dead = ResourcePattern(
            ResourceType.TOPIC,
            topic(topic_prefix, loop, DEAD_LETTERS),
            ACLResourcePatternType.LITERAL,
        )
        permissions = [
            (SCORER, ACLOperation.WRITE, topics),
            (SINK, ACLOperation.READ, topics),
            (SINK, ACLOperation.READ, groups),
            (SINK, ACLOperation.WRITE, dead),
        ]
        with closing(admin(self.config(ADMIN, topic_prefix))) as client:
            client.create_acls(
                [
                    ACL(
                        principal=f"User:{user}",
                        host="*",
                        operation=operation,
                        permission_type=ACLPermissionType.ALLOW,
                        resource_pattern=pattern,
                    )
                    for user, operation, pattern in permissions
                ]
            )


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


@pytest.fixture(scope="session")
def secure_kafka(
    kafka_runtime: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecureKafka]:
    """One node with TLS, SCRAM-SHA-512 and permissions."""
    folder = tmp_path_factory.mktemp("secure-kafka")
    certificates = make_certificates(folder)
    passwords = {name: f"{name}-{uuid.uuid4().hex}" for name in (ADMIN, BROKER, SCORER, SINK)}
    listener = BrokerListener(
        protocol="SASL_SSL",
        users=passwords,
        broker_user=BROKER,
        properties={
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(certificates.server),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(certificates.authority),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # Nobody is anonymous but the node to its own controller.
            "super.users": f"User:{ADMIN};User:{BROKER};User:ANONYMOUS",
        },
    )
    cluster = Cluster.create(folder / "node", listener=listener, runtime=kafka_runtime)
    cluster.start()
    yield SecureKafka(cluster, certificates, passwords)
    cluster.kill()


@pytest.fixture
def collected() -> Iterator[None]:
    """Sockets of kafka-python's that found nobody are left to the garbage collector: here it is.

    A test that uses it has to let ResourceWarnings pass.
    """
    yield
    gc.collect()
