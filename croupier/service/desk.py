"""Answering requests that come as keyed messages: what is to be logged, and what to be told.

Nothing is logged or told here. Whoever asks does both, or neither, and says which with
:meth:`Desk.settle` or :meth:`Desk.forget`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from croupier.eventlog.log import Record
from croupier.policy.errors import InvalidInputError
from croupier.service.answers import ANSWERS, BodyReader
from croupier.service.api import Receipt
from croupier.service.refusals import Refusal, refusal_for
from croupier.service.repeats import fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.policy.events import Decision, Event
    from croupier.service.limits import FeatureLimits
    from croupier.service.scorer import Scorer

__all__ = ("DECIDE", "Desk", "Reply")

DECIDE = "decide"
"""The route of a message that names none."""


class Reply(NamedTuple):
    """What a message is answered with.

    Attributes
    ----------
    status, body
        As the HTTP API would have it.
    records
        To be logged, all or none, and no later than the answer is given.
    events
        What happened; more than `records` where the log is subsampled.
    refusal
        Why the request can't be answered; None if it was.
    """

    status: int
    body: bytes
    records: Sequence[Record] = ()
    events: Sequence[Event] = ()
    refusal: Refusal | None = None

    @classmethod
    def refusing(cls, refusal: Refusal) -> Reply:
        """The reply to a request that can't be answered."""
        return cls(refusal.status, refusal.body(), refusal=refusal)


class Desk:
    """Answers messages for a scorer.

    A message's key is the request's decision_id. Messages that are sent again, as a producer does
    that isn't idempotent, get the answer that they got before, and nothing more is logged; past the
    latest ones, the draw is the same under the same plan, and the lake drops the second record.

    Not thread-safe.

    Parameters
    ----------
    scorer
        Decides.
    features
        Limits on what a request's features may hold.
    max_body_bytes
        Largest message.
    max_payload_bytes
        The largest payload that the log accepts.
    remembered
        How many of the latest answers are kept.
    remembered_bytes
        Of these answers and their requests' ids, together.
    """

    def __init__(
        self,
        scorer: Scorer,
        features: FeatureLimits,
        *,
        max_body_bytes: int,
        max_payload_bytes: int,
        remembered: int,
        remembered_bytes: int = 67_108_864,
    ) -> None:
        self._scorer = scorer
        self._reader = BodyReader(features)
        self._encoder = msgspec.json.Encoder()
        self._max_body_bytes = max_body_bytes
        self._max_payload_bytes = max_payload_bytes
        self._remembered = remembered
        self._remembered_bytes = remembered_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._fresh: dict[tuple[str, str], _Kept] = {}
        self._unlogged: list[Decision] = []

    def answer(self, loop: str, route: str, key: bytes | None, body: bytes | None) -> Reply:
        """Answer a message; one that is wrong gets a refusal, whatever is wrong.

        Parameters
        ----------
        loop
            A configured one.
        route
            As in the HTTP API: ``decide``, ``rank``, ``slots``, ``slate``, ``reward``,
            ``activate`` or ``judge``.
        key, body
            Of the message.
        """
        try:
            if body is None:
                raise Refusal(400, "expected a JSON body, got none", target="body")
            if len(body) > self._max_body_bytes:
                expected = f"expected a body of at most {self._max_body_bytes} bytes"
                raise Refusal(413, expected, target="body")
            if route in ANSWERS:
                return self._decide(loop, route, key, body)
            return self._report(loop, route, body)
        except Exception as error:  # noqa: BLE001 - each gets its answer, and the next its turn
            return Reply.refusing(refusal_for(error, f"stream: {loop}/{route}"))

    def settle(self) -> None:
        """What was answered since the last time has been logged and told."""
        for key, kept in self._fresh.items():
            self._kept[key] = kept
            self._bytes += len(kept.body)
        self._fresh.clear()
        self._unlogged.clear()
        while len(self._kept) > self._remembered or self._bytes > self._remembered_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest.body)

    def forget(self) -> None:
        """What was answered since the last time was not logged, and will be asked again."""
        self._fresh.clear()
        self._scorer.retract(self._unlogged)
        self._unlogged.clear()

    def _decide(self, loop: str, route: str, key: bytes | None, body: bytes) -> Reply:
        request = _identified(self._reader.read(route, body), key)
        name = loop, request.decision_id
        print_ = fingerprint(request)
        kept = self._fresh.get(name) or self._kept.get(name)
        if kept is not None:
            if kept.print_ != print_:
                raise InvalidInputError(
                    "decision_id", f"expected one of its own for every request, got {name[1]!r}"
                )
            return Reply(200, kept.body)
        found = ANSWERS[route](self._scorer, loop, request)
        answer = self._encoder.encode(found.response)
        keeps = self._scorer.keeps(found.decisions[0])
        try:
            records = self._records(found.decisions) if keeps else []
        except InvalidInputError:
            self._scorer.retract(found.decisions)
            raise
        self._unlogged += found.decisions
        self._fresh[name] = _Kept(print_, answer)
        return Reply(200, answer, records, found.decisions)

    def _report(self, loop: str, route: str, body: bytes) -> Reply:
        events: Sequence[Event]
        if route == "reward":
            events = self._reader.outcomes(self._scorer, loop, body)
        elif route == "activate":
            events = [self._reader.activation(self._scorer, loop, body)]
        elif route == "judge":
            events = [self._reader.judgement(self._scorer, loop, body)]
        else:
            raise Refusal(404, f"no route {route!r}", target="croupier-kind")
        answer = self._encoder.encode(Receipt(accepted=len(events)))
        return Reply(200, answer, self._records(events), events)

    def _records(self, events: Sequence[Event]) -> list[Record]:
        records = [Record.of(event) for event in events]
        largest = max((len(record.payload) for record in records), default=0)
        if largest > self._max_payload_bytes:
            raise InvalidInputError(
                "body",
                f"expected what takes at most {self._max_payload_bytes} bytes in the log, "
                f"got {largest}",
            )
        return records


class _Kept(NamedTuple):
    """The answer to a request that is known by its fingerprint."""

    print_: bytes
    body: bytes


def _identified(request: Any, key: bytes | None) -> Any:
    """The request with its message's key as its id."""
    if key is None:
        if request.decision_id is None:
            raise InvalidInputError("decision_id", "expected the message to have it for its key")
        return request
    try:
        decision_id = key.decode()
    except UnicodeDecodeError:
        raise InvalidInputError("decision_id", "expected a key in UTF-8") from None
    if request.decision_id is None:
        return msgspec.structs.replace(request, decision_id=decision_id)
    if request.decision_id != decision_id:
        raise InvalidInputError(
            "decision_id",
            f"expected the message's key, {decision_id!r}, or none, got {request.decision_id!r}",
        )
    return request
