"""Writing to a real Kafka, with both clients: what is acknowledged is there, whatever happens."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from croupier.eventlog.appender import Appender
from croupier.eventlog.kafka import writer as writing
from croupier.eventlog.kafka.broker import Cluster
from croupier.eventlog.kafka.config import KafkaConfig, KafkaSecurity
from croupier.eventlog.kafka.connection import (
    admin,
    client_settings,
    confluent_settings,
    ensure_topics,
)
from croupier.eventlog.kafka.writer import KafkaWriter
from croupier.eventlog.log import LogConfig, Record
from croupier.eventlog.opening import open_writer
from croupier.eventlog.spilling import SpillingWriter
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.policy.errors import ConfigError, InvalidInputError, LogUnavailableError
from tests.eventlog.helpers import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from croupier.eventlog.kafka.config import Compression

# kafka-python leaves a socket that finds nobody to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

CLIENTS = ("kafka-python", "confluent-kafka")
LOOPS = ("checkout", "banner")
KINDS = ("decision", "outcome")
UNREACHABLE = KafkaConfig(bootstrap_servers=("127.0.0.1:9",), delivery_timeout_s=0.3)


class Found(NamedTuple):
    """A message as a consumer sees it."""

    partition: int
    key: str
    value: bytes
    headers: list[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def _patient_for_a_second(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("croupier.eventlog.kafka.connection._SHORTEST_WAIT_S", 1.0)
    yield
    gc.collect()


@pytest.fixture(params=CLIENTS)
def config(kafka_config: KafkaConfig, request: pytest.FixtureRequest) -> KafkaConfig:
    return msgspec.structs.replace(kafka_config, client=request.param)


@pytest.fixture
def writer(config: KafkaConfig) -> Iterator[KafkaWriter]:
    with KafkaWriter(config, LOOPS) as writer:
        yield writer


@pytest.fixture(scope="module")
def fragile(kafka: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node of its own, for tests that stop it."""
    folder = tmp_path_factory.mktemp("fragile") / "kafka"
    cluster = Cluster.create(folder, runtime=kafka._runtime)
    cluster.start()
    yield cluster
    cluster.kill()


def decision(number: int, size: int = 50) -> Record:
    payload = f"{number};".encode().ljust(size, b"x")
    return Record("checkout", "decision", f"d{number}", payload)


def outcome(number: int) -> Record:
    return Record("checkout", "outcome", f"d{number}", b"outcome")


def read_topic(config: KafkaConfig, stream: str, loop: str = "checkout") -> list[Found]:
    """Everything in a topic, partition by partition."""
    consumer = KafkaConsumer(isolation_level="read_committed", **client_settings(config))
    name = f"{config.topic_prefix}.{loop}.{stream}"
    partitions = [TopicPartition(name, number) for number in range(config.partitions)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends = consumer.end_offsets(partitions)
    found: dict[TopicPartition, list[Found]] = {each: [] for each in partitions}
    while any(consumer.position(each) < ends[each] for each in partitions):
        for partition, messages in consumer.poll(500).items():
            found[partition] += [
                Found(each.partition, each.key.decode(), each.value, list(each.headers))
                for each in messages
            ]
    consumer.close()
    return [each for partition in partitions for each in found[partition]]


def in_order(found: Sequence[Found]) -> bool:
    """Whether numbers grow within each partition, repeats aside."""
    seen: dict[int, dict[int, None]] = {}
    for each in found:
        seen.setdefault(each.partition, {}).setdefault(int(each.key[1:]))
    return all(list(numbers) == sorted(numbers) for numbers in seen.values())


def threads() -> set[str]:
    return {
        each.name
        for each in threading.enumerate()
        if "kafka" in each.name or "closing" in each.name
    }


def test_what_was_appended_is_in_the_topics(writer: KafkaWriter, config: KafkaConfig) -> None:
    writer.append([decision(0), outcome(0), Record("banner", "activation", "a", b"")])
    writer.append([Record("checkout", "judgement", "j", b"payload")])
    (found,) = read_topic(config, "decisions")
    assert found.key == "d0"
    assert found.value == decision(0).payload
    assert found.headers == [("croupier-schema", b"1"), ("croupier-kind", b"decision")]
    (found,) = read_topic(config, "outcomes")
    assert (found.key, found.headers[1]) == ("d0", ("croupier-kind", b"outcome"))
    (found,) = read_topic(config, "outcomes", "banner")
    assert (found.key, found.value) == ("a", b"")
    (found,) = read_topic(config, "audits")
    assert (found.key, found.value) == ("j", b"payload")


def test_both_clients_put_a_key_into_the_same_partition(kafka_config: KafkaConfig) -> None:
    keys = [*(f"{number:x}" * (number % 9 + 1) for number in range(400)), "\u00e9\U0001f3b2", ""]
    places: list[dict[str, int]] = []
    for client in CLIENTS:
        config = msgspec.structs.replace(
            kafka_config,
            client=client,
            topic_prefix=f"{kafka_config.topic_prefix}-{client}",
            partitions=7,
        )
        with KafkaWriter(config, ["checkout"]) as writer:
            writer.append([Record("checkout", kind, key, b"") for key in keys for kind in KINDS])
        places += [
            {each.key: each.partition for each in read_topic(config, stream)}
            for stream in ("decisions", "outcomes")
        ]
    assert set(places[0]) == set(keys)
    assert len(set(places[0].values())) == 7
    assert places.count(places[0]) == 4


def test_records_of_a_key_are_in_order(writer: KafkaWriter, config: KafkaConfig) -> None:
    for first in range(0, 3000, 300):
        writer.append([decision(number) for number in range(first, first + 300)])
    found = read_topic(config, "decisions")
    assert len(found) == 3000
    assert in_order(found)


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_compression(config: KafkaConfig, compression: Compression) -> None:
    config = msgspec.structs.replace(config, compression=compression, linger_ms=5)
    with KafkaWriter(config, LOOPS) as writer:
        writer.append([decision(number, 1000) for number in range(100)])
    assert {each.value for each in read_topic(config, "decisions")} == {
        decision(number, 1000).payload for number in range(100)
    }


def test_the_largest_payload_fits(config: KafkaConfig) -> None:
    config = msgspec.structs.replace(config, max_message_bytes=3_000_000)
    with KafkaWriter(config, LOOPS) as writer:
        largest = writer.max_payload_bytes
        # As long a key and names as there may be.
        record = Record("checkout", "judgement", "\U0001f3b2" * 256, b"x" * largest)
        writer.append([record, record])
        with pytest.raises(InvalidInputError):
            writer.append([decision(0), decision(1, largest + 1)])
    assert [len(each.value) for each in read_topic(config, "audits")] == [largest, largest]
    assert read_topic(config, "decisions") == []


def test_a_record_of_no_kind_is_refused(writer: KafkaWriter) -> None:
    with pytest.raises(InvalidInputError, match=r"record\.kind"):
        writer.append([Record("checkout", "rumour", "k", b"")])


def test_a_topic_that_is_missing_is_an_unavailable_log(config: KafkaConfig) -> None:
    config = msgspec.structs.replace(config, delivery_timeout_s=0.5)
    with KafkaWriter(config, LOOPS) as writer:
        with pytest.raises(LogUnavailableError, match="writing to Kafka failed"):
            writer.append([Record("unheard-of", "decision", "k", b"")])
        until_it_works(lambda: writer.append([decision(0)]))


def test_topics_are_made_as_configured(kafka_config: KafkaConfig) -> None:
    config = msgspec.structs.replace(kafka_config, retention_s=3600, max_message_bytes=100_000)
    ensure_topics(config, LOOPS)
    ensure_topics(config, LOOPS)
    client = admin(config)
    name = f"{config.topic_prefix}.banner.outcomes"
    (topic,) = client.describe_topics([name])
    assert len(topic["partitions"]) == 3
    resource = ConfigResource(ConfigResourceType.TOPIC, name)
    found = client.describe_configs([resource], config_filter="all")["topic"][name]
    client.close()
    assert found["retention.ms"]["value"] == "3600000"
    assert found["retention.bytes"]["value"] == "-1"
    assert found["min.insync.replicas"]["value"] == "1"
    assert found["max.message.bytes"]["value"] == "100000"


def test_topics_that_are_there_are_left_alone(kafka_config: KafkaConfig) -> None:
    ensure_topics(kafka_config, LOOPS)
    more = msgspec.structs.replace(kafka_config, partitions=9)
    ensure_topics(more, LOOPS)
    client = admin(kafka_config)
    found = client.describe_topics([f"{kafka_config.topic_prefix}.banner.decisions"])
    client.close()
    assert len(found[0]["partitions"]) == 3


def test_several_processes_may_make_the_topics(kafka_config: KafkaConfig) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(ensure_topics, kafka_config, LOOPS) for _ in range(4)]:
            done.result()


def test_decisions_and_outcomes_must_have_as_many_partitions(
    kafka_config: KafkaConfig, tmp_path: Path
) -> None:
    ensure_topics(kafka_config, LOOPS, ["outcomes"])
    more = msgspec.structs.replace(kafka_config, partitions=4)
    with pytest.raises(ConfigError, match=r"log\.kafka\.partitions.*found 4 and 3"):
        open_writer(
            LogConfig(backend="kafka", kafka=more),
            log_dir=tmp_path / "log",
            spill_dir=tmp_path / "spill",
            loops=LOOPS,
        )
    with (
        KafkaWriter(more, LOOPS) as writer,
        pytest.raises(LogUnavailableError, match="partitions"),
    ):
        writer.append([decision(0)])


def test_a_topic_must_take_the_largest_message(kafka_config: KafkaConfig) -> None:
    ensure_topics(msgspec.structs.replace(kafka_config, max_message_bytes=70_000), LOOPS)
    with pytest.raises(ConfigError, match="expected at most 70000"):
        ensure_topics(kafka_config, LOOPS)


def test_asking_whether_the_cluster_is_there(writer: KafkaWriter) -> None:
    writer.append([])
    writer.append([decision(0)])
    writer.append([])


@pytest.mark.parametrize("client", CLIENTS)
def test_a_cluster_that_is_not_there(client: str) -> None:
    config = msgspec.convert(
        {**msgspec.to_builtins(UNREACHABLE), "client": client}, type=KafkaConfig
    )
    before = threads()
    with KafkaWriter(config, LOOPS) as writer:
        for records in ([], [decision(0)]):
            with pytest.raises(LogUnavailableError, match="connecting to Kafka failed"):
                writer.append(records)
    # kafka-python by itself leaves a thread behind each time.
    assert threads() == before


@pytest.mark.parametrize(
    ("client", "away"),
    [
        ("kafka-python", "killed"),
        ("confluent-kafka", "suspended"),
        pytest.param("kafka-python", "suspended", marks=pytest.mark.slow),
        pytest.param("confluent-kafka", "killed", marks=pytest.mark.slow),
    ],
)
def test_a_broker_that_goes_away_and_comes_back(
    fragile: Cluster, topic_prefix: str, client: str, away: str
) -> None:
    config = msgspec.convert(
        {
            "bootstrap_servers": fragile.bootstrap_servers,
            "topic_prefix": topic_prefix,
            "partitions": 3,
            "client": client,
            "delivery_timeout_s": 1.0,
        },
        type=KafkaConfig,
    )
    before = threads()
    acknowledged: list[int] = []
    with KafkaWriter(config, LOOPS) as writer:

        def append(first: int) -> None:
            writer.append([decision(number) for number in range(first, first + 50)])
            acknowledged.extend(range(first, first + 50))

        until_it_works(lambda: append(0))
        with outage(fragile, away):
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises(LogUnavailableError):
                    append(50)
                assert time.monotonic() - began < 30.0
        until_it_works(lambda: append(100))
        until_it_works(lambda: append(150))
    found = read_topic(config, "decisions")
    assert {int(each.key[1:]) for each in found} >= set(acknowledged)
    wait_until(lambda: threads() == before)


def test_closing_does_not_wait_for_a_broker_that_stalls(
    fragile: Cluster, topic_prefix: str
) -> None:
    config = KafkaConfig(
        bootstrap_servers=fragile.bootstrap_servers,
        topic_prefix=topic_prefix,
        delivery_timeout_s=60.0,
    )
    writer = KafkaWriter(config, LOOPS)
    until_it_works(lambda: writer.append([decision(0)]))
    with outage(fragile, "suspended"), ThreadPoolExecutor(1) as pool:
        pending = pool.submit(writer.append, [decision(1)])
        time.sleep(0.2)
        began = time.monotonic()
        writer.close()
        writer.close()
        assert time.monotonic() - began < 30.0
        with pytest.raises(LogUnavailableError):
            pending.result()
    with pytest.raises(LogUnavailableError, match="closed"):
        writer.append([])


def test_an_appender_acknowledges_what_the_cluster_has(
    writer: KafkaWriter, config: KafkaConfig
) -> None:
    with Appender(writer, max_batch=100, max_pending=5000, durability="commit") as appender:
        futures = [appender.submit(decision(number)) for number in range(1000)]
        for future in futures:
            future.result(60)
        assert len(read_topic(config, "decisions")) == 1000


def test_a_log_that_is_away_at_the_start_gets_everything_later(
    fragile: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    config = KafkaConfig(
        bootstrap_servers=fragile.bootstrap_servers,
        topic_prefix=topic_prefix,
        partitions=3,
        delivery_timeout_s=1.0,
    )
    with outage(fragile, "killed"):
        writer = open_writer(
            LogConfig(backend="kafka", kafka=config),
            log_dir=tmp_path / "log",
            spill_dir=tmp_path / "spill",
            loops=LOOPS,
        )
        assert isinstance(writer, SpillingWriter)
        assert writer.state.spilling
        assert "connecting to Kafka failed" in (writer.state.error or "")
        for number in range(500):
            writer.append([decision(number)])
    wait_until(lambda: not writer.state.spilling)
    writer.append([decision(500)])
    writer.close()
    found = read_topic(config, "decisions")
    assert {each.key for each in found} == {f"d{number}" for number in range(501)}
    assert in_order(found)
    assert not (tmp_path / "log").exists()


def test_a_log_on_this_machine_needs_no_cluster(tmp_path: Path) -> None:
    with open_writer(
        LogConfig(), log_dir=tmp_path / "log", spill_dir=tmp_path / "spill", loops=LOOPS
    ) as writer:
        assert isinstance(writer, SqliteEventLog)
    assert not (tmp_path / "spill").exists()


def test_a_client_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "find_spec", lambda _: None)
    config = KafkaConfig(client="confluent-kafka")
    with pytest.raises(ConfigError, match=r"log\.kafka\.client.*croupier\[confluent\]"):
        KafkaWriter(config, LOOPS)


def test_a_certificate_that_is_not_there() -> None:
    config = KafkaConfig(security=KafkaSecurity(protocol="SSL", ca_file="/nowhere/ca.pem"))
    with pytest.raises(ConfigError, match=r"log\.kafka\.security\.ca_file.*/nowhere/ca\.pem"):
        KafkaWriter(config, LOOPS)


def test_both_clients_are_told_the_same(tmp_path: Path) -> None:
    file = tmp_path / "some.pem"
    file.touch()
    config = KafkaConfig(
        bootstrap_servers=("a:1", "b:2"),
        security=KafkaSecurity(
            protocol="SASL_SSL",
            ca_file=str(file),
            cert_file=str(file),
            key_file=str(file),
            check_hostname=False,
            username="alice",
            password="secret",
        ),
    )
    ours, theirs = client_settings(config), confluent_settings(config)
    assert ours["bootstrap_servers"] == ["a:1", "b:2"] == theirs["bootstrap.servers"].split(",")
    for name, other in {
        "security_protocol": "security.protocol",
        "ssl_cafile": "ssl.ca.location",
        "ssl_certfile": "ssl.certificate.location",
        "ssl_keyfile": "ssl.key.location",
        "sasl_mechanism": "sasl.mechanism",
        "sasl_plain_username": "sasl.username",
        "sasl_plain_password": "sasl.password",
        "reconnect_backoff_ms": "reconnect.backoff.ms",
    }.items():
        assert ours[name] == theirs[other]
    assert ours["ssl_check_hostname"] is False
    assert theirs["ssl.endpoint.identification.algorithm"] == "none"


class outage:  # noqa: N801 - used as a function
    """Have a cluster away for a while, and back at the end."""

    def __init__(self, cluster: Cluster, how: str) -> None:
        (self._node,) = cluster.nodes
        self._cluster, self._how = cluster, how

    def __enter__(self) -> None:
        if self._how == "killed":
            self._node.kill()
        else:
            self._node.suspend()
            # Its threads stop one after the other.
            tasks = Path(f"/proc/{self._node.pid}/task")
            wait_until(lambda: all(is_stopped(each) for each in tasks.iterdir()))

    def __exit__(self, *_: object) -> None:
        if self._how == "killed":
            self._cluster.start()
        else:
            self._node.resume()


def is_stopped(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"


def until_it_works(append: Callable[[], None]) -> None:
    """Try again and again, as an appender does."""
    deadline = time.monotonic() + 60
    while True:
        try:
            append()
        except LogUnavailableError:
            assert time.monotonic() < deadline
        else:
            return
