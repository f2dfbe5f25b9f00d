"""Requests and answers of the HTTP API, and the OpenAPI document made from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from croupier import __version__
from croupier.policy.decision import DecisionRequest
from croupier.policy.events import MAX_ID_LENGTH, Action
from croupier.policy.ranking import RankRequest
from croupier.policy.slates import SlateRequest
from croupier.policy.slots import SlotsRequest

if TYPE_CHECKING:
    from typing import Self

    from croupier.policy.events import Decision

__all__ = (
    "ActionRequest",
    "ActivateRequest",
    "Choice",
    "DecideRequest",
    "DecideResponse",
    "DecideSlateRequest",
    "DecideSlotsRequest",
    "ErrorBody",
    "ErrorResponse",
    "OutcomeRequest",
    "RankActionsRequest",
    "RankResponse",
    "Receipt",
    "SlateMember",
    "SlateResponse",
    "SlotsResponse",
    "openapi_document",
)


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


# The OpenAPI document is made from them.
DecideRequest.__doc__ = DecisionRequest.__doc__
RankActionsRequest.__doc__ = RankRequest.__doc__
DecideSlotsRequest.__doc__ = SlotsRequest.__doc__
DecideSlateRequest.__doc__ = SlateRequest.__doc__


class DecideResponse(msgspec.Struct, frozen=True, kw_only=True):
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
    """

    decision_id: str
    loop: str
    generation: int
    action: str
    index: int
    propensity: float
    pmf: list[float]


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
    """

    decision_id: str
    loop: str
    generation: int
    ranking: list[str]
    drawn: list[Choice]


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
    """

    decision_id: str
    loop: str
    generation: int
    slots: list[Choice]


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
    """

    decision_id: str
    loop: str
    generation: int
    slate: list[SlateMember]
    inclusion: list[float]


class OutcomeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
        Further named rewards.
    """

    decision_id: str
    reward: float
    outcome_id: str | None = None
    slot: str | None = None
    guardrails: dict[str, float] = {}


class ActivateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Says that a deferred decision was really shown."""

    decision_id: str


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """How many outcomes or activations were logged."""

    accepted: int


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """What was wrong: a code for programs, a message for people, and the field it is about."""

    code: str
    message: str
    target: str | None = None


class ErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Envelope of every error."""

    error: ErrorBody


_ROUTES: tuple[tuple[str, str, Any, Any], ...] = (
    ("decide", "Choose an action", DecideRequest, DecideResponse),
    ("rank", "Put actions in an order", RankActionsRequest, RankResponse),
    ("slots", "Choose an action for every slot", DecideSlotsRequest, SlotsResponse),
    ("slate", "Choose a set of actions", DecideSlateRequest, SlateResponse),
    (
        "reward",
        "Report one outcome or a list of them",
        OutcomeRequest | list[OutcomeRequest],
        Receipt,
    ),
    ("activate", "Report that a deferred decision was shown", ActivateRequest, Receipt),
)
_ERRORS = {
    "400": "The request is not valid; target names the field",
    "401": "No known API key",
    "403": "The API key is for other loops",
    "404": "No such loop",
    "413": "The body is too large",
    "503": "The event log can't accept the record; nothing was recorded",
}


def openapi_document() -> dict[str, Any]:
    """Describe the API as an OpenAPI 3.1 document."""
    types = [request for _, _, request, _ in _ROUTES] + [answer for *_, answer in _ROUTES]
    schemas, components = msgspec.json.schema_components(
        [*types, ErrorResponse], ref_template="#/components/schemas/{name}"
    )
    count = len(_ROUTES)
    requests, answers, error = schemas[:count], schemas[count : 2 * count], schemas[-1]
    errors: dict[str, Any] = {
        status: {"description": text, "content": {"application/json": {"schema": error}}}
        for status, text in _ERRORS.items()
    }
    paths: dict[str, Any] = {
        f"/v1/loops/{{loop}}/{name}": {
            "post": {
                "operationId": name,
                "summary": summary,
                "parameters": [_LOOP_PARAMETER],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": request}},
                },
                "responses": {
                    "200": {
                        "description": "Done",
                        "content": {"application/json": {"schema": answer}},
                    },
                    **errors,
                },
            }
        }
        for (name, summary, _, _), request, answer in zip(_ROUTES, requests, answers, strict=True)
    }
    for path, summary in _PROBES.items():
        paths[path] = {"get": {"summary": summary, "responses": {"200": {"description": "Fine"}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Croupier", "version": __version__},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SECURITY},
        "security": [{}, {"bearer": []}, {"key": []}],
    }


_LOOP_PARAMETER = {
    "name": "loop",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "maxLength": MAX_ID_LENGTH},
}
_PROBES = {
    "/healthz": "Is the process alive?",
    "/readyz": "Can it decide and log?",
    "/metrics": "Prometheus metrics",
    "/openapi.json": "This document",
}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}
