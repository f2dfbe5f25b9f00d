"""The fast lane gives the answers of the slow way, and knows what it must leave to that."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from croupier.policy.events import Decision, Outcome, event_key
from tests.service.conftest import ALL_KEY, DIGITS_KEY
from tests.service.generations import generation
from tests.service.running import unique, wait_until
from tests.service.test_connections import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.conftest import Serve
    from tests.service.running import Server
    from tests.service.test_connections import Wire

CONFIG = """
[service]
port = 0

[log]
busy_timeout_s = 0.2

[loops.digits]
keep_prob = 1.0
"""
FEATURES = {"price": 2.5, "brand": "x"}
# A stage is timed for one decision of the fast lane in so many.
SAMPLED = 16


def request(
    decision_id: str, *headers: bytes, loop: bytes = b"digits", route: bytes = b"decide"
) -> bytes:
    actions = [{"id": "a", "features": FEATURES}, {"id": "b"}]
    body = json.dumps({"decision_id": decision_id, "actions": actions, "context": {"n": 1}})
    return message(loop + b"/" + route, body.encode(), *headers)


def message(path: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    head = b"POST /v1/loops/%b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n%b\r\n"
    return head % (path, len(body), lines) + body


def in_lane(server: Server) -> int:
    """How many decisions the fast lane has made, rounded down to a multiple of 16."""
    text = server.get("/metrics").body.decode()
    found = re.search(r'^croupier_stage_seconds_count{stage="decide"} (\S+)$', text, re.MULTILINE)
    return 0 if found is None else SAMPLED * int(float(found[1]))


@pytest.fixture
def server(serve: Serve) -> Server:
    server = serve(CONFIG)
    server.serve(generation("digits", 1))
    wait_until(lambda: server.readiness()["loops"]["digits"]["generation"] == 1)
    return server


@pytest.fixture
def connection(server: Server) -> Iterator[Wire]:
    with wire(server) as connected:
        yield connected


def ask(connection: Wire, sent: bytes, times: int) -> None:
    """Send the same head again and again, each time with an id of its own of the same length."""
    for _ in range(times):
        decision_id = unique()
        connection.write(sent.replace(b"@" * 32, decision_id.encode()))
        assert connection.answer().json["decision_id"] == decision_id


def test_heads_that_are_known_go_through_it(server: Server, connection: Wire) -> None:
    # The first one is parsed, and a handful may be before the appender has woken up.
    ask(connection, request("@" * 32), 1 + SAMPLED)
    assert in_lane(server) == SAMPLED
    # Known by its bytes, whatever connection it comes from.
    with wire(server) as another:
        ask(another, request("@" * 32), SAMPLED)
    assert in_lane(server) == 2 * SAMPLED


@pytest.mark.parametrize(
    "headers",
    [
        (b"connection: keep-alive",),
        (b"connection: close",),
        (b"expect: 100-continue",),
        (b"upgrade: h2c", b"connection: upgrade"),
        (b"te: trailers",),
    ],
    ids=repr,
)
def test_special_heads_are_parsed(server: Server, headers: tuple[bytes, ...]) -> None:
    for _ in range(2 * SAMPLED):
        with wire(server) as connection:
            connection.write(request(unique(), *headers))
            if headers[0].startswith(b"expect"):
                assert connection.socket.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert connection.answer().status == 200
    assert in_lane(server) == 0


@pytest.mark.parametrize(
    ("line", "found"),
    [(b"host: x\n", 400), (b"host: x\r\ntransfer-encoding: chunked\r\n", 400)],
    ids=repr,
)
def test_heads_that_could_be_read_otherwise_are_never_known(
    server: Server, line: bytes, found: int
) -> None:
    for _ in range(2):
        with wire(server) as connection:
            connection.write(request(unique()).replace(b"host: x\r\n", line))
            assert connection.answer().status == found
    assert in_lane(server) == 0


def test_what_is_wrong_is_said_as_ever(connection: Wire) -> None:
    right = request("@" * 32)
    for _ in range(3):
        connection.write(request(unique()))
        assert connection.answer().status == 200
        for wrong, target in (
            (right.replace(b'"id": "b"', b'"id": "a"'), "actions[1].id"),
            (right.replace(b'"context"', b'"contexx"'), "contexx"),
            (right.replace(b'{"n": 1}', b'{"n": !}'), "body"),
            (right.replace(b'"price": 2.5', b'"price": [[]'), "body"),
        ):
            assert len(wrong) == len(right)
            connection.write(wrong.replace(b"@" * 32, unique().encode()))
            answer = connection.answer()
            assert (answer.status, answer.error["target"]) == (400, target)


def test_a_request_that_comes_again_is_answered_alike_and_logged_once(
    server: Server, connection: Wire
) -> None:
    ask(connection, request("@" * 32), 2)
    decision_id = unique()
    answers = []
    for _ in range(3):
        connection.write(request(decision_id))
        answers.append(connection.answer().json)
    # Spelt otherwise, parsed, on another connection: it is the same request.
    sent = request(decision_id, b"connection: keep-alive").replace(b'"n": 1', b'"n":  1')
    sent = sent.replace(b"content-length: ", b"content-length: 0")
    length = len(sent.partition(b"\r\n\r\n")[2])
    sent = re.sub(rb"content-length: \d+", b"content-length: %d" % length, sent)
    with wire(server) as another:
        another.write(sent)
        answers.append(another.answer().json)
    assert answers == [answers[0]] * 4
    connection.write(request(decision_id).replace(b'{"n": 1}', b'{"n": 2}'))
    refused = connection.answer()
    assert (refused.status, refused.error["target"]) == (400, "decision_id")
    logged = [each for each in server.events() if getattr(each, "decision_id", 0) == decision_id]
    assert len(logged) == 1


def test_many_at_once_keep_their_order(server: Server, connection: Wire) -> None:
    ask(connection, request("@" * 32), 2)
    for size in (1, 2, 5, 40):
        ids = [unique() for _ in range(size)]
        # One by one: while an answer waits for the disk, what comes next is held back.
        for each in ids:
            connection.write(request(each))
        for each in ids:
            assert connection.answer().json["decision_id"] == each
    assert sorted(ids) == sorted(map(event_key, server.events()[-40:]))


def test_a_client_that_only_listens_any_more_gets_its_answer(connection: Wire) -> None:
    ask(connection, request("@" * 32), 2)
    ids = [unique() for _ in range(3)]
    for each in ids:
        connection.write(request(each))
    connection.socket.shutdown(1)
    for each in ids:
        assert connection.answer().json["decision_id"] == each
    assert connection.ended()


def test_a_log_that_takes_nothing(server: Server, connection: Wire) -> None:
    ask(connection, request("@" * 32), 2)
    segment = max((server.data_dir / "log").glob("*.db"))
    lost = unique()
    with closing(sqlite3.connect(segment, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        connection.write(request(lost))
        refused = connection.answer()
        assert (refused.status, refused.error["code"]) == (503, "LogUnavailable")
        assert refused.headers["retry-after"] == "1"
        holder.execute("ROLLBACK")
    # It was not decided, so it can be asked again; and the lane goes on.
    ask(connection, request("@" * 32), 1)
    connection.write(request(lost))
    assert connection.answer().json["decision_id"] == lost


def test_rewards_go_through_it_too(server: Server, connection: Wire) -> None:
    ids = [unique() for _ in range(5)]
    for each in ids:
        connection.write(request(each))
        assert connection.answer().status == 200
        body = json.dumps({"decision_id": each, "reward": 0.5}).encode()
        connection.write(message(b"digits/reward", body))
        assert connection.answer().json == {"accepted": 1}
        connection.write(message(b"digits/reward", body.replace(b"0.5", b"7.5")))
        assert connection.answer().error["target"] == "reward"
        both = json.dumps([{"decision_id": each, "reward": 0.25}] * 2).encode()
        connection.write(message(b"digits/reward", both))
        assert connection.answer().json == {"accepted": 2}
    outcomes = [event for event in server.events() if isinstance(event, Outcome)]
    assert sorted(each.decision_id for each in outcomes) == sorted(ids * 3)
    text = server.get("/metrics").body.decode()
    assert 'croupier_outcomes_total{loop="digits"} 15.0' in text


def test_what_is_logged_is_the_same_either_way(server: Server, connection: Wire) -> None:
    # The same ids can't be used twice; what doesn't depend on them has to be equal.
    ids = [unique() for _ in range(2 * SAMPLED)]
    for place, each in enumerate(ids):
        connection.write(request(each, *([b"connection: keep-alive"] if place % 2 else [])))
        assert connection.answer().status == 200
    found = {e.decision_id: e for e in server.events() if isinstance(e, Decision)}
    lane, parsed = (found[each] for each in ids[-2:])
    assert in_lane(server) >= SAMPLED - 1 or lane.decision_id in found
    for name in ("context", "actions", "pmf", "scores", "mix", "baseline", "generation"):
        assert getattr(lane, name) == getattr(parsed, name)


def test_keys_are_checked_before_a_head_is_known(shared: Server) -> None:
    def answers(key: str, loop: bytes) -> set[int]:
        sent = request("@" * 32, b"x-api-key: " + key.encode(), loop=loop)
        found = set()
        with wire(shared) as connection:
            for _ in range(4):
                connection.write(sent.replace(b"@" * 32, unique().encode()))
                found.add(connection.answer().status)
        return found

    assert answers(ALL_KEY, b"scaled") == {200}
    assert answers(DIGITS_KEY, b"scaled") == {403}
    assert answers("nobody", b"scaled") == {401}
    assert answers(DIGITS_KEY, b"digits") == {200}
    assert answers(ALL_KEY, b"nowhere") == {404}
