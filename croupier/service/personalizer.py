"""Azure AI Personalizer's API: its requests and answers, and what they are in Croupier's terms.

An application that used Personalizer gives its unmodified SDK another endpoint. The names and the
status codes are those of versions v1.0 and v1.1-preview.3 of Personalizer's public reference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec

from croupier.policy.decision import check_id, check_reward
from croupier.policy.encoding import MAX_DEPTH
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action, Features
from croupier.policy.ranking import RankRequest
from croupier.policy.slots import SLOT, Slot, SlotsRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

    from croupier.policy.events import Decision
    from croupier.policy.loop import LoopConfig
    from croupier.policy.ranking import Ranking
    from croupier.service.config import KeyScope

__all__ = (
    "KEY_HEADER",
    "MULTISLOT_VERSION",
    "PREFIX",
    "VERSIONS",
    "FilledSlot",
    "MultiSlotRankRequest",
    "MultiSlotRankResponse",
    "MultiSlotRewardRequest",
    "PersonalizerAction",
    "PersonalizerCall",
    "PersonalizerRankRequest",
    "PersonalizerRankResponse",
    "PersonalizerRewardRequest",
    "PersonalizerSlot",
    "RankedAction",
    "SlotReward",
    "Verb",
    "error_code",
    "find_call",
    "merge_features",
    "translated",
)

PREFIX = "/personalizer/"
KEY_HEADER = "Ocp-Apim-Subscription-Key"

MULTISLOT_VERSION = "v1.1-preview.3"
VERSIONS = ("v1.0", MULTISLOT_VERSION)

Verb: TypeAlias = Literal["rank", "reward", "activate"]

_CODES = {
    # Azure's gateway, which looked at the key, gave the status for a code.
    401: "401",
    403: "InvalidApiAccess",
    404: "ResourceNotFound",
    413: "PayloadSizeExceeded",
    500: "InternalServerError",
}
_INVALID: dict[Verb, str] = {
    "rank": "InvalidRankRequest",
    "reward": "InvalidRewardRequest",
    "activate": "InvalidEventIdToActivate",
}
# Personalizer left the name to applications, and they can't be asked to change it.
_CONTEXT_SLOT = f"contextFeatures.{SLOT}"
_NAMES = (
    (re.compile(r"context(?=$|[.\[])"), "contextFeatures"),
    (re.compile(r"excluded(?=$|\[)"), "excludedActions"),
    (re.compile(r"decision_id$"), "eventId"),
    (re.compile(r"(slots\[\d+\]\.)excluded(?=$|\[)"), r"\1excludedActions"),
    (re.compile(r"(slots\[\d+\]\.)baseline$"), r"\1baselineAction"),
)


class PersonalizerAction(msgspec.Struct, frozen=True, kw_only=True):
    """An action of a rank request.

    Attributes
    ----------
    id
        Unique within the request, 1 to 256 characters.
    features
        Objects that are merged into one, see :func:`merge_features`; may be empty.
    """

    id: str
    features: list[Features]


class PersonalizerRankRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Asks for one of several actions.

    Attributes
    ----------
    actions
        1 to 10,000; Personalizer took 50. The first one that is not excluded is the baseline.
    context_features
        Objects that are merged into one context, see :func:`merge_features`.
    excluded_actions
        Ids of actions that must not be chosen. One that names no action is passed over.
    event_id
        1 to 256 characters; made up if left out.
    defer_activation
        True if the event counts only once it is activated.
    """

    actions: list[PersonalizerAction]
    context_features: list[Features] | None = None
    excluded_actions: list[str] | None = None
    event_id: str | None = None
    defer_activation: bool | None = None

    def to_request(self) -> RankRequest:
        """The same request in Croupier's terms.

        Raises
        ------
        InvalidInputError
            If features can't be merged.
        """
        known = {action.id for action in self.actions}
        return RankRequest(
            actions=_actions(self.actions),
            context=merge_features("contextFeatures", self.context_features or ()),
            decision_id=self.event_id,
            excluded=[each for each in self.excluded_actions or () if each in known],
            deferred=bool(self.defer_activation),
        )


class RankedAction(msgspec.Struct, frozen=True, kw_only=True):
    """An action and the probability with which it was to be chosen."""

    id: str
    probability: float


class PersonalizerRankResponse(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer to a rank request.

    Attributes
    ----------
    ranking
        All actions. Excluded ones keep their place and have probability 0.
    event_id
        To be given back with the reward.
    reward_action_id
        Id of the chosen action.
    """

    ranking: list[RankedAction]
    event_id: str
    reward_action_id: str

    @classmethod
    def of(cls, ranking: Ranking) -> Self:
        """What the caller is told of a ranking."""
        decision = ranking.decisions[0]
        return cls(
            ranking=[
                RankedAction(id=decision.actions[index].id, probability=decision.pmf[index])
                for index in ranking.order
            ],
            event_id=decision.decision_id,
            reward_action_id=decision.actions[decision.chosen].id,
        )


class PersonalizerSlot(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A slot of a multi-slot rank request.

    Attributes
    ----------
    id
        Unique within the request, 1 to 256 characters.
    baseline_action
        Id of the action that the application would put here by itself.
    features
        Objects that are merged into one, see :func:`merge_features`.
    excluded_actions
        Ids of actions that must not be put here.
    """

    id: str
    baseline_action: str
    features: list[Features] | None = None
    excluded_actions: list[str] | None = None


class MultiSlotRankRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Asks for an action for every slot, none of them twice.

    Attributes
    ----------
    actions, context_features, event_id, defer_activation
        As in :class:`PersonalizerRankRequest`. Where a key of the context is called ``slot``, it is
        logged as ``contextFeatures.slot``: slots have taken the other name.
    slots
        In the order in which they are filled, at most 100 and not more than actions.
    """

    actions: list[PersonalizerAction]
    slots: list[PersonalizerSlot]
    context_features: list[Features] | None = None
    event_id: str | None = None
    defer_activation: bool | None = None

    def to_request(self) -> SlotsRequest:
        """The same request in Croupier's terms.

        Raises
        ------
        InvalidInputError
            If features can't be merged.
        """
        context = [
            {_CONTEXT_SLOT if key == SLOT else key: value for key, value in each.items()}
            for each in self.context_features or ()
        ]
        return SlotsRequest(
            actions=_actions(self.actions),
            slots=[
                Slot(
                    id=slot.id,
                    features=merge_features(f"slots[{position}].features", slot.features or ()),
                    excluded=slot.excluded_actions or [],
                    baseline=slot.baseline_action,
                )
                for position, slot in enumerate(self.slots)
            ],
            context=merge_features("contextFeatures", context),
            decision_id=self.event_id,
            deferred=bool(self.defer_activation),
        )


class FilledSlot(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A slot and the id of the action that it got."""

    id: str
    reward_action_id: str


class MultiSlotRankResponse(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer to a multi-slot rank request.

    Attributes
    ----------
    slots
        In the order of the request.
    event_id
        To be given back with the rewards.
    """

    slots: list[FilledSlot]
    event_id: str

    @classmethod
    def of(cls, decisions: Sequence[Decision]) -> Self:
        """What the caller is told of the decisions of all slots."""
        return cls(
            slots=[
                FilledSlot(
                    id=decision.slot or "", reward_action_id=decision.actions[decision.chosen].id
                )
                for decision in decisions
            ],
            event_id=decisions[0].decision_id,
        )


class PersonalizerRewardRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The reward of an event, in the loop's range."""

    value: float

    def rewards(self, config: LoopConfig) -> list[tuple[str | None, float]]:
        """Slot and reward of every outcome in it: of the only one, and it has no slot.

        Raises
        ------
        InvalidInputError
            If the reward is out of the loop's range.
        """
        check_reward("value", self.value, config.reward_min, config.reward_max)
        return [(None, self.value)]


class SlotReward(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The reward of one slot, in the loop's range."""

    slot_id: str
    value: float


class MultiSlotRewardRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The rewards of some or all slots of an event."""

    reward: list[SlotReward]

    def rewards(self, config: LoopConfig) -> list[tuple[str | None, float]]:
        """Slot and reward of every outcome in it.

        Raises
        ------
        InvalidInputError
            If a reward is out of the loop's range, or a slot's id is none.
        """
        for position, each in enumerate(self.reward):
            where = f"reward[{position}]."
            check_id(f"{where}slotId", each.slot_id)
            check_reward(f"{where}value", each.value, config.reward_min, config.reward_max)
        return [(each.slot_id, each.value) for each in self.reward]


@dataclass(frozen=True, slots=True)
class PersonalizerCall:
    """What a path asks for.

    Attributes
    ----------
    verb
        What to do.
    multislot
        Whether it is about events with slots.
    event_id
        From the path; empty for a rank request, which has it in its body if at all.
    """

    verb: Verb
    multislot: bool = False
    event_id: str = ""

    @property
    def operation(self) -> str:
        """Its name, such as ``multislot/rank``."""
        return f"multislot/{self.verb}" if self.multislot else self.verb

    @property
    def scope(self) -> KeyScope:
        """The scope that a key needs for it."""
        return "decide" if self.verb == "rank" else "reward"

    @property
    def status(self) -> int:
        """Of an answer that is no error; 204 has no body."""
        return 201 if self.verb == "rank" else 204


def find_call(raw_path: bytes) -> PersonalizerCall | None:
    """Read a path, as it was sent; None if there is nothing at it.

    An event id may hold whatever can be percent-encoded, a slash too. An endpoint that ends in a
    slash, as Azure's do, has some SDKs begin the path with two.
    """
    segments = [
        unquote_to_bytes(segment).decode(errors="surrogateescape")
        for segment in raw_path.lstrip(b"/").split(b"/")
    ]
    if len(segments) < 3 or segments[0] != "personalizer" or segments[1] not in VERSIONS:
        return None
    _, version, *rest = segments
    multislot = version == MULTISLOT_VERSION and rest[:1] == ["multislot"]
    match rest[1:] if multislot else rest:
        case ["rank"]:
            return PersonalizerCall("rank", multislot)
        case ["events", event_id, ("reward" | "activate") as verb]:
            return PersonalizerCall(
                "reward" if verb == "reward" else "activate", multislot, event_id
            )
    return None


def merge_features(field: str, objects: Iterable[Features]) -> Features:
    """Merge a list of objects into one, so that nothing in them is lost.

    Where several objects have a key, objects under it are merged in turn. Any other values become
    one list, in their order: those of a list are taken into it one by one, and nulls, which say
    nothing, are left out.

    Parameters
    ----------
    field
        Where the list stands, for errors.
    objects
        In the order of the request.

    Raises
    ------
    InvalidInputError
        If objects that have to be merged are nested deeper than features may be.
    """
    return _merged((field,), objects)


def translated(error: InvalidInputError) -> InvalidInputError:
    """The same error with its field as Personalizer calls it."""
    for native, name in _NAMES:
        if native.match(error.field):
            return InvalidInputError(native.sub(name, error.field, count=1), error.expected)
    return error


def error_code(call: PersonalizerCall | None, status: int, target: str | None) -> str | None:
    """Personalizer's code for a refusal; None if it has none of the kind.

    Parameters
    ----------
    call
        What was refused; None if the path asks for nothing.
    status, target
        Of the refusal; the target is ``body`` if nothing could be read in it.
    """
    if status == 400:
        return "BadRequest" if call is None or target == "body" else _INVALID[call.verb]
    return _CODES.get(status)


def _actions(actions: Sequence[PersonalizerAction]) -> list[Action]:
    return [
        Action(action.id, merge_features(f"actions[{position}].features", action.features))
        for position, action in enumerate(actions)
    ]


def _merged(path: tuple[str, ...], objects: Iterable[Features]) -> Features:
    # The path is put together for an error alone: its keys may be as long as a body.
    if len(path) > MAX_DEPTH:
        raise InvalidInputError(".".join(path), f"expected at most {MAX_DEPTH} levels of nesting")
    found: dict[str, list[Any]] = {}
    for each in objects:
        for key, value in each.items():
            found.setdefault(key, []).append(value)
    return {
        key: values[0] if len(values) == 1 else _together((*path, key), values)
        for key, values in found.items()
    }


def _together(path: tuple[str, ...], values: Iterable[Any]) -> Any:
    """Several values of one key as one."""
    said = [value for value in values if value is not None]
    if len(said) <= 1:
        return said[0] if said else None
    if all(isinstance(value, dict) for value in said):
        return _merged(path, said)
    together: list[Any] = []
    for value in said:
        if isinstance(value, list):
            together += value
        else:
            together.append(value)
    return together
