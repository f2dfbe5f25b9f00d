"""The compose file says what the runner says, and what the code takes; nobody runs it here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from croupier.cli.config import load_config
from croupier.eventlog.kafka.broker import KAFKA_VERSION, Cluster

if TYPE_CHECKING:
    from croupier.eventlog.kafka.broker import Runtime

COMPOSE = Path(__file__).parent.parent / "docker" / "compose.yaml"
SHARED = COMPOSE.parent / "kafka" / "server.properties"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def properties(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def broker(services: dict[str, Any]) -> dict[str, str]:
    """Its settings, by Kafka's own names, as the image turns them."""
    environment: dict[str, str] = services["kafka"]["environment"]
    return {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in environment.items()
    }


def test_the_image_is_of_the_runners_version(services: dict[str, Any]) -> None:
    assert services["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


def test_the_broker_is_given_what_all_nodes_are(services: dict[str, Any]) -> None:
    shared = properties(SHARED.read_text())
    given = broker(services)
    assert {name: given.get(name) for name in shared} == shared


def test_the_broker_is_given_nothing_else_than_a_node(
    services: dict[str, Any], kafka_runtime: Runtime, tmp_path: Path
) -> None:
    cluster = Cluster.create(tmp_path / "kafka", runtime=kafka_runtime)
    node = properties((cluster.nodes[0].folder / "server.properties").read_text())
    given = broker(services)
    assert set(given) == set(node)
    here = {name for name, value in node.items() if "127.0.0.1" in value or str(tmp_path) in value}
    assert {name: given[name] for name in node if name not in here} == {
        name: value for name, value in node.items() if name not in here
    }


@pytest.mark.parametrize("name", ["scorer", "sink"])
def test_croupier_takes_its_settings(
    name: str, services: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config, _ = load_config(None, environment=services[name]["environment"])
    assert config.log.backend == "kafka"
    assert config.log.kafka.bootstrap_servers == ("kafka:9092",)


def test_volumes_are_declared(services: dict[str, Any]) -> None:
    declared = yaml.safe_load(COMPOSE.read_text())["volumes"]
    mounted = {
        volume.partition(":")[0]
        for service in services.values()
        for volume in service["volumes"]
        if not volume.startswith((".", "/"))
    }
    assert mounted == set(declared)
