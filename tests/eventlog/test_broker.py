"""The runner of Kafka's nodes, with a real Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

if TYPE_CHECKING:
    from croupier.eventlog.kafka.broker import Cluster


def produce(cluster: Cluster, topic: str, *values: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=list(cluster.bootstrap_servers), acks="all")
    for value in values:
        producer.send(topic, value).get(timeout=60)
    producer.close()


def consume(cluster: Cluster, topic: str) -> list[bytes]:
    """Everything in the topic's only partition."""
    consumer = KafkaConsumer(bootstrap_servers=list(cluster.bootstrap_servers))
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek_to_beginning(partition)
    end = consumer.end_offsets([partition])[partition]
    found: list[bytes] = []
    while consumer.position(partition) < end:
        found += [each.value for each in consumer.poll(1000).get(partition, [])]
    consumer.close()
    return found


def make_topic(cluster: Cluster, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=list(cluster.bootstrap_servers))
    admin.create_topics([NewTopic(topic, 1, len(cluster.nodes))])
    admin.close()


def test_the_shared_node_keeps_what_it_is_given(kafka: Cluster, topic_prefix: str) -> None:
    make_topic(kafka, topic_prefix)
    produce(kafka, topic_prefix, b"one", b"two")
    assert consume(kafka, topic_prefix) == [b"one", b"two"]
