"""The control plane's HTTP application: routes, bodies and errors as Personalizer's reference."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from croupier.control.contracts import (
    EvaluationContract,
    PolicyContract,
    PolicyReference,
    ServiceConfiguration,
)
from croupier.offline.tracking import RegistryError
from croupier.policy.errors import (
    ConfigError,
    CroupierError,
    InvalidInputError,
    LogUnavailableError,
)
from croupier.service.control import BY_HEADER, LOOP_HEADER
from croupier.service.personalizer import PREFIX, VERSIONS, error_code
from croupier.service.refusals import Refusal, decode, refusal_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from croupier.control.evaluations import Evaluations
    from croupier.control.plane import Plane

    _T = TypeVar("_T")

__all__ = ("control_application",)

_BYTES = "application/octet-stream"
_INVALID = {
    "configurations/service": "InvalidServiceConfiguration",
    "configurations/policy": "InvalidPolicyConfiguration",
    "configurations/applyFromEvaluation": "InvalidRequest",
    "evaluations": "InvalidEvaluationContract",
    "model": "InvalidModelImportFormat",
    "logs/interactions": "InvalidRequest",
    "logs/observations": "InvalidRequest",
}


def control_application(plane: Plane, evaluations: Evaluations, loops: list[str]) -> Starlette:
    """The application that the scorer's process hands requests on to.

    Who asks was found out there: the loop and the name of the key stand in headers.

    Parameters
    ----------
    plane, evaluations
        What it is a door to.
    loops
        Names of all loops.
    """
    return _Routes(plane, evaluations, loops).application()


class _Routes:
    def __init__(self, plane: Plane, evaluations: Evaluations, loops: list[str]) -> None:
        self._plane = plane
        self._evaluations = evaluations
        self._loops = frozenset(loops)
        self._decoders = {
            kind: msgspec.json.Decoder(kind)
            for kind in (ServiceConfiguration, PolicyContract, EvaluationContract, PolicyReference)
        }

    def application(self) -> Starlette:
        by_path: dict[str, dict[str, Callable[[Request], Any]]] = {
            "configurations/service": {
                "GET": self._get_service,
                "PUT": self._put_service,
            },
            "configurations/policy": {
                "GET": self._get_policy,
                "PUT": self._put_policy,
                "DELETE": self._delete_policy,
            },
            "configurations/applyFromEvaluation": {"POST": self._apply},
            "model": {
                "GET": self._get_model,
                "PUT": self._put_model,
                "DELETE": self._delete_model,
            },
            "model/properties": {"GET": self._get_model_properties},
            "logs": {"DELETE": self._delete_logs},
            "logs/properties": {"GET": self._get_logs_properties},
            "logs/interactions": {"POST": self._post_interactions},
            "logs/observations": {"POST": self._post_observations},
            "evaluations": {"GET": self._list_evaluations, "POST": self._create_evaluation},
            "evaluations/{evaluation}": {
                "GET": self._get_evaluation,
                "DELETE": self._delete_evaluation,
            },
        }
        routes = [
            Route(f"{PREFIX}{version}/{path}", partial(_answered, path, handlers), methods=_METHODS)
            for version in VERSIONS
            for path, handlers in by_path.items()
        ]
        application = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
        application.router.redirect_slashes = False
        return application

    async def _get_service(self, request: Request) -> Response:
        return _json(await _aside(self._plane.service_configuration, self._loop(request)))

    async def _put_service(self, request: Request) -> Response:
        asked = await self._body(request, ServiceConfiguration)
        update = self._plane.update_service_configuration
        return _json(await _aside(update, self._loop(request), asked, _by(request)))

    async def _get_policy(self, request: Request) -> Response:
        return _json(await _aside(self._plane.policy, self._loop(request)))

    async def _put_policy(self, request: Request) -> Response:
        asked = await self._body(request, PolicyContract)
        update = self._plane.update_policy
        return _json(await _aside(update, self._loop(request), asked, _by(request)))

    async def _delete_policy(self, request: Request) -> Response:
        return _json(await _aside(self._plane.reset_policy, self._loop(request), _by(request)))

    async def _apply(self, request: Request) -> Response:
        asked = await self._body(request, PolicyReference)
        await _aside(self._evaluations.apply, self._loop(request), asked, _by(request))
        return Response(status_code=204)

    async def _get_model(self, request: Request) -> Response:
        content = await _aside(self._plane.model, self._loop(request))
        return Response(content, media_type=_BYTES)

    async def _put_model(self, request: Request) -> Response:
        content = await request.body()
        await _aside(self._plane.put_model, self._loop(request), content, _by(request))
        return Response(status_code=204)

    async def _delete_model(self, request: Request) -> Response:
        await _aside(self._plane.reset_model, self._loop(request), _by(request))
        return Response(status_code=204)

    async def _get_model_properties(self, request: Request) -> Response:
        return _json(await _aside(self._plane.model_properties, self._loop(request)))

    async def _delete_logs(self, request: Request) -> Response:
        await _aside(self._plane.delete_logs, self._loop(request))
        return Response(status_code=204)

    async def _get_logs_properties(self, request: Request) -> Response:
        return _json(await _aside(self._plane.logs_properties, self._loop(request)))

    async def _post_interactions(self, request: Request) -> Response:
        body = await request.body()
        await _aside(self._plane.import_interactions, self._loop(request), body)
        return Response(status_code=204)

    async def _post_observations(self, request: Request) -> Response:
        body = await request.body()
        await _aside(self._plane.import_observations, self._loop(request), body)
        return Response(status_code=204)

    async def _list_evaluations(self, request: Request) -> Response:
        return _json(await _aside(self._evaluations.of, self._loop(request)))

    async def _create_evaluation(self, request: Request) -> Response:
        asked = await self._body(request, EvaluationContract)
        create = self._evaluations.create
        made = await _aside(create, self._loop(request), asked, _by(request))
        # Relative to the endpoint, whatever the application calls that.
        location = f"{request.scope['path']}/{made.id}"
        return _json(made, status=201, headers={"location": location})

    async def _get_evaluation(self, request: Request) -> Response:
        get, key = self._evaluations.get, request.path_params["evaluation"]
        return _json(await _aside(get, self._loop(request), key))

    async def _delete_evaluation(self, request: Request) -> Response:
        delete, key = self._evaluations.delete, request.path_params["evaluation"]
        await _aside(delete, self._loop(request), key)
        return Response(status_code=204)

    def _loop(self, request: Request) -> str:
        loop = request.headers.get(LOOP_HEADER, "")
        if loop not in self._loops:
            raise Refusal(404, f"no loop {loop!r}", target="loop")
        return loop

    async def _body(self, request: Request, kind: type[_T]) -> _T:
        body = await request.body()
        asked: _T = decode(self._decoders[kind], body)  # type: ignore[index]
        return asked


_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


async def _answered(
    path: str, handlers: dict[str, Callable[[Request], Any]], request: Request
) -> Response:
    """Answer a request, or say why not in the envelope."""
    method = "GET" if request.method == "HEAD" else request.method
    handler = handlers.get(method)
    if handler is None:
        refusal = Refusal(405, f"expected {' or '.join(handlers)}, got {request.method}")
        return _refused(refusal, {"allow": ", ".join(handlers)})
    try:
        response: Response = await handler(request)
    except ClientDisconnect:
        # Half a request is none, and nobody waits for more.
        return Response(status_code=400)
    except Exception as error:  # noqa: BLE001 - each gets its answer
        return _refused(_refusal(error, path))
    return response


def _refusal(error: Exception, path: str) -> Refusal:
    match error:
        case ConfigError():
            return Refusal(500, str(error), target=error.field, code="UpdateConfigurationFailed")
        case InvalidInputError():
            refusal = Refusal(400, str(error), target=error.field)
            refusal.code = _INVALID.get(path, "BadRequest")
            return refusal
        case RegistryError():
            return Refusal(503, str(error), code="RegistryUnavailable")
        case Refusal():
            # A code of this refusal's own is what the reference has for it.
            refusal = error
        case CroupierError() if not isinstance(error, LogUnavailableError):
            return Refusal(500, str(error), code="InternalServerError")
        case _:
            refusal = refusal_for(error, path)
    if refusal.code in _PLAIN:
        invalid = refusal.status == 400 and refusal.target != "body"
        own = _INVALID.get(path) if invalid else None
        refusal.code = own or error_code(None, refusal.status, refusal.target) or refusal.code
    return refusal


# Codes that a refusal has by its status, where nothing better is known.
_PLAIN = frozenset({"InvalidRequest", "NotFound", "InternalError", "BodyTooLarge"})


def _refused(refusal: Refusal, headers: dict[str, str] | None = None) -> Response:
    own = {name.decode(): value.decode() for name, value in refusal.headers}
    return Response(
        refusal.body(),
        refusal.status,
        headers=own | (headers or {}),
        media_type="application/json",
    )


def _json(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(value), status, headers=headers, media_type="application/json"
    )


def _by(request: Request) -> str:
    return unquote(request.headers.get(BY_HEADER, ""))


async def _aside(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call what takes a while without holding up other requests."""
    return await asyncio.to_thread(function, *arguments)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = Refusal(error.status_code, f"no {request.method} {request.scope['path']}")
    refusal.code = error_code(None, error.status_code, None) or refusal.code
    return _refused(refusal)
