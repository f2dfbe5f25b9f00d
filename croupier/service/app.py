"""The HTTP application: three hot routes as raw ASGI, the rest through Starlette."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from croupier.eventlog.log import Record
from croupier.policy.decision import DecisionRequest, check_reward
from croupier.policy.errors import InvalidInputError, LogUnavailableError
from croupier.policy.events import MAX_ID_LENGTH, Activation, Outcome
from croupier.service.api import (
    ActivateRequest,
    DecideResponse,
    ErrorBody,
    ErrorResponse,
    OutcomeRequest,
    Receipt,
    openapi_document,
)
from croupier.service.scorer import uuid7

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping, Sequence

    from starlette.requests import Request

    from croupier.eventlog.appender import Appender
    from croupier.service.auth import KeyRing
    from croupier.service.follower import Follower
    from croupier.service.metrics import Metrics
    from croupier.service.scorer import Scorer

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

__all__ = ("Application",)

_log = logging.getLogger(__name__)

_PREFIX = "/v1/loops/"
_JSON = (b"content-type", b"application/json")
_CODES = {
    400: "InvalidRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    413: "BodyTooLarge",
    500: "InternalError",
    503: "LogUnavailable",
}


class Application:
    """ASGI application over a scorer and an event log.

    Parameters
    ----------
    scorer
        Decides.
    appender
        Takes records into the event log; an answer waits for it.
    keys
        Says who may use which loop.
    metrics
        Counts.
    follower
        Says how fresh the registry's word is, for ``/readyz``.
    max_body_bytes
        Largest request body.
    """

    def __init__(
        self,
        scorer: Scorer,
        appender: Appender,
        keys: KeyRing,
        metrics: Metrics,
        follower: Follower,
        *,
        max_body_bytes: int,
    ) -> None:
        self._scorer = scorer
        self._appender = appender
        self._keys = keys
        self._metrics = metrics
        self._follower = follower
        self._max_body_bytes = max_body_bytes
        self._encoder = msgspec.json.Encoder()
        self._decide_decoder = msgspec.json.Decoder(DecisionRequest)
        self._outcome_decoder = msgspec.json.Decoder(OutcomeRequest | list[OutcomeRequest])
        self._activate_decoder = msgspec.json.Decoder(ActivateRequest)
        self._hot = {
            "decide": self._decide,
            "reward": self._reward,
            "activate": self._activate,
        }
        self._slow = Starlette(
            routes=[
                Route("/healthz", _healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._render_metrics),
                Route("/openapi.json", _openapi),
            ],
            exception_handlers={404: _not_found, 405: _not_found},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"].startswith(_PREFIX):
            await self._hot_route(scope, receive, send)
        else:
            await self._slow(scope, receive, send)

    async def _hot_route(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop, _, route = scope["path"][len(_PREFIX) :].partition("/")
        try:
            handler = self._hot.get(route)
            if handler is None:
                raise _Refusal(404, f"no route {scope['path']}")
            if scope["method"] != "POST":
                raise _Refusal(405, f"expected POST, got {scope['method']}")
            self._admit(scope, loop)
            body = await self._body(scope, receive)
            started = time.perf_counter()
            answer = self._encoder.encode(await handler(loop, body))
            self._metrics.latency.labels(route).observe(time.perf_counter() - started)
        except _Refusal as refusal:
            await self._refuse(send, refusal)
        except InvalidInputError as error:
            await self._refuse(send, _Refusal(400, str(error), target=error.field))
        except LogUnavailableError as error:
            await self._refuse(send, _Refusal(503, str(error)))
        except Exception:  # noqa: BLE001 - answered as a 500, and logged
            _log.exception("%s failed", route)
            await self._refuse(send, _Refusal(500, "an error of ours, see the service's log"))
        else:
            await _send(send, 200, answer)

    def _admit(self, scope: Scope, loop: str) -> None:
        status = self._keys.status(scope["headers"], loop)
        if status == 401:
            raise _Refusal(401, "expected a known API key as a bearer token or in X-Api-Key")
        if status == 403:
            raise _Refusal(403, f"this API key is not for loop {loop!r}", target="loop")
        if loop not in self._scorer.loops:
            raise _Refusal(404, f"no loop {loop!r}", target="loop")

    async def _decide(self, loop: str, body: bytes) -> DecideResponse:
        decision = self._scorer.decide(loop, _decode(self._decide_decoder, body))
        await self._log([Record.of(decision)])
        self._metrics.decisions.labels(loop).inc()
        self._metrics.propensity.labels(loop).observe(decision.propensity)
        return DecideResponse(
            decision_id=decision.decision_id,
            loop=loop,
            generation=decision.generation,
            action=decision.actions[decision.chosen].id,
            index=decision.chosen,
            propensity=decision.propensity,
            pmf=decision.pmf,
        )

    async def _reward(self, loop: str, body: bytes) -> Receipt:
        decoded = _decode(self._outcome_decoder, body)
        requests = decoded if isinstance(decoded, list) else [decoded]
        config = self._scorer.loop(loop)
        now = self._scorer.now()
        for position, request in enumerate(requests):
            where = f"[{position}]." if isinstance(decoded, list) else ""
            _check_id(f"{where}decision_id", request.decision_id)
            if request.outcome_id is not None:
                _check_id(f"{where}outcome_id", request.outcome_id)
            check_reward(f"{where}reward", request.reward, config.reward_min, config.reward_max)
        outcomes = [
            Outcome(
                decision_id=request.decision_id,
                loop=loop,
                outcome_id=request.outcome_id or uuid7(now),
                reward=request.reward,
                ts=now,
                slot=request.slot,
                guardrails=request.guardrails,
            )
            for request in requests
        ]
        await self._log([Record.of(outcome) for outcome in outcomes])
        self._metrics.outcomes.labels(loop).inc(len(outcomes))
        return Receipt(accepted=len(outcomes))

    async def _activate(self, loop: str, body: bytes) -> Receipt:
        request = _decode(self._activate_decoder, body)
        _check_id("decision_id", request.decision_id)
        event = Activation(decision_id=request.decision_id, loop=loop, ts=self._scorer.now())
        await self._log([Record.of(event)])
        self._metrics.activations.labels(loop).inc()
        return Receipt(accepted=1)

    async def _log(self, records: Sequence[Record]) -> None:
        if records:
            await asyncio.wrap_future(self._appender.submit_many(records))

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        if int(declared) > self._max_body_bytes:
            raise self._too_large()
        message = await receive()
        body: bytes = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise self._too_large()
        return body

    def _too_large(self) -> _Refusal:
        return _Refusal(413, f"expected a body of at most {self._max_body_bytes} bytes")

    async def _refuse(self, send: Send, refusal: _Refusal) -> None:
        code = _CODES[refusal.status]
        self._metrics.errors.labels(str(refusal.status), code).inc()
        body = ErrorResponse(
            error=ErrorBody(code=code, message=refusal.message, target=refusal.target)
        )
        await _send(send, refusal.status, self._encoder.encode(body))

    async def _readyz(self, request: Request) -> Response:  # noqa: ARG002
        report = self._follower.report()
        log_error = self._appender.last_error
        ready = log_error is None
        return JSONResponse(
            {
                "status": "unavailable" if not ready else report.status,
                "log": "ok" if ready else str(log_error),
                "registry": report.registry,
                "loops": report.loops,
            },
            status_code=200 if ready else 503,
        )

    async def _render_metrics(self, request: Request) -> Response:  # noqa: ARG002
        self._metrics.log_depth.set(self._appender.depth)
        age = self._follower.report().registry_age_s
        if age is not None:
            self._metrics.registry_age.set(age)
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4")


class _Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """Ends a request with a status and an error body."""

    def __init__(self, status: int, message: str, target: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.target = target


def _decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _refusal_of(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Refusal(400, f"expected a JSON body: {error}", target="body") from error


def _refusal_of(error: msgspec.ValidationError) -> _Refusal:
    """Name the field: msgspec's messages end in the path of the value, ``- at `$.a[0]` ``."""
    message, _, path = str(error).partition(" - at `")
    target = path.rstrip("`").removeprefix("$").lstrip(".") or "body"
    return _Refusal(400, f"{target}: {message}", target=target)


def _check_id(field: str, value: str) -> None:
    if not 1 <= len(value) <= MAX_ID_LENGTH:
        raise InvalidInputError(
            field, f"expected 1 to {MAX_ID_LENGTH} characters, got {len(value)}"
        )


async def _send(send: Send, status: int, body: bytes) -> None:
    headers = [_JSON, (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    if status == 405:
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _healthz(request: Request) -> Response:  # noqa: ARG001
    return JSONResponse({"status": "alive"})


async def _openapi(request: Request) -> Response:  # noqa: ARG001
    return JSONResponse(openapi_document())


async def _not_found(request: Request, error: Exception) -> Response:
    status: int = getattr(error, "status_code", 404)
    body = ErrorBody(code=_CODES[status], message=f"no {request.method} {request.url.path}")
    return Response(
        msgspec.json.encode(ErrorResponse(error=body)), status, media_type="application/json"
    )
