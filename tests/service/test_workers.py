"""Several processes that decide: one service to whoever asks it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from croupier.policy.events import Decision
from tests.service.generations import generation
from tests.service.load import Load
from tests.service.running import PATIENCE_S, Server, unique, wait_until

if TYPE_CHECKING:
    from tests.service.conftest import Serve

CONFIG = """
[service]
port = 0
workers = 3
registry_poll = "50 ms"

[loops.digits]
"""
DECIDE = {"actions": [{"id": "a"}, {"id": "b"}]}
# A service with three workers has a mirror beside them.
MODULES = {"croupier.service.worker": 3, "croupier.service.mirror": 1}


def total(server: Server, name: str) -> float:
    return summed(server.get("/metrics").body.decode(), name)


def shared(server: Server, name: str) -> float:
    """What outlives the workers: they write it down every second."""
    files = server.data_dir.rglob("*.prom")
    return sum(summed(file.read_text(), name) for file in files)


def summed(text: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE))


@pytest.fixture
def served(serve: Serve) -> Server:
    server = serve(CONFIG)
    wait_until(lambda: all(len(server.children(m)) == n for m, n in MODULES.items()))
    return server


def test_all_of_them_decide_and_count_together(served: Server) -> None:
    served.serve(generation("digits", 1))
    # A connection is a worker's: enough of them reach all three.
    callers = [served.caller() for _ in range(40)]
    wait_until(
        lambda: all(c.post("digits/decide", DECIDE).json["generation"] == 1 for c in callers)
    )
    asked = [unique() for _ in range(120)]
    for place, each in enumerate(asked):
        answer = callers[place % 40].post("digits/decide", DECIDE | {"decision_id": each})
        assert answer.json["decision_id"] == each
    for caller in callers:
        caller.__exit__()
    events = [event for event in served.events() if isinstance(event, Decision)]
    assert {event.decision_id for event in events} >= set(asked)
    # Whichever worker is asked for the metrics has the others' of a second ago.
    wait_until(lambda: total(served, "croupier_decisions_total") == len(events))
    wait_until(lambda: total(served, "croupier_propensity_count") == len(events))
    assert total(served, "croupier_generation") == 1.0


def test_one_that_dies_is_replaced_and_still_counts(served: Server) -> None:
    for _ in range(30):
        assert served.post("digits/decide", DECIDE).status == 200
    wait_until(lambda: shared(served, "croupier_decisions_total") == 30.0)
    workers = served.workers()
    os.kill(workers[0], signal.SIGKILL)
    wait_until(lambda: len(served.workers()) == 3)
    for _ in range(30):
        assert served.post("digits/decide", DECIDE).status == 200
    wait_until(lambda: total(served, "croupier_decisions_total") == 60.0)


def test_sigterm_answers_what_is_in_flight_and_leaves_nobody_behind(served: Server) -> None:
    with Load(served, clients=8) as load:
        load.wait_for(decisions=300)
        workers = served.workers()
        assert served.stop() == 0
        load.join()
    assert (load.told.refused, load.told.unanswered) == ([], [])
    found = [event.decision_id for event in served.events() if isinstance(event, Decision)]
    assert sorted(found) == sorted({*found})
    assert set(load.told.decision_ids) <= set(found)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert not (served.data_dir / "service.json").exists()


def test_workers_end_with_their_parent(served: Server) -> None:
    workers = served.workers()
    served.process.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_the_port_of_another_service_is_not_shared(served: Server, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    second = Server(other, CONFIG.replace("port = 0", f"port = {served.port}"))
    with pytest.raises(AssertionError, match="expected a free port"):
        second.start()
    assert second.process.wait(PATIENCE_S) == 2
