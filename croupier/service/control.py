"""The control plane's door: its routes are handed on to a process of their own.

Settings, models, logs and evaluations need MLflow and the lake, which the scorer must never load.
So what asks for them is forwarded, over a Unix socket, to a process that does; it is started when
somebody first asks. Bodies pass through piece by piece, a few requests at a time, so that decisions
don't wait for any of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from croupier.service.child import ChildProcess
from croupier.service.personalizer import VERSIONS
from croupier.service.refusals import Refusal, personalizer_refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping

    from croupier.service.auth import Admission, KeyRing
    from croupier.service.scorer import Scorer

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

__all__ = ("BY_HEADER", "LOOP_HEADER", "ControlPlane", "ControlSetup", "socket_address")

LOOP_HEADER, BY_HEADER = "x-croupier-loop", "x-croupier-by"
"""Headers that tell the control process whose loop is meant, and the name of the key."""

_log = logging.getLogger(__name__)

_ROUTES = re.compile(
    rb"/*/personalizer/(?:%s)/"
    rb"(?:configurations/(?:service|policy|applyFromEvaluation)"
    rb"|model(?:/properties)?"
    rb"|logs(?:/properties|/interactions|/observations)?"
    rb"|evaluations(?:/[^/]+)?)" % b"|".join(re.escape(each).encode() for each in VERSIONS)
)
_PASSED_ON = frozenset({b"content-type", b"content-length", b"location", b"allow", b"retry-after"})
_AT_ONCE = 4
_LONGEST_HEAD_BYTES = 65_536
_PIECE_BYTES = 65_536
_START_PATIENCE_S = 10.0
_PATIENCE_S = 120.0
_LOOK_EVERY_S = 0.05
# What a socket's address can hold, its ending zero included, is 104 bytes on some systems.
_LONGEST_ADDRESS_BYTES = 103


class ControlSetup(msgspec.Struct, frozen=True, kw_only=True):
    """How the control plane's process is run.

    Attributes
    ----------
    module
        To run, see :class:`~croupier.service.child.ChildProcess`.
    job
        One line of what it is to do.
    socket
        Where it listens.
    """

    module: str
    job: str
    socket: Path


class ControlPlane:
    """ASGI application that hands requests on to the control plane's process.

    Parameters
    ----------
    setup
        How the process is run.
    keys
        Says who may; the scope is ``admin``.
    scorer
        Knows which loops there are.
    refused
        Called with every refusal of our own.
    max_body_bytes
        Largest request body.
    """

    def __init__(
        self,
        setup: ControlSetup,
        keys: KeyRing,
        scorer: Scorer,
        refused: Callable[[Refusal], None],
        *,
        max_body_bytes: int,
    ) -> None:
        self._socket = setup.socket
        self._keys = keys
        self._scorer = scorer
        self._refused = refused
        self._max_body_bytes = max_body_bytes
        self._process = ChildProcess("control plane", setup.module, setup.job.encode())
        self._running = 0

    def stop(self) -> None:
        """End the process, if there ever was one."""
        self._process.stop()

    def answers(self, scope: Scope) -> bool:
        """Whether a request asks for something of the control plane."""
        return _ROUTES.fullmatch(scope["raw_path"]) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = _Exchange(scope, receive, send, self._max_body_bytes)
        try:
            admission = self._keys.admit_personalizer(scope["headers"], self._scorer.loops, "admin")
            exchange.check_length()
            if self._running >= _AT_ONCE:
                raise _away(f"the control plane has {_AT_ONCE} requests in hand, ask again")
            self._running += 1
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await self._forward(exchange, admission)
            finally:
                self._running -= 1
        except _DisconnectedError:
            return
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - each gets its answer
            if exchange.answering:
                # Half an answer is out: only the end of the connection tells that it is none.
                _log.warning("the control plane broke off in the middle of an answer: %s", error)
                return
            await self._refuse(exchange, error)

    async def _forward(self, exchange: _Exchange, admission: Admission) -> None:
        try:
            async with self._connection() as connection:
                await exchange.forward(connection, admission)
        except (OSError, EOFError):
            if not exchange.can_be_repeated:
                raise
            # It died this moment, and nothing was asked of it but to tell: the next one can.
            async with self._connection() as connection:
                await exchange.forward(connection, admission)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[_Connection]:
        """A connection to the process, which is started if it isn't there."""
        deadline = asyncio.get_running_loop().time() + _START_PATIENCE_S
        while True:
            try:
                with socket_address(self._socket) as address:
                    reader, writer = await asyncio.open_unix_connection(
                        address, limit=_LONGEST_HEAD_BYTES
                    )
                break
            except OSError as error:
                self._process.start()
                if asyncio.get_running_loop().time() > deadline:
                    raise _away("the control plane does not answer, ask again") from error
                await asyncio.sleep(_LOOK_EVERY_S)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def _refuse(self, exchange: _Exchange, error: BaseException) -> None:
        match error:
            case TimeoutError():
                error = _away("the control plane took too long, ask again")
            case OSError() | EOFError():
                _log.warning("the control plane broke off: %s", error)
                error = _away("the control plane broke off, ask again")
        refusal = personalizer_refusal(error, None)
        self._refused(refusal)
        await exchange.answer(refusal.status, list(refusal.headers), refusal.body())


def _away(message: str) -> Refusal:
    return Refusal(503, message, code="ControlPlaneUnavailable")


class _DisconnectedError(Exception):
    """The client went away."""


if TYPE_CHECKING:
    _Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Exchange:
    """One request and its answer, on their way through.

    Attributes
    ----------
    answering
        Whether the answer has begun.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._max_body_bytes = max_body_bytes
        self.answering = False

    @property
    def can_be_repeated(self) -> bool:
        """Whether it changes nothing, and nobody has heard of an answer yet."""
        only_asks = self._scope["method"] in {"GET", "HEAD"} and not self._has_body()
        return only_asks and not self.answering

    def check_length(self) -> None:
        """Refuse a body that is said to be too large."""
        if int(self._header(b"content-length") or b"0") > self._max_body_bytes:
            raise self._too_large()

    async def forward(self, connection: _Connection, admission: Admission) -> None:
        """Hand the request on, and the answer back."""
        reader, writer = connection
        try:
            writer.write(self._head(admission))
            if self._has_body():
                await self._forward_body(writer)
        except (ConnectionResetError, BrokenPipeError):
            # It may have answered before it had read everything.
            _log.debug("the control plane stopped reading")
        await self._forward_answer(reader)

    async def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Give an answer of our own."""
        if self._has_body():
            # Not all of the body may have been read: the next request's start is lost.
            headers.append((b"connection", b"close"))
        length = (b"content-length", b"%d" % len(body))
        await self._start(status, [(b"content-type", b"application/json"), length, *headers])
        await self._send({"type": "http.response.body", "body": body})

    def _head(self, admission: Admission) -> bytes:
        query = self._scope["query_string"]
        lines = [
            b"%s /%s%s HTTP/1.1"
            % (
                self._scope["method"].encode(),
                self._scope["raw_path"].lstrip(b"/"),
                b"?" + query if query else b"",
            ),
            b"host: control",
            b"connection: close",
            b"%s: %s" % (LOOP_HEADER.encode(), admission.loop.encode()),
            b"%s: %s" % (BY_HEADER.encode(), quote(admission.key).encode()),
        ]
        if kind := self._header(b"content-type"):
            lines.append(b"content-type: " + kind)
        if self._has_body():
            lines.append(b"transfer-encoding: chunked")
        return b"\r\n".join([*lines, b"", b""])

    async def _forward_body(self, writer: asyncio.StreamWriter) -> None:
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _DisconnectedError
            piece, more = message.get("body", b""), message.get("more_body", False)
            size += len(piece)
            if size > self._max_body_bytes:
                raise self._too_large()
            if piece:
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _forward_answer(self, reader: asyncio.StreamReader) -> None:
        status_line, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        pairs = (line.split(b":", 1) for line in lines)
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        await self._start(
            int(status_line.split(b" ", 2)[1]),
            [(name, value) for name, value in headers.items() if name in _PASSED_ON],
        )
        left = int(headers.get(b"content-length", b"0"))
        if self._scope["method"] == "HEAD":
            left = 0
        while left:
            piece = await reader.readexactly(min(left, _PIECE_BYTES))
            left -= len(piece)
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.answering = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    def _has_body(self) -> bool:
        chunked = self._header(b"transfer-encoding") is not None
        return chunked or (self._header(b"content-length") or b"0") != b"0"

    def _header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self._scope["headers"] if key == name), None)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"expected a body of at most {self._max_body_bytes} bytes")


@contextlib.contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """A socket's path, or another name of it where the path is longer than an address may be.

    Raises
    ------
    OSError
        If the path is that long and its directory can't be opened.
    """
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS_BYTES or sys.platform != "linux":
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
