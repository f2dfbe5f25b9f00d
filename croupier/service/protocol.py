"""HTTP/1.1 on a connection: uvicorn's protocol, with our errors and no request lost at the end."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, NoReturn, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from croupier.service.connections import Waiting
from croupier.service.refusals import Refusal

if TYPE_CHECKING:
    import asyncio
    from typing import Any

    from uvicorn._types import ASGI3Application
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

    from croupier.service.connections import ConnectionGuard
    from croupier.service.lane import Call, FastLane

__all__ = ("HttpProtocol", "guarded_protocol")

_UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)
_MAX_HEAD_BYTES = 65_536
_MAX_HEADERS = 128
_MAX_PIPELINED = 256
_LAST_CALL_S = 0.3


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    What differs from uvicorn's own:

    - A request that is not HTTP gets the JSON error body too, and never in the place of the answer
      to an earlier request on the connection.
    - An offer to upgrade (Java's client makes one for HTTP/2) is ignored, as HTTP allows. The
      parser would take it that another protocol follows, and drop the request's body.
    - A client that closes its sending side still gets the answers to what it has sent.
    - Before an idle connection is closed at shutdown, a request that is on its way gets through.
    - The head of a request can't grow without end, nor can the queue of requests that are sent
      before the first of them is answered.
    - A client that takes too long is not waited for, see :mod:`croupier.service.connections`.
    - An application may have a fast lane, :class:`~croupier.service.lane.FastLane`, for requests
      that come in one piece while nothing else is going on in the connection.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        guard: ConnectionGuard,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._guard = guard
        self._requests = 0
        self._running: RequestResponseCycle | None = None
        self._in_head = False
        self._head_bytes = 0
        self._last_call = False
        self._fault: Refusal | None = None
        self._lane: FastLane | None = getattr(config.app, "lane", None)
        self._in_message = False
        # What a message that is being parsed has begun with, if it began with its data.
        self._begun = b""
        # While the fast lane has a request, what comes after it waits.
        self._in_lane = False
        self._held = b""
        self._ends = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, unless there are too many connections."""
        if self._guard.admit(self, transport):
            super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._guard.leave(self)
        if self._running is not None:
            # Uvicorn tells the newest request alone, and another one may be being answered.
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def waiting(self) -> Waiting | None:
        """What the connection waits for its client to do."""
        if self.transport.is_closing() or self.flow.write_paused:
            return Waiting("delivery", self._requests)
        if self._in_lane:
            return None
        cycle = self._unanswered()
        # Behind a request that is being answered, the rest of the next one is not read on purpose.
        if self._in_head or (cycle is not None and cycle.more_body and not self.pipeline):
            return Waiting("request", self._requests)
        return Waiting("next request", self._requests) if cycle is None else None

    def refuse(self, refusal: Refusal) -> None:
        """Send a refusal in the place of what is being waited for, and close."""
        self._break_off(refusal)

    def abort(self) -> None:
        """Close without another word."""
        self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        """Leave idle connections to the guard, which also knows those of the fast lane."""

    def data_received(self, data: bytes) -> None:
        """Answer what has arrived in the fast lane, or parse it."""
        if self._lane is not None:
            if self._in_lane:
                self._held += data
                self.flow.pause_reading()
                return
            if not self._in_message and not self._last_call and self._unanswered() is None:
                end = data.find(b"\r\n\r\n") + 4
                head = data[:end]
                call = self._lane.find(head)
                if call is not None and len(data) - end == call.length:
                    if not self.flow.write_paused and self._enter_lane(call, data[end:]):
                        return
                elif call is None:
                    self._begun = head
        self._parse(data)
        self._begun = b""

    def _enter_lane(self, call: Call, body: bytes) -> bool:
        """Have a request answered in the fast lane, now or later; False if it has to be parsed."""
        self._in_lane = True
        self._requests += 1
        if call.start(call.loop, body, self._respond):
            return True
        self._in_lane = False
        return False

    def _respond(self, response: bytes) -> None:
        """Write an answer of the fast lane, and go on with what has arrived meanwhile."""
        self._in_lane = False
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._ends and not self._held:
            # Or the client would send its next request to where nobody is.
            response = response.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
        self.transport.write(response)
        if self._held:
            held, self._held = self._held, b""
            self.flow.resume_reading()
            self.data_received(held)
        if self._ends and not self._in_lane and not self._answer_the_rest():
            self.transport.close()

    def _parse(self, data: bytes) -> None:
        continued = self._in_head
        super().data_received(_UPGRADE.sub(b"\r\nx-declined-upgrade:", data))
        if continued and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._break_off(_TOO_LARGE)

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser didn't understand."""
        self._break_off(self._fault or Refusal(400, msg))

    def on_message_begin(self) -> None:
        """Begin to read a request."""
        self._in_message, self._in_head, self._head_bytes = True, True, 0
        self._requests += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Hand the request to the application, or queue it behind the one before."""
        if len(self.headers) > _MAX_HEADERS:
            self._give_up(_TOO_MANY_HEADERS)
        if len(self.pipeline) >= _MAX_PIPELINED:
            # Those before are answered, and the connection ends with them.
            self._give_up(_TOO_MANY_REQUESTS)
        self._in_head = False
        super().on_headers_complete()
        if self._last_call:
            self.cycle.keep_alive = False
        if self._begun and self._lane is not None:
            self._lane.learn(self._begun, self.headers)
            self._begun = b""

    def on_message_complete(self) -> None:
        """Note that what comes next is another request."""
        self._in_message = False
        super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio takes a bool
        """Keep the connection open for what is still to be answered, if anything is."""
        self._ends = self._in_lane
        return self._in_lane or self._answer_the_rest()

    def shutdown(self) -> None:
        """Close the connection once it is idle and nothing more is on its way."""
        if self._in_lane:
            self._ends = True
        elif cycle := self._unanswered():
            cycle.keep_alive = False
        else:
            self._last_call = True
            self.loop.call_later(_LAST_CALL_S, self._close_if_idle)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _unanswered(self) -> RequestResponseCycle | None:
        """The newest request, if it has not been answered yet."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return None if cycle is None or cycle.response_complete else cycle

    def _close_if_idle(self) -> None:
        if self._unanswered() is None:
            self.transport.close()

    def _answer_the_rest(self) -> bool:
        """Let requests that have arrived whole be answered, then close; False without any."""
        if self.pipeline and self.cycle.more_body:
            # The newest has not started, and the rest of it won't come.
            self.pipeline.popleft()
            newest = self.pipeline[0][0] if self.pipeline else self._running
            assert newest is not None
            self.cycle = newest
        cycle = self._unanswered()
        if cycle is None or cycle.more_body:
            return False
        cycle.keep_alive = False
        return True

    def _give_up(self, refusal: Refusal) -> NoReturn:
        """Have the parser stop, which then has us refuse what it is at."""
        self._fault = refusal
        raise _ParsingEndsError

    def _break_off(self, refusal: Refusal) -> None:
        if self.transport.is_closing() or self._answer_the_rest():
            return
        if cycle := self._unanswered():
            # It is this one's body that is broken: the application isn't to answer any more.
            cycle.disconnected = True
            cycle.message_event.set()
        self._guard.note(refusal)
        self.transport.write(refusal.response(close=True))
        self.transport.close()


def guarded_protocol(guard: ConnectionGuard) -> type[HttpProtocol]:
    """The protocol for a server whose connections are under a guard, as uvicorn takes it."""
    return cast("type[HttpProtocol]", partial(HttpProtocol, guard=guard))


class _ParsingEndsError(Exception):
    """Ends the parser's work on what has arrived."""


_TOO_LARGE = Refusal(
    431,
    f"expected a request line and headers of at most {_MAX_HEAD_BYTES} bytes",
    code="HeadTooLarge",
)
_TOO_MANY_HEADERS = Refusal(431, f"expected at most {_MAX_HEADERS} headers", code="HeadTooLarge")
_TOO_MANY_REQUESTS = Refusal(
    429,
    f"expected at most {_MAX_PIPELINED} requests ahead of their answers",
    code="TooManyRequests",
)
