"""Steps: decisions within sessions, where a generation decides from what came before.

What a recurrent generation remembers is kept by whoever asks, as a
:class:`~croupier.policy.sessions.SessionState`, and logged with every decision, as a
:class:`~croupier.policy.events.SessionStep`: so that a logged step tells by itself what its pmf was
made of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from croupier.policy.decision import decide
from croupier.policy.events import Recall, SessionStep
from croupier.policy.sessions import SessionState

if TYPE_CHECKING:
    from croupier.policy.decision import Circumstances, DecisionRequest
    from croupier.policy.events import Decision, Features
    from croupier.policy.generation import Generation
    from croupier.policy.traffic import OnFailure, Plan

__all__ = ("Stepped", "Walk", "as_logged", "begun", "decide_step", "step_of")

_NOWHERE = SessionStep("", 0)


class Stepped(NamedTuple):
    """A decision, and how far its session has come with it."""

    decision: Decision
    state: SessionState


def step_of(decision_id: str, state: SessionState | None) -> SessionStep:
    """Which step a decision is.

    Parameters
    ----------
    decision_id
        Its id, which becomes that of a session that begins with it.
    state
        How far its session has come; None if it is the first of one.
    """
    if state is None:
        return SessionStep(decision_id, 0)
    return SessionStep(state.id, state.steps, state.previous, state.recalls)


def decide_step(
    request: DecisionRequest,
    plan: Plan,
    circumstances: Circumstances,
    session: SessionStep,
    *,
    on_failure: OnFailure | None = None,
) -> Stepped:
    """Draw an action for a step of a session; otherwise as :func:`~.decision.decide`.

    The same request at the same step, under the same decision_id and plan, always gets the same
    answer and comes to the same state.

    Raises
    ------
    InvalidInputError
        If what the champion observes of a step is not a number.
    ScoringError
        As of `decide`, or if what is remembered is not of the champion.
    """
    at, after = _plan_at(plan, request.context, session, on_failure)
    numbers = {each.generation for each in after}
    known = [each for each in session.recalls if each.generation in numbers]
    session = SessionStep(session.id, session.step, session.previous, known)
    decision = decide(request, at, circumstances, on_failure=on_failure).as_step(session)
    taken = decision.actions[decision.chosen].id
    steps = session.step + 1
    return Stepped(decision, SessionState(session.id, steps, circumstances.ts, taken, after))


def begun(plan: Plan, context: Features, on_failure: OnFailure | None = None) -> Plan:
    """A plan for a decision of no session: one that remembers takes it for a first step."""
    if plan.killed is not None or not plan.remembers:
        return plan
    return _plan_at(plan, context, _NOWHERE, on_failure)[0]


def as_logged(generation: Generation, context: Features, session: SessionStep | None) -> Generation:
    """A generation at the step at which it was asked for a logged decision.

    Its pmf is then the one that it had, bit for bit on a processor of the same kind.

    Parameters
    ----------
    generation
        Any; one that remembers nothing is as it is.
    context
        Of the decision.
    session
        As it was logged; None for a decision of no session.
    """
    if generation.recurrent is None:
        return generation
    return _at(generation, context, _NOWHERE if session is None else session)[0]


class Walk:
    """A generation along a session, as it would be if it were asked at all steps of it.

    Parameters
    ----------
    generation
        Any; one that remembers nothing is the same at all steps.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._session = _NOWHERE
        self._recalls: list[Recall] = []

    def at(self, context: Features) -> Generation:
        """The generation at the session's next step."""
        if self._generation.recurrent is None:
            return self._generation
        found, after = _at(self._generation, context, self._session)
        self._recalls = [after]
        return found

    def take(self, action: str) -> None:
        """Note what was done at that step."""
        step = self._session.step + 1
        self._session = SessionStep(self._session.id, step, action, self._recalls)


def _plan_at(
    plan: Plan, context: Features, session: SessionStep, on_failure: OnFailure | None
) -> tuple[Plan, list[Recall]]:
    """A plan at a step, and what its generations know afterwards."""
    after: list[Recall] = []

    def there(generation: Generation) -> Generation:
        if generation.recurrent is None:
            return generation
        found, recall = _at(generation, context, session)
        after.append(recall)
        return found

    def perhaps(generation: Generation | None) -> Generation | None:
        try:
            return None if generation is None else there(generation)
        except Exception as error:  # noqa: BLE001 - the answer doesn't hang on it
            if on_failure is not None and generation is not None:
                on_failure(generation, error)
            # It can't answer so, and whoever asks it deals with that.
            return generation

    at = replace(
        plan,
        champion=there(plan.champion),
        canary=perhaps(plan.canary),
        shadow=perhaps(plan.shadow),
    )
    return at, after


def _at(
    generation: Generation, context: Features, session: SessionStep
) -> tuple[Generation, Recall]:
    """A recurrent generation at a step, and what it knows afterwards."""
    assert generation.recurrent is not None, "others are the same at all steps"
    number = generation.number
    recall = next((each for each in session.recalls if each.generation == number), None)
    since = session.step if recall is None else recall.since
    step = generation.recurrent.at_step(
        context,
        memory=None if recall is None else recall.memory,
        previous=None if recall is None else session.previous,
        steps=session.step - since,
    )
    return replace(generation, step=step), Recall(number, since, step.memory)
