"""The fast lane: requests that are answered on the spot, without a task, a scope or a parser.

A client that keeps a connection sends the same head with every request, but for the length of the
body. So a head that was parsed once, and whose key was checked, is known by its bytes; what it
means is looked up. The fast lane takes requests that have such a head and all of their body, and
gives the answer that the slow way would give. Whatever is unusual or wrong about a request it
leaves to that way, before anything was done about it.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import msgspec

from croupier.eventlog.appender import NOTHING_TO_WRITE
from croupier.eventlog.log import Record
from croupier.service.api import DecideResponse
from croupier.service.refusals import Refusal, refusal_for
from croupier.service.repeats import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from croupier.eventlog.appender import Appender
    from croupier.policy.events import Outcome
    from croupier.service.catalogue import Catalogue
    from croupier.service.logs import RequestLog
    from croupier.service.metrics import Metrics
    from croupier.service.repeats import Repeats
    from croupier.service.scorer import Scorer

    Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
    Respond: TypeAlias = Callable[[bytes], None]

__all__ = ("Call", "FastLane")

_MOST_HEADS = 4096
_LONGEST_HEAD = 2048
_LONGEST_KEPT_BODY = 4096
_SAMPLED = 16
_REQUEST_LINE = re.compile(rb"POST /v1/loops/([a-z0-9_-]+)/([a-z]+) HTTP/1\.1\r\n")
# Whatever else is in a head may change how the body is read, or what is expected of us.
_SPECIAL = {b"transfer-encoding", b"expect", b"upgrade", b"connection", b"http2-settings", b"te"}
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


class Call(NamedTuple):
    """What a known head asks for.

    Attributes
    ----------
    start
        Called with the loop, the body and whom to tell the answer; False if the slow way has to be
        gone, and nothing was done.
    loop
        Of the path.
    length
        Of the body, in bytes.
    """

    start: Callable[[str, bytes, Respond], bool]
    loop: str
    length: int


class Admit(Protocol):
    """Checks whether a request may use a loop."""

    def __call__(self, headers: Headers, loop: str, route: str) -> None:
        """Raise a refusal unless it may."""
        ...


class ReadOutcomes(Protocol):
    """Reads the body of a ``reward`` request."""

    def __call__(self, loop: str, body: bytes) -> list[Outcome]:
        """Raise a refusal unless it is a valid one."""
        ...


class FastLane:
    """Answers ``decide`` and ``reward`` requests whose head has been seen before.

    Belongs to one event loop.

    Parameters
    ----------
    scorer, appender, metrics, repeats, catalogue
        Those of the slow way.
    admit
        Who may use which loop.
    read_outcomes
        How rewards are read.
    requests
        Log of refusals.
    max_body_bytes
        Largest request body.
    """

    def __init__(
        self,
        scorer: Scorer,
        appender: Appender,
        metrics: Metrics,
        repeats: Repeats,
        catalogue: Catalogue,
        *,
        admit: Admit,
        read_outcomes: ReadOutcomes,
        requests: RequestLog,
        max_body_bytes: int,
    ) -> None:
        self._scorer = scorer
        self._appender = appender
        self._metrics = metrics
        self._repeats = repeats
        self._catalogue = catalogue
        self._admit = admit
        self._read_outcomes = read_outcomes
        self._requests = requests
        self._max_body_bytes = max_body_bytes
        self._encoder = msgspec.json.Encoder()
        self._starts: Mapping[bytes, Callable[[str, bytes, Respond], bool]] = {
            b"decide": self._decide,
            b"reward": self._reward,
        }
        self._calls: dict[bytes, Call] = {}
        self._unwritten: dict[Future[None], list[Callable[[BaseException | None], None]]] = {}
        self._decisions = 0
        self._waking = False

    def find(self, head: bytes) -> Call | None:
        """What a head asks for, its last line break included; None if it isn't known."""
        return self._calls.get(head)

    def learn(self, head: bytes, headers: Headers) -> None:
        """Get to know a head that a parser has read, if the lane can answer its like.

        Parameters
        ----------
        head
            All of its bytes.
        headers
            What the parser found in it, names in lower case.
        """
        line = _REQUEST_LINE.match(head)
        # Bare line breaks would leave it open where the head ends.
        if line is None or len(head) > _LONGEST_HEAD or head.count(b"\n") != head.count(b"\r\n"):
            return
        start, loop = self._starts.get(line[2]), line[1].decode()
        names = [name for name, _ in headers]
        if start is None or names.count(b"content-length") != 1 or not _SPECIAL.isdisjoint(names):
            return
        length = next(value for name, value in headers if name == b"content-length")
        if not length.isdigit() or int(length) > self._max_body_bytes:
            return
        try:
            self._admit(headers, loop, line[2].decode())
        except Refusal:
            return
        if len(self._calls) >= _MOST_HEADS:
            self._calls.clear()
        self._calls[head] = Call(start, loop, int(length))

    def _decide(self, loop: str, body: bytes, respond: Respond) -> bool:
        started = time.perf_counter()
        claim = decision = None
        try:
            request = self._catalogue.read(body)
            if request.decision_id is not None and self._repeats.capacity:
                print_ = partial(self._fingerprint, body)
                claim = self._repeats.claim(
                    loop,
                    request.decision_id,
                    print_ if len(body) <= _LONGEST_KEPT_BODY else fingerprint(request),
                    len(body),
                )
                if claim is None:
                    return False
            read = time.perf_counter()
            decision, session = self._scorer.step(loop, request)
            decided = time.perf_counter()
            # What a subsampled log doesn't keep needs no log.
            record = Record.of(decision) if self._scorer.keeps(decision) else None
            encoded = time.perf_counter()
            written = NOTHING_TO_WRITE if record is None else self._submit(record)
        except Exception as error:  # noqa: BLE001 - the slow way meets it again, and says so
            if claim is not None:
                claim.drop(error)
            if decision is not None:
                self._scorer.retract([decision])
            return False
        answer = self._encoder.encode(DecideResponse.of(decision, session))
        submitted = time.perf_counter()
        propensity = decision.propensity

        def finish(error: BaseException | None) -> None:
            if error is not None:
                if claim is not None:
                    claim.drop(error)
                self._scorer.retract([decision])
                self._fail(error, f"{loop}/decide", started, respond)
                return
            durable = time.perf_counter()
            respond(_OK % (len(answer), answer))
            if claim is not None:
                claim.settle(msgspec.Raw(answer))
            counts = self._metrics.loops[loop]
            counts.decisions += 1
            counts.propensity.observe(propensity)
            ended = time.perf_counter()
            self._metrics.latency["decide"].observe(ended - started)
            self._decisions += 1
            if self._decisions % _SAMPLED == 0:
                stages = self._metrics.stages
                stages["decode"].observe(read - started)
                stages["decide"].observe(decided - read)
                stages["encode"].observe(encoded - decided)
                stages["log"].observe(durable - submitted)
                stages["respond"].observe(submitted - encoded + ended - durable)

        self._when_written(written, finish)
        return True

    def _reward(self, loop: str, body: bytes, respond: Respond) -> bool:
        started = time.perf_counter()
        try:
            outcomes = self._read_outcomes(loop, body)
            written = self._appender.submit_many([Record.of(outcome) for outcome in outcomes])
        except Exception:  # noqa: BLE001 - likewise
            return False

        def finish(error: BaseException | None) -> None:
            if error is not None:
                self._fail(error, f"{loop}/reward", started, respond)
                return
            answer = b'{"accepted":%d}' % len(outcomes)
            respond(_OK % (len(answer), answer))
            self._metrics.loops[loop].outcomes += len(outcomes)
            self._metrics.latency["reward"].observe(time.perf_counter() - started)

        self._when_written(written, finish)
        return True

    def _submit(self, record: Record) -> Future[None]:
        """Hand a record over; those of all requests that have arrived by now go into one append."""
        written = self._appender.submit(record, wake=False)
        if not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake)
        return written

    def _wake(self) -> None:
        self._waking = False
        self._appender.wake()

    def _fingerprint(self, body: bytes) -> bytes:
        return fingerprint(self._catalogue.read(body))

    def _when_written(
        self, written: Future[None], finish: Callable[[BaseException | None], None]
    ) -> None:
        """Call back in the event loop; all that wait for the same append in one go."""
        if written is NOTHING_TO_WRITE:
            finish(None)
            return
        if written.done():
            finish(written.exception())
            return
        waiting = self._unwritten.get(written)
        if waiting is not None:
            waiting.append(finish)
            return
        self._unwritten[written] = [finish]
        loop = asyncio.get_running_loop()

        def wake(done: Future[None]) -> None:
            # In the appender's thread. Once the loop is closed there is nobody to be told.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._written, done)

        written.add_done_callback(wake)

    def _written(self, written: Future[None]) -> None:
        error = written.exception()
        for finish in self._unwritten.pop(written):
            finish(error)

    def _fail(self, error: BaseException, place: str, started: float, respond: Respond) -> None:
        """Refuse what the log didn't take after all."""
        refusal = refusal_for(error, place)
        self._metrics.errors.labels(str(refusal.status), refusal.code).inc()
        scope = {"path": f"/v1/loops/{place}"}
        self._requests.refused(refusal, scope, time.perf_counter() - started)
        respond(refusal.response())
