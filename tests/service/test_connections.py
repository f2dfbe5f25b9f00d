"""HTTP itself: what is no HTTP, what comes in pieces, too early, or not at all."""

from __future__ import annotations

import json
import select
import socket
from contextlib import contextmanager
from http.client import HTTPResponse
from typing import TYPE_CHECKING, cast

import pytest

from croupier.policy.events import Decision
from tests.service.conftest import MAX_BODY_BYTES
from tests.service.running import PATIENCE_S, Answer, unique, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

    from tests.service.running import Caller, Server

DECIDE = b"POST /v1/loops/digits/decide HTTP/1.1\r\nhost: x\r\nx-api-key: key-of-all-loops\r\n"


class Wire:
    """A socket to the server, and the answers that are read from it."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> Answer:
        """Read exactly one answer."""
        response = HTTPResponse(self.socket)
        # Unbuffered, so that the next answer isn't read along with this one.
        response.fp.close()
        response.fp = cast("BufferedReader", self.socket.makefile("rb", buffering=0))
        response.begin()
        names = {name.lower(): value for name, value in response.getheaders()}
        answer = Answer(response.status, names, response.read())
        response.close()
        return answer

    def has_answer(self) -> bool:
        """Whether there is something to be read."""
        return bool(select.select([self.socket], [], [], 0.001)[0])

    def ended(self) -> bool:
        """Whether the server has nothing more to say, and has closed the connection."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@contextmanager
def wire(server: Server) -> Iterator[Wire]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connected:
        yield Wire(connected)


def body_of(decision_id: str) -> bytes:
    return json.dumps({"decision_id": decision_id, "actions": [{"id": "a"}, {"id": "b"}]}).encode()


def request(decision_id: str, *headers: bytes) -> bytes:
    body = body_of(decision_id)
    lines = b"".join(header + b"\r\n" for header in headers)
    return DECIDE + lines + b"content-length: %d\r\n\r\n" % len(body) + body


def times_logged(server: Server, decision_id: str) -> int:
    return sum(
        isinstance(event, Decision) and event.decision_id == decision_id
        for event in server.events()
    )


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the start of TLS
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"G\xffT / HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost x\r\n\r\n",
        b"GET / HTTP/1.1\r\nh\x00st: x\r\n\r\n",
        b"CONNECT example.org:80 HTTP/1.1\r\nhost: x\r\n\r\n",
        DECIDE + b"content-length: -5\r\n\r\n",
        DECIDE + b"content-length: abc\r\n\r\n",
        DECIDE + b"content-length: 0x10\r\n\r\n",
        DECIDE + b"content-length: 99999999999999999999999\r\n\r\n",
        DECIDE + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        DECIDE + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        DECIDE + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        DECIDE + b"transfer-encoding: chunked\r\n\r\n-1\r\n",
    ],
    ids=repr,
)
def test_what_is_not_http_gets_the_same_error_body(shared: Server, sent: bytes) -> None:
    with wire(shared) as connection:
        connection.write(sent)
        refused = connection.answer()
        assert (refused.status, refused.error["code"]) == (400, "InvalidRequest")
        assert refused.headers["connection"] == "close"
        assert connection.ended()


@pytest.mark.parametrize("host", [b"[", b"", b"a b", b"\xff\xff", b"x" * 5000], ids=repr)
def test_whatever_the_host_is_said_to_be(shared: Server, host: bytes) -> None:
    with wire(shared) as connection:
        connection.write(b"GET /nowhere HTTP/1.1\r\nhost: " + host + b"\r\n\r\n")
        assert connection.answer().error["code"] == "NotFound"


@pytest.mark.parametrize(
    ("start", "more"),
    [(b"", b"x-filler: xxxxxxxxxx\r\n" * 50), (b"x-filler: ", b"x" * 1000)],
    ids=["many headers", "one header"],
)
def test_a_head_without_end(shared: Server, start: bytes, more: bytes) -> None:
    with wire(shared) as connection:
        # Headers or one header without end: neither is kept.
        connection.write(DECIDE + start)
        written = 0
        while written < 10_000_000 and not connection.has_answer():
            connection.write(more)
            written += len(more)
        refused = connection.answer()
    assert (refused.status, refused.error["code"]) == (431, "HeadTooLarge")
    assert written < 1_000_000


def test_chunks_and_pieces(shared: Server, caller: Caller) -> None:
    decision_id = unique()
    body = body_of(decision_id)
    sent = DECIDE + b"transfer-encoding: chunked\r\n\r\n"
    sent += b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with wire(shared) as connection:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(sent), 3):
            connection.write(sent[at : at + 3])
            if at % 300 == 0:
                # A slow client keeps nobody waiting.
                assert caller.get("/healthz").status == 200
        assert connection.answer().json["decision_id"] == decision_id
    assert times_logged(shared, decision_id) == 1


def test_a_body_that_grows_too_large_in_chunks(shared: Server) -> None:
    with wire(shared) as connection:
        connection.write(DECIDE + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(0, 2 * MAX_BODY_BYTES, 50_000):
            connection.write(b"c350\r\n" + b" " * 50_000 + b"\r\n")
        connection.write(b"0\r\n\r\n")
        refused = connection.answer()
        assert (refused.status, refused.error["code"]) == (413, "BodyTooLarge")
        connection.write(request(unique()))
        assert connection.answer().status == 200


def test_an_announced_body_that_is_too_large_is_not_waited_for(shared: Server) -> None:
    with wire(shared) as connection:
        connection.write(DECIDE + b"content-length: 1000000000000\r\n\r\n")
        assert connection.answer().status == 413


def test_a_client_that_asks_before_it_sends(shared: Server) -> None:
    body = body_of(unique())
    head = DECIDE + b"expect: 100-continue\r\ncontent-length: "
    with wire(shared) as connection:
        connection.write(head + b"%d\r\n\r\n" % len(body))
        assert connection.socket.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.write(body)
        assert connection.answer().status == 200
    with wire(shared) as connection:
        connection.write(head + b"%d\r\n\r\n" % (MAX_BODY_BYTES + 1))
        # It may send that body or not: what follows can't be told apart, so nothing may follow.
        refused = connection.answer()
        assert (refused.status, refused.headers["connection"]) == (413, "close")
        assert connection.ended()


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"anything"])
def test_an_offer_to_upgrade_is_declined(shared: Server, protocol: bytes) -> None:
    # Java's HttpClient makes such an offer in its first request, and sends the body along.
    offer = (b"connection: Upgrade, HTTP2-Settings", b"Upgrade: " + protocol, b"http2-settings: x")
    with wire(shared) as connection:
        for headers in (offer, (), offer):
            decision_id = unique()
            connection.write(request(decision_id, *headers))
            assert connection.answer().json["decision_id"] == decision_id


def test_an_older_http(shared: Server) -> None:
    with wire(shared) as connection:
        connection.write(request(unique()).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = connection.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert connection.ended()


def test_requests_one_behind_the_other(shared: Server) -> None:
    ids = [unique() for _ in range(50)]
    refused = DECIDE + b"content-length: 2\r\n\r\n{}"
    with wire(shared) as connection:
        connection.write(b"".join(request(each) + refused for each in ids))
        for each in ids:
            assert connection.answer().json["decision_id"] == each
            assert connection.answer().error["target"] == "actions"
    assert [times_logged(shared, each) for each in ids] == [1] * len(ids)


@pytest.mark.parametrize(
    "rest",
    [b"\x00\x01\x02\r\n\r\n", DECIDE + b"content-length: -1\r\n\r\n", DECIDE + b"no colon\r\n\r\n"],
    ids=repr,
)
def test_rubbish_behind_a_request_is_not_its_answer(shared: Server, rest: bytes) -> None:
    ids = [unique() for _ in range(3)]
    with wire(shared) as connection:
        connection.write(b"".join(map(request, ids)) + rest)
        assert [connection.answer().json["decision_id"] for _ in ids] == ids
        assert connection.ended()


def test_a_broken_body_behind_a_request(shared: Server) -> None:
    decision_id = unique()
    with wire(shared) as connection:
        connection.write(request(decision_id))
        connection.write(DECIDE + b"transfer-encoding: chunked\r\n\r\nzz\r\n")
        assert connection.answer().json["decision_id"] == decision_id
        # Answered or not, depending on whether it came while the first was being decided.
        rest = connection.socket.recv(1)
        assert rest in {b"", b"H"}


def test_half_a_request_is_none(shared: Server, caller: Caller) -> None:
    # Each of these reads like a whole body already when its client goes away.
    ids = [unique() for _ in range(3)]
    with wire(shared) as connection:
        connection.write(DECIDE + b"content-length: 1000\r\n\r\n" + body_of(ids[0]))
    with wire(shared) as connection:
        body = body_of(ids[1])
        connection.write(DECIDE + b"transfer-encoding: chunked\r\n\r\n")
        connection.write(b"%x\r\n%b\r\n" % (len(body), body))
    with wire(shared) as connection:
        connection.write(request(unique()) + DECIDE + b"content-length: 1000\r\n\r\n")
        connection.write(body_of(ids[2]))
        connection.socket.shutdown(socket.SHUT_WR)
        assert connection.answer().status == 200
        assert connection.ended()
    # The server has seen all of that when it has answered ten more.
    for _ in range(10):
        assert caller.post("digits/decide", body_of(unique())).status == 200
    assert [times_logged(shared, each) for each in ids] == [0, 0, 0]


def test_a_client_that_only_listens_any_more_gets_its_answers(shared: Server) -> None:
    ids = [unique() for _ in range(5)]
    with wire(shared) as connection:
        connection.write(b"".join(map(request, ids)))
        connection.socket.shutdown(socket.SHUT_WR)
        assert [connection.answer().json["decision_id"] for _ in ids] == ids
        assert connection.ended()


def test_a_client_that_goes_away_is_logged_all_the_same(shared: Server, caller: Caller) -> None:
    ids = [unique() for _ in range(20)]
    for each in ids:
        with wire(shared) as connection:
            connection.write(request(each))
    # What was asked was decided; that nobody read the answer is no reason to forget it.
    wait_until(lambda: all(times_logged(shared, each) == 1 for each in ids))
    assert caller.get("/healthz").status == 200
