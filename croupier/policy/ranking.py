"""Rankings: an order of all actions whose first positions are drawn one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from croupier.policy.decision import check_no_session, check_places, check_request
from croupier.policy.requests import RankRequest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from croupier.policy.decision import Choose
    from croupier.policy.estimates import Estimates, Uncertainty
    from croupier.policy.events import Action, Decision, Features
    from croupier.policy.generation import Generation
    from croupier.policy.requests import DecisionRequest
    from croupier.policy.traffic import Plan

__all__ = (
    "RankRequest",
    "Ranking",
    "check_rank_request",
    "draw_in_turn",
    "rank",
    "scored_once",
)


@dataclass(frozen=True, slots=True)
class Ranking:
    """An order, and the decisions that made it.

    Attributes
    ----------
    decisions
        One for every drawn position, in this order.
    order
        Indices into the request's actions, each once, shape (K,).
    """

    decisions: list[Decision]
    order: list[int]


def check_rank_request(request: RankRequest) -> None:
    """Check what types alone can't say.

    Raises
    ------
    InvalidInputError
        Naming the field and what was expected.
    """
    check_request(request)
    check_no_session(request)
    count = len(request.actions)
    check_places("depth", request.depth, count - len(set(request.excluded)), count)


def rank(request: RankRequest, choose: Choose) -> Ranking:
    """Draw the first positions of a ranking, and put the rest in order.

    The order begins with what was drawn; the other eligible actions follow by descending score, or
    in the request's order where scores tie or there are none. Excluded actions keep the place they
    have in the request, as in Azure AI Personalizer's Rank.

    Under `choose` with a plan whose explorations are softmax, the drawn positions are a sample of
    the Plackett-Luce model (Plackett, 1975), ``P(a_1, …, a_d) = Π_j w_(a_j) / Σ_(b not before j)
    w_b`` with ``w = exp(score / temperature)``.

    Parameters
    ----------
    request
        A request that :func:`check_rank_request` accepts.
    choose
        Takes one action, such as ``partial(decide, plan=scored_once(plan), circumstances=…)``.
    """
    if request.depth == 1:
        decisions = [choose(request)]
    else:
        decisions = draw_in_turn(request, request.depth, choose)
    return Ranking(decisions, _order(request, decisions))


def draw_in_turn(request: DecisionRequest, count: int, choose: Choose) -> list[Decision]:
    """Take several actions one after the other, none of them twice.

    Each is a decision with a slot of its own, "0", "1" and so on, that excludes what was taken
    before: its pmf is that of a request for what is left, given what is gone. With the baseline for
    `choose` that is the baseline first, and then the request's order.

    Parameters
    ----------
    request
        With at least `count` eligible actions.
    count
        How many to take.
    choose
        Takes one action.
    """
    decisions: list[Decision] = []
    taken: list[str] = []
    for position in range(count):
        left = msgspec.structs.replace(request, excluded=[*request.excluded, *taken])
        decision = choose(left, slot=str(position))
        decisions.append(decision)
        taken.append(decision.actions[decision.chosen].id)
    return decisions


def scored_once(plan: Plan) -> Plan:
    """The same plan for the draws of a single request, for which every oracle is asked only once.

    What is left to take changes from draw to draw; context, actions and therefore scores don't.
    """
    return replace(
        plan,
        champion=_scored_once(plan.champion),
        canary=None if plan.canary is None else _scored_once(plan.canary),
        shadow=None if plan.shadow is None else _scored_once(plan.shadow),
    )


def _scored_once(generation: Generation) -> Generation:
    if generation.oracle is None:
        return generation
    return replace(generation, oracle=_ScoredOnce(generation))


class _ScoredOnce:
    """A generation's oracle that gives its first answer, or its first error, ever again."""

    def __init__(self, generation: Generation) -> None:
        assert generation.oracle is not None
        self._oracle = generation.oracle
        self._answer: Estimates | Exception | None = None

    def estimate(
        self, context: Features, actions: Sequence[Action], needs: Uncertainty = frozenset()
    ) -> Estimates:
        if self._answer is None:
            try:
                self._answer = self._oracle.estimate(context, actions, needs)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is raised below
                self._answer = error
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def score(self, context: Features, actions: Sequence[Action]) -> NDArray[np.float64]:
        return self.estimate(context, actions).mean

    def save(self, directory: Path) -> None:
        self._oracle.save(directory)


def _order(request: RankRequest, decisions: Sequence[Decision]) -> list[int]:
    excluded = set(request.excluded)
    free = [index for index, each in enumerate(request.actions) if each.id not in excluded]
    drawn = [decision.chosen for decision in decisions]
    rest = [index for index in free if index not in set(drawn)]
    scores = decisions[0].scores
    if scores is not None:
        rest.sort(key=lambda index: -scores[index])
    order = list(range(len(request.actions)))
    for place, index in zip(free, [*drawn, *rest], strict=True):
        order[place] = index
    return order
