"""``croupier watch`` beside a real scorer, with a real receiver: killed, started again, both."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from croupier.offline.lake import Lake
from croupier.offline.summaries.tables import SCORERS, summaries_of
from tests.offline.test_alerts import Hook, hook
from tests.processes import free_port
from tests.service.running import Server, running, unique, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.command_line import Complain

__all__ = ("hook",)

pytestmark = pytest.mark.timeout(600)


def configuration(webhook: str, scorer: int) -> str:
    """One by which any request is slow, and nothing has to last."""
    return f"""
[service]
port = {scorer}
[alerts]
webhook = "{webhook}"
dashboard = "https://d.example"
scorers = ["http://127.0.0.1:{scorer}"]
[alerts.latency]
p99 = "0.01 ms"
window = "10 min"
lasting = "0 s"
least_requests = 20
[alerts.unreachable]
lasting = "1 s"
[loops.shop]
"""


@contextmanager
def watching(server: Server, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    config = server.data_dir.parent / "croupier.toml"
    command = [sys.executable, "-m", "croupier", "watch", *arguments, "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def rows(server: Server) -> list[dict[str, Any]]:
    return summaries_of(Lake(server.data_dir / "lake")).read(SCORERS, "alerts").to_dicts()


def rules(server: Server) -> dict[str, bool]:
    """Which rules have had an alert, and whether it is open."""
    return {row["rule"]: row["closed"] is None for row in rows(server)}


def looks(server: Server, more: int) -> None:
    """Wait for so many more looks."""
    summaries = summaries_of(Lake(server.data_dir / "lake"))

    def last() -> int:
        state = summaries.state(SCORERS)
        return 0 if state is None else state.made

    for _ in range(more):
        before = last()
        while last() <= before:
            time.sleep(0.01)


def decide(server: Server, times: int = 30) -> None:
    with server.caller() as caller:
        for _ in range(times):
            request = {"actions": [{"id": "a"}, {"id": "b"}], "decision_id": unique()}
            assert caller.post("shop/decide", request).status == 200


def test_what_is_slow_or_gone_is_told_once_whoever_dies(
    hook: tuple[str, type[Hook]], tmp_path: Path
) -> None:
    address, handler = hook
    server = Server(tmp_path, configuration(address, free_port()))
    with running(server):
        with watching(server, "--every", "2s") as watcher:
            wait_until((server.data_dir / "watch.json").exists)
            decide(server)
            wait_until(lambda: bool(handler.received))
            (told,) = handler.received
            assert told["loop"] == "*"
            assert told["text"].startswith("scorers: Requests are slow. In the last 10 min, ")
            assert told["text"].endswith(" https://d.example/")
            assert " at decide (of 30 requests)" in told["text"]
            looks(server, 2)
            watcher.kill()
            watcher.wait()
        listed = server.run("alerts", code=1)
        assert {name: len(found) for name, found in listed.items()} == {"shop": 0, "*": 1}
        assert server.run("alerts", "--loop", "shop") == {"shop": []}
        with watching(server, "--every", "2s") as watcher:
            looks(server, 3)
            assert rules(server) == {"latency": True}
            server.kill()
            wait_until(lambda: len(handler.received) == 2)
            assert [each["rule"] for each in handler.received[1]["alerts"]] == ["unreachable"]
            looks(server, 2)
            assert rules(server) == {"latency": True, "unreachable": True}
            server.start()
            wait_until(lambda: rules(server) == {"latency": True, "unreachable": False})
            watcher.send_signal(signal.SIGTERM)
            assert watcher.wait(timeout=60) == 0
    assert len(rows(server)) == len(handler.received) == 2
    assert all(row["delivered"] is not None for row in rows(server))


def test_a_look_delivers_what_the_last_one_could_not_and_only_one_process_looks(
    hook: tuple[str, type[Hook]], tmp_path: Path
) -> None:
    address, handler = hook
    handler.status = 503
    config = configuration(address, free_port()).replace('lasting = "1 s"', 'lasting = "0 s"')
    server = Server(tmp_path, config)
    found = server.run("watch", "--once", code=1)
    assert found["failed"] == ["scorers: the webhook answers 503"]
    assert [row["rule"] for row in found["opened"]] == ["unreachable"]
    handler.status = 200
    again = server.run("watch", "--once", code=1)
    assert (again["failed"], again["opened"], len(again["open"])) == ([], [], 1)
    server.run("watch", "--once", code=1)
    assert len(handler.received) == 2
    with watching(server, "--every", "1h") as watcher:
        assert watcher.stdout is not None
        assert b"watching http://127.0.0.1:" in watcher.stdout.readline()
        with pytest.raises(AssertionError, match="another process watches the scorers of"):
            server.run("watch", "--once")
    with running(server):
        assert server.run("watch", "--once")["closed"][0]["rule"] == "unreachable"
    assert len(handler.received) == 2


def test_the_nights_alerts_are_left_alone_by_a_watcher_that_starts_while_one_is_at_work(
    hook: tuple[str, type[Hook]], tmp_path: Path
) -> None:
    address, handler = hook
    server = Server(tmp_path, configuration(address, free_port()))
    lake = Lake(server.data_dir / "lake")
    with lake.lock(), watching(server, "--every", "2s"):
        wait_until(lambda: bool(handler.received))
    assert handler.received[0]["alerts"][0]["rule"] == "unreachable"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--every", "1s"), "every: expected at least 2 s, got '1s'"),
        (("--every", "often"), "every: a duration is a number and one of"),
        (("--every", "1min", "--once"), "every: expected none with --once"),
    ],
)
def test_what_can_not_be_meant_is_refused(
    arguments: tuple[str, ...], complaint: str, tmp_path: Path, complain: Complain
) -> None:
    (tmp_path / "croupier.toml").write_text("[loops.shop]\n")
    config = ("--config", str(tmp_path / "croupier.toml"))
    assert complain("watch", *arguments, *config).startswith(complaint)
