"""What the routes answer: from a body to decisions, and from these to what the caller is told.

Written once for all ways that a request can come. Whoever takes it from there logs the events
before the caller is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import msgspec

from croupier.policy.decision import check_id
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import MAX_REASON_LENGTH, Acknowledgement, Activation, Override
from croupier.policy.fairness.judging import judgement_of
from croupier.policy.slates import logged_inclusion
from croupier.service.api import (
    AcknowledgeRequest,
    ActivateRequest,
    DecideResponse,
    DecideSlateRequest,
    DecideSlotsRequest,
    JudgeRequest,
    OutcomeRequest,
    OverrideRequest,
    RankActionsRequest,
    RankResponse,
    SlateResponse,
    SlotsResponse,
)
from croupier.service.catalogue import Catalogue
from croupier.service.ids import uuid7
from croupier.service.outcomes import outcomes_of
from croupier.service.refusals import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from croupier.policy.decision import DecisionRequest
    from croupier.policy.events import Decision, Judgement, Outcome
    from croupier.policy.ranking import RankRequest
    from croupier.policy.slates import SlateRequest
    from croupier.policy.slots import SlotsRequest
    from croupier.service.limits import FeatureLimits
    from croupier.service.scorer import Scorer

__all__ = (
    "ANSWERS",
    "BodyReader",
    "Decided",
    "acknowledgement_from",
    "activation_of",
    "dealt",
    "decided",
    "filled",
    "judgement_from",
    "override_from",
    "ranked",
)

_MOST_GENERATIONS = 2**53

_T = TypeVar("_T")


class Decided(NamedTuple, Generic[_T]):
    """What a request was decided to.

    Attributes
    ----------
    decisions
        To be logged, all or none; at least one.
    response
        What the caller is told once they are.
    """

    decisions: Sequence[Decision]
    response: _T


def decided(scorer: Scorer, loop: str, request: DecisionRequest) -> Decided[DecideResponse]:
    """Answer a request for a decision."""
    decision, session = scorer.step(loop, request)
    return Decided([decision], DecideResponse.of(decision, session))


def ranked(scorer: Scorer, loop: str, request: RankRequest) -> Decided[RankResponse]:
    """Answer a request for a ranking."""
    ranking = scorer.rank(loop, request)
    return Decided(ranking.decisions, RankResponse.of(ranking))


def filled(scorer: Scorer, loop: str, request: SlotsRequest) -> Decided[SlotsResponse]:
    """Answer a request with slots."""
    decisions = scorer.decide_slots(loop, request)
    return Decided(decisions, SlotsResponse.of(decisions))


def dealt(scorer: Scorer, loop: str, request: SlateRequest) -> Decided[SlateResponse]:
    """Answer a request for a slate."""
    decisions = scorer.decide_slate(loop, request)
    return Decided(decisions, SlateResponse.of(decisions, logged_inclusion(decisions)))


ANSWERS: Mapping[str, Callable[[Scorer, str, Any], Decided[Any]]] = {
    "decide": decided,
    "rank": ranked,
    "slots": filled,
    "slate": dealt,
}
"""How requests for decisions are answered, by route."""


def activation_of(scorer: Scorer, loop: str, decision_id: str) -> Activation:
    """Check an activation that is reported for a loop, and make an event of it.

    Raises
    ------
    InvalidInputError
        If the id can't be one.
    """
    check_id("decision_id", decision_id)
    return Activation(decision_id=decision_id, loop=loop, ts=scorer.now())


def judgement_from(scorer: Scorer, loop: str, request: JudgeRequest) -> Judgement:
    """Check a judgement that is reported for a loop, and make an event of it.

    Raises
    ------
    InvalidInputError
        Naming the field and what was expected.
    """
    now = scorer.now()
    given = request.judgement_id
    return judgement_of(
        loop,
        request.decision_id,
        request.other_decision_id,
        auditor=request.auditor,
        distance=request.distance,
        judgement_id=uuid7(now) if given is None else given,
        ts=now,
    )


def acknowledgement_from(scorer: Scorer, loop: str, request: AcknowledgeRequest) -> Acknowledgement:
    """Check what is reported of an alert, and make an event of it.

    Raises
    ------
    InvalidInputError
        Naming the field and what was expected.
    """
    now, given = scorer.now(), request.acknowledgement_id
    check_id("alert_id", request.alert_id)
    check_id("by", request.by)
    if given is not None:
        check_id("acknowledgement_id", given)
    return Acknowledgement(
        acknowledgement_id=uuid7(now) if given is None else given,
        loop=loop,
        alert_id=request.alert_id,
        by=request.by,
        ts=now,
    )


def override_from(scorer: Scorer, loop: str, request: OverrideRequest) -> Override:
    """Check an override that is asked for, and make an event of it.

    Whether the generation is there is for the batch side to see.

    Raises
    ------
    InvalidInputError
        Naming the field and what was expected.
    """
    now, given = scorer.now(), request.override_id
    check_id("by", request.by)
    if given is not None:
        check_id("override_id", given)
    for field in ("generation", "champion"):
        if not 0 <= getattr(request, field) <= _MOST_GENERATIONS:
            raise InvalidInputError(
                field, f"expected the number of a generation, got {getattr(request, field)}"
            )
    if request.action == "promote" and request.generation == 0:
        raise InvalidInputError(
            "generation", "expected one above 0: the cold start is rolled back to"
        )
    if request.generation == request.champion:
        raise InvalidInputError("generation", "expected another one than the champion")
    if not request.reason.strip() or len(request.reason) > MAX_REASON_LENGTH:
        raise InvalidInputError("reason", "expected 1 to 500 characters, not only spaces")
    return Override(
        override_id=uuid7(now) if given is None else given,
        loop=loop,
        action=request.action,
        generation=request.generation,
        champion=request.champion,
        reason=request.reason,
        by=request.by,
        ts=now,
    )


class BodyReader:
    """Reads the bodies of requests, and keeps the actions that it has met.

    Not thread-safe.

    Parameters
    ----------
    features
        Limits on what a request's features may hold.
    """

    def __init__(self, features: FeatureLimits) -> None:
        self.catalogue = Catalogue()
        self._features = features
        self._rank_decoder = msgspec.json.Decoder(RankActionsRequest)
        self._slots_decoder = msgspec.json.Decoder(DecideSlotsRequest)
        self._slate_decoder = msgspec.json.Decoder(DecideSlateRequest)
        self._outcome_decoder = msgspec.json.Decoder(OutcomeRequest | list[OutcomeRequest])
        self._activate_decoder = msgspec.json.Decoder(ActivateRequest)
        self._judge_decoder = msgspec.json.Decoder(JudgeRequest)
        self._acknowledge_decoder = msgspec.json.Decoder(AcknowledgeRequest)
        self._override_decoder = msgspec.json.Decoder(OverrideRequest)

    def read(self, route: str, body: bytes) -> Any:
        """Read the body of one of the routes in :data:`ANSWERS`.

        Raises
        ------
        Refusal
            Naming the field and what was expected.
        InvalidInputError
            If there are too many features.
        """
        request: Any
        match route:
            case "decide":
                request = self.catalogue.read(body)
            case "rank":
                request = decode(self._rank_decoder, body)
            case "slots":
                request = decode(self._slots_decoder, body)
            case _:
                request = decode(self._slate_decoder, body)
        self.check(request, len(body))
        return request

    def check(self, request: DecisionRequest | SlotsRequest, size: int) -> None:
        """Check the features of a request with a body of a size, in bytes.

        Raises
        ------
        InvalidInputError
            If there are too many.
        """
        if size > self._features.harmless_bytes:
            self._features.check(request)

    def outcomes(self, scorer: Scorer, loop: str, body: bytes) -> list[Outcome]:
        """Read what a ``reward`` request reports, one outcome or a list.

        Raises
        ------
        Refusal, InvalidInputError
            Naming the field and what was expected.
        """
        found = decode(self._outcome_decoder, body)
        listed = isinstance(found, list)
        return outcomes_of(scorer, loop, found if listed else [found], listed=listed)

    def activation(self, scorer: Scorer, loop: str, body: bytes) -> Activation:
        """Read what an ``activate`` request reports.

        Raises
        ------
        Refusal, InvalidInputError
            Naming the field and what was expected.
        """
        request = decode(self._activate_decoder, body)
        return activation_of(scorer, loop, request.decision_id)

    def judgement(self, scorer: Scorer, loop: str, body: bytes) -> Judgement:
        """Read what a ``judge`` request reports.

        Raises
        ------
        Refusal, InvalidInputError
            Naming the field and what was expected.
        """
        return judgement_from(scorer, loop, decode(self._judge_decoder, body))

    def acknowledgement(self, scorer: Scorer, loop: str, body: bytes) -> Acknowledgement:
        """Read what an ``acknowledge`` request reports.

        Raises
        ------
        Refusal, InvalidInputError
            Naming the field and what was expected.
        """
        return acknowledgement_from(scorer, loop, decode(self._acknowledge_decoder, body))

    def override(self, scorer: Scorer, loop: str, body: bytes) -> Override:
        """Read what an ``override`` request asks for.

        Raises
        ------
        Refusal, InvalidInputError
            Naming the field and what was expected.
        """
        return override_from(scorer, loop, decode(self._override_decoder, body))
