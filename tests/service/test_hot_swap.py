"""Generations that come and go below a running server, and those that are broken."""

from __future__ import annotations

import math
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from croupier.policy.events import Decision
from tests.service.generations import generation
from tests.service.load import Load
from tests.service.running import Server, running, unique, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service.conftest import Serve

CONFIG = """
[service]
port = 0
registry_poll = "10 ms"

[loops.digits]

[loops.other]
"""
DECIDE = {"actions": [{"id": "a"}, {"id": "bb"}, {"id": "ccc"}], "baseline": "bb"}
SWAPS = 100


@pytest.fixture(scope="module")
def swapping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that looks often; every test ends with the loops at a generation of its own."""
    with running(Server(tmp_path_factory.mktemp("swapping"), CONFIG)) as server:
        yield server


def served(server: Server, loop: str = "digits") -> int | None:
    number: int | None = server.readiness()["loops"][loop]["generation"]
    return number


def serves(server: Server, loop: str, number: int) -> bool:
    return served(server, loop) == number


def swap(server: Server, number: int, loop: str = "digits") -> None:
    server.serve(generation(loop, number))
    wait_until(partial(serves, server, loop, number))


def alone(number: int | None) -> dict[str, Any]:
    """The report of a loop that serves a champion and nothing else."""
    nobody = {"canary": None, "canary_share": 0.0, "shadow": None, "killed": None}
    return {"generation": number, **nobody, "error": None}


def decide(server: Server, loop: str = "digits") -> int:
    answer = server.post(f"{loop}/decide", DECIDE)
    assert answer.status == 200
    return int(answer.json["generation"])


def test_a_hundred_swaps_under_load(swapping: Server) -> None:
    with Load(swapping, clients=4) as load:
        for number in range(1, SWAPS + 1):
            swap(swapping, number)
            load.wait_for(decisions=1)
            if number > 3:
                shutil.rmtree(swapping.serving.generation_path("digits", number - 3))
        load.wait_for(decisions=10)
    assert (load.told.refused, load.told.unanswered) == ([], [])
    seen = set()
    for client in load.told.decisions:
        numbers = [decided["generation"] for decided in client]
        assert numbers == sorted(numbers)
        seen.update(numbers)
    # A decision that waited for the log may be acknowledged only after the next swap.
    assert len(seen) >= SWAPS // 2
    check_against_the_log(swapping, load)


def test_a_repeated_request_gets_its_answer_across_a_swap(swapping: Server) -> None:
    request = DECIDE | {"decision_id": unique()}
    first = swapping.post("other/decide", request)
    swap(swapping, 3000 + (served(swapping, "other") or 0), "other")
    assert swapping.post("other/decide", request).body == first.body
    fresh = swapping.post("other/decide", DECIDE | {"decision_id": unique()})
    assert fresh.json["generation"] > first.json["generation"]
    ids = [getattr(event, "decision_id", None) for event in swapping.events()]
    assert ids.count(request["decision_id"]) == 1


def check_against_the_log(server: Server, load: Load) -> None:
    """Every answer is what was logged, and follows from the generation that it names."""
    logged = {event.decision_id: event for event in server.events() if isinstance(event, Decision)}
    generations = {number: generation("digits", number) for number in range(1, SWAPS + 1)}
    for client in load.told.decisions:
        for decided in client:
            event = logged[decided["decision_id"]]
            assert (event.generation, event.chosen) == (decided["generation"], decided["index"])
            assert event.pmf == decided["pmf"]
            assert event.propensity == decided["propensity"] == event.pmf[event.chosen]
            assert math.isclose(math.fsum(event.pmf), 1.0, abs_tol=1e-9)
            if event.generation in generations:
                pmf, _ = generations[event.generation].pmf(event.context, event.actions)
                assert event.pmf == pmf.tolist()
                assert event.mix[0].source == f"generation:{event.generation}"


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "kind", ["altered", "missing file", "empty", "absent", "foreign", "number"]
)
def test_a_broken_generation_is_not_served(swapping: Server, kind: str) -> None:
    good = 1000 + 10 * ["altered", "missing file", "empty", "absent", "foreign", "number"].index(
        kind
    )
    bad = good + 1
    swap(swapping, good)
    path = swapping.serving.generation_path("digits", bad)
    made = {"foreign": generation("other", bad), "number": generation("digits", bad + 1)}
    if kind != "absent":
        made.get(kind, generation("digits", bad)).save(path)
    if kind == "altered":
        alter(path / "oracle" / "weights.npz")
    elif kind == "missing file":
        (path / "oracle" / "oracle.json").unlink()
    elif kind == "empty":
        (path / "manifest.json").write_bytes(b"")
    other = served(swapping, "other")

    swapping.name("digits", bad)
    wait_until(lambda: swapping.readiness()["loops"]["digits"]["error"] is not None)
    ready = swapping.get("/readyz")
    assert (ready.status, ready.json["status"]) == (200, "degraded")
    assert ready.json["loops"]["digits"]["generation"] == good
    assert str(path) in ready.json["loops"]["digits"]["error"]
    assert ready.json["loops"]["other"] == alone(other)
    assert decide(swapping) == good
    assert decide(swapping, "other") == other

    swap(swapping, bad + 2)
    # It is served a moment before what was said of the other one is taken back.
    wait_until(lambda: swapping.readiness()["loops"]["digits"]["error"] is None)
    assert swapping.readiness()["status"] == "ready"
    assert decide(swapping) == bad + 2


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"generation": "x"}', b"null"])
def test_a_damaged_champion_changes_nothing(swapping: Server, content: bytes) -> None:
    number = decide(swapping)
    path = swapping.serving.root / "digits" / "champion.json"
    before = path.read_bytes()
    path.write_bytes(content)
    wait_until(lambda: swapping.readiness()["loops"]["digits"]["error"] is not None)
    assert decide(swapping) == number
    path.write_bytes(before)
    wait_until(lambda: swapping.readiness()["loops"]["digits"]["error"] is None)


def test_back_to_the_cold_start_and_to_an_older_one(swapping: Server) -> None:
    swap(swapping, 2000, "other")
    swap(swapping, 2001, "other")
    for number in (2000, 0, 2001):
        swapping.name("other", number)
        wait_until(partial(serves, swapping, "other", number))
        assert decide(swapping, "other") == number


def test_without_a_registry(serve: Serve) -> None:
    away = '\n[registry]\ntracking_uri = "http://127.0.0.1:9"\n'
    server = serve(CONFIG + away)
    # Never heard of any generation: the application's own choice, and said so.
    answer = server.post("digits/decide", DECIDE)
    assert (answer.status, answer.json["action"], answer.json["propensity"]) == (200, "bb", 1.0)
    logged = server.decision(answer.json["decision_id"])
    assert [(part.source, part.weight) for part in logged.mix] == [("baseline", 1.0)]
    ready = server.readiness()
    assert ready["status"] == "degraded"
    assert ready["loops"]["digits"] == alone(None)
    assert b'croupier_baseline_decisions_total{loop="digits",reason="no generation"} 1.0' in (
        server.get("/metrics").body
    )
    wait_until(lambda: "127.0.0.1" in server.readiness()["registry"])
    assert server.readiness()["status"] == "degraded"
    assert server.post("digits/reward", {"decision_id": "d", "reward": 1}).status == 200

    # Whatever becomes of the registry: the last good generation is served, also after a restart.
    swap(server, 3)
    assert server.stop() == 0
    # A database file that isn't there any more is no reason to start anew.
    server.configure(CONFIG.replace("10 ms", "1 h"))
    server.start()
    assert decide(server) == 3
    assert decide(server, "other") == 0
    wait_until(lambda: server.readiness()["registry"] == "ok")

    # What the mirror wrote can't be read: told, and no more than that.
    (server.serving.root / "registry.json").write_bytes(b"\x00garbage")
    ready = server.get("/readyz")
    assert (ready.status, ready.json["status"]) == (200, "degraded")
    assert "can't be read" in ready.json["registry"]
    assert server.get("/metrics").status == 200
