"""The typed client against a real server, and against what isn't one."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action
from croupier.service.api import OutcomeRequest
from croupier.service.client import Client, ServiceError
from tests.service.conftest import DIGITS_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.running import Server


@pytest.fixture
def client(shared: Server) -> Iterator[Client]:
    with Client(shared.url, "digits", key=DIGITS_KEY) as client:
        yield client


def test_a_decision_and_what_becomes_of_it(shared: Server, client: Client) -> None:
    answer = client.decide(
        [Action("red", {"price": 3}), {"id": "blue", "features": {"price": 4}}, {"id": "green"}],
        {"hour": 9},
        decision_id="of-the-client",
        excluded=["green"],
        baseline="blue",
        deferred=True,
        audit={"region": "north"},
    )
    assert answer.pmf == [0.5, 0.5, 0.0]
    assert (answer.decision_id, answer.loop, answer.generation) == ("of-the-client", "digits", 0)
    assert client.activate(answer.decision_id).accepted == 1
    assert client.reward(answer.decision_id, 1.0, guardrails={"refund": 0.0}).accepted == 1
    logged = shared.decision("of-the-client")
    assert (logged.context, logged.audit, logged.baseline) == ({"hour": 9}, {"region": "north"}, 1)
    assert logged.deferred


def test_many_outcomes(client: Client) -> None:
    sent = (OutcomeRequest(decision_id="d", reward=n / 10) for n in range(10))
    assert client.rewards(sent).accepted == 10
    assert client.rewards([]).accepted == 0


def test_threads_may_share_it(client: Client) -> None:
    answers: list[str] = []

    def work(name: int) -> None:
        answers.extend(
            client.decide([{"id": "a"}], decision_id=f"{name}:{n}").decision_id for n in range(20)
        )

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(f"{name}:{n}" for name in range(8) for n in range(20))


def test_a_refusal_says_why(shared: Server, client: Client) -> None:
    with pytest.raises(ServiceError) as refused:
        client.decide([])
    assert (refused.value.status, refused.value.code) == (400, "InvalidRequest")
    assert refused.value.target == "actions"
    assert str(refused.value) == "actions: expected 1 to 10000 actions, got 0"
    with pytest.raises(ServiceError) as refused:
        client.reward("d", 3.0)
    assert refused.value.target == "[0].reward"
    with (
        Client(shared.url, "scaled", key=DIGITS_KEY) as other,
        pytest.raises(ServiceError) as refused,
    ):
        other.activate("d")
    assert (refused.value.status, refused.value.code) == (403, "Forbidden")
    with Client(shared.url, "digits") as keyless, pytest.raises(ServiceError) as refused:
        keyless.activate("d")
    assert refused.value.status == 401


@pytest.mark.parametrize("loop", ["no such loop", "../digits", "digits/decide?", "\N{SNOWMAN}"])
def test_a_loops_name_is_not_a_path(shared: Server, loop: str) -> None:
    with Client(shared.url, loop, key=shared.key) as client, pytest.raises(ServiceError) as refused:
        client.activate("d")
    assert refused.value.status == 404


@pytest.mark.parametrize(
    ("actions", "context"),
    [
        ([{"features": {}}], {}),
        ([{"id": 5}], {}),
        (["red"], {}),
        ([{"id": "a"}], {"when": object()}),
        ([{"id": "a"}], {"text": "\ud800"}),
        ([{"id": "\udfff"}], {}),
    ],
    ids=ascii,
)
def test_what_can_not_be_sent_is_told_at_once(
    client: Client, actions: list[Any], context: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError, match=r"^(actions|request): "):
        client.decide(actions, context)


class _Proxy(BaseHTTPRequestHandler):
    """Answers in its own words, as something between client and service may."""

    status = 502
    body = b"<html>Bad gateway</html>"

    def do_POST(self) -> None:
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def proxy(status: int, body: bytes) -> Iterator[str]:
    handler = type("Proxy", (_Proxy,), {"status": status, "body": body})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [200, 204, 301, 404, 502])
@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"[]", b'{"error": "x"}'])
def test_an_answer_that_is_not_the_services(status: int, body: bytes) -> None:
    body = b"" if status == 204 else body
    with (
        proxy(status, body) as url,
        Client(url, "digits") as client,
        pytest.raises(ServiceError) as refused,
    ):
        client.activate("d")
    assert (refused.value.status, refused.value.code) == (status, "Unknown")


def test_nobody_there() -> None:
    with (
        Client("http://127.0.0.1:9", "digits") as client,
        pytest.raises(urllib3.exceptions.HTTPError),
    ):
        client.activate("d")
