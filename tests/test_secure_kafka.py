"""A scorer and a sink that get into Kafka with TLS, passwords and few permissions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from croupier.eventlog.kafka.connection import ensure_topics
from croupier.eventlog.kafka.topics import DEAD_LETTERS, LOGGED
from croupier.offline.lake import Lake
from tests.faults.deployment import Sink
from tests.kafka import ADMIN, SCORER, SINK
from tests.service.running import Server, running, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.kafka import SecureKafka

PASSWORD = "CROUPIER_LOG__KAFKA__SECURITY__PASSWORD"


def config(secure_kafka: SecureKafka, prefix: str, user: str) -> str:
    return f"""
[service]
port = 0

[log]
backend = "kafka"

[log.kafka]
bootstrap_servers = ["{secure_kafka.cluster.bootstrap_servers[0]}"]
topic_prefix = "{prefix}"
partitions = 3

[log.kafka.security]
protocol = "SASL_SSL"
ca_file = "{secure_kafka.certificates.authority}"
username = "{user}"

[loops.shop]
"""


def decide(server: Server, decision_id: str) -> None:
    request = {"decision_id": decision_id, "actions": [{"id": "a"}, {"id": "b"}]}
    assert server.post("shop/decide", request).status == 200


def test_from_the_scorer_to_the_lake(
    secure_kafka: SecureKafka,
    topic_prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong password spills; the right one forwards what was spilled."""
    ensure_topics(secure_kafka.config(ADMIN, topic_prefix), ["shop"], (*LOGGED, DEAD_LETTERS))
    secure_kafka.allow(topic_prefix)
    server = Server(tmp_path, config(secure_kafka, topic_prefix, SCORER))
    monkeypatch.setenv(PASSWORD, "wrong")
    with running(server):
        decide(server, "spilled")
        ready = server.readiness()
        assert ready["status"] == "degraded"
        assert ready["spill"]["records"] == 1
        assert "log.kafka.security.username, password" in ready["spill"]["error"]
        assert "wrong" not in ready["spill"]["error"]
    monkeypatch.setenv(PASSWORD, secure_kafka.passwords[SCORER])
    with running(server):
        wait_until(lambda: server.readiness()["spill"] is None)
        decide(server, "written")
    monkeypatch.setenv(PASSWORD, secure_kafka.passwords[SINK])
    folder = tmp_path / "sink"
    folder.mkdir()
    (folder / "croupier.toml").write_text(
        f'data_dir = "data"\n{config(secure_kafka, topic_prefix, SINK)}'
    )
    sink = Sink(folder / "croupier.toml", folder / "log.txt", group=f"{topic_prefix}-sinks")
    sink.start()
    try:
        lake = Lake(folder / "data" / "lake")
        wait_until(lambda: lake.scan("decisions").collect().height == 2)
        sink.stop()
    finally:
        sink.kill()
    held = lake.scan("decisions").collect()["decision_id"]
    assert sorted(held) == ["spilled", "written"]
