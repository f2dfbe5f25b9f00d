"""Typed clients of the HTTP API, synchronous and asynchronous.

Both are made of the same parts: :mod:`croupier.service.calls` says what can be asked, and a
conversation here says what is sent, when it is sent again, and what is made of the replies. Only
how bytes travel is written twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar
from urllib.parse import quote, urlsplit

import msgspec
import urllib3

from croupier.policy.errors import InvalidInputError
from croupier.service import calls
from croupier.service.api import ErrorResponse
from croupier.service.calls import AccessError, Call, ServiceError, UnavailableError
from croupier.service.fallback import baseline_answer

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    import aiohttp

__all__ = (
    "AccessError",
    "AsyncClient",
    "Client",
    "ClientOptions",
    "ServiceError",
    "UnavailableError",
)

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Those of a service, or of a balancer before it, that may well answer in a moment. A 500 is a fault
# and stays one.
_TRY_AGAIN: Final = frozenset({429, 502, 503, 504})
_LEAST_S: Final = 0.001


class ClientOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a client waits.

    Attributes
    ----------
    timeout_s
        For a call as a whole, with everything that is sent again.
    attempt_timeout_s
        For each time that it is sent; None leaves each all the time that is left.
    attempts
        How often a call is sent at most. It has ids of its own, so that a repeated one is answered
        as before and counts once.
    first_pause_s, longest_pause_s
        Before a call is sent again there is a pause of a random length up to `first_pause_s`, then
        up to twice that, and so on up to `longest_pause_s`. If the service says when it wants to be
        asked again (``Retry-After``), the pause comes on top of that.
    connections
        Kept open at most; as many as threads use the client.
    fallback
        Answer with the baseline, with `decided` False, where the service can't be reached in time
        or can't answer, instead of raising an :class:`UnavailableError`.
    """

    timeout_s: float = 10.0
    attempt_timeout_s: float | None = None
    attempts: int = 3
    first_pause_s: float = 0.05
    longest_pause_s: float = 2.0
    connections: int = 8
    fallback: bool = False

    def __post_init__(self) -> None:
        for name in ("timeout_s", "attempt_timeout_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 3600:
                raise InvalidInputError(name, f"expected seconds in (0, 3600], got {value!r}")
        for name in ("first_pause_s", "longest_pause_s"):
            value = getattr(self, name)
            if not 0 <= value <= 3600:
                raise InvalidInputError(name, f"expected seconds in [0, 3600], got {value!r}")
        for name in ("attempts", "connections"):
            if getattr(self, name) < 1:
                raise InvalidInputError(name, f"expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class _Send:
    """To be sent, and the reply waited for."""

    method: str
    path: str
    body: bytes | None
    timeout_s: float


@dataclass(frozen=True, slots=True)
class _Pause:
    """To be waited."""

    seconds: float


@dataclass(frozen=True, slots=True)
class _Reply:
    """What came back."""

    status: int
    body: bytes
    retry_after: str | None


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Nothing came back."""

    cause: Exception


_Conversation: TypeAlias = Generator[_Send | _Pause, _Reply | _Trouble | None, _T]


class _Conversations:
    """What is said to one loop of a service, whichever way it travels."""

    def __init__(
        self, url: str, loop: str, *, key: str | None = None, options: ClientOptions | None = None
    ) -> None:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable or parts.query or parts.fragment:
            raise InvalidInputError("url", f"expected an http:// or https:// URL, got {url!r}")
        if parts.username is not None or parts.password is not None:
            # It would be in the messages of errors.
            raise InvalidInputError("url", "expected no name or password in it; there is `key`")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InvalidInputError("key", "expected printable ASCII characters")
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._root = parts.path.rstrip("/")
        self._loop = loop
        self._options = options or ClientOptions()
        self._headers = {"content-type": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"
        self._away = False
        self._prepare()

    def _prepare(self) -> None:
        """Get ready to send."""
        raise NotImplementedError

    def _conversation(self, call: Call[_T]) -> _Conversation[_T]:
        """Say what a call wants said, until it is answered."""
        nothing = calls.receipt_of_nothing(call)
        if nothing is not None:
            return nothing
        call = calls.named(call)
        body = None if call.request is None else calls.encoded(call.request)
        try:
            answer = yield from self._attempts(call, body)
        except UnavailableError as error:
            if not self._away:
                self._away = True
                _log.warning("the service at %s is unavailable: %s", self._origin, error)
            stand_in = baseline_answer(self._loop, call) if self._options.fallback else None
            if stand_in is None:
                raise
            return stand_in
        if self._away:
            self._away = False
            _log.warning("the service at %s answers again", self._origin)
        return answer

    def _attempts(self, call: Call[_T], body: bytes | None) -> _Conversation[_T]:
        options = self._options
        deadline = time.monotonic() + options.timeout_s
        path = f"{self._root}/readyz"
        if body is not None:
            path = f"{self._root}/v1/loops/{quote(self._loop, safe='')}/{call.route}"
        longest = options.attempt_timeout_s or options.timeout_s
        sent = 0
        while True:
            # A pause may last longer than it was meant to, and no time at all would mean no limit.
            left = max(deadline - time.monotonic(), _LEAST_S)
            got = yield _Send("GET" if body is None else "POST", path, body, min(left, longest))
            sent += 1
            if isinstance(got, _Reply):
                if got.status == 200 or (body is None and got.status == 503):
                    return _answer(got, call.answer)
                error = _refusal(got)
                again = got.status in _TRY_AGAIN
            else:
                assert isinstance(got, _Trouble)
                cause = got.cause
                reason = str(cause) or type(cause).__name__
                error = UnavailableError(
                    None, "Unreachable", f"no answer from {self._origin}: {reason}"
                )
                error.__cause__ = cause
                again = True
            pause = self._pause(sent, error.retry_after)
            if not again or sent >= options.attempts or time.monotonic() + pause >= deadline:
                raise error
            yield _Pause(pause)

    def _pause(self, sent: int, retry_after: float | None) -> float:
        options = self._options
        # The exponent is bounded: attempts may be many, and the pause is bounded anyway.
        most = min(options.longest_pause_s, options.first_pause_s * 2 ** min(sent - 1, 30))
        return (retry_after or 0.0) + random.uniform(0.0, most)  # noqa: S311 - a jitter


def _answer(reply: _Reply, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _unknown(reply) from None


def _refusal(reply: _Reply) -> ServiceError:
    try:
        error = msgspec.json.decode(reply.body, type=ErrorResponse).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        # A proxy in between answers in its own words.
        return _unknown(reply)
    return calls.service_error(
        reply.status,
        error.code,
        error.message,
        error.target,
        retry_after=_retry_after_s(reply.retry_after),
    )


def _unknown(reply: _Reply) -> ServiceError:
    return calls.service_error(
        reply.status,
        "Unknown",
        f"status {reply.status}, not in the service's words",
        retry_after=_retry_after_s(reply.retry_after),
    )


def _retry_after_s(text: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, itself in seconds or as a date."""
    if text is None:
        return None
    try:
        if text.strip().isdecimal():
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _blocking(function: Callable[_P, Call[_T]]) -> Callable[Concatenate[Client, _P], _T]:
    """A method that makes a call and carries it out."""

    def method(client: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return client._carried_out(function(*args, **kwargs))  # noqa: SLF001 - a method of its own

    return calls.described(method, function)


def _awaitable(
    function: Callable[_P, Call[_T]],
) -> Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, _T]]:
    """A method that makes a call and carries it out when it is awaited."""

    async def method(client: AsyncClient, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await client._carried_out(function(*args, **kwargs))  # noqa: SLF001 - as above

    return calls.described(method, function)


class Client(_Conversations):
    """Talks to one loop of a service; safe to share between threads.

    Parameters
    ----------
    url
        Of the service, such as ``http://127.0.0.1:8080``, with a path if it is published below one.
    loop
        Name of the loop.
    key
        API key, if the service wants one.
    options
        How to wait; ``ClientOptions()`` if None.

    Raises
    ------
    InvalidInputError
        If the URL is not one of HTTP, or the key can't be sent in a header.

    Examples
    --------
    >>> with Client("http://127.0.0.1:8080", "banner") as client:  # doctest: +SKIP
    ...     answer = client.decide([{"id": "red"}, {"id": "blue"}], {"hour": 9})
    ...     client.reward(answer.decision_id, 1.0)
    """

    def _prepare(self) -> None:
        self._pool = urllib3.connectionpool.connection_from_url(
            self._origin, maxsize=self._options.connections, headers=self._headers
        )

    decide = _blocking(calls.decide)
    rank = _blocking(calls.rank)
    slots = _blocking(calls.slots)
    slate = _blocking(calls.slate)
    reward = _blocking(calls.reward)
    rewards = _blocking(calls.rewards)
    activate = _blocking(calls.activate)
    judge = _blocking(calls.judge)
    readiness = _blocking(calls.readiness)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def _carried_out(self, call: Call[_T]) -> _T:
        conversation = self._conversation(call)
        got: _Reply | _Trouble | None = None
        while True:
            try:
                step = conversation.send(got)
            except StopIteration as end:
                answer: _T = end.value
                return answer
            if isinstance(step, _Pause):
                time.sleep(step.seconds)
                got = None
            else:
                got = self._reply(step)

    def _reply(self, sending: _Send) -> _Reply | _Trouble:
        try:
            response = self._pool.urlopen(
                sending.method,
                sending.path,
                sending.body,
                timeout=urllib3.Timeout(total=sending.timeout_s),
                # They are the conversation's.
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            return _Trouble(error)
        return _Reply(response.status, response.data, response.headers.get("retry-after"))


class AsyncClient(_Conversations):
    """The same as :class:`Client` for asyncio; belongs to the event loop that first uses it.

    The parameters are those of :class:`Client`.

    Examples
    --------
    >>> async with AsyncClient("http://127.0.0.1:8080", "banner") as client:  # doctest: +SKIP
    ...     answer = await client.decide([{"id": "red"}, {"id": "blue"}], {"hour": 9})
    ...     await client.reward(answer.decision_id, 1.0)
    """

    def _prepare(self) -> None:
        # It takes longer to load than all the rest, and only this client needs it.
        import aiohttp  # noqa: PLC0415

        self._aiohttp = aiohttp
        self._session: aiohttp.ClientSession | None = None

    decide = _awaitable(calls.decide)
    rank = _awaitable(calls.rank)
    slots = _awaitable(calls.slots)
    slate = _awaitable(calls.slate)
    reward = _awaitable(calls.reward)
    rewards = _awaitable(calls.rewards)
    activate = _awaitable(calls.activate)
    judge = _awaitable(calls.judge)
    readiness = _awaitable(calls.readiness)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _carried_out(self, call: Call[_T]) -> _T:
        conversation = self._conversation(call)
        got: _Reply | _Trouble | None = None
        while True:
            try:
                step = conversation.send(got)
            except StopIteration as end:
                answer: _T = end.value
                return answer
            if isinstance(step, _Pause):
                await asyncio.sleep(step.seconds)
                got = None
            else:
                got = await self._reply(step)

    async def _reply(self, sending: _Send) -> _Reply | _Trouble:
        if self._session is None:
            # Not before an event loop runs.
            self._session = self._aiohttp.ClientSession(
                connector=self._aiohttp.TCPConnector(limit=self._options.connections),
                headers=self._headers,
                cookie_jar=self._aiohttp.DummyCookieJar(),
            )
        try:
            async with self._session.request(
                sending.method,
                self._origin + sending.path,
                data=sending.body,
                timeout=self._aiohttp.ClientTimeout(total=sending.timeout_s),
                allow_redirects=False,
            ) as response:
                body = await response.read()
                return _Reply(response.status, body, response.headers.get("retry-after"))
        except (self._aiohttp.ClientError, TimeoutError) as error:
            return _Trouble(error)
