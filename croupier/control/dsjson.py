"""Logs of Vowpal Wabbit's decision service, a JSON object a line, as Croupier's events.

The reference names a format of Azure's own clients and says nothing of it. What is read here is
what they wrote before it was binary, and what Personalizer's own logs look like: of interactions
``{"EventId", "Timestamp", "a", "p", "c": {..., "_multi": [...]}}`` with ``_label_cost`` or ``o``
where a reward is known, of observations ``{"EventId", "v"}`` or ``{"EventId", "ActionTaken"}``.
"""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from croupier.policy.decision import check_actions, check_id, check_reward
from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import (
    IMPORTED,
    Action,
    Activation,
    Decision,
    Features,
    MixComponent,
    Outcome,
)
from croupier.service.personalizer import merge_features

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from croupier.policy.events import Event
    from croupier.policy.loop import LoopConfig

    _Read = TypeVar("_Read")

__all__ = ("read_interactions", "read_observations")

# Probabilities are written as float32, so their sum is 1 up to that.
_SUM_TOLERANCE = 1e-3
_AHEAD_US = 60_000_000


class _Observation(msgspec.Struct, frozen=True, kw_only=True):
    event_id: str | None = msgspec.field(name="EventId", default=None)
    ts: datetime | None = msgspec.field(name="Timestamp", default=None)
    v: float | None = None
    taken: bool | None = msgspec.field(name="ActionTaken", default=None)


class _Interaction(msgspec.Struct, frozen=True, kw_only=True):
    event_id: str = msgspec.field(name="EventId")
    ts: datetime = msgspec.field(name="Timestamp")
    a: list[int]
    p: list[float]
    c: dict[str, Any]
    o: list[_Observation] | None = None
    cost: float | None = msgspec.field(name="_label_cost", default=None)
    probability: float | None = msgspec.field(name="_label_probability", default=None)
    labelled: int | None = msgspec.field(name="_label_Action", default=None)
    deferred: bool | None = msgspec.field(name="DeferredAction", default=None)
    pdrop: float | None = None


def read_interactions(body: bytes, loop: str, config: LoopConfig, *, now_us: int) -> list[Event]:
    """Decisions, and the outcomes that stand with them.

    An event has the same ids whenever it is read, so that one that is imported again counts once.
    Its probabilities are put to a sum of 1; they were written with seven digits.

    Parameters
    ----------
    body
        The lines.
    loop, config
        Whose they become.
    now_us
        Now: nothing can have happened later.

    Raises
    ------
    InvalidInputError
        Naming the line, the field and what was expected.
    """
    encoder = FeatureEncoder(EncoderConfig())

    def events(line: _Interaction) -> Iterator[Event]:
        decision = _decision(line, loop, now_us)
        # What no oracle could read must not be found out in the night.
        encoder.encode(decision.context, decision.actions)
        yield decision
        yield from _observed(line, decision, config)

    return _read(body, _Interaction, events)


def read_observations(body: bytes, loop: str, config: LoopConfig, *, now_us: int) -> list[Event]:
    """Outcomes and activations of events that are known already; otherwise as above.

    One without a time has just been made.
    """

    def events(line: _Observation) -> Iterator[Event]:
        if line.event_id is None:
            raise InvalidInputError("EventId", "expected an id")
        ts = now_us if line.ts is None else _past("Timestamp", line.ts, now_us)
        yield from _outcomes("", [line], config, event_id=line.event_id, loop=loop, ts=ts)

    return _read(body, _Observation, events)


def _read(
    body: bytes, kind: type[_Read], events: Callable[[_Read], Iterator[Event]]
) -> list[Event]:
    decoder = msgspec.json.Decoder(kind)
    found: list[Event] = []
    for number, line in enumerate(body.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.extend(events(decoder.decode(line)))
        except InvalidInputError as error:
            raise InvalidInputError(f"line {number}: {error.field}", error.expected) from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidInputError(
                f"line {number}", f"expected an event as a JSON object: {error}"
            ) from error
    if not found:
        raise InvalidInputError("body", "expected at least one event, a JSON object a line")
    return found


def _decision(line: _Interaction, loop: str, now_us: int) -> Decision:
    check_id("EventId", line.event_id)
    if "_slots" in line.c:
        raise InvalidInputError("c._slots", "expected an event without slots")
    context, described = dict(line.c), line.c.get("_multi")
    context.pop("_multi", None)
    if not isinstance(described, list) or not all(isinstance(each, dict) for each in described):
        raise InvalidInputError("c._multi", "expected a list of actions")
    actions = [_action(position, each) for position, each in enumerate(described)]
    check_actions(actions)
    pmf = _pmf(line, len(actions))
    chosen = line.a[0] - 1
    if line.labelled is not None and line.labelled != line.a[0]:
        raise InvalidInputError("_label_Action", f"expected the first of a, {line.a[0]}")
    if line.probability is not None and not math.isclose(
        line.probability, line.p[0], rel_tol=1e-4, abs_tol=1e-6
    ):
        raise InvalidInputError("_label_probability", f"expected the first of p, {line.p[0]:g}")
    dropped = line.pdrop or 0.0
    if not 0.0 <= dropped < 1.0:
        raise InvalidInputError("pdrop", f"expected a share in [0, 1), got {dropped:g}")
    return Decision(
        decision_id=line.event_id,
        loop=loop,
        ts=_past("Timestamp", line.ts, now_us),
        generation=0,
        learning_mode="online",
        context=_features("c", context),
        actions=actions,
        excluded=[],
        pmf=pmf,
        chosen=chosen,
        propensity=pmf[chosen],
        baseline=0,
        scores=None,
        mix=[MixComponent(IMPORTED, 1.0)],
        # Nobody can draw it again.
        draw_key="",
        deferred=bool(line.deferred),
        keep_prob=1.0 - dropped,
    )


def _pmf(line: _Interaction, actions: int) -> list[float]:
    """Probabilities in the order of the actions; `a` has numbers of actions from 1, `p` theirs."""
    if sorted(line.a) != list(range(1, actions + 1)):
        raise InvalidInputError("a", f"expected every number from 1 to {actions} once")
    if len(line.p) != actions or not all(0.0 <= each <= 1.0 for each in line.p):
        raise InvalidInputError("p", f"expected {actions} probabilities, those of a")
    total = math.fsum(line.p)
    if abs(total - 1.0) > _SUM_TOLERANCE:
        raise InvalidInputError("p", f"expected a sum of 1, got {total:g}")
    if line.p[0] <= 0.0:
        raise InvalidInputError("p[0]", "expected the chosen action's probability to be above 0")
    pmf = [0.0] * actions
    for number, probability in zip(line.a, line.p, strict=True):
        pmf[number - 1] = probability / total
    return pmf


def _action(position: int, described: Features) -> Action:
    """An action: Personalizer has its id in `_tag` and in `i`, its features in the rest."""
    where = f"c._multi[{position}]"
    marked = described.get("i")
    named = described.get("_tag", marked.get("id") if isinstance(marked, dict) else None)
    if named is not None and not isinstance(named, str):
        raise InvalidInputError(f"{where}._tag", "expected text")
    own = {key: value for key, value in described.items() if key not in {"_tag", "i"}}
    return Action(str(position) if named is None else named, _features(where, own))


def _features(where: str, groups: Features) -> Features:
    """Features as rank requests have them.

    Lists of objects are what Personalizer made of a request's lists, under one name of its own.
    """
    plain = {key: value for key, value in groups.items() if not key.startswith("_")}
    lists = {key: value for key, value in plain.items() if key in {"FromUrl", "j"}}
    objects: list[Features] = []
    for key, value in lists.items():
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise InvalidInputError(f"{where}.{key}", "expected a list of objects")
        del plain[key]
        objects += value
    return merge_features(where, [*objects, plain] if plain else objects)


def _observed(line: _Interaction, decision: Decision, config: LoopConfig) -> Iterator[Event]:
    given = line.o or []
    if not any(each.v is not None for each in given) and line.cost is not None:
        given = [*given, _Observation(v=-line.cost)]
    for position, each in enumerate(given):
        if each.event_id not in {None, decision.decision_id}:
            raise InvalidInputError(f"o[{position}].EventId", "expected that of the line")
    yield from _outcomes(
        "o",
        given,
        config,
        event_id=decision.decision_id,
        loop=decision.loop,
        ts=decision.ts,
    )


def _outcomes(
    field: str,
    given: Sequence[_Observation],
    config: LoopConfig,
    *,
    event_id: str,
    loop: str,
    ts: int,
) -> Iterator[Event]:
    check_id("EventId", event_id)
    for position, each in enumerate(given):
        where = f"{field}[{position}].v" if field else "v"
        if each.v is not None:
            # Without this, costs of -0.0 would be rewards of -0.0.
            reward = each.v + 0.0
            check_reward(where, reward, config.reward_min, config.reward_max)
            told = f"{loop}\0{event_id}\0{field}\0{position}\0{reward!r}\0{each.ts}"
            digest = hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=16)
            yield Outcome(
                decision_id=event_id,
                loop=loop,
                outcome_id=f"imported:{digest.hexdigest()}",
                reward=reward,
                ts=ts,
            )
        elif each.taken:
            yield Activation(decision_id=event_id, loop=loop, ts=ts)
        elif not field:
            raise InvalidInputError("v", "expected a reward, or ActionTaken true")


def _past(field: str, time: datetime, now_us: int) -> int:
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    ts = round(aware.timestamp() * 1e6)
    if not 0 <= ts <= now_us + _AHEAD_US:
        raise InvalidInputError(field, f"expected a time since 1970 and not to come, got {time}")
    return ts
