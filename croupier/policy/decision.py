"""Deciding: from a request and a generation to a decision, as a pure function.

A decision takes one action. Rankings, slots and slates take several, and are made of the same
parts: see :mod:`croupier.policy.ranking`, :mod:`~croupier.policy.slots` and
:mod:`~croupier.policy.slates`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from croupier.policy.errors import InvalidInputError
from croupier.policy.events import (
    MAX_ID_LENGTH,
    Decision,
    KeptAction,
    LearningMode,
    MixComponent,
)
from croupier.policy.requests import DecisionRequest
from croupier.policy.sampling import draw, draw_key, uniform_of_key
from croupier.policy.traffic import Shown, shadow_of, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.policy.events import Action, Shadow
    from croupier.policy.traffic import OnFailure, Plan

__all__ = (
    "MAX_ACTIONS",
    "MAX_PLACES",
    "Choose",
    "Circumstances",
    "DecisionRequest",
    "baseline_index",
    "check_actions",
    "check_id",
    "check_no_session",
    "check_places",
    "check_request",
    "check_reward",
    "check_rules",
    "decide",
    "decide_baseline",
    "eligibility",
    "plays_baseline",
)

MAX_ACTIONS = 10_000
_KEPT = frozenset({KeptAction})
MAX_PLACES = 100
"""Most positions of a ranking, slots of a request or places of a slate."""

# Every place is an event that names all actions: this bounds what one request makes us log.
_MAX_CANDIDATES = 100_000


def check_request(request: DecisionRequest) -> None:
    """Check what types alone can't say.

    Raises
    ------
    InvalidInputError
        Naming the field and what was expected.
    """
    if request.decision_id is not None:
        check_id("decision_id", request.decision_id)
    ids = check_actions(request.actions)
    check_rules("", request.excluded, request.baseline, ids)
    if request.excluded and len(ids) == len(set(request.excluded)):
        raise InvalidInputError("excluded", "expected at least one action to remain eligible")


def check_no_session(request: DecisionRequest) -> None:
    """Check that a request for several actions at once names no session, of which they are no step.

    Raises
    ------
    InvalidInputError
        If it does.
    """
    if request.session is not None:
        raise InvalidInputError("session", "expected it with a request for one decision alone")


def check_actions(actions: Sequence[Action]) -> set[str]:
    """Check a request's candidates; gives their ids.

    Raises
    ------
    InvalidInputError
        If there are none or too many, or an id is not a unique one.
    """
    if not 1 <= len(actions) <= MAX_ACTIONS:
        raise InvalidInputError(
            "actions", f"expected 1 to {MAX_ACTIONS} actions, got {len(actions)}"
        )
    ids = [action.id for action in actions]
    seen = set(ids)
    if len(seen) == len(ids) and _KEPT.issuperset(map(type, actions)):
        return seen
    lengths = [len(action_id) for action_id in ids]
    plain = min(lengths) > 0 and max(lengths) <= MAX_ID_LENGTH and "".join(ids).isascii()
    if plain and len(seen) == len(ids):
        return seen
    # Something may be wrong: look for it one by one.
    seen.clear()
    for position, action_id in enumerate(ids):
        check_id(f"actions[{position}].id", action_id)
        if action_id in seen:
            raise InvalidInputError(
                f"actions[{position}].id", f"expected unique ids, got {action_id!r} twice"
            )
        seen.add(action_id)
    return seen


def check_rules(where: str, excluded: Sequence[str], baseline: str | None, ids: set[str]) -> None:
    """Check that what is excluded, and the baseline, are actions of the request.

    Parameters
    ----------
    where
        Put before the names of the fields, such as ``slots[1].``.
    excluded, baseline
        Ids of actions.
    ids
        Those of the request.

    Raises
    ------
    InvalidInputError
        If one is not.
    """
    for position, action_id in enumerate(excluded):
        if action_id not in ids:
            raise InvalidInputError(
                f"{where}excluded[{position}]", f"expected the id of an action, got {action_id!r}"
            )
    if baseline is not None and baseline not in ids:
        raise InvalidInputError(
            f"{where}baseline", f"expected the id of an action, got {baseline!r}"
        )


def check_places(field: str, places: int, eligible: int, actions: int) -> None:
    """Check how many actions a request asks for.

    Parameters
    ----------
    field
        Where the number stands.
    places
        How many actions are to be taken.
    eligible, actions
        How many may be taken, and how many there are.

    Raises
    ------
    InvalidInputError
        If they are not between 1 and the smaller of `eligible` and 100, or if there are more than
        100,000 actions over all places.
    """
    most = min(eligible, MAX_PLACES)
    if not 1 <= places <= most:
        raise InvalidInputError(field, f"expected 1 to {most}, got {places}")
    if places * actions > _MAX_CANDIDATES:
        raise InvalidInputError(
            field,
            f"expected at most {_MAX_CANDIDATES:,} actions over all places, "
            f"got {places} times {actions:,}",
        )


class Circumstances(msgspec.Struct, frozen=True):
    """What a decision depends on besides its request and the plan.

    Attributes
    ----------
    decision_id
        The request's own id, or one made up for it.
    ts
        Now, in microseconds since the Unix epoch, UTC.
    learning_mode
        Of the loop; anything but ``online`` plays the baseline.
    uniform
        Share of uniform play, in [0, 1].
    secret
        Of the draws, see :func:`~croupier.policy.sampling.draw_key`.
    keep_prob
        Probability with which the decision is kept in the log, in (0, 1].
    """

    decision_id: str
    ts: int
    learning_mode: LearningMode = "online"
    uniform: float = 0.0
    secret: bytes = b""
    keep_prob: float = 1.0


class Choose(Protocol):
    """How one action is taken: :func:`decide` with a plan, or whatever stands in for it."""

    def __call__(self, request: DecisionRequest, /, *, slot: str | None = None) -> Decision:
        """Take an action of a request, for one of its slots if it has several."""
        ...


def decide(
    request: DecisionRequest,
    plan: Plan,
    circumstances: Circumstances,
    *,
    slot: str | None = None,
    on_failure: OnFailure | None = None,
) -> Decision:
    """Draw an action from a plan.

    The same request under the same decision_id, plan and share of uniform play always gets the same
    answer. An apprentice's plan is asked what it would have done, and the baseline is played.

    Parameters
    ----------
    request
        A request that :func:`check_request` accepts.
    plan
        What the loop serves.
    circumstances
        Everything else.
    slot
        Which of a request's several draws this is; None if it is the only one.
    on_failure
        Called with generations that can't answer and are not needed for an answer, and with why.

    Raises
    ------
    ScoringError
        If the champion's oracle gives no usable scores; :func:`decide_baseline` always works.
    """
    loop, number = plan.champion.loop, plan.champion.number
    baseline = baseline_index(request)
    asked = (request.context, request.actions, eligibility(request), baseline)
    if plays_baseline(plan, circumstances):
        shadow = None
        if plan.killed is None and circumstances.learning_mode == "apprentice":
            shadow = shadow_of(plan.champion, *asked)
        return decide_baseline(
            request, circumstances, loop=loop, generation=number, slot=slot, shadow=shadow
        )
    key = draw_key(loop, number, circumstances.decision_id, slot, secret=circumstances.secret)
    drawn = None
    if plan.is_whole and circumstances.uniform <= 0.0 and not request.excluded:
        drawn = plan.champion.choose(request.context, request.actions, uniform_of_key(key))
    if drawn is not None:
        pmf, scores, chosen = drawn
        answer = Shown(pmf, scores, [whole(number)], None)
    else:
        asked_all = plan.answer(*asked, uniform=circumstances.uniform, on_failure=on_failure)
        chosen = draw(asked_all.pmf, key)
        answer = asked_all.shown()
    return decision_of(
        request, plan, circumstances, answer, chosen=chosen, baseline=baseline, key=key, slot=slot
    )


def decision_of(
    request: DecisionRequest,
    plan: Plan,
    circumstances: Circumstances,
    answer: Shown,
    *,
    chosen: int,
    baseline: int,
    key: str,
    slot: str | None,
    slate_size: int | None = None,
) -> Decision:
    """What is logged of a draw.

    Parameters
    ----------
    request, plan, circumstances
        As for :func:`decide`.
    answer
        Whose pmf the action was drawn from.
    chosen, baseline, key
        Indices of the action that was drawn and of the baseline, and the key of the draw.
    slot, slate_size
        As in :class:`~croupier.policy.events.Decision`.
    """
    return Decision(
        decision_id=circumstances.decision_id,
        loop=plan.champion.loop,
        ts=circumstances.ts,
        generation=plan.champion.number,
        learning_mode=circumstances.learning_mode,
        context=request.context,
        actions=request.actions,
        excluded=request.excluded,
        pmf=answer.pmf,
        chosen=chosen,
        propensity=answer.pmf[chosen],
        baseline=baseline,
        scores=answer.scores,
        mix=answer.mix,
        draw_key=key,
        deferred=request.deferred,
        slot=slot,
        keep_prob=circumstances.keep_prob,
        audit=request.audit,
        shadow=answer.shadow,
        slate_size=slate_size,
    )


def decide_baseline(
    request: DecisionRequest,
    circumstances: Circumstances,
    *,
    loop: str,
    generation: int,
    slot: str | None = None,
    shadow: Shadow | None = None,
) -> Decision:
    """Play the application's own choice with probability 1, and say so in the mix."""
    chosen = baseline_index(request)
    pmf = [0.0] * len(request.actions)
    pmf[chosen] = 1.0
    return Decision(
        decision_id=circumstances.decision_id,
        loop=loop,
        ts=circumstances.ts,
        generation=generation,
        learning_mode=circumstances.learning_mode,
        context=request.context,
        actions=request.actions,
        excluded=request.excluded,
        pmf=pmf,
        chosen=chosen,
        propensity=1.0,
        baseline=chosen,
        scores=None,
        mix=[MixComponent("baseline", 1.0)],
        draw_key=draw_key(
            loop, generation, circumstances.decision_id, slot, secret=circumstances.secret
        ),
        deferred=request.deferred,
        slot=slot,
        keep_prob=circumstances.keep_prob,
        audit=request.audit,
        shadow=shadow,
    )


def plays_baseline(plan: Plan, circumstances: Circumstances) -> bool:
    """Whether the application's own choice is played, whatever a generation would do."""
    return plan.killed is not None or circumstances.learning_mode != "online"


def eligibility(request: DecisionRequest) -> NDArray[np.bool_] | None:
    """Which actions may be chosen, shape (K,); None if all may."""
    if not request.excluded:
        return None
    excluded = set(request.excluded)
    return np.array([action.id not in excluded for action in request.actions])


def baseline_index(request: DecisionRequest) -> int:
    """Index of the named baseline if it is eligible, or else of the first action that is."""
    if request.baseline is None and not request.excluded:
        return 0
    excluded = set(request.excluded)
    if request.baseline is not None and request.baseline not in excluded:
        ids = [action.id for action in request.actions]
        return ids.index(request.baseline)
    return next(
        position for position, action in enumerate(request.actions) if action.id not in excluded
    )


def check_reward(field: str, reward: float, low: float, high: float) -> None:
    """Check that a reward is finite and in the loop's range.

    Raises
    ------
    InvalidInputError
        Naming `field` and the range.
    """
    if not (math.isfinite(reward) and low <= reward <= high):
        raise InvalidInputError(field, f"expected a number in [{low:g}, {high:g}], got {reward!r}")


def check_id(field: str, value: str) -> None:
    """Check that an id has 1 to 256 characters, all of them valid Unicode.

    Raises
    ------
    InvalidInputError
        Naming `field`.
    """
    if not 1 <= len(value) <= MAX_ID_LENGTH:
        raise InvalidInputError(
            field, f"expected 1 to {MAX_ID_LENGTH} characters, got {len(value)}"
        )
    # JSON cannot bring in lone surrogates, but a caller in Python can, and no log could hold them.
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(field, f"expected valid Unicode: {error.reason}") from error
