"""The HTTP application: the hot routes as raw ASGI, the rest through Starlette."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from croupier.eventlog.log import Record
from croupier.policy.decision import check_id
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Outcome
from croupier.service.answers import ANSWERS, BodyReader, activation_of
from croupier.service.api import Receipt
from croupier.service.lane import FastLane
from croupier.service.limits import SMALL_BODY_BYTES
from croupier.service.openapi import openapi_document
from croupier.service.personalizer import (
    PREFIX,
    MultiSlotRankRequest,
    MultiSlotRankResponse,
    MultiSlotRewardRequest,
    PersonalizerRankRequest,
    PersonalizerRankResponse,
    PersonalizerRewardRequest,
    find_call,
)
from croupier.service.refusals import Refusal, decode, personalizer_refusal, refusal_for
from croupier.service.repeats import Repeats
from croupier.service.scorer import uuid7

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence

    from starlette.requests import Request

    from croupier.eventlog.appender import Appender
    from croupier.policy.decision import DecisionRequest
    from croupier.policy.events import Activation, Decision
    from croupier.policy.ranking import RankRequest
    from croupier.policy.slots import SlotsRequest
    from croupier.service.answers import Decided
    from croupier.service.api import Readiness
    from croupier.service.auth import KeyRing
    from croupier.service.config import KeyScope
    from croupier.service.control import ControlPlane
    from croupier.service.limits import BodyRoom, FeatureLimits
    from croupier.service.logs import RequestLog
    from croupier.service.metrics import Metrics
    from croupier.service.metrics_share import MetricsShare
    from croupier.service.personalizer import PersonalizerCall
    from croupier.service.scorer import Scorer
    from croupier.service.stream import RequestStream

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

    _T = TypeVar("_T")
    _Request = TypeVar("_Request", bound=DecisionRequest | SlotsRequest)

__all__ = ("Application",)

_log = logging.getLogger(__name__)

_PREFIX = "/v1/loops/"
_JSON = (b"content-type", b"application/json")
_SCOPES: Mapping[str, KeyScope] = {
    "reward": "reward",
    "activate": "reward",
    "judge": "judge",
    "acknowledge": "judge",
    "override": "override",
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
    readiness
        Says what ``/readyz`` does.
    max_body_bytes
        Largest request body.
    remembered_decisions
        How many of the latest answers are kept for requests that are sent again.
    features
        Limits on what a request's features may hold.
    room
        Room for large bodies.
    requests
        Log of refusals.
    shared
        Metrics of all workers, where there are several.
    control
        Answers the control plane's routes; None if there is none.

    Attributes
    ----------
    lane
        Answers what needs none of the above, see :class:`~croupier.service.lane.FastLane`.
    stream
        Answers what comes by Kafka; None if nothing does. Here only ``/readyz`` asks about it.
    """

    def __init__(
        self,
        scorer: Scorer,
        appender: Appender,
        keys: KeyRing,
        metrics: Metrics,
        readiness: Callable[[], Readiness],
        *,
        max_body_bytes: int,
        remembered_decisions: int,
        features: FeatureLimits,
        room: BodyRoom,
        requests: RequestLog,
        shared: MetricsShare | None = None,
        control: ControlPlane | None = None,
    ) -> None:
        self._control = control
        self.stream: RequestStream | None = None
        self._room = room
        self._requests = requests
        self._shared = shared
        self._scorer = scorer
        self._repeats = Repeats(remembered_decisions)
        self._appender = appender
        self._keys = keys
        self._metrics = metrics
        self._readiness = readiness
        self._max_body_bytes = max_body_bytes
        self._encoder = msgspec.json.Encoder()
        self._reader = BodyReader(features)
        self._personalizer_decoders: dict[str, msgspec.json.Decoder[Any]] = {
            "rank": msgspec.json.Decoder(PersonalizerRankRequest),
            "reward": msgspec.json.Decoder(PersonalizerRewardRequest),
            "multislot/rank": msgspec.json.Decoder(MultiSlotRankRequest),
            "multislot/reward": msgspec.json.Decoder(MultiSlotRewardRequest),
        }
        self.lane = FastLane(
            scorer,
            appender,
            metrics,
            self._repeats,
            self._reader.catalogue,
            admit=self._admit,
            read_outcomes=self._read_outcomes,
            requests=requests,
            # What is larger has to be looked at for its size.
            max_body_bytes=min(max_body_bytes, features.harmless_bytes, SMALL_BODY_BYTES),
        )
        self._hot: dict[str, Callable[[str, bytes], Awaitable[Any]]] = {
            **{route: partial(self._answered, route) for route in ANSWERS},
            "reward": self._reward,
            "activate": self._activate,
            "judge": self._judge,
            "acknowledge": self._acknowledge_alert,
            "override": self._override,
        }
        self._slow = Starlette(
            routes=[
                Route("/healthz", _healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._render_metrics),
                Route("/openapi.json", _openapi),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _internal_error},
        )
        # A client that misspells a path is told so, not sent elsewhere without a word.
        self._slow.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"].startswith(_PREFIX):
            await self._hot_route(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].lstrip("/").startswith(PREFIX[1:]):
            await self._personalizer_route(scope, receive, send)
        else:
            await self._slow(scope, receive, send)

    async def _hot_route(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop, _, route = scope["path"][len(_PREFIX) :].partition("/")
        arrived = time.perf_counter()
        try:
            handler = self._hot.get(route)
            if handler is None:
                raise Refusal(404, f"no route {scope['path']}")
            _require_post(scope)
            self._admit(scope["headers"], loop, route)
            body = await self._body(scope, receive)
            started = time.perf_counter()
            answer = self._encoder.encode(await handler(loop, body))
            self._metrics.latency[route].observe(time.perf_counter() - started)
        except _DisconnectedError:
            # Half a request is none, even if it reads like a whole one; and nobody waits for more.
            return
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - each gets its answer
            await self._refuse(scope, send, refusal_for(error, route), arrived)
        else:
            await _send(send, 200, [], answer)
        finally:
            if self._room.taken:
                self._room.leave(scope)

    async def _personalizer_route(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = find_call(scope["raw_path"])
        if call is None and self._control is not None and self._control.answers(scope):
            await self._control(scope, receive, send)
            return
        arrived = time.perf_counter()
        try:
            if call is None:
                raise Refusal(404, f"no route {scope['path']}")
            _require_post(scope)
            loop = self._keys.admit_personalizer(
                scope["headers"], self._scorer.loops, call.scope
            ).loop
            body = await self._body(scope, receive)
            started = time.perf_counter()
            response = await self._personalize(loop, call, body)
            answer = b"" if response is None else self._encoder.encode(response)
            route = f"personalizer/{call.operation}"
            self._metrics.latency[route].observe(time.perf_counter() - started)
        except _DisconnectedError:
            return
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - each gets its answer
            await self._refuse(scope, send, personalizer_refusal(error, call), arrived)
        else:
            await _send(send, call.status, [], answer)
        finally:
            if self._room.taken:
                self._room.leave(scope)

    def _admit(self, headers: Sequence[tuple[bytes, bytes]], loop: str, route: str) -> None:
        self._keys.admit(headers, loop, _SCOPES.get(route, "decide"))
        if loop not in self._scorer.loops:
            raise Refusal(404, f"no loop {loop!r}", target="loop")

    async def _answered(self, route: str, loop: str, body: bytes) -> Any:
        request = self._reader.read(route, body)
        return await self._once(loop, body, request, partial(self._decided, ANSWERS[route]))

    async def _once(
        self,
        loop: str,
        body: bytes,
        request: _Request,
        answer: Callable[[str, _Request], Awaitable[_T]],
    ) -> _T:
        """Decide a request, or give the answer that it got when it came before."""
        return await self._repeats.once(
            loop, request.decision_id, request, lambda: answer(loop, request), size=len(body)
        )

    async def _decided(
        self, decide: Callable[[Scorer, str, Any], Decided[_T]], loop: str, request: Any
    ) -> _T:
        found = decide(self._scorer, loop, request)
        await self._acknowledge(found.decisions)
        return found.response

    async def _acknowledge(self, decisions: Sequence[Decision]) -> None:
        """Log the decisions of one request, all or none, and count each of them.

        Those that a subsampled log doesn't keep are counted too, and need no log.
        """
        if self._scorer.keeps(decisions[0]):
            try:
                await self._log([Record.of(decision) for decision in decisions])
            except BaseException:
                self._scorer.retract(decisions)
                raise
        counts = self._metrics.loops[decisions[0].loop]
        counts.decisions += len(decisions)
        for decision in decisions:
            counts.propensity.observe(decision.propensity)

    async def _reward(self, loop: str, body: bytes) -> Receipt:
        return await self._acknowledge_outcomes(loop, self._read_outcomes(loop, body))

    def _read_outcomes(self, loop: str, body: bytes) -> list[Outcome]:
        return self._reader.outcomes(self._scorer, loop, body)

    async def _acknowledge_outcomes(self, loop: str, outcomes: Sequence[Outcome]) -> Receipt:
        await self._log([Record.of(outcome) for outcome in outcomes])
        self._metrics.loops[loop].outcomes += len(outcomes)
        return Receipt(accepted=len(outcomes))

    async def _activate(self, loop: str, body: bytes) -> Receipt:
        event = self._reader.activation(self._scorer, loop, body)
        return await self._acknowledge_activation(event)

    async def _acknowledge_activation(self, event: Activation) -> Receipt:
        await self._log([Record.of(event)])
        self._metrics.loops[event.loop].activations += 1
        return Receipt(accepted=1)

    async def _judge(self, loop: str, body: bytes) -> Receipt:
        await self._log([Record.of(self._reader.judgement(self._scorer, loop, body))])
        self._metrics.loops[loop].judgements += 1
        return Receipt(accepted=1)

    async def _acknowledge_alert(self, loop: str, body: bytes) -> Receipt:
        await self._log([Record.of(self._reader.acknowledgement(self._scorer, loop, body))])
        return Receipt(accepted=1)

    async def _override(self, loop: str, body: bytes) -> Receipt:
        await self._log([Record.of(self._reader.override(self._scorer, loop, body))])
        return Receipt(accepted=1)

    async def _personalize(
        self, loop: str, call: PersonalizerCall, body: bytes
    ) -> PersonalizerRankResponse | MultiSlotRankResponse | None:
        """Answer a call to Azure AI Personalizer's API; None for one that only wants a receipt."""
        if call.verb != "rank":
            check_id("eventId", call.event_id)
        if call.verb == "activate":
            # Whatever the body holds: clients send none, or an empty one of any kind.
            event = activation_of(self._scorer, loop, call.event_id)
            await self._acknowledge_activation(event)
            return None
        request = decode(self._personalizer_decoders[call.operation], body)
        match request:
            case PersonalizerRankRequest():
                ranking = request.to_request()
                self._reader.check(ranking, len(body))
                return await self._once(loop, body, ranking, self._personalized)
            case MultiSlotRankRequest():
                slots = request.to_request()
                self._reader.check(slots, len(body))
                return await self._once(loop, body, slots, self._personalized_slots)
        now = self._scorer.now()
        outcomes = [
            Outcome(
                decision_id=call.event_id,
                loop=loop,
                outcome_id=uuid7(now),
                reward=reward,
                ts=now,
                slot=slot,
            )
            for slot, reward in request.rewards(self._scorer.loop(loop))
        ]
        await self._acknowledge_outcomes(loop, outcomes)
        return None

    async def _personalized(self, loop: str, request: RankRequest) -> PersonalizerRankResponse:
        ranking = self._scorer.rank(loop, request)
        await self._acknowledge(ranking.decisions)
        return PersonalizerRankResponse.of(ranking)

    async def _personalized_slots(self, loop: str, request: SlotsRequest) -> MultiSlotRankResponse:
        decisions = self._scorer.decide_slots(loop, request)
        await self._acknowledge(decisions)
        return MultiSlotRankResponse.of(decisions)

    async def _log(self, records: Sequence[Record]) -> None:
        if not records:
            return
        try:
            written = self._appender.submit_many(records)
        except InvalidInputError as error:
            # More at once than the log ever takes: the caller knows nothing of its records.
            raise InvalidInputError("body", error.expected) from error
        await asyncio.wrap_future(written)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        declared = int(next((v for k, v in scope["headers"] if k == b"content-length"), b"0"))
        if declared > self._max_body_bytes:
            raise self._too_large()
        self._room.enter(scope, declared)
        message = await _received(receive)
        body: bytes | bytearray = message.get("body", b"")
        if message.get("more_body"):
            if not declared:
                # In chunks, it may grow as large as any.
                self._room.enter(scope, self._max_body_bytes)
            body = bytearray(body)
            while message.get("more_body") and len(body) <= self._max_body_bytes:
                message = await _received(receive)
                body += message.get("body", b"")
        if len(body) > self._max_body_bytes:
            raise self._too_large()
        return bytes(body)

    def _too_large(self) -> Refusal:
        expected = f"expected a body of at most {self._max_body_bytes} bytes"
        return Refusal(413, expected, target="body")

    async def _refuse(self, scope: Scope, send: Send, refusal: Refusal, arrived: float) -> None:
        self._requests.refused(refusal, scope, time.perf_counter() - arrived)
        self._metrics.errors.labels(str(refusal.status), refusal.code).inc()
        headers = list(refusal.headers)
        if any(name == b"expect" for name, _ in scope["headers"]):
            # A body that was only offered may or may not follow: the next request's start is lost.
            headers.append((b"connection", b"close"))
        await _send(send, refusal.status, headers, refusal.body())

    async def _readyz(self, request: Request) -> Response:  # noqa: ARG002
        readiness = self._readiness()
        if self.stream is not None:
            readiness = readiness.with_stream(self.stream.last_error)
        return Response(
            self._encoder.encode(readiness),
            status_code=503 if readiness.status == "unavailable" else 200,
            media_type="application/json",
        )

    async def _render_metrics(self, request: Request) -> Response:  # noqa: ARG002
        # Those of several workers are read from files.
        rendered = await asyncio.to_thread((self._shared or self._metrics).render)
        return Response(rendered, media_type="text/plain; version=0.0.4")


class _DisconnectedError(Exception):
    """The client went away before its request was complete."""


def _require_post(scope: Scope) -> None:
    if scope["method"] != "POST":
        raise Refusal(405, f"expected POST, got {scope['method']}")


async def _received(receive: Receive) -> MutableMapping[str, Any]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise _DisconnectedError
    return message


async def _send(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    if status != 204:
        headers = [_JSON, (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _healthz(request: Request) -> Response:  # noqa: ARG001
    return JSONResponse({"status": "alive"})


async def _openapi(request: Request) -> Response:  # noqa: ARG001
    return JSONResponse(openapi_document())


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # Not the request's URL, which is made from its Host header, whatever that holds.
    refusal = Refusal(error.status_code, f"no {request.method} {request.scope['path']}")
    return Response(
        refusal.body(), error.status_code, headers=error.headers, media_type="application/json"
    )


async def _internal_error(request: Request, error: Exception) -> Response:
    refusal = refusal_for(error, request.scope["path"])
    return Response(refusal.body(), refusal.status, media_type="application/json")
