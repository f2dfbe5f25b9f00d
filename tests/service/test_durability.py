"""Nothing acknowledged is lost, however the server ends and whatever holds its log up."""

from __future__ import annotations

import signal
import sqlite3
import threading
from collections import Counter
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from croupier.policy.events import Decision, Outcome
from tests.service.load import Load
from tests.service.running import Caller, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.conftest import Serve
    from tests.service.running import Answer, Server

CONFIG = """
[service]
port = 0

[log]
busy_timeout_s = 0.2
segment_rows = 500

[loops.digits]
"""
DECIDE = {"actions": [{"id": "a"}, {"id": "b"}]}


@contextmanager
def locked_log(server: Server) -> Iterator[None]:
    """Hold the active segment, as a stray tool or a backup might."""
    segment = max((server.data_dir / "log").glob("*.db"))
    with closing(sqlite3.connect(segment, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def logged(server: Server) -> tuple[Counter[str], Counter[str]]:
    """How often each decision and each outcome is in the log."""
    events = server.events()
    return (
        Counter(event.decision_id for event in events if isinstance(event, Decision)),
        Counter(event.outcome_id for event in events if isinstance(event, Outcome)),
    )


def in_background(caller: Caller, answers: list[Answer]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(caller.post("digits/decide", DECIDE)))
    thread.start()
    return thread


def test_sigterm_under_load_leaves_no_request_unanswered(serve: Serve) -> None:
    server = serve(CONFIG)
    with Load(server, clients=8) as load:
        load.wait_for(decisions=200)
        assert server.stop() == 0
        load.join()
    assert (load.told.refused, load.told.unanswered) == ([], [])
    found_decisions, found_outcomes = logged(server)
    assert {found_decisions[each] for each in load.told.decision_ids} == {1}
    assert {found_outcomes[each] for each in load.told.outcomes} == {1}
    assert not (server.data_dir / "service.json").exists()


def test_what_waits_for_the_log_is_answered_before_the_end(serve: Serve) -> None:
    server = serve(CONFIG.replace("busy_timeout_s = 0.2", "busy_timeout_s = 30"))
    assert server.post("digits/decide", DECIDE).status == 200
    answers: list[Answer] = []
    with server.caller() as caller, locked_log(server):
        waiting = in_background(caller, answers)
        # Its record is in the queue.
        wait_until(lambda: b"croupier_log_queue_depth 1.0" in server.get("/metrics").body)
        server.process.terminate()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not listening(server))
        assert answers == []
    waiting.join()
    assert [answer.status for answer in answers] == [200]
    assert server.process.wait(timeout=60) == 0
    assert logged(server)[0][answers[0].json["decision_id"]] == 1


def listening(server: Server) -> bool:
    try:
        with server.caller() as caller:
            caller.get("/healthz")
    except OSError:
        return False
    return True


def test_buffered_records_are_written_out_at_the_end(serve: Serve) -> None:
    server = serve(CONFIG.replace("[log]", '[log]\ndurability = "buffered"'))
    with Load(server, clients=4) as load:
        load.wait_for(decisions=300)
        assert server.stop() == 0
        load.join()
    assert (load.told.refused, load.told.unanswered) == ([], [])
    found, _ = logged(server)
    assert {found[each] for each in load.told.decision_ids} == {1}


def test_a_locked_log_is_told_and_recovers_and_an_interrupt_ends_in_order(serve: Serve) -> None:
    server = serve(CONFIG)
    first = server.post("digits/decide", DECIDE)
    assert first.status == 200
    routes = {
        "decide": DECIDE,
        "reward": {"decision_id": "d", "reward": 1},
        "activate": {"decision_id": "d"},
        "judge": {
            "decision_id": "d",
            "other_decision_id": "e",
            "auditor": "ada",
            "distance": 0.1,
        },
    }
    with locked_log(server):
        for route, request in routes.items():
            refused = server.post(f"digits/{route}", request)
            assert (refused.status, refused.error["code"]) == (503, "LogUnavailable")
            assert refused.headers["retry-after"] == "1"
            assert "locked" in refused.error["message"]
        ready = server.get("/readyz")
        assert (ready.status, ready.json["status"]) == (503, "unavailable")
        assert "locked" in ready.json["log"]
        assert server.get("/healthz").status == 200
    wait_until(lambda: server.get("/readyz").status == 200)
    again = server.post("digits/decide", DECIDE)
    assert again.status == 200
    # What was refused is not there, not even late.
    assert list(logged(server)[0]) == [first.json["decision_id"], again.json["decision_id"]]

    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=60) == 130
    assert not (server.data_dir / "service.json").exists()


def test_a_service_does_not_take_back_another_ones_address(serve: Serve) -> None:
    server = serve(CONFIG)
    first = server.process
    server.start()
    try:
        first.terminate()
        assert first.wait(timeout=60) == 0
        # The second one has put its own address there, and is still to be found by it.
        assert server.get("/healthz").status == 200
    finally:
        first.kill()
        first.wait()
