"""The OpenAPI document of the HTTP API, made from the types of its requests and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from croupier import __version__
from croupier.policy.events import MAX_ID_LENGTH
from croupier.service import personalizer
from croupier.service.api import (
    ActivateRequest,
    DecideRequest,
    DecideResponse,
    DecideSlateRequest,
    DecideSlotsRequest,
    ErrorResponse,
    OutcomeRequest,
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
    for path, summary in _PROBES.items():
        paths[path] = {"get": {"summary": summary, "responses": {"200": {"description": "Fine"}}}}
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
        schema = {"type": "string", "maxLength": MAX_ID_LENGTH}
        operation["parameters"] = [
            {"name": route.parameter, "in": "path", "required": True, "schema": schema}
        ]
    if route.request is not None:
        content = _json(of_type[repr(route.request)])
        operation["requestBody"] = {"required": True, "content": content}
    if route.answer is not None:
        operation["responses"][str(route.status)]["content"] = _json(of_type[repr(route.answer)])
    return operation


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


_ERRORS = {
    "400": "The request is not valid; target names the field",
    "401": "No known API key",
    "403": "The API key is for other loops, or for several where one is meant",
    "404": "No such loop",
    "413": "The body is too large",
    "503": "The event log can't accept the record; nothing was recorded",
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
    "personalizer": {"type": "apiKey", "in": "header", "name": personalizer.KEY_HEADER},
}
