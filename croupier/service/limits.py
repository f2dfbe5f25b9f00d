"""Limits on what requests may hold, beyond what is wrong in them whatever their size."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from croupier.policy.errors import InvalidInputError
from croupier.policy.slots import SlotsRequest
from croupier.service.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

    from croupier.policy.decision import DecisionRequest
    from croupier.policy.events import Features

__all__ = ("SMALL_BODY_BYTES", "BodyRoom", "FeatureLimits")

SMALL_BODY_BYTES = 65_536
"""Bodies of up to this size need no room of their own."""
_TAKEN = "croupier.body_room"


class FeatureLimits:
    """How many features a request and each of its objects may have.

    The shortest value there is takes two bytes of JSON, so that small bodies can't hold too many
    and need not be looked at.

    Parameters
    ----------
    most, most_per_object
        Values in a request; in the features of its context, of an action or of a slot, or in its
        audit attributes. Nested values count, and so do the objects and lists that nest them.
    """

    def __init__(self, most: int, most_per_object: int) -> None:
        self._most = most
        self._most_per_object = most_per_object
        self.harmless_bytes = 2 * min(most, most_per_object)

    def check(self, request: DecisionRequest | SlotsRequest) -> None:
        """Check a request; needless for one whose body had at most `harmless_bytes`.

        Raises
        ------
        InvalidInputError
            Naming the object that has too many, or the request's body.
        """
        total = 0
        for field, features in _objects(request):
            count = _values_in(features, self._most_per_object)
            if count > self._most_per_object:
                raise InvalidInputError(
                    field,
                    f"expected at most {self._most_per_object:,} values, nested ones included",
                )
            total += count
        if total > self._most:
            raise InvalidInputError(
                "body",
                f"expected at most {self._most:,} values in all features and audit attributes, "
                f"got {total:,}",
            )


def _objects(request: DecisionRequest | SlotsRequest) -> Iterator[tuple[str, Features]]:
    yield "context", request.context
    yield "audit", request.audit
    for position, action in enumerate(request.actions):
        yield f"actions[{position}].features", action.features
    if isinstance(request, SlotsRequest):
        for position, slot in enumerate(request.slots):
            yield f"slots[{position}].features", slot.features


def _values_in(features: Features, enough: int) -> int:
    """Number of values in an object and below; stops counting some way past `enough`."""
    count = 0
    below: list[Any] = [features]
    while below and count <= enough:
        values = list(
            chain.from_iterable(each.values() if isinstance(each, dict) else each for each in below)
        )
        count += len(values)
        below = [each for each in values if isinstance(each, dict | list)]
    return count


class BodyRoom:
    """Room for the large bodies of requests in progress.

    What is made of a body takes many times its size, and is kept until the log has it. Small ones
    are bounded by the number of connections; those over 64 KiB share this room, and a request that
    finds it full is refused instead of making the process grow.

    Parameters
    ----------
    size
        In bytes of bodies; `taken` of them are.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.taken = 0

    def enter(self, scope: MutableMapping[str, Any], expected: int) -> None:
        """Take room for a request's body of the expected length, if it is a large one.

        Raises
        ------
        Refusal
            If there is no room.
        """
        if expected <= SMALL_BODY_BYTES:
            return
        if self.taken + expected > self._size:
            raise Refusal(
                503,
                f"expected at most {self._size} bytes of large bodies at a time",
                code="Overloaded",
            )
        self.taken += expected
        scope[_TAKEN] = scope.get(_TAKEN, 0) + expected

    def leave(self, scope: MutableMapping[str, Any]) -> None:
        """Give back what the request took, if it took anything."""
        self.taken -= scope.pop(_TAKEN, 0)
