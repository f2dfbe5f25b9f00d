"""The compose file says what the runner says, and what the code takes; nobody runs it here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from croupier.cli.config import load_config
from croupier.eventlog.kafka.broker import KAFKA_VERSION, Cluster

if TYPE_CHECKING:
    from croupier.eventlog.kafka.broker import Runtime
    from tests.command_line import Complain

COMPOSE = Path(__file__).parent.parent / "docker" / "compose.yaml"
KUBERNETES = COMPOSE.parents[1] / "examples" / "kubernetes" / "croupier.yaml"
DOCKERFILE = COMPOSE.parent / "Dockerfile"
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


@pytest.mark.parametrize(
    "name", ["scorer-1", "scorer-2", "sink", "nightly", "watcher", "dashboard"]
)
def test_croupier_takes_its_settings(
    name: str, services: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "draw").write_text("00" * 16)
    environment = {
        key: value.replace("/run/secrets", str(tmp_path))
        for key, value in services[name]["environment"].items()
    }
    config, _ = load_config(None, environment=environment)
    assert config.log.backend == "kafka"
    assert config.log.kafka.bootstrap_servers == ("kafka:9092",)


def test_volumes_are_declared(services: dict[str, Any]) -> None:
    declared = yaml.safe_load(COMPOSE.read_text())["volumes"]
    mounted = {
        volume.partition(":")[0]
        for service in services.values()
        for volume in service.get("volumes", ())
        if not volume.startswith((".", "/"))
    }
    assert mounted == set(declared)


def test_images_of_every_service_are_made_here() -> None:
    """Each names a stage of the Dockerfile, and is given the command that the CLI takes."""
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE))
    found = yaml.safe_load(COMPOSE.read_text())["services"]
    ours = {name: each["build"]["target"] for name, each in found.items() if "build" in each}
    croupier = {"scorer-1", "scorer-2", "sink", "nightly", "watcher", "dashboard"}
    assert set(ours) == {"mlflow"} | croupier
    assert set(ours.values()) <= stages


@pytest.mark.parametrize("service", ["sink", "nightly", "watcher", "dashboard"])
def test_commands_are_those_of_the_command_line(
    service: str, services: dict[str, Any], complain: Complain, tmp_path: Path
) -> None:
    command = [str(each) for each in services[service]["command"]]
    # Options are looked at before what they name, which isn't there.
    place = command.index("--config") + 1
    command[place] = str(tmp_path / "none.toml")
    assert complain(*command).startswith("config: expected a file at ")


def containers() -> dict[str, Any]:
    """The container of every Deployment of the manifest, by its name."""
    found = list(yaml.safe_load_all(KUBERNETES.read_text()))
    pods = [each["spec"]["template"]["spec"] for each in found if each["kind"] == "Deployment"]
    return {pod["containers"][0]["name"]: pod["containers"][0] for pod in pods}


@pytest.mark.parametrize("name", ["scorer", "sink", "watcher", "dashboard"])
def test_kubernetes_gives_commands_and_settings_that_are_taken(
    name: str, complain: Complain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = containers()[name]
    command = [str(each) for each in container["args"]]
    command[command.index("--config") + 1] = str(tmp_path / "none.toml")
    assert complain(*command).startswith("config: expected a file at ")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "draw").write_text("00" * 16)
    environment = {each["name"]: str(each["value"]) for each in container["env"]}
    environment["CROUPIER_SERVICE__DRAW_SECRET"] = '{ file = "draw" }'
    config, _ = load_config(None, environment=environment)
    scorers = ("dns+http://croupier-scorers:8080",) if name == "watcher" else ()
    assert config.alerts.scorers == scorers


def test_the_configuration_of_the_containers_is_right(
    services: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "draw").write_text("00" * 16)
    environment = {
        name: value.replace("/run/secrets", str(tmp_path))
        for name, value in services["scorer-1"]["environment"].items()
    }
    config, _ = load_config(COMPOSE.parent / "croupier.toml", environment=environment)
    assert config.service.draw_secret == "00" * 16
    assert config.registry.tracking_uri == "http://mlflow:5000"
    assert list(config.loops) == ["banner"]


def test_balancer_watcher_and_prometheus_know_both_scorers() -> None:
    for name in ("haproxy.cfg", "prometheus.yml", "compose.yaml"):
        text = (COMPOSE.parent / name).read_text()
        assert set(re.findall(r"scorer-\d:8080", text)) == {"scorer-1:8080", "scorer-2:8080"}


def test_a_wheel_can_be_built_of_what_the_image_is_given(tmp_path: Path) -> None:
    root = COMPOSE.parents[1]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    for name in {name for each in copied for name in each.split()}:
        source, target = root / name, tmp_path / "src" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(source, target)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    wheels = tmp_path / "wheels"
    subprocess.run([*command, "--wheel-dir", wheels, tmp_path / "src"], check=True, timeout=300)
    (wheel,) = wheels.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "croupier/eventlog/kafka/broker/files/server.properties" in names
    assert [each for each in names if each.startswith("croupier/policy/_kernel.") and "so" in each]
