"""Deciding: from a request and a generation to a decision, as a pure function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.policy.errors import InvalidInputError
from croupier.policy.events import (
    MAX_ID_LENGTH,
    Action,
    Decision,
    Features,
    LearningMode,
    MixComponent,
)
from croupier.policy.sampling import draw, draw_key
from croupier.policy.traffic import shadow_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.policy.events import Shadow
    from croupier.policy.traffic import OnFailure, Plan

__all__ = (
    "Circumstances",
    "DecisionRequest",
    "baseline_index",
    "check_request",
    "check_reward",
    "decide",
    "decide_baseline",
    "eligibility",
)

MAX_ACTIONS = 10_000


class DecisionRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an application asks.

    Attributes
    ----------
    actions
        The candidates, at least one, with unique ids.
    context
        Features that all actions share.
    decision_id
        The caller's id, 1 to 256 characters; made up if left out.
    excluded
        Ids of actions that must not be chosen this time.
    baseline
        Id of the action the application would take by itself; the first one unless named.
    deferred
        True if the decision counts only once it is activated.
    audit
        Attributes that are logged for audits and never reach an oracle.
    """

    actions: list[Action]
    context: Features = {}
    decision_id: str | None = None
    excluded: list[str] = []
    baseline: str | None = None
    deferred: bool = False
    audit: Features = {}


def check_request(request: DecisionRequest) -> None:
    """Check what types alone can't say.

    Raises
    ------
    InvalidInputError
        Naming the field and what was expected.
    """
    if request.decision_id is not None:
        _check_id("decision_id", request.decision_id)
    if not 1 <= len(request.actions) <= MAX_ACTIONS:
        raise InvalidInputError(
            "actions", f"expected 1 to {MAX_ACTIONS} actions, got {len(request.actions)}"
        )
    seen: set[str] = set()
    for position, action in enumerate(request.actions):
        _check_id(f"actions[{position}].id", action.id)
        if action.id in seen:
            raise InvalidInputError(
                f"actions[{position}].id", f"expected unique ids, got {action.id!r} twice"
            )
        seen.add(action.id)
    for position, action_id in enumerate(request.excluded):
        if action_id not in seen:
            raise InvalidInputError(
                f"excluded[{position}]", f"expected the id of an action, got {action_id!r}"
            )
    if request.baseline is not None and request.baseline not in seen:
        raise InvalidInputError(
            "baseline", f"expected the id of an action, got {request.baseline!r}"
        )
    if len(seen) == len(set(request.excluded)):
        raise InvalidInputError("excluded", "expected at least one action to remain eligible")


@dataclass(frozen=True, slots=True)
class Circumstances:
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
    """

    decision_id: str
    ts: int
    learning_mode: LearningMode = "online"
    uniform: float = 0.0
    secret: bytes = b""


def decide(
    request: DecisionRequest,
    plan: Plan,
    circumstances: Circumstances,
    *,
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
    if plan.killed is not None or circumstances.learning_mode != "online":
        shadow = None
        if plan.killed is None and circumstances.learning_mode == "apprentice":
            shadow = shadow_of(plan.champion, *asked)
        return decide_baseline(request, circumstances, loop=loop, generation=number, shadow=shadow)
    answer = plan.answer(*asked, uniform=circumstances.uniform, on_failure=on_failure)
    key = draw_key(loop, number, circumstances.decision_id, secret=circumstances.secret)
    chosen = draw(answer.pmf, key)
    return Decision(
        decision_id=circumstances.decision_id,
        loop=loop,
        ts=circumstances.ts,
        generation=number,
        learning_mode=circumstances.learning_mode,
        context=request.context,
        actions=request.actions,
        excluded=request.excluded,
        pmf=answer.pmf.tolist(),
        chosen=chosen,
        propensity=float(answer.pmf[chosen]),
        baseline=baseline,
        scores=None if answer.scores is None else answer.scores.tolist(),
        mix=answer.mix,
        draw_key=key,
        deferred=request.deferred,
        audit=request.audit,
        shadow=answer.shadow,
    )


def decide_baseline(
    request: DecisionRequest,
    circumstances: Circumstances,
    *,
    loop: str,
    generation: int,
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
        draw_key=draw_key(loop, generation, circumstances.decision_id, secret=circumstances.secret),
        deferred=request.deferred,
        audit=request.audit,
        shadow=shadow,
    )


def eligibility(request: DecisionRequest) -> NDArray[np.bool_] | None:
    """Which actions may be chosen, shape (K,); None if all may."""
    if not request.excluded:
        return None
    excluded = set(request.excluded)
    return np.array([action.id not in excluded for action in request.actions])


def baseline_index(request: DecisionRequest) -> int:
    """Index of the named baseline if it is eligible, or else of the first action that is."""
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


def _check_id(field: str, value: str) -> None:
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
