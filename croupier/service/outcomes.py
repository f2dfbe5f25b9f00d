"""Outcomes: from what a caller reports to what is logged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from croupier.policy.decision import check_id, check_reward
from croupier.policy.events import Outcome
from croupier.service.ids import uuid7

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.service.api import OutcomeRequest
    from croupier.service.scorer import Scorer

__all__ = ("outcomes_of",)


def outcomes_of(
    scorer: Scorer, loop: str, requests: Sequence[OutcomeRequest], *, listed: bool
) -> list[Outcome]:
    """Check outcomes that are reported for a loop, and make events of them.

    Parameters
    ----------
    scorer
        Knows the loop, and the time.
    loop
        Its name.
    requests
        As reported.
    listed
        Whether they were a list, whose items an error names by their place.

    Raises
    ------
    InvalidInputError
        Naming the field and what was expected.
    """
    config, now = scorer.loop(loop), scorer.now()
    for position, request in enumerate(requests):
        where = f"[{position}]." if listed else ""
        check_id(f"{where}decision_id", request.decision_id)
        if request.outcome_id is not None:
            check_id(f"{where}outcome_id", request.outcome_id)
        if request.slot is not None:
            check_id(f"{where}slot", request.slot)
        check_reward(f"{where}reward", request.reward, config.reward_min, config.reward_max)
        for name, reward in request.guardrails.items():
            if (rule := config.guardrails.get(name)) is not None:
                field = f"{where}guardrails.{name}"
                check_reward(field, reward, rule.reward_min, rule.reward_max)
    return [
        Outcome(
            decision_id=request.decision_id,
            loop=loop,
            outcome_id=request.outcome_id or uuid7(now),
            reward=request.reward,
            ts=now,
            slot=request.slot,
            guardrails=request.guardrails,
        )
        for request in requests
    ]
