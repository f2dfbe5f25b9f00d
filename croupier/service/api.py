"""Requests and answers of the HTTP API."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar, TypedDict

import msgspec

from croupier.policy.events import Action, OverrideAction
from croupier.policy.requests import DecisionRequest, RankRequest, SlateRequest, SlotsRequest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from croupier.policy.events import Decision
    from croupier.policy.ranking import Ranking

__all__ = (
    "AcknowledgeRequest",
    "ActionRequest",
    "ActivateRequest",
    "Choice",
    "DecideRequest",
    "DecideResponse",
    "DecideSlateRequest",
    "DecideSlotsRequest",
    "ErrorBody",
    "ErrorResponse",
    "JudgeRequest",
    "LoopReport",
    "OutcomeRequest",
    "OverrideRequest",
    "RankActionsRequest",
    "RankResponse",
    "Readiness",
    "Receipt",
    "SlateMember",
    "SlateResponse",
    "SlotsResponse",
    "SpillReport",
)


MAX_GUARDRAILS = 100


class ActionRequest(Action, frozen=True, forbid_unknown_fields=True):
    """An action in a request: a misspelt ``features`` must not be taken for none."""


class DecideRequest(DecisionRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A :class:`DecisionRequest` as it is read from a body."""

    actions: list[ActionRequest]  # type: ignore[assignment]  # a list of actions that is only read


class RankActionsRequest(RankRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A :class:`RankRequest` as it is read from a body."""

    actions: list[ActionRequest]  # type: ignore[assignment]


class DecideSlotsRequest(SlotsRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A :class:`SlotsRequest` as it is read from a body."""

    actions: list[ActionRequest]  # type: ignore[assignment]


class DecideSlateRequest(SlateRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A :class:`SlateRequest` as it is read from a body."""

    actions: list[ActionRequest]  # type: ignore[assignment]


# The OpenAPI document is made from them, see :mod:`croupier.service.openapi`.
DecideRequest.__doc__ = DecisionRequest.__doc__
RankActionsRequest.__doc__ = RankRequest.__doc__
DecideSlotsRequest.__doc__ = SlotsRequest.__doc__
DecideSlateRequest.__doc__ = SlateRequest.__doc__


class DecideResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to a decision request.

    Attributes
    ----------
    decision_id
        To be given back with the outcome.
    loop, generation
        Who decided.
    action
        Id of the chosen action.
    index
        Its place among the actions of the request.
    propensity
        The probability with which it was drawn.
    pmf
        Probability of every action, in the order of the request.
    session
        To be sent with the same user's next request, if one came with this; otherwise not there.
    decided
        True: it was decided and logged. A client's stand-in for an answer that it didn't get says
        False.
    """

    decided: ClassVar[bool] = True

    decision_id: str
    loop: str
    generation: int
    action: str
    index: int
    propensity: float
    pmf: list[float]
    session: str | None = None

    @classmethod
    def of(cls, decision: Decision, session: str | None = None) -> Self:
        """What the caller is told of a decision, and how far its session has come."""
        return cls(
            decision_id=decision.decision_id,
            loop=decision.loop,
            generation=decision.generation,
            action=decision.actions[decision.chosen].id,
            index=decision.chosen,
            propensity=decision.propensity,
            pmf=decision.pmf,
            session=session,
        )


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the draws of a ranking or of a request with slots.

    Attributes
    ----------
    slot
        To be given back with the outcome; null for a ranking that drew its first position alone.
    action
        Id of the chosen action.
    index
        Its place among the actions of the request.
    propensity
        The probability with which it was drawn, given the draws before.
    pmf
        Probability of every action, in the order of the request; 0 for those taken before.
    """

    slot: str | None
    action: str
    index: int
    propensity: float
    pmf: list[float]

    @classmethod
    def of(cls, decision: Decision) -> Self:
        """What the caller is told of a decision."""
        return cls(
            slot=decision.slot,
            action=decision.actions[decision.chosen].id,
            index=decision.chosen,
            propensity=decision.propensity,
            pmf=decision.pmf,
        )


class RankResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request for a ranking.

    Attributes
    ----------
    decision_id
        To be given back with the outcomes.
    loop, generation
        Who decided.
    ranking
        Ids of all actions in their order.
    drawn
        The positions that were drawn, from the first on; outcomes can be given for these.
    decided
        As in :class:`DecideResponse`.
    """

    decided: ClassVar[bool] = True

    decision_id: str
    loop: str
    generation: int
    ranking: list[str]
    drawn: list[Choice]

    @classmethod
    def of(cls, ranking: Ranking) -> Self:
        """What the caller is told of a ranking."""
        first = ranking.decisions[0]
        return cls(
            decision_id=first.decision_id,
            loop=first.loop,
            generation=first.generation,
            ranking=[first.actions[index].id for index in ranking.order],
            drawn=[Choice.of(decision) for decision in ranking.decisions],
        )


class SlotsResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request with slots.

    Attributes
    ----------
    decision_id
        To be given back with the outcomes.
    loop, generation
        Who decided.
    slots
        What every slot got, in the order of the request.
    decided
        As in :class:`DecideResponse`.
    """

    decided: ClassVar[bool] = True

    decision_id: str
    loop: str
    generation: int
    slots: list[Choice]

    @classmethod
    def of(cls, decisions: Sequence[Decision]) -> Self:
        """What the caller is told of the decisions of all slots."""
        return cls(
            decision_id=decisions[0].decision_id,
            loop=decisions[0].loop,
            generation=decisions[0].generation,
            slots=[Choice.of(decision) for decision in decisions],
        )


class SlateMember(msgspec.Struct, frozen=True, kw_only=True):
    """What a place of a slate got.

    Attributes
    ----------
    slot
        The place, to be given back with the outcome.
    action
        Id of the action.
    index
        Its place among the actions of the request.
    inclusion
        The probability with which it is in the slate.
    """

    slot: str
    action: str
    index: int
    inclusion: float


class SlateResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request for a slate.

    Attributes
    ----------
    decision_id
        To be given back with the outcomes.
    loop, generation
        Who decided.
    slate
        The members, place by place.
    inclusion
        Probability of every action of being in the slate, in the order of the request; sums to the
        number of places.
    decided
        As in :class:`DecideResponse`.
    """

    decided: ClassVar[bool] = True

    decision_id: str
    loop: str
    generation: int
    slate: list[SlateMember]
    inclusion: list[float]

    @classmethod
    def of(cls, decisions: Sequence[Decision], inclusion: list[float]) -> Self:
        """What the caller is told of the decisions of all places."""
        members = [
            SlateMember(
                slot=str(place),
                action=decision.actions[decision.chosen].id,
                index=decision.chosen,
                inclusion=inclusion[decision.chosen],
            )
            for place, decision in enumerate(decisions)
        ]
        return cls(
            decision_id=decisions[0].decision_id,
            loop=decisions[0].loop,
            generation=decisions[0].generation,
            slate=members,
            inclusion=inclusion,
        )


class OutcomeRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A reward for a decision; a list of them can be sent at once.

    Attributes
    ----------
    decision_id
        Of the decision that is rewarded.
    reward
        In the loop's range.
    outcome_id
        Idempotency key: the same one counts once. Made up if left out.
    slot
        Of a decision with slots: of a slate, a ranking deeper than 1 or a request with slots.
    guardrails
        Further named rewards, at most 100.
    """

    decision_id: str
    reward: float
    outcome_id: str | None = None
    slot: str | None = None
    guardrails: Annotated[dict[str, float], msgspec.Meta(max_length=MAX_GUARDRAILS)] = {}


class ActivateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Says that a deferred decision was really shown."""

    decision_id: str


class JudgeRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """An auditor's judgement of how differently two decisions may be treated.

    Attributes
    ----------
    decision_id, other_decision_id
        The pair; the order makes no difference.
    auditor
        Who judges, 1 to 256 characters.
    distance
        In [0, 1]: 0 if the two are alike, 1 if nothing that is done differently is unfair.
    judgement_id
        Idempotency key: the same one counts once. Made up if left out.
    """

    decision_id: str
    other_decision_id: str
    auditor: str
    distance: float
    judgement_id: str | None = None


class AcknowledgeRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Says that a person has seen an alert of the nightly job.

    Attributes
    ----------
    alert_id
        As ``croupier alerts`` and the dashboard tell it.
    by
        Who, 1 to 256 characters.
    acknowledgement_id
        Idempotency key: the same one counts once. Made up if left out.
    """

    alert_id: str
    by: str
    acknowledgement_id: str | None = None


class OverrideRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Says that a person wants another champion; the batch side acts on it, the next night.

    Attributes
    ----------
    action
        ``promote`` or ``rollback``.
    generation
        Which one is to be champion, at least 0; 0 is the cold start, which is rolled back to.
    champion
        Who is, as the person has seen it, at least 0. Once another one is, nothing comes of it.
    reason
        Why, 1 to 500 characters.
    by
        Who says so, 1 to 256 characters.
    override_id
        Idempotency key: the same one counts once. Made up if left out.
    """

    action: OverrideAction
    generation: int
    champion: int
    reason: str
    by: str
    override_id: str | None = None


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """How many outcomes, activations or sayings of people were logged."""

    accepted: int


class LoopReport(TypedDict):
    """What ``/readyz`` says of one loop.

    Attributes
    ----------
    generation
        Number of the champion being served; None while only the baseline is.
    canary, canary_share, shadow
        Of the plan being served, see :class:`~croupier.policy.traffic.Plan`.
    killed
        Why only the baseline is played; None unless the kill switch is on.
    error
        What can't be served as it should be, and why; None if all is well.
    """

    generation: int | None
    canary: int | None
    canary_share: float
    shadow: int | None
    killed: str | None
    error: str | None


class SpillReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ``/readyz`` says while the log is away and records go to this machine's disk.

    Attributes
    ----------
    since
        Since when, in UTC.
    records
        How many of them the log doesn't have yet.
    error
        Why the log couldn't be written the last time; None if another process has tried it.
    """

    since: datetime
    records: int
    error: str | None


class Readiness(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ``/readyz`` says.

    Attributes
    ----------
    status
        ``ready``; ``degraded`` if decisions are made and logged, but not as the registry would have
        it, or not where they are to be logged; ``unavailable`` if they can't be logged.
    log, registry
        ``ok``, or what is wrong.
    loops
        What every loop serves.
    spill
        What is kept on this machine's disk while the log is away; not there if it isn't.
    stream
        Of requests that come by Kafka: ``ok``, or what is wrong; not there if none do.
    """

    status: str
    log: str
    registry: str
    loops: dict[str, LoopReport]
    spill: SpillReport | None = None
    stream: str | None = None

    def with_stream(self, error: Exception | None) -> Readiness:
        """The same with why requests from Kafka can't be answered, if they can't."""
        status = "degraded" if error is not None and self.status == "ready" else self.status
        said = "ok" if error is None else str(error)
        return msgspec.structs.replace(self, status=status, stream=said)


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """What was wrong: a code for programs, a message for people, and the field it is about."""

    code: str
    message: str
    target: str | None = None


class ErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Envelope of every error."""

    error: ErrorBody
