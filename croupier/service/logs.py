"""What the service writes to its log: JSON for machines or lines for people, and no one's data.

Events are named by `event` in a record's `extra`. What callers send is not logged: neither
features, ids, rewards and keys nor bodies, and of a path only what the service itself has given a
name.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from croupier.service.personalizer import find_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, MutableMapping

    from croupier.service.config import LogFormat
    from croupier.service.refusals import Refusal

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]

__all__ = ("AccessLog", "JsonFormatter", "RequestLog", "configure_logging")

_log = logging.getLogger(__name__)

_FIELDS = ("loop", "route", "status", "code", "duration_ms", "repeated")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_HOT = "/v1/loops/"
_ROUTES = ("decide", "rank", "slots", "slate", "reward", "activate", "judge", "acknowledge")
_PROBES = ("/healthz", "/readyz", "/metrics", "/openapi.json")
_EVERY_S = 1.0


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, what an event has of its own, and a message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        at = datetime.fromtimestamp(record.created, tz=UTC)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "message"),
        }
        line |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        line["logger"] = record.name
        line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # A lone surrogate in a file's name must not cost the line.
        return msgspec.json.encode(_encodable(line)).decode()


def configure_logging(style: LogFormat) -> None:
    """Have everything that is logged go to stderr in one form.

    Parameters
    ----------
    style
        See :class:`~croupier.service.config.ServiceConfig`.
    """
    plain = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_TEXT) if plain else JsonFormatter())
    logging.basicConfig(handlers=[handler], level="WARNING", force=True)
    logging.getLogger("croupier").setLevel("INFO")
    # While a cluster is away, clients say so many times a second. We do, once.
    logging.getLogger("kafka").setLevel("CRITICAL")
    # What it says of requests that are none, at their rate, is in our own refusals.
    logging.getLogger("uvicorn.error").setLevel("ERROR")


class RequestLog:
    """Logs refusals, without letting those who cause them fill the disk.

    Of refusals that are alike in loop, route, status and code one a second is logged, and it tells
    in `repeated` how many before it were not.

    Parameters
    ----------
    loops
        Names that may appear in the log.
    clock
        Gives seconds.
    """

    def __init__(
        self, loops: Collection[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._loops = loops
        self._clock = clock
        self._told: dict[tuple[object, ...], _Told] = {}

    def refused(
        self, refusal: Refusal, scope: Message | None = None, duration_s: float | None = None
    ) -> None:
        """Log a refusal.

        Parameters
        ----------
        refusal
            What the caller is told.
        scope
            ASGI's, of the request; None if there was none yet.
        duration_s
            Since the request began.
        """
        loop, route = (None, None) if scope is None else self._place(scope)
        key = (loop, route, refusal.status, refusal.code)
        now = self._clock()
        told = self._told.get(key)
        if told is not None and now - told.at < _EVERY_S:
            told.repeated += 1
            return
        repeated = 0 if told is None else told.repeated
        self._told[key] = _Told(now)
        level = logging.WARNING if refusal.status >= 500 else logging.INFO
        _log.log(
            level,
            "refused %s: %d %s%s",
            route or "a request",
            refusal.status,
            refusal.code,
            f", and {repeated} before" if repeated else "",
            extra={
                "event": "refused",
                "loop": loop,
                "route": route,
                "status": refusal.status,
                "code": refusal.code,
                "duration_ms": _milliseconds(duration_s),
                "repeated": repeated,
            },
        )

    def answered(self, scope: Message, status: int, duration_s: float) -> None:
        """Log an answer of any kind, for the access log."""
        loop, route = self._place(scope)
        _log.info(
            "%s: %d",
            route or "no route",
            status,
            extra={
                "event": "request",
                "loop": loop,
                "route": route,
                "status": status,
                "duration_ms": _milliseconds(duration_s),
            },
        )

    def _place(self, scope: Message) -> tuple[str | None, str | None]:
        """Loop and route of a request, as far as they are ours."""
        path = scope["path"]
        if path.startswith(_HOT):
            loop, _, route = path[len(_HOT) :].partition("/")
            return (
                loop if loop in self._loops else None,
                route if route in _ROUTES else None,
            )
        call = find_call(scope["raw_path"])
        if call is not None:
            return None, f"personalizer/{call.operation}"
        return None, path if path in _PROBES else None


class AccessLog:
    """ASGI application around another one that logs every answer.

    Parameters
    ----------
    application
        Answers.
    requests
        Where to.
    """

    def __init__(self, application: App, requests: RequestLog) -> None:
        self._application = application
        self._requests = requests

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, and log that."""
        started = time.perf_counter()

        async def sent(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                duration_s = time.perf_counter() - started
                self._requests.answered(scope, message["status"], duration_s)

        await self._application(scope, receive, sent)


@dataclass(slots=True)
class _Told:
    """When a kind of refusal was last logged, and how many have not been since."""

    at: float
    repeated: int = 0


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _encodable(line: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
        for name, value in line.items()
    }
