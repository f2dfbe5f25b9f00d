"""Refusals: how a request that can't be answered ends, in a status and an error body."""

from __future__ import annotations

import asyncio
import logging
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from croupier.policy.errors import InvalidInputError, LogUnavailableError
from croupier.service.api import ErrorBody, ErrorResponse
from croupier.service.personalizer import KEY_HEADER, error_code, translated

if TYPE_CHECKING:
    from croupier.service.personalizer import PersonalizerCall

__all__ = ("Refusal", "decode", "personalizer_refusal", "refusal_for")

_log = logging.getLogger(__name__)

_LONGEST_MESSAGE = 500
_LONGEST_TARGET = 300
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
_HEADERS = {
    401: ((b"www-authenticate", b"Bearer"),),
    405: ((b"allow", b"POST"),),
    503: ((b"retry-after", b"1"),),
}
_PERSONALIZER_HEADERS = {
    **_HEADERS,
    401: ((b"www-authenticate", b'ApiKey name="%s"' % KEY_HEADER.encode()),),
}
_PLACED = re.compile(r"(?s)(.*) - at `\$\.?(.*)`")
_NAMED_FIELD = re.compile(r"(?s)Object (?:contains unknown|missing required) field `(.*)`")


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """Ends a request with a status and an error body."""

    def __init__(
        self, status: int, message: str, *, target: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = _HEADERS.get(status, ())
        self.code = code or _CODES.get(status, "InvalidRequest")
        # Both may quote what the caller sent, which may be as long as a body.
        self.message = _shortened(message, _LONGEST_MESSAGE)
        self.target = None if target is None else _shortened(target, _LONGEST_TARGET)

    def body(self) -> bytes:
        """The body of the answer."""
        error = ErrorBody(code=self.code, message=self.message, target=self.target)
        return msgspec.json.encode(ErrorResponse(error=error))

    def response(self, *, close: bool = False) -> bytes:
        """The whole answer, for where there is no application to give it.

        Parameters
        ----------
        close
            Whether to say that the connection ends with it.
        """
        body = self.body()
        headers = [*self.headers, (b"content-type", b"application/json")]
        headers.append((b"content-length", b"%d" % len(body)))
        if close:
            headers.append((b"connection", b"close"))
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        reason = HTTPStatus(self.status).phrase.encode()
        return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (self.status, reason, lines, body)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def refusal_for(error: BaseException, route: str) -> Refusal:
    """The answer to a request that ended in an exception."""
    match error:
        case Refusal():
            return error
        case InvalidInputError():
            return Refusal(400, str(error), target=error.field)
        case LogUnavailableError():
            return Refusal(503, str(error))
        case asyncio.CancelledError():
            # Only a shutdown that takes too long cancels. The record may be on its way to the log:
            # to ask again under the same decision_id or outcome_id does no harm.
            return Refusal(503, "the service is stopping, ask again", code="Stopping")
        case _:
            _log.error("%s failed", route, exc_info=error)
            return Refusal(500, "an error of ours, see the service's log")


def personalizer_refusal(error: BaseException, call: PersonalizerCall | None) -> Refusal:
    """The same in Personalizer's words."""
    if isinstance(error, InvalidInputError):
        error = translated(error)
    route = "personalizer" if call is None else f"personalizer/{call.operation}"
    refusal = refusal_for(error, route)
    refusal.code = error_code(call, refusal.status, refusal.target) or refusal.code
    refusal.headers = _PERSONALIZER_HEADERS.get(refusal.status, ())
    return refusal


def decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Decode a body.

    Raises
    ------
    Refusal
        Naming the field and what was expected.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _refusal_of(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"expected a JSON body: {error}", target="body") from error


def _refusal_of(error: msgspec.ValidationError) -> Refusal:
    """Name the field: msgspec's messages end in the path of the value, ``- at `$.a[0]` ``."""
    placed = _PLACED.fullmatch(str(error))
    message, target = placed.groups() if placed else (str(error), "")
    # A field that is missing or too many is named in the message, and the path ends above it.
    if named := _NAMED_FIELD.fullmatch(message):
        target = f"{target}.{named[1]}" if target else named[1]
    target = target or "body"
    return Refusal(400, f"{target}: {message}", target=target)
