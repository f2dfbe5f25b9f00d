"""What a JSON value has to keep to so that the event log can hold it and everybody can read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from croupier.policy.encoding import MAX_DEPTH
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("check_json",)

_SMALLEST, _LARGEST = -(2**63), 2**64 - 1


def check_json(field: str, value: Any, *, depth: int = 0) -> None:
    """Check that a value can be encoded, and decoded again by code with less stack to spare.

    Raises
    ------
    InvalidInputError
        Naming the place below `field` that is nested deeper than features may be, is a number that
        JSON parsers don't share, or is not valid Unicode.
    """
    if depth > MAX_DEPTH:
        raise InvalidInputError(field, f"expected at most {MAX_DEPTH} levels of nesting")
    if isinstance(value, str):
        _check_unicode(field, value)
    elif isinstance(value, int):
        if not _SMALLEST <= value <= _LARGEST:
            raise InvalidInputError(field, "expected an integer of at most 64 bits")
    elif isinstance(value, dict | list):
        for place, below in _items(field, value):
            check_json(place, below, depth=depth + 1)


def _items(field: str, value: dict[str, Any] | list[Any]) -> Iterable[tuple[str, Any]]:
    if isinstance(value, list):
        for position, item in enumerate(value):
            yield f"{field}[{position}]", item
        return
    for key, item in value.items():
        _check_unicode(field, key)
        yield f"{field}.{key}", item


def _check_unicode(field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(field, f"expected valid Unicode: {error.reason}") from error
