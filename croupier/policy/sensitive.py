"""Sensitive features: what no oracle may see, refused before anything is decided or learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from croupier.policy.errors import InvalidInputError
from croupier.policy.events import KeptAction
from croupier.policy.requests import SlotsRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from croupier.policy.events import Action, Features
    from croupier.policy.fairness.groups import FairnessConfig
    from croupier.policy.requests import DecisionRequest

__all__ = ("SensitiveFeatures",)

_MOST_KNOWN = 100_000
_LOOKED_AT = "_looked_at_by"
_NESTED = frozenset({dict, list, tuple})


class SensitiveFeatures:
    """Refuses requests and rows in which a sensitive attribute is a feature.

    A feature's path begins with its place, ``context``, ``slots`` or ``actions``, and goes on with
    the names that lead to it. It is refused if a sensitive name, or the parts of a sensitive path
    one after the other, are among them: ``gender`` refuses ``context.user.gender`` and
    ``context.gender.code``, and ``context.gender`` only what stands under that name in the context.
    Upper and lower case are alike. The encoder takes ``{"user.gender=f": 1}`` for the same feature
    as ``{"user": {"gender": "f"}}``, and so it is here.

    Parameters
    ----------
    config
        Of the loop.
    """

    def __init__(self, config: FairnessConfig) -> None:
        self._refused = [_pattern(each) for each in config.sensitive]
        self._allowed = [_pattern(each) for each in config.allow_as_features]
        self._forget()

    @classmethod
    def of(cls, config: FairnessConfig) -> SensitiveFeatures | None:
        """What refuses them; None if nothing is sensitive, and nothing has to be looked at."""
        return cls(config) if config.sensitive else None

    def check(self, request: DecisionRequest | SlotsRequest) -> None:
        """Look through a request's features.

        Raises
        ------
        InvalidInputError
            Naming the sensitive feature.
        """
        self._check(self._context, "context", request.context)
        if isinstance(request, SlotsRequest):
            for place, slot in enumerate(request.slots):
                self._check(self._slots, f"slots[{place}].features", slot.features)
        if self._knows_all(request.actions):
            return
        # This is all that most actions need; a call for each would cost several times as much.
        harmless = self._actions.shapes
        for place, action in enumerate(request.actions):
            features = action.features
            if tuple(features) not in harmless or not _NESTED.isdisjoint(
                map(type, features.values())
            ):
                self._check(self._actions, f"actions[{place}].features", features)
            if type(action) is KeptAction:
                action.__dict__[_LOOKED_AT] = self

    def has_any(self, context: Features, actions: Iterable[Action]) -> bool:
        """Whether a logged context, with its slot if it has one, or an action has a feature."""
        return self._found(self._context, context) is not None or any(
            self._found(self._actions, each.features) is not None for each in actions
        )

    def _knows_all(self, actions: Sequence[Action]) -> bool:
        """Whether all are of a catalogue, and have been looked through already."""
        if not actions or type(actions[0]) is not KeptAction:
            # To fail below is dear.
            return False
        try:
            return {action.__dict__[_LOOKED_AT] for action in actions} == {self}
        except (AttributeError, KeyError):
            return False

    def _check(self, place: _Place, field: str, features: Features) -> None:
        found = self._found(place, features)
        if found is not None:
            raise InvalidInputError(
                ".".join((field, *found)),
                "expected no such feature: the loop's fairness.sensitive names it; send it as an "
                "audit attribute",
            )

    def _found(self, place: _Place, features: Features) -> tuple[str, ...] | None:
        """Names that lead to a refused feature from here; None if there is none."""
        names = tuple(features)
        below = place.shapes.get(names)
        if below is None:
            refused = [name for name in names if self._refuses((*place.path, *_parts(name)))]
            if refused:
                return (refused[0],)
            below = self._learn(place, names)
        if _NESTED.isdisjoint(map(type, features.values())):
            return None
        for name, value in features.items():
            if type(value) in _NESTED:
                found = self._below(below[name], value)
                if found is not None:
                    return (name, *found)
        return None

    def _below(self, place: _Place, value: Any) -> tuple[str, ...] | None:
        if type(value) is dict:
            return self._found(place, value)
        if type(value) in _NESTED and not _NESTED.isdisjoint(map(type, value)):
            for each in value:
                found = self._below(place, each)
                if found is not None:
                    return found
        return None

    def _learn(self, place: _Place, names: tuple[str, ...]) -> dict[str, _Place]:
        """Note that nothing is wrong with these names here, and where each of them leads."""
        # Bounded: contexts may have any names.
        self._known += 1 + len(names)
        if self._known > _MOST_KNOWN:
            self._forget()
        below = {name: _Place((*place.path, *_parts(name)), {}) for name in names}
        place.shapes[names] = below
        return below

    def _forget(self) -> None:
        self._known = 0
        self._context, self._slots, self._actions = (
            _Place((each,), {}) for each in ("context", "slots", "actions")
        )

    def _refuses(self, path: tuple[str, ...]) -> bool:
        joined = f".{'.'.join(path)}."
        return any(each in joined for each in self._refused) and not any(
            each in joined for each in self._allowed
        )


class _Place(NamedTuple):
    """A place in requests: the names that lead there, and what is known of objects there.

    Attributes
    ----------
    path
        In lower case, and without values and positions.
    shapes
        By the names that an object has, in their order: where each of them leads.
    """

    path: tuple[str, ...]
    shapes: dict[tuple[str, ...], dict[str, _Place]]


def _pattern(path: str) -> str:
    return f".{path.casefold()}."


def _parts(name: str) -> list[str]:
    """What a name adds to the path: values and positions that it spells out are none of it."""
    return [part.partition("=")[0].partition("[")[0] for part in name.casefold().split(".")]
