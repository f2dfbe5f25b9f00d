"""What a client may cost: connections, time, headers, requests ahead, features, large bodies."""

from __future__ import annotations

import json
import select
import socket
import time
from contextlib import ExitStack, suppress
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.running import Server, running, unique, wait_until
from tests.service.test_connections import DECIDE, request, wire
from tests.service.test_durability import locked_log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service.conftest import Serve
    from tests.service.running import Answer, Caller
    from tests.service.test_connections import Wire

TIMEOUT_S = 0.6
CONNECTIONS = 20
CONFIG = f"""
[service]
port = 0
max_connections = {CONNECTIONS}
request_timeout = "{int(TIMEOUT_S * 1000)} ms"
idle_timeout = "2 s"
max_features = 3000
max_object_features = 1000

[loops.digits]
"""
# Half a request is ended within the time for one, and the time until that is noticed; the rest is
# for a machine with other things to do.
SOON_S = TIMEOUT_S + 10.0


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(Server(tmp_path_factory.mktemp("limited"), CONFIG)) as server:
        yield server


def timed_out(connection: Wire, started: float) -> None:
    refused = connection.answer()
    assert (refused.status, refused.error["code"]) == (408, "RequestTimeout")
    assert refused.headers["connection"] == "close"
    assert connection.ended()
    assert TIMEOUT_S <= time.monotonic() - started < SOON_S


@pytest.mark.parametrize(
    "begun",
    [
        b"P",
        b"POST /v1/loops/digits/decide HTT",
        DECIDE + b"x-slow: ",
        DECIDE + b"content-length: 100\r\n\r\n",
        DECIDE + b'content-length: 100\r\n\r\n{"actions": [',
        DECIDE + b"transfer-encoding: chunked\r\n\r\n5\r\n{",
        DECIDE + b"expect: 100-continue\r\ncontent-length: 100\r\n\r\n",
    ],
    ids=repr,
)
def test_half_a_request_is_not_waited_for(limited: Server, begun: bytes) -> None:
    with wire(limited) as connection:
        started = time.monotonic()
        connection.write(begun)
        if b"100-continue" in begun:
            assert connection.socket.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        timed_out(connection, started)


@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (DECIDE, b"x-slow: 1\r\n"),
        (DECIDE + b"content-length: 100000\r\n\r\n", b" "),
        (DECIDE + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["head", "body", "chunks"],
)
def test_a_request_that_trickles_in_has_no_more_time(
    limited: Server, start: bytes, drop: bytes
) -> None:
    with wire(limited) as connection:
        started = time.monotonic()
        connection.write(start)
        while not connection.has_answer():
            connection.write(drop)
            time.sleep(0.02)
        timed_out(connection, started)


def test_the_time_is_for_each_request_and_not_for_the_connection(limited: Server) -> None:
    with wire(limited) as connection:
        until = time.monotonic() + 3 * TIMEOUT_S
        while time.monotonic() < until:
            sent = request(unique())
            connection.write(sent[:100])
            time.sleep(TIMEOUT_S / 4)
            connection.write(sent[100:])
            assert connection.answer().status == 200
            # Idle for a while, which is another thing.
            time.sleep(TIMEOUT_S / 4)


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=repr)
def test_an_idle_connection_is_closed_without_a_word(limited: Server, sent: bytes) -> None:
    with wire(limited) as connection:
        started = time.monotonic()
        if sent:
            connection.write(sent)
        assert connection.ended()
        assert 2.0 <= time.monotonic() - started < 2.0 + 10.0


def test_the_rest_of_a_refused_body_is_not_waited_for_either(limited: Server) -> None:
    with wire(limited) as connection:
        started = time.monotonic()
        connection.write(DECIDE + b"content-length: 2000000\r\n\r\n")
        assert connection.answer().status == 413
        while not was_reset(connection):
            assert time.monotonic() - started < 30.0
            with suppress(OSError):
                connection.write(b" ")
            time.sleep(0.05)


def test_an_answer_that_is_not_fetched_is_dropped(limited: Server) -> None:
    # Nobody reads: what doesn't fit into the sockets' buffers would be kept for ever.
    with wire(limited) as connection:
        started = time.monotonic()
        connection.socket.setblocking(False)
        sent = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 1000
        while not was_reset(connection):
            assert time.monotonic() - started < 30.0
            with suppress(OSError):
                connection.socket.send(sent)
            time.sleep(0.01)
        assert time.monotonic() - started >= TIMEOUT_S


def was_reset(connection: Wire) -> bool:
    """Whether the other side has dropped the connection, without reading what it sent before."""
    poll = select.poll()
    poll.register(connection.socket, 0)
    return bool(poll.poll(0))


def test_connections_over_the_limit_are_told_and_the_others_go_on(limited: Server) -> None:
    def free() -> bool:
        try:
            return limited.get("/healthz").status == 200
        except OSError:
            return False

    wait_until(free)
    with ExitStack() as stack:
        first = stack.enter_context(wire(limited))
        first.write(request(unique()))
        assert first.answer().status == 200
        others = [stack.enter_context(wire(limited)) for _ in range(CONNECTIONS + 5)]
        told = []
        for each in others:
            each.write(request(unique()))
            told.append(each.answer())
        refused = [answer for answer in told if answer.status != 200]
        assert len(refused) >= 6
        for answer in refused:
            assert (answer.status, answer.error["code"]) == (503, "TooManyConnections")
            assert answer.headers["retry-after"] == "1"
        assert sum(answer.status == 200 for answer in told) >= CONNECTIONS - 5
        first.write(request(unique()))
        assert first.answer().status == 200
        # Far more than are answered at all.
        for _ in range(400):
            silent = socket.create_connection(("127.0.0.1", limited.port))
            stack.callback(silent.close)
        first.write(request(unique()))
        assert first.answer().status == 200
    wait_until(free)
    assert b'code="TooManyConnections",status="503"' in limited.get("/metrics").body


def test_more_headers_than_anybody_sends(caller: Caller) -> None:
    headers = {f"x-{number}": "1" for number in range(100)}
    assert caller.send("GET", "/healthz", headers=headers).status == 200
    refused = caller.send("GET", "/healthz", headers=headers | {f"y-{n}": "1" for n in range(50)})
    assert (refused.status, refused.error["code"]) == (431, "HeadTooLarge")
    assert "at most 128 headers" in refused.error["message"]


def test_more_requests_ahead_than_anybody_sends(shared: Server) -> None:
    ids = [unique() for _ in range(600)]
    with wire(shared) as connection:
        connection.write(b"".join(map(request, ids)))
        answered = list(answered_until_the_end(connection))
    # In their order as far as it goes, and at least as many as may be ahead.
    assert answered == ids[: len(answered)]
    assert len(answered) >= 256


def answered_until_the_end(connection: Wire) -> Iterator[str]:
    with suppress(HTTPException, OSError):
        while True:
            yield connection.answer().json["decision_id"]


def test_fewer_files_than_connections(tmp_path: Path) -> None:
    files = ("prlimit", "--nofile=300:300")
    server = Server(tmp_path, "[service]\nport = 0\n[loops.digits]\n", prefix=files)
    with running(server), ExitStack() as stack:
        assert '"event":"connections_limited"' in server.stderr()
        first = stack.enter_context(wire(server))
        first.write(request(unique()))
        assert first.answer().status == 200
        for _ in range(600):
            silent = socket.create_connection(("127.0.0.1", server.port))
            stack.callback(silent.close)
        first.write(request(unique()))
        assert first.answer().status == 200
        # Whoever comes now is told why, once there are not so many others who have to be told.
        wait_until(lambda: turned_away(server))
        # The log opens files too, and still can.
        assert first_ready(first)


def turned_away(server: Server) -> bool:
    with wire(server) as late, suppress(OSError):
        late.write(request(unique()))
        return bool(late.answer().error["code"] == "TooManyConnections")
    return False


def first_ready(connection: Wire) -> bool:
    connection.write(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
    return connection.answer().status == 200


def features(count: int) -> dict[str, int]:
    return {f"f{number}": number for number in range(count)}


def decide(**fields: Any) -> dict[str, Any]:
    return {"actions": [{"id": "a"}, {"id": "b"}], **fields}


def actions(*counts: int) -> list[dict[str, Any]]:
    return [
        {"id": str(position), "features": features(count)} for position, count in enumerate(counts)
    ]


@pytest.mark.parametrize(
    ("route", "body", "target"),
    [
        ("decide", decide(context=features(1001)), "context"),
        ("decide", decide(context={"x": [0.5] * 1000}), "context"),
        ("decide", decide(context={"x": [[1]] * 501}), "context"),
        ("decide", decide(audit={"x": {"y": [None] * 1000}}), "audit"),
        ("decide", decide(actions=actions(1, 1001)), "actions[1].features"),
        ("decide", decide(actions=actions(*[1000] * 3, 1)), "body"),
        ("rank", decide(actions=actions(1, 1, 1001)), "actions[2].features"),
        ("slate", decide(actions=actions(1, 1, 1001), size=1), "actions[2].features"),
        (
            "slots",
            decide(slots=[{"id": "s"}, {"id": "t", "features": features(1001)}]),
            "slots[1].features",
        ),
    ],
)
def test_more_features_than_are_allowed(
    limited: Server, route: str, body: dict[str, Any], target: str
) -> None:
    refused = limited.post(f"digits/{route}", body)
    assert (refused.status, refused.error["code"]) == (400, "InvalidRequest")
    assert refused.error["target"] == target
    assert "expected at most" in refused.error["message"]


def test_more_features_in_the_words_of_personalizer(limited: Server) -> None:
    body = {"actions": [{"id": "a", "features": []}], "contextFeatures": [features(1001)]}
    with limited.caller() as caller:
        refused = caller.send("POST", "/personalizer/v1.0/rank", json.dumps(body).encode())
    assert refused.status == 400
    assert refused.error["target"] == "contextFeatures"


def test_as_many_features_as_are_allowed(limited: Server) -> None:
    for body in (
        decide(context=features(1000)),
        decide(context={"x": [0.5] * 999}),
        decide(actions=actions(*[1000] * 3)),
    ):
        assert limited.post("digits/decide", body).status == 200


def test_slots_cost_no_more_than_a_decision_may(caller: Caller) -> None:
    # Small to send, and scored anew for every slot.
    request = {
        "actions": [{"id": str(n), "features": {"x": [1] * 20}} for n in range(100)],
        "context": {"c": [1] * 1000},
        "slots": [{"id": str(n)} for n in range(4)],
    }
    assert caller.post("trained/slots", request).status == 200
    request["slots"] = [{"id": str(n)} for n in range(5)]
    refused = caller.post("trained/slots", request)
    assert (refused.status, refused.error["target"]) == (400, "slots")
    assert "10,000,000 products" in refused.error["message"]
    request["slots"] = [{"id": "0", "features": {"s": [1] * 3800}}]
    assert caller.post("trained/slots", request).status == 400


def test_large_bodies_share_their_room(serve: Serve) -> None:
    server = serve(
        "[service]\nport = 0\nmax_body_bytes = 100000\nmax_inflight_bytes = 250000\n"
        "[log]\nbusy_timeout_s = 20\n[loops.digits]\n"
    )
    large = json.dumps(decide()).encode().ljust(100_000)
    assert server.post("digits/decide", large).status == 200
    with ExitStack() as stack:
        with locked_log(server):
            first = [stack.enter_context(wire(server)) for _ in range(2)]
            for each in first:
                each.write(posted(large))
            wait_until(lambda: b"queue_depth 2.0" in server.get("/metrics").body)
            # The third one finds no room, and neither does one in chunks; a small one does.
            refused: list[Answer] = [server.post("digits/decide", large)]
            chunked = stack.enter_context(wire(server))
            chunked.write(DECIDE + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n")
            refused.append(chunked.answer())
            for answer in refused:
                assert (answer.status, answer.error["code"]) == (503, "Overloaded")
                assert answer.headers["retry-after"] == "1"
            small = stack.enter_context(wire(server))
            small.write(request(unique()))
            wait_until(lambda: b"queue_depth 3.0" in server.get("/metrics").body)
        assert [each.answer().status for each in (*first, small)] == [200, 200, 200]
    # And the room is free again, also that of bodies that never came whole.
    for _ in range(4):
        with wire(server) as broken:
            broken.write(posted(large)[:-1])
    wait_until(lambda: server.post("digits/decide", large).status == 200)


def posted(body: bytes) -> bytes:
    return DECIDE + b"content-length: %d\r\n\r\n" % len(body) + body
