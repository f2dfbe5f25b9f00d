"""Limits on connections: how many there are, and how long a client may keep one waiting."""

from __future__ import annotations

import asyncio
import logging
import resource
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from croupier.service.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("ConnectionGuard", "ConnectionLimits", "Guarded", "Waiting", "raise_open_files")

_log = logging.getLogger(__name__)

# Connections over the limit that are told so at the same time; any beyond are closed unheard.
_MOST_TURNED_AWAY = 64
_TURNED_AWAY_S = 1.0
_LONGEST_SWEEP_S = 1.0
# Files besides connections: those turned away, the log's, the listener's, those of generations.
_OTHER_FILES = 192


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may ask of the server before it has asked for anything.

    Attributes
    ----------
    max_connections
        At the same time.
    request_timeout_s
        From the first byte of a request to its last, and from an answer's first byte that couldn't
        be sent at once to its last.
    idle_timeout_s
        Without a request, before the first or after an answer.
    """

    max_connections: int
    request_timeout_s: float
    idle_timeout_s: float


WaitingFor: TypeAlias = Literal["next request", "request", "delivery"]


class Waiting(NamedTuple):
    """What a connection waits for its client to do.

    Attributes
    ----------
    what
        ``next request``: begin another one. ``request``: send the rest of one.
        ``delivery``: take the answer, or the connection's end.
    request
        How many requests the connection has seen begin: the same wait has the same number.
    """

    what: WaitingFor
    request: int


class Guarded(Protocol):
    """A connection as the guard sees it."""

    def waiting(self) -> Waiting | None:
        """What it waits for its client to do; None while it is our turn."""
        ...

    def refuse(self, refusal: Refusal) -> None:
        """Send a refusal in the place of what is being waited for, and close."""
        ...

    def abort(self) -> None:
        """Close without another word."""
        ...


class ConnectionGuard:
    """Counts connections, and ends those whose clients take too long.

    It looks at all of them every now and then, so that a request costs it nothing. What it finds
    waiting twice for the same thing has waited since the first look at least; so a client may get
    a little more time than the limit says, and never less.

    Belongs to an event loop.

    Parameters
    ----------
    limits
        What is allowed.
    on_refusal
        Told of every refusal that is not the application's.
    """

    def __init__(self, limits: ConnectionLimits, on_refusal: Callable[[Refusal], None]) -> None:
        self._limits = limits
        self._on_refusal = on_refusal
        self._seen: dict[Guarded, _Wait | None] = {}
        self._turned_away = 0
        self._sweeping = False
        shortest = min(limits.request_timeout_s, limits.idle_timeout_s)
        self._sweep_s = min(shortest / 8, _LONGEST_SWEEP_S)

    def __len__(self) -> int:
        return len(self._seen)

    def admit(self, connection: Guarded, transport: asyncio.Transport) -> bool:
        """Take a new connection in; False if there are too many, and it is none of its protocol's.

        One that is not let in is answered 503 as soon as it has sent something, and closed.
        """
        if len(self._seen) >= self._limits.max_connections:
            self._turn_away(transport)
            return False
        self._seen[connection] = None
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)
        return True

    def leave(self, connection: Guarded) -> None:
        """Forget a connection that has ended."""
        self._seen.pop(connection, None)

    def note(self, refusal: Refusal) -> None:
        """Pass on a refusal that a connection made by itself."""
        self._on_refusal(refusal)

    def _turn_away(self, transport: asyncio.Transport) -> None:
        refusal = Refusal(
            503,
            f"expected at most {self._limits.max_connections} connections at a time",
            code="TooManyConnections",
        )
        self._on_refusal(refusal)
        if self._turned_away >= _MOST_TURNED_AWAY:
            # Its own protocol is not to hear of an end whose beginning it was not told of.
            transport.set_protocol(asyncio.Protocol())
            transport.abort()
            return
        self._turned_away += 1
        transport.set_protocol(_TurnedAway(transport, refusal, self._let_go))

    def _let_go(self) -> None:
        self._turned_away -= 1

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection, before in list(self._seen.items()):
            waiting = connection.waiting()
            if waiting is None:
                self._seen[connection] = None
            elif before is None or before.waiting != waiting:
                self._seen[connection] = _Wait(waiting, now)
            elif now - before.since >= self._patience(waiting):
                self._end(connection, waiting)
        # Without connections there is nothing to look at until the next one comes.
        self._sweeping = bool(self._seen)
        if self._sweeping:
            loop.call_later(self._sweep_s, self._sweep)

    def _patience(self, waiting: Waiting) -> float:
        if waiting.what == "next request":
            return self._limits.idle_timeout_s
        return self._limits.request_timeout_s

    def _end(self, connection: Guarded, waiting: Waiting) -> None:
        if waiting.what == "request":
            refusal = Refusal(
                408,
                f"expected the whole request within {self._limits.request_timeout_s:g} s of its "
                f"first byte",
                code="RequestTimeout",
            )
            connection.refuse(refusal)
        else:
            connection.abort()
        # If even the refusal isn't taken, the next wait is for its delivery.
        self._seen[connection] = None


class _Wait(NamedTuple):
    """A wait, and when it was first seen."""

    waiting: Waiting
    since: float


class _TurnedAway(asyncio.Protocol):
    """A connection over the limit: it hears why once it has asked, and ends."""

    def __init__(
        self, transport: asyncio.Transport, refusal: Refusal, on_end: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._refusal = refusal
        self._on_end = on_end
        self._timer = asyncio.get_running_loop().call_later(_TURNED_AWAY_S, transport.abort)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - whatever it is
        # Answered before the client has sent anything, the answer might get lost in a reset.
        if not self._transport.is_closing():
            self._transport.write(self._refusal.response(close=True))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._timer.cancel()
        self._on_end()


def raise_open_files(max_connections: int) -> int:
    """Have the process hold as many files open as its connections need.

    Parameters
    ----------
    max_connections
        How many there are to be.

    Returns
    -------
    int
        How many there can be: fewer if the system's hard limit is in the way, which is logged.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    needed = max_connections + _OTHER_FILES
    if soft != unlimited and soft < needed:
        allowed = needed if hard == unlimited else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < needed:
            possible = max(1, allowed - _OTHER_FILES)
            _log.warning(
                "service.max_connections is %d, but this process may have %d files open (ulimit "
                "-Hn): at most %d connections are taken",
                max_connections,
                allowed,
                possible,
                extra={"event": "connections_limited"},
            )
            return possible
    return max_connections
