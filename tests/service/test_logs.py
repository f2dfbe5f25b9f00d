"""What the service writes to its log: what happened, and nothing that callers sent."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from croupier.service.logs import RequestLog
from croupier.service.refusals import Refusal
from tests.service.generations import generation
from tests.service.running import Server, running, wait_until
from tests.service.test_connections import wire
from tests.service.test_durability import locked_log

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

KEY = "a-secret-key-of-the-shop"
SECRETS = [
    KEY,
    "secret-value",
    "secret-name",
    "secret-id",
    "secret-loop",
    "secret-path",
    "0.123456",
]
CONFIG = f"""
[service]
port = 0
registry_poll = "50 ms"
access_log = true

[service.keys.shop]
key = "{KEY}"

[log]
busy_timeout_s = 0.2

[loops.digits]
"""


def lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.stderr().splitlines()]


def logged(server: Server, event: str, **fields: Any) -> list[dict[str, Any]]:
    """Lines of an event that have these fields."""
    return [
        line
        for line in lines(server)
        if line["event"] == event and all(line.get(name) == fields[name] for name in fields)
    ]


def action(identity: str, **features: Any) -> dict[str, Any]:
    return {"id": identity, "features": features}


ASKED: list[tuple[str, Any]] = [
    ("digits/decide", {"actions": [action("secret-id", x="secret-value")]}),
    ("digits/decide", {"actions": [action("secret-id"), action("secret-id")]}),
    ("digits/decide", {"actions": [action("a")], "baseline": "secret-id"}),
    ("digits/decide", {"actions": [action("a")], "context": {"secret-name": 1e300}}),
    ("digits/decide", {"actions": [action("a")], "secret-name": 1}),
    ("digits/decide", b'{"actions": "secret-value'),
    ("digits/reward", {"decision_id": "secret-id", "reward": 0.123456}),
    ("digits/reward", {"decision_id": "secret-id", "reward": 1230.123456}),
    ("digits/activate", {"decision_id": "secret-id"}),
    ("digits/secret-path", {}),
    ("secret-loop/decide", {}),
]


def test_a_machine_reads_what_happened_and_nothing_that_callers_sent(tmp_path: Path) -> None:
    server = Server(tmp_path, CONFIG, KEY)
    with running(server):
        for path, body in ASKED:
            server.post(path, body)
        with server.caller() as caller:
            caller.send("POST", f"/personalizer/v1.0/events/secret-id/reward?key={KEY}", b"{}")
            caller.send("GET", f"/secret-path?{KEY}")
            caller.send("GET", "/readyz", headers={"x-api-key": "wrong-but-secret-value"})
        with wire(server) as connection:
            connection.write(b"GET /secret-path HTTP/9.9\r\n\r\n")
            assert connection.answer().status == 400
        with locked_log(server):
            assert server.post(*ASKED[0]).status == 503
        wait_until(lambda: server.get("/readyz").status == 200)
        server.name("digits", 7)
        wait_until(lambda: bool(logged(server, "plan_trouble")))
        server.serve(generation("digits", 8))
        wait_until(lambda: len(logged(server, "serving")) == 2)
        assert server.stop() == 0

    for line in lines(server):
        assert {"time", "level", "event", "logger", "message"} <= set(line)
        age = datetime.now(UTC) - datetime.fromisoformat(line["time"])
        assert 0 <= age.total_seconds() < 300
        assert line["level"] in {"info", "warning", "error"}
    for secret in SECRETS:
        assert secret not in server.stderr()

    for event in ("started", "log_unavailable", "log_available", "drained"):
        assert len(logged(server, event)) == 1, event
    (refused,) = logged(server, "refused", loop="digits", route="decide", status=503)
    assert (refused["code"], refused["level"]) == ("LogUnavailable", "warning")
    # It waited for the log.
    assert 200 <= refused["duration_ms"] < 60_000
    assert logged(server, "refused", loop="digits", route="reward", status=400)
    assert logged(server, "refused", loop=None, route="decide", status=404)
    assert logged(server, "refused", loop="digits", route=None, status=404)
    assert logged(server, "refused", route="personalizer/reward", status=401)
    assert logged(server, "refused", loop=None, route=None, status=400, duration_ms=None)
    assert logged(server, "plan_trouble", loop="digits", level="error")
    # The access log has everything that was asked, also what was fine.
    requests = logged(server, "request")
    assert len(logged(server, "request", route="decide", status=200)) == 1
    assert len(logged(server, "request", route="reward", loop="digits", status=200)) == 1
    assert logged(server, "request", route="/readyz", status=200)
    assert len(requests) > len(ASKED)
    assert all(request["duration_ms"] >= 0 for request in requests)


def test_lines_for_people(tmp_path: Path) -> None:
    with running(
        Server(tmp_path, '[service]\nport = 0\nlog_format = "text"\n[loops.x]\n')
    ) as server:
        assert server.post("x/decide", {}).status == 400
        assert server.post("x/decide", {"actions": [{"id": "a"}]}).status == 200
    first, *_, last = server.stderr().splitlines()
    assert "INFO croupier.service.follower: loop x: serving generation 0" in first
    # Without an access log, what was fine leaves no line.
    assert last.endswith("INFO croupier.service.logs: refused decide: 400 InvalidRequest")


def test_a_flood_of_refusals_is_no_flood_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = RequestLog(["digits"], clock=lambda: now[0])
    scope = {"path": "/v1/loops/digits/decide", "raw_path": b"/v1/loops/digits/decide"}
    with caplog.at_level("INFO"):
        for tick in range(2500):
            now[0] = tick / 1000
            log.refused(Refusal(503, "full"), scope, 0.001)
            if tick % 500 == 0:
                log.refused(Refusal(400, "wrong"), scope)
    told = [(record.__dict__["status"], record.__dict__["repeated"]) for record in caplog.records]
    # One a second of each kind, which counts those it stands for.
    assert [count for status, count in told if status == 503] == [0, 999, 999]
    assert [count for status, count in told if status == 400] == [0, 1, 1]
