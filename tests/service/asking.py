"""Clients of both kinds for the same tests, and a proxy that loses what it should carry."""

from __future__ import annotations

import asyncio
import http.client
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlparse

from croupier.service.client import AsyncClient, Client, ClientOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("sync", "async")


class _Awaiting:
    """An asynchronous client for tests that wait for every answer."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._runner.run(method(*args, **kwargs))

    def end(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@contextmanager
def asking(
    kind: str, url: str, loop: str, *, key: str | None = None, **options: Any
) -> Iterator[Client]:
    """A client of a kind, which for the asynchronous one looks like the other."""
    if kind == "sync":
        with Client(url, loop, key=key, options=ClientOptions(**options)) as client:
            yield client
        return
    awaiting = _Awaiting(AsyncClient(url, loop, key=key, options=ClientOptions(**options)))
    try:
        yield cast("Client", awaiting)
    finally:
        awaiting.end()


class Words(NamedTuple):
    """An answer of the proxy's own."""

    status: int
    body: bytes = b"<html>Bad gateway</html>"
    headers: tuple[tuple[str, str], ...] = ()


LOSE = "lose"
"""Carry the request, and lose the answer."""
DROP = "drop"
"""Lose the request."""
HANG = "hang"
"""Say nothing, for as long as the client waits."""
PASS = "pass"
"""Carry both."""


class Proxy(ThreadingHTTPServer):
    """Stands before a service, and does what its script says with one request after the other.

    When the script has ended, the last line of it is repeated.
    """

    # Who waits for nothing must not be waited for.
    daemon_threads = True
    block_on_close = False

    def __init__(self, behind: str, script: list[str | Words]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = urlparse(behind)
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.ended = threading.Event()
        self._script = script
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next(self, path: str, body: bytes) -> str | Words:
        with self._lock:
            self.paths.append(path)
            self.bodies.append(body)
            return self._script[min(len(self.paths), len(self._script)) - 1]

    def handle_error(self, *_: Any) -> None:
        """A client that has gone away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        does = self.server.next(self.path, body)
        if isinstance(does, Words):
            self._say(does)
            return
        if does == HANG:
            self.server.ended.wait(30)
        if does in {LOSE, PASS}:
            answer = self._carried(body)
            if does == PASS:
                self._say(answer)
                return
        self.close_connection = True

    def do_GET(self) -> None:
        self.do_POST()

    def _carried(self, body: bytes) -> Words:
        behind = self.server.behind
        assert behind.hostname is not None
        connection = http.client.HTTPConnection(behind.hostname, behind.port, timeout=30)
        connection.request(self.command, self.path, body or None, dict(self.headers))
        response = connection.getresponse()
        answer = Words(response.status, response.read())
        connection.close()
        return answer

    def _say(self, words: Words) -> None:
        self.send_response(words.status)
        for name, value in words.headers:
            self.send_header(name, value)
        if words.status != 204:
            self.send_header("content-length", str(len(words.body)))
        self.end_headers()
        if words.status != 204:
            self.wfile.write(words.body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def proxy(*script: str | Words, behind: str = "http://127.0.0.1:9") -> Iterator[Proxy]:
    with Proxy(behind, list(script)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()
