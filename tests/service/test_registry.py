"""From a real MLflow registry through the mirror to the running server, and back."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from croupier.offline.registry import Change, Registry
from croupier.policy.generation import registered_model_name
from tests.service.generations import generation
from tests.service.running import Server, wait_until

if TYPE_CHECKING:
    from tests.service.conftest import Serve

# MLflow uses what its own dependencies have deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CONFIG = """
[service]
port = 0
registry_poll = "50 ms"

[loops.digits]

[loops.other]
"""
DECIDE = {"actions": [{"id": "a"}, {"id": "b"}]}


def registry_of(server: Server) -> Registry:
    return Registry(f"sqlite:///{server.data_dir / 'mlflow.db'}", server.data_dir / "mlartifacts")


def publish(registry: Registry, loop: str, number: int) -> None:
    registry.publish(generation(loop, number), params={}, metrics={})


def wait_for(server: Server, number: int, loop: str = "digits") -> None:
    wait_until(lambda: bool(server.readiness()["loops"][loop]["generation"] == number))
    assert server.post(f"{loop}/decide", DECIDE).json["generation"] == number


def mirrors(server: Server) -> list[int]:
    """Processes that the server started and that are still there."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(server.process.pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    return [int(pid) for pid in listed.stdout.split()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]


def test_the_mirror_from_end_to_end(serve: Serve) -> None:
    server = serve(CONFIG)
    # Nobody has made a registry yet, and the service must not be the one who does.
    wait_for(server, 0)
    wait_until(lambda: bool(server.readiness()["status"] == "ready"))
    assert not (server.data_dir / "mlflow.db").exists()

    registry = registry_of(server)
    for number in (1, 2):
        publish(registry, "digits", number)
    # Published is not promoted.
    assert server.readiness()["loops"]["digits"]["generation"] == 0
    registry.promote("digits", 1)
    wait_for(server, 1)
    registry.promote("digits", 2)
    wait_for(server, 2)
    # Back by steps, as far as the cold start, and on again.
    for back in (1, 0):
        registry.roll_back("digits", back, Change(by="ann", ts=2 - back, reason="it was worse"))
        wait_for(server, back)
    told = [each.what for each in registry.changes("digits")]
    assert told == ["rolled back from 2 to 1", "rolled back from 1 to 0"]
    registry.promote("digits", 1)
    wait_for(server, 1)
    assert server.readiness()["status"] == "ready"

    check_that_a_broken_loop_keeps_to_itself(server, registry)
    check_that_a_mirror_is_replaced_and_never_left_behind(server)
    check_that_a_damaged_generation_is_fetched_again(server)


def check_that_a_broken_loop_keeps_to_itself(server: Server, registry: Registry) -> None:
    # Somebody gave the alias to a model that isn't one of ours.
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    name = registered_model_name("digits")
    foreign = client.create_model_version(name, source="file:///nowhere")
    client.set_registered_model_alias(name, "champion", foreign.version)
    wait_until(lambda: "loop digits" in server.readiness()["registry"])
    ready = server.readiness()
    assert ready["status"] == "degraded"
    assert "has no number in its tag" in ready["registry"]
    assert server.post("digits/decide", DECIDE).json["generation"] == 1
    publish(registry, "other", 5)
    registry.promote("other", 5)
    wait_for(server, 5, "other")
    registry.promote("digits", 2)
    wait_for(server, 2)
    wait_until(lambda: bool(server.readiness()["status"] == "ready"))


def check_that_a_mirror_is_replaced_and_never_left_behind(server: Server) -> None:
    (first,) = mirrors(server)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: bool(set(mirrors(server)) - {first}))
    (second,) = set(mirrors(server)) - {first}
    server.kill()
    wait_until(lambda: not alive(second))


def check_that_a_damaged_generation_is_fetched_again(server: Server) -> None:
    path = server.serving.generation_path("digits", 2) / "oracle" / "weights.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    server.start()
    # Until it is, there is no good generation of this loop on this machine.
    assert server.post("digits/decide", DECIDE).status == 200
    wait_for(server, 2)
    assert path.read_bytes() == whole
    (mirror,) = mirrors(server)
    assert server.stop() == 0
    assert not alive(mirror)
