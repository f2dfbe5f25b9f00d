"""The events that make up the log, and their one encoding.

The same bytes go to SQLite, to Kafka and into tests. An event carries the version of its layout;
:func:`decode_event` refuses a version that it does not know instead of guessing.
"""

from __future__ import annotations

import math
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

__all__ = (
    "EVENT_VERSION",
    "IMPORTED",
    "MAX_ID_LENGTH",
    "MAX_REASON_LENGTH",
    "Acknowledgement",
    "Action",
    "Activation",
    "Decision",
    "Event",
    "Features",
    "Judgement",
    "KeptAction",
    "LearningMode",
    "MixComponent",
    "Outcome",
    "Override",
    "OverrideAction",
    "Recall",
    "SessionStep",
    "Shadow",
    "decode_event",
    "encode_event",
    "event_key",
)

EVENT_VERSION = 2
_PLAIN_VERSION = 1
# What has none of a later layout's fields is written as before, for readers of any version.
_TEXT = "_text"
MAX_ID_LENGTH = 256
MAX_REASON_LENGTH = 500

IMPORTED = "imported"
"""Source of a decision that another system made; no generation of ours is accountable for it."""

Features: TypeAlias = dict[str, Any]
"""A JSON object of numbers, strings, booleans, nulls, lists and further objects."""

LearningMode: TypeAlias = Literal["online", "apprentice", "logging_only"]

OverrideAction: TypeAlias = Literal["promote", "rollback"]


class Action(msgspec.Struct, frozen=True):
    """One of the things that could be done.

    Attributes
    ----------
    id
        Unique within a decision, at most 256 characters.
    features
        Describes the action to the oracle; may be empty, since the id is a feature too.
    """

    id: str
    features: Features = {}


class KeptAction(Action, frozen=True, dict=True, forbid_unknown_fields=True):
    """An action that was read once and is met again in many requests.

    Applications choose from a catalogue. What is worked out from an action alone, such as its
    encoding, is kept with it; so nobody may change its features. Whoever makes one has checked its
    id.
    """

    def spelt(self) -> Self:
        """Work out its JSON, which events then copy, and return self."""
        self.__dict__[_TEXT] = msgspec.Raw(_encoder.encode(self))
        return self


class MixComponent(msgspec.Struct, frozen=True):
    """One policy in the mixture that drew a decision.

    Attributes
    ----------
    source
        ``generation:<number>``, ``baseline``, ``uniform`` or ``imported``.
    weight
        Its share of the mixture, in (0, 1]; the weights of a decision sum to 1.
    """

    source: str
    weight: float


class Shadow(msgspec.Struct, frozen=True):
    """What a generation would have done that was asked beside the one that was played.

    Attributes
    ----------
    generation
        Its number.
    pmf
        Its probability of every action, in the order of the decision's.
    """

    generation: int
    pmf: list[float]


class Recall(msgspec.Struct, frozen=True):
    """What a generation that has a memory knew of a session before one of its steps.

    Attributes
    ----------
    generation
        Its number.
    since
        The session's step at which it began to follow.
    memory
        Its recurrent state: little-endian numbers of 32 bits.
    """

    generation: int
    since: int
    memory: bytes


class SessionStep(msgspec.Struct, frozen=True):
    """Which step of a session a decision is, and what was known before it.

    With the request it is all that a recurrent generation's pmf is made of.

    Attributes
    ----------
    id
        Of the session: that of its first decision.
    step
        How many decisions of the session came before, at least 0.
    previous
        Id of the action that the latest of them took; None at the first one.
    recalls
        Of the generations that were asked and have a memory; one that isn't here began with this
        step.
    """

    id: str
    step: int
    previous: str | None = None
    recalls: list[Recall] = []


class Decision(msgspec.Struct, frozen=True, kw_only=True, tag="decision", tag_field="type"):
    """What was asked, what was answered, and with which probability.

    Attributes
    ----------
    decision_id
        The caller's id or a UUIDv7, at most 256 characters.
    loop
        The decision problem it belongs to.
    ts
        When it was made, in microseconds since the Unix epoch, UTC.
    generation
        Number of the policy generation that was being served; 0 is the cold start.
    learning_mode
        How the loop was set to act.
    context, actions, excluded
        The request: shared features, candidate actions, ids that must not be chosen.
    pmf
        Probability of every action, in the order of `actions`; 0 for excluded ones; sums to 1.
    chosen
        Index into `actions` of the action that was returned.
    propensity
        ``pmf[chosen]``: the probability with which that action was really drawn.
    baseline
        Index into `actions` of the application's own choice.
    scores
        The oracle's reward estimates in the order of `actions`; None if no oracle was asked.
    deferred
        True if rewards count only once the decision is activated.
    slot
        Slot id of a multi-slot decision, of a position of a ranking, or of a place in a slate.
    slate_size
        Number of places of a slate, in which `pmf` is an action's marginal probability of being in
        the slate over that number; None for every other decision.
    mix
        Which policies the draw was a mixture of.
    keep_prob
        Probability with which this row was kept in the log, 1 unless it is subsampled.
    draw_key
        16 hexadecimal digits from which the draw can be replayed bit for bit.
    audit
        Attributes for audits only, never features.
    shadow
        What another generation would have done; None if none was asked.
    version
        Layout of this event.
    session
        Which step of a session it is; unset where no session is followed. Since version 2.
    """

    decision_id: str
    loop: str
    ts: int
    generation: int
    learning_mode: LearningMode
    context: Features
    actions: list[Action]
    excluded: list[str]
    pmf: list[float]
    chosen: int
    propensity: float
    baseline: int
    scores: list[float] | None
    mix: list[MixComponent]
    draw_key: str
    deferred: bool = False
    slot: str | None = None
    keep_prob: float = 1.0
    audit: Features = {}
    shadow: Shadow | None = None
    slate_size: int | None = None
    version: int = _PLAIN_VERSION
    session: SessionStep | msgspec.UnsetType = msgspec.UNSET

    def as_step(self, session: SessionStep) -> Decision:
        """The same as a step of a session."""
        return msgspec.structs.replace(self, session=session, version=EVENT_VERSION)


class Outcome(msgspec.Struct, frozen=True, kw_only=True, tag="outcome", tag_field="type"):
    """A reward for a decision, maybe delayed.

    Attributes
    ----------
    decision_id, loop, slot
        The decision (and slot) that is rewarded.
    outcome_id
        The caller's idempotency key or a UUIDv7: the same outcome_id counts once.
    reward
        The objective; finite.
    guardrails
        Further named rewards that are watched but not maximised.
    ts
        When it was received, in microseconds since the Unix epoch, UTC.
    version
        Layout of this event.
    """

    decision_id: str
    loop: str
    outcome_id: str
    reward: float
    ts: int
    slot: str | None = None
    guardrails: dict[str, float] = {}
    version: int = _PLAIN_VERSION


class Activation(msgspec.Struct, frozen=True, kw_only=True, tag="activation", tag_field="type"):
    """Says that a deferred decision was really shown.

    Attributes
    ----------
    decision_id, loop
        The decision that was activated.
    ts
        When, in microseconds since the Unix epoch, UTC.
    version
        Layout of this event.
    """

    decision_id: str
    loop: str
    ts: int
    version: int = _PLAIN_VERSION


class Judgement(msgspec.Struct, frozen=True, kw_only=True, tag="judgement", tag_field="type"):
    """An auditor's verdict on whether two decisions should have been treated alike.

    Attributes
    ----------
    judgement_id
        Unique; a repeated id counts once.
    loop, decision_id, other_decision_id
        The pair that was judged.
    auditor
        Who judged.
    distance
        How different the two may be treated, in [0, 1].
    ts
        When, in microseconds since the Unix epoch, UTC.
    version
        Layout of this event.
    """

    judgement_id: str
    loop: str
    decision_id: str
    other_decision_id: str
    auditor: str
    distance: float
    ts: int
    version: int = _PLAIN_VERSION


class Acknowledgement(
    msgspec.Struct, frozen=True, kw_only=True, tag="acknowledgement", tag_field="type"
):
    """Says that a person has seen an alert.

    Attributes
    ----------
    acknowledgement_id
        Unique among these and judgements; a repeated id counts once.
    loop, alert_id
        Which alert.
    by
        Who has seen it.
    ts
        When, in microseconds since the Unix epoch, UTC.
    version
        Layout of this event.
    """

    acknowledgement_id: str
    loop: str
    alert_id: str
    by: str
    ts: int
    version: int = EVENT_VERSION


class Override(msgspec.Struct, frozen=True, kw_only=True, tag="override", tag_field="type"):
    """Says that a person wants another champion, whatever the gate says; the batch side acts on it.

    Attributes
    ----------
    override_id
        Unique among these, acknowledgements and judgements; a repeated id counts once.
    loop
        Whose champion.
    action
        ``promote`` makes any generation champion, ``rollback`` an earlier champion champion again.
    generation
        Which one is to be champion; 0 is the cold start, which only a rollback goes back to.
    champion
        Who was when the person said so; the override is void once there is another one.
    reason
        Why, 1 to 500 characters.
    by
        Who says so.
    ts
        When, in microseconds since the Unix epoch, UTC.
    version
        Layout of this event.
    """

    override_id: str
    loop: str
    action: OverrideAction
    generation: int
    champion: int
    reason: str
    by: str
    ts: int
    version: int = EVENT_VERSION


Event: TypeAlias = Decision | Outcome | Activation | Judgement | Acknowledgement | Override

_FIELDS = Decision.__struct_fields__
_before = attrgetter(*_FIELDS[: _FIELDS.index("actions")])
_after = attrgetter(*_FIELDS[_FIELDS.index("actions") + 1 :])
# A decision whose actions are texts already, field by field like one.
_SpelledDecision = msgspec.defstruct(
    "_SpelledDecision", _FIELDS, tag="decision", tag_field="type", frozen=True
)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


class _Versioned(msgspec.Struct):
    version: int = _PLAIN_VERSION


_version_decoder = msgspec.json.Decoder(_Versioned)

# What msgspec raises besides its own errors: invalid UTF-8 and integers with too many digits are
# ValueErrors, nesting without end is a RecursionError.
_CODEC_ERRORS = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)


def encode_event(event: Event) -> bytes:
    """Encode an event as the bytes that every log stores.

    Raises
    ------
    InvalidInputError
        If it could not be decoded again: JSON has no NaN, no infinity and no lone surrogates.
    """
    # Finite numbers can have an infinite sum, but others never have a finite one.
    if not math.isfinite(_sum(event)) and not all(map(math.isfinite, _numbers(event))):
        raise InvalidInputError("event", "expected finite numbers")
    try:
        if type(event) is Decision:
            try:
                texts = [action.__dict__[_TEXT] for action in event.actions]
            except (AttributeError, KeyError):
                return _encoder.encode(event)
            # What is known of actions as text is copied; the bytes are the same.
            return _encoder.encode(_SpelledDecision(*_before(event), texts, *_after(event)))
        return _encoder.encode(event)
    except _CODEC_ERRORS as error:
        raise InvalidInputError("event", f"expected JSON values: {error}") from error


def event_key(event: Event) -> str:
    """What a partitioned log keeps in order, and what repeats are known by."""
    match event:
        case Judgement():
            return event.judgement_id
        case Acknowledgement():
            return event.acknowledgement_id
        case Override():
            return event.override_id
        case _:
            return event.decision_id


def _sum(event: Event) -> float:
    """The sum of :func:`_numbers`, up to rounding, without a list of them."""
    if type(event) is Decision and event.shadow is None and len(event.mix) == 1:
        total = event.propensity + event.keep_prob + event.mix[0].weight
        return sum(event.scores or (), sum(event.pmf, total))
    return sum(_numbers(event))


def _numbers(event: Event) -> Iterable[float]:
    """The event's own floats, which JSON would turn into nulls if they were not finite."""
    if isinstance(event, Decision):
        weights = [component.weight for component in event.mix]
        shadow = event.shadow.pmf if event.shadow is not None else ()
        scores = event.scores or ()
        return [event.propensity, event.keep_prob, *event.pmf, *scores, *weights, *shadow]
    if isinstance(event, Outcome):
        return [event.reward, *event.guardrails.values()]
    return [event.distance] if isinstance(event, Judgement) else []


def decode_event(payload: bytes) -> Event:
    """Decode the bytes of one event.

    Raises
    ------
    InvalidInputError
        If the bytes are not an event, or one of a later layout than this code knows.
    """
    try:
        event: Event = _decoder.decode(payload)
    except _CODEC_ERRORS as error:
        # A later layout may not fit the types here; its version is then the better reason.
        _check_version(_version_of(payload))
        raise InvalidInputError("event", f"expected a Croupier event: {error}") from error
    _check_version(event.version)
    return event


def _version_of(payload: bytes) -> int:
    try:
        return _version_decoder.decode(payload).version
    except _CODEC_ERRORS:
        return _PLAIN_VERSION


def _check_version(version: int) -> None:
    if not 1 <= version <= EVENT_VERSION:
        raise InvalidInputError(
            "event.version", f"expected at least 1 and at most {EVENT_VERSION}, got {version}"
        )
