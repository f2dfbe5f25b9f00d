"""The runner of Kafka's nodes, with a real Kafka; where Java is wrong or missing, without."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from croupier.eventlog.kafka.broker import KAFKA_VERSION, Cluster, Runtime
from croupier.eventlog.kafka.broker.runtime import FILES
from croupier.policy.errors import ConfigError, LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


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


def states(cluster: Cluster) -> list[str]:
    return [each.state for each in cluster.states()]


@pytest.fixture(scope="module")
def own(kafka_runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that may be stopped and killed."""
    cluster = Cluster.create(tmp_path_factory.mktemp("own") / "kafka", runtime=kafka_runtime)
    cluster.start()
    yield cluster
    cluster.kill()


def test_the_shared_node_keeps_what_it_is_given(kafka: Cluster, topic_prefix: str) -> None:
    make_topic(kafka, topic_prefix)
    produce(kafka, topic_prefix, b"one", b"two")
    assert consume(kafka, topic_prefix) == [b"one", b"two"]


def test_what_is_held_outlives_a_kill_and_a_stop(own: Cluster) -> None:
    make_topic(own, "kept")
    produce(own, "kept", b"one")
    servers = own.bootstrap_servers
    own.kill()
    assert states(own) == ["died"]
    assert own.start() == [1]
    produce(own, "kept", b"two")
    assert own.stop() == [1]
    assert states(own) == ["stopped"]
    assert own.stop() == []
    # Another process would find it so.
    again = Cluster(own.folder)
    assert again.bootstrap_servers == servers
    assert own.start() == [1]
    assert states(again) == ["running"]
    assert consume(again, "kept") == [b"one", b"two"]


def test_a_node_that_runs_is_not_started_twice(own: Cluster) -> None:
    own.start()
    assert own.start() == []
    pid = own.nodes[0].pid
    with pytest.raises(ConfigError, match=rf"node 1 in .* is running, as process {pid}$"):
        Cluster(own.folder).nodes[0].launch(own.runtime)
    assert own.nodes[0].pid == pid


def test_a_stalled_node_can_go_on_and_can_be_stopped(own: Cluster) -> None:
    own.start()
    (node,) = own.nodes
    node.suspend()
    assert states(own) == ["suspended"]
    node.resume()
    assert states(own) == ["running"]
    node.suspend()
    node.stop()
    assert states(own) == ["stopped"]


def test_a_port_that_is_taken(own: Cluster) -> None:
    own.stop()
    (node,) = own.nodes
    port = int(node.address.partition(":")[2])
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        with pytest.raises(ConfigError, match=rf"expected port {port} to be free for node 1"):
            own.start()
    assert states(own) == ["stopped"]


def test_a_number_left_behind_is_nobodys(own: Cluster) -> None:
    own.stop()
    (node,) = own.nodes
    # The number has gone to another process since: to this one.
    (node.folder / "pid").write_text(f"{os.getpid()}\n")
    assert states(own) == ["died"]
    assert own.stop() == []
    assert states(own) == ["stopped"]


def test_a_node_that_ends_at_once_says_why(own: Cluster) -> None:
    own.stop()
    file = own.nodes[0].folder / "server.properties"
    sound = file.read_text()
    file.write_text(f"{sound}num.io.threads=many\n")
    with pytest.raises(LogUnavailableError, match=r"node 1 ended while it started; .*many"):
        own.start()
    assert states(own) == ["stopped"]
    file.write_text(sound)


def test_a_folder_that_holds_something_else(kafka_runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match=r"^dir: expected an empty folder .* holds thesis\.txt$"):
        Cluster.create(tmp_path, runtime=kafka_runtime)
    with pytest.raises(ConfigError, match=r"^dir: expected a cluster's folder at .*, found none$"):
        Cluster(tmp_path)
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(ConfigError, match=r"^dir: .*cluster\.json can't be read: "):
        Cluster(tmp_path)


def test_two_nodes_are_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^nodes: expected 1 or 3, got 2$"):
        Cluster.create(tmp_path, nodes=2)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the path; empty."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return folder


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def java(programs: Path, version: str = "17.0.15") -> None:
    script(programs / "java", f"echo 'openjdk version \"{version}\" 2025-04-15' >&2")


@pytest.mark.usefixtures("programs")
def test_no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^java: expected Java 17 .* in the path, found none$"):
        Runtime.find(tmp_path)
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(ConfigError, match=r"in JAVA_HOME \(/nowhere\), found none"):
        Runtime.find(tmp_path)


@pytest.mark.parametrize("version", ["1.8.0_392", "11.0.2", "x"])
def test_an_old_java(programs: Path, tmp_path: Path, version: str) -> None:
    java(programs, version)
    with pytest.raises(ConfigError, match=rf"^java: .* newer at .*java, found .*{version}"):
        Runtime.find(tmp_path)


def test_no_maven(programs: Path, tmp_path: Path) -> None:
    java(programs)
    with pytest.raises(ConfigError, match=rf"^maven: expected mvn .* Kafka {KAFKA_VERSION} with$"):
        Runtime.find(tmp_path / "cache")


def test_maven_that_fails(programs: Path, tmp_path: Path) -> None:
    java(programs)
    script(programs / "mvn", "echo '[ERROR] no such artifact'; exit 1")
    with pytest.raises(ConfigError, match=r"mvn says: \[ERROR\] no such artifact$"):
        Runtime.find(tmp_path / "cache")
    # What is half fetched is never taken for the whole.
    assert list((tmp_path / "cache").iterdir()) == []


def test_jars_are_fetched_once(programs: Path, tmp_path: Path) -> None:
    java(programs)
    (programs / "mkdir").symlink_to(shutil.which("mkdir", path="/usr/bin:/bin") or "")
    script(
        programs / "mvn",
        'for each; do case "$each" in -DoutputDirectory=*) mkdir "${each#*=}";; esac; done',
    )
    found = Runtime.find(tmp_path / "cache")
    assert found.libs.is_dir()
    assert list((tmp_path / "cache").iterdir()) == [found.libs]
    (programs / "mvn").unlink()
    assert Runtime.find(tmp_path / "cache") == found


def test_the_version_is_the_poms() -> None:
    names = {"m": "http://maven.apache.org/POM/4.0.0"}
    pom = ET.parse(FILES / "pom.xml")
    assert pom.findtext("m:properties/m:kafka.version", namespaces=names) == KAFKA_VERSION


def test_a_wheel_has_what_nodes_are_made_with(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        held = {
            Path(name).name: archive.read(name)
            for name in archive.namelist()
            if name.startswith("croupier/eventlog/kafka/broker/files/")
        }
    assert held == {
        path.name: path.read_bytes() for path in FILES.iterdir() if path.suffix != ".md"
    }
