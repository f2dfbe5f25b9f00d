"""Apache Kafka on this machine, without a container engine: for development and tests."""

from croupier.eventlog.kafka.broker.cluster import (
    BrokerListener,
    Cluster,
    Node,
    NodeState,
    State,
)
from croupier.eventlog.kafka.broker.runtime import KAFKA_VERSION, Runtime

__all__ = (
    "KAFKA_VERSION",
    "BrokerListener",
    "Cluster",
    "Node",
    "NodeState",
    "Runtime",
    "State",
)
