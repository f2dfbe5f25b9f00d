"""The service over a real Kafka: what it acknowledged is in the topics, whatever became of either.

Decisions and outcomes go on while the brokers are away, and nobody is told anything but that it
went well.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from croupier.cli.config import load_setup
from croupier.eventlog.kafka.broker import Cluster
from croupier.eventlog.kafka.config import KafkaConfig
from croupier.eventlog.kafka.connection import ensure_topics
from croupier.policy.events import Decision, Outcome, decode_event
from croupier.service.embedded import EmbeddedScorer
from tests.eventlog.test_kafka_writer import outage, read_topic
from tests.service.load import Load
from tests.service.running import Server, running, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service.conftest import Serve
    from tests.service.load import Told

# kafka-python leaves a socket that finds nobody to the garbage collector.
pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

DECIDE = {"actions": [{"id": "a"}, {"id": "b"}]}
CLIENTS = ("kafka-python", "confluent-kafka")


@pytest.fixture(scope="module")
def fragile(kafka: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node of its own, for tests that stop it."""
    cluster = Cluster.create(tmp_path_factory.mktemp("fragile") / "kafka", runtime=kafka._runtime)
    cluster.start()
    yield cluster
    cluster.kill()


@pytest.fixture
def fragile_config(fragile: Cluster, topic_prefix: str) -> KafkaConfig:
    return KafkaConfig(
        bootstrap_servers=fragile.bootstrap_servers, topic_prefix=topic_prefix, partitions=3
    )


def configured(kafka: KafkaConfig, *, log: str = "", service: str = "", more: str = "") -> str:
    return f"""
[service]
port = 0
registry_poll = "50 ms"
{service}

[log]
backend = "kafka"
{log}

[log.kafka]
bootstrap_servers = ["{kafka.bootstrap_servers[0]}"]
topic_prefix = "{kafka.topic_prefix}"
partitions = {kafka.partitions}
delivery_timeout_s = 1.0
{more}

[loops.digits]
"""


def spilling(server: Server) -> bool:
    return "spill" in server.readiness()


def recovered(server: Server) -> bool:
    return bool(server.readiness()["status"] == "ready")


def decision_ids(kafka: KafkaConfig) -> list[str]:
    found = []
    for each in read_topic(kafka, "decisions", "digits"):
        event = decode_event(each.value)
        assert isinstance(event, Decision)
        assert event.decision_id == each.key
        found.append(event.decision_id)
    return found


def outcome_ids(kafka: KafkaConfig) -> list[str]:
    events = [decode_event(each.value) for each in read_topic(kafka, "outcomes", "digits")]
    return [event.outcome_id for event in events if isinstance(event, Outcome)]


def check_that_all_is_there(told: Told, kafka: KafkaConfig) -> None:
    """Nothing was refused, and everything that was acknowledged is in the topics."""
    assert told.refused == []
    assert told.unanswered == []
    assert set(told.decision_ids) <= set(decision_ids(kafka))
    assert set(told.outcomes) <= set(outcome_ids(kafka))


def metric(server: Server, name: str) -> float:
    lines = server.get("/metrics").body.decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_decision_is_in_its_topic_when_it_is_answered(
    serve: Serve, kafka_config: KafkaConfig, client: str
) -> None:
    server = serve(configured(kafka_config, more=f'client = "{client}"'))
    answered = server.post("digits/decide", DECIDE).json["decision_id"]
    assert decision_ids(kafka_config) == [answered]
    outcome = {"decision_id": answered, "reward": 1.0}
    assert server.post("digits/reward", outcome).status == 200
    assert len(outcome_ids(kafka_config)) == 1
    wait_until(lambda: recovered(server))
    assert "spill" not in server.readiness()
    assert metric(server, "croupier_log_spilling") == 0.0
    assert metric(server, "croupier_log_append_seconds_count") == 2.0
    assert not (server.data_dir / "log").exists()


@pytest.mark.parametrize(
    ("away", "durability"),
    [
        ("killed", "commit"),
        ("suspended", "buffered"),
        pytest.param("suspended", "commit", marks=pytest.mark.slow),
        pytest.param("killed", "buffered", marks=pytest.mark.slow),
    ],
)
def test_decisions_go_on_while_the_broker_is_away(
    serve: Serve, fragile: Cluster, fragile_config: KafkaConfig, away: str, durability: str
) -> None:
    server = serve(configured(fragile_config, log=f'durability = "{durability}"'))
    wait_until(lambda: recovered(server))
    with Load(server, clients=4) as load:
        load.wait_for(decisions=50)
        with outage(fragile, away):
            wait_until(lambda: spilling(server))
            load.wait_for(decisions=200)
            check_that_it_is_told(server)
        wait_until(lambda: recovered(server))
        load.wait_for(decisions=50)
    server.stop()
    check_that_all_is_there(load.told, fragile_config)
    assert "log_spilling" in server.stderr()
    assert "log_forwarded" in server.stderr()
    # Clients that find nobody are not to fill the disk with it.
    assert len(server.stderr().splitlines()) < 20


def check_that_it_is_told(server: Server) -> None:
    # Buffered, they may have been acknowledged before the first of them is spilled.
    wait_until(lambda: bool(server.readiness()["spill"]["records"] > 0))
    ready = server.get("/readyz")
    assert (ready.status, ready.json["status"]) == (200, "degraded")
    assert ready.json["log"] != "ok"
    spill = ready.json["spill"]
    assert spill["since"] <= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 1))
    assert spill["records"] > 0
    assert "Kafka" in spill["error"]
    assert metric(server, "croupier_log_spilling") == 1.0
    assert metric(server, "croupier_log_spilled_records") > 0.0
    status = server.run("status")
    assert status["service"]["status"] == "degraded"
    assert status["spill"]["spilling"]
    assert status["spill"]["records"] > 0


def test_a_scorer_that_is_killed_while_it_spills(
    tmp_path: Path, fragile: Cluster, fragile_config: KafkaConfig
) -> None:
    server = Server(tmp_path, configured(fragile_config))
    acknowledged: list[str] = []
    with outage(fragile, "killed"):
        # It starts without a cluster, too.
        for _ in range(2):
            with running(server):
                assert spilling(server)
                with Load(server, clients=4) as load:
                    load.wait_for(decisions=50)
                    server.kill()
                assert load.told.refused == []
                acknowledged += load.told.decision_ids
    assert len(acknowledged) >= 100
    with running(server):
        wait_until(lambda: recovered(server))
        acknowledged.append(server.post("digits/decide", DECIDE).json["decision_id"])
    assert set(acknowledged) <= set(decision_ids(fragile_config))


def test_workers_share_the_spill(
    serve: Serve, fragile: Cluster, fragile_config: KafkaConfig
) -> None:
    server = serve(configured(fragile_config, service="workers = 2"))
    with Load(server, clients=8) as load:
        load.wait_for(decisions=50)
        with outage(fragile, "killed"):
            wait_until(lambda: spilling(server))
            load.wait_for(decisions=100)
            # Its like goes on with what it has written.
            os.kill(server.workers()[0], 9)
            load.wait_for(decisions=100)
            assert metric(server, "croupier_log_spilling") == 1.0
        wait_until(lambda: not spilling(server))
        load.wait_for(decisions=50)
        wait_until(lambda: metric(server, "croupier_log_spilling") == 0.0)
    server.stop()
    assert load.told.refused == []
    assert set(load.told.decision_ids) <= set(decision_ids(fragile_config))
    assert set(load.told.outcomes) <= set(outcome_ids(fragile_config))


def test_a_full_spill_is_told_and_got_over(
    serve: Serve, fragile: Cluster, fragile_config: KafkaConfig
) -> None:
    server = serve(configured(fragile_config, more="spill_max_bytes = 1_048_576"))
    with Load(server, clients=4) as load:
        with outage(fragile, "killed"):
            wait_until(lambda: len(load.told.refused) > 5)
            ready = server.get("/readyz")
            assert (ready.status, ready.json["status"]) == (503, "unavailable")
            assert "at most 1048576 may" in ready.json["log"]
        wait_until(lambda: recovered(server))
        load.wait_for(decisions=20)
    server.stop()
    for refused in load.told.refused:
        status, _, body = refused.partition(" ")
        assert status == "503", refused
        assert "LogUnavailable" in body, refused
    assert set(load.told.decision_ids) <= set(decision_ids(fragile_config))


def test_an_embedded_scorer(tmp_path: Path, fragile: Cluster, fragile_config: KafkaConfig) -> None:
    file = tmp_path / "croupier.toml"
    file.write_text(f'data_dir = "data"\n{configured(fragile_config)}')
    answered: list[str] = []
    with EmbeddedScorer.open(load_setup(file)) as scorer:
        loop = scorer.loop("digits")
        answered.append(loop.decide(DECIDE["actions"]).decision_id)
        with outage(fragile, "killed"):
            answered += [loop.decide(DECIDE["actions"]).decision_id for _ in range(20)]
            spill = scorer.readiness().spill
            assert spill is not None
            assert spill.records > 0
        wait_until(lambda: scorer.readiness().spill is None)
        answered.append(loop.decide(DECIDE["actions"]).decision_id)
    assert Counter(answered).keys() <= set(decision_ids(fragile_config))


def test_topics_that_do_not_fit_keep_it_from_starting(
    tmp_path: Path, kafka_config: KafkaConfig
) -> None:
    ensure_topics(kafka_config, ["digits"])
    server = Server(tmp_path, configured(kafka_config, more="max_message_bytes = 33_554_432"))
    with pytest.raises(AssertionError, match=r"max_message_bytes"):
        server.start()
