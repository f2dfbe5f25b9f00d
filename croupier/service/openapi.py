"""The OpenAPI document of the HTTP API, made from the types of its requests and answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from croupier import __version__
from croupier.policy.decision import MAX_ACTIONS, MAX_PLACES
from croupier.policy.events import MAX_ID_LENGTH, MAX_REASON_LENGTH
from croupier.service import personalizer
from croupier.service.api import (
    AcknowledgeRequest,
    ActivateRequest,
    DecideRequest,
    DecideResponse,
    DecideSlateRequest,
    DecideSlotsRequest,
    ErrorResponse,
    JudgeRequest,
    OutcomeRequest,
    OverrideRequest,
    RankActionsRequest,
    RankResponse,
    Receipt,
    SlateResponse,
    SlotsResponse,
)
from croupier.service.personalizer import MULTISLOT_VERSION, PREFIX, VERSIONS

__all__ = ("openapi_document",)


@dataclass(frozen=True, slots=True)
class _Described:
    """One route.

    Attributes
    ----------
    path, parameter
        The path, and the name of the parameter in it if there is one.
    operation, summary
        What it is called, and what it does.
    request, answer
        Types of the bodies; None if there is none.
    status
        Of an answer that is no error.
    security
        Ways to show a key, by name.
    """

    path: str
    parameter: str | None
    operation: str
    summary: str
    request: Any
    answer: Any
    status: int = 200
    security: tuple[str, ...] = ("bearer", "key")


@cache
def openapi_document() -> dict[str, Any]:
    """Describe the API as an OpenAPI 3.1 document."""
    routes = [*_NATIVE, *_personalizer_routes()]
    types = [each for route in routes for each in (route.request, route.answer) if each is not None]
    schemas, components = msgspec.json.schema_components(
        [*types, ErrorResponse], ref_template="#/components/schemas/{name}"
    )
    of_type = {repr(each): schema for each, schema in zip(types, schemas, strict=False)}
    paths: dict[str, Any] = {
        route.path: {"post": _operation(route, of_type, schemas[-1])} for route in routes
    }
    for name, schema in components.items():
        _bound(name, schema)
    for path, (summary, answers) in _PROBES.items():
        responses = {
            status: {"description": text, "content": content}
            for status, (text, content) in answers.items()
        }
        paths[path] = {"get": {"summary": summary, "security": [{}], "responses": responses}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Croupier", "version": __version__},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SECURITY},
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _operation(
    route: _Described, of_type: dict[str, dict[str, Any]], error: dict[str, Any]
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "responses": {
            str(route.status): {"description": "Done"},
            **{
                status: {"description": text, "content": _json(error)}
                for status, text in _ERRORS.items()
            },
        },
        "security": [{}, *({name: []} for name in route.security)],
    }
    if route.parameter is not None:
        schema = {"type": "string", **_ID}
        operation["parameters"] = [
            {"name": route.parameter, "in": "path", "required": True, "schema": schema}
        ]
    if route.request is not None:
        content = _json(of_type[repr(route.request)])
        operation["requestBody"] = {"required": True, "content": content}
    if route.answer is not None:
        operation["responses"][str(route.status)]["content"] = _json(of_type[repr(route.answer)])
    return operation


def _bound(component: str, schema: dict[str, Any]) -> None:
    """Write the limits of a component's fields into its schema, which types alone don't say."""
    for name, field in schema.get("properties", {}).items():
        bounds = _BOUNDS.get((component, name)) or _BOUNDS.get(name)
        if bounds is not None:
            # A field that may be null has its own type among several.
            for each in field.get("anyOf", [field]):
                if each.get("type") != "null":
                    each.update(bounds)


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _native(name: str, summary: str, request: Any, answer: Any) -> _Described:
    return _Described(f"/v1/loops/{{loop}}/{name}", "loop", name, summary, request, answer)


_NATIVE = (
    _native("decide", "Choose an action", DecideRequest, DecideResponse),
    _native("rank", "Put actions in an order", RankActionsRequest, RankResponse),
    _native("slots", "Choose an action for every slot", DecideSlotsRequest, SlotsResponse),
    _native("slate", "Choose a set of actions", DecideSlateRequest, SlateResponse),
    _native(
        "reward",
        "Report one outcome or a list of them",
        OutcomeRequest | list[OutcomeRequest],
        Receipt,
    ),
    _native("activate", "Report that a deferred decision was shown", ActivateRequest, Receipt),
    _native("judge", "Report how differently two decisions may be treated", JudgeRequest, Receipt),
    _native("acknowledge", "Report that an alert was seen", AcknowledgeRequest, Receipt),
    _native("override", "Ask for another champion in spite of the gate", OverrideRequest, Receipt),
)


def _personalizer_routes() -> list[_Described]:
    """Azure AI Personalizer's, in all versions."""
    single = (
        ("rank", "Choose an action", personalizer.PersonalizerRankRequest),
        ("events/{eventId}/reward", "Report a reward", personalizer.PersonalizerRewardRequest),
        ("events/{eventId}/activate", "Report that a deferred event was shown", None),
    )
    several = (
        ("rank", "Choose an action for every slot", personalizer.MultiSlotRankRequest),
        ("events/{eventId}/reward", "Report rewards of slots", personalizer.MultiSlotRewardRequest),
        ("events/{eventId}/activate", "Report that a deferred event was shown", None),
    )
    return [
        *(
            _personalizer(version, path, summary, request, personalizer.PersonalizerRankResponse)
            for version in VERSIONS
            for path, summary, request in single
        ),
        *(
            _personalizer(
                MULTISLOT_VERSION,
                f"multislot/{path}",
                summary,
                request,
                personalizer.MultiSlotRankResponse,
            )
            for path, summary, request in several
        ),
    ]


def _personalizer(version: str, path: str, summary: str, request: Any, ranked: Any) -> _Described:
    is_rank = path.endswith("rank")
    verb = path.replace("events/{eventId}/", "").replace("/", "-")
    return _Described(
        path=f"{PREFIX}{version}/{path}",
        parameter=None if is_rank else "eventId",
        operation=f"personalizer-{version}-{verb}",
        summary=f"{summary}, as Azure AI Personalizer did",
        request=request,
        answer=ranked if is_rank else None,
        status=201 if is_rank else 204,
        security=("personalizer",),
    )


_ID = {"minLength": 1, "maxLength": MAX_ID_LENGTH}
_PLACES = {"minimum": 1, "maximum": MAX_PLACES}
_PROBABILITY = {"minimum": 0, "maximum": 1}
_PROBABILITIES = {"items": {"type": "number", **_PROBABILITY}}
_IDS = (
    "decision_id",
    "other_decision_id",
    "outcome_id",
    "judgement_id",
    "acknowledgement_id",
    "override_id",
    "alert_id",
    "by",
    "auditor",
    "id",
    "slot",
    "eventId",
    "slotId",
)
_BOUNDS: dict[str | tuple[str, str], dict[str, Any]] = {
    **dict.fromkeys(_IDS, _ID),
    "reason": {"minLength": 1, "maxLength": MAX_REASON_LENGTH},
    ("OverrideRequest", "generation"): {"minimum": 0},
    ("OverrideRequest", "champion"): {"minimum": 0},
    "actions": {"minItems": 1, "maxItems": MAX_ACTIONS},
    "slots": {"minItems": 1, "maxItems": MAX_PLACES},
    "depth": _PLACES,
    "size": _PLACES,
    **dict.fromkeys(("propensity", "probability", "distance"), _PROBABILITY),
    ("SlateMember", "inclusion"): _PROBABILITY,
    ("SlateResponse", "inclusion"): _PROBABILITIES,
    "pmf": _PROBABILITIES,
}
_ERRORS = {
    "400": "The request is not valid; target names the field",
    "401": "No known API key",
    "403": "The API key is for other loops, or for several where one is meant",
    "404": "No such loop",
    "405": "Another method than the ones that Allow names",
    "408": "The request took too long to arrive",
    "413": "The body is too large",
    "431": "The request's line and headers are too large, or too many",
    "503": "The record can't be accepted now, and nothing was; Retry-After says when to ask again",
}
_OBJECT = {"type": "object"}
_FINE = ("Fine", _json(_OBJECT))
_PROBES: dict[str, tuple[str, dict[str, tuple[str, dict[str, Any]]]]] = {
    "/healthz": ("Is the process alive?", {"200": _FINE}),
    "/readyz": ("Can it decide and log?", {"200": _FINE, "503": ("It can't", _json(_OBJECT))}),
    "/metrics": (
        "Prometheus metrics",
        {"200": ("Fine", {"text/plain": {"schema": {"type": "string"}}})},
    ),
    "/openapi.json": ("This document", {"200": _FINE}),
}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    "personalizer": {"type": "apiKey", "in": "header", "name": personalizer.KEY_HEADER},
}
