"""A person's judgement of a pair, checked and made an event."""

from __future__ import annotations

import math

from croupier.policy.decision import check_id
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Judgement

__all__ = ("ALIKE", "NOT_ALIKE", "judgement_of")

ALIKE, NOT_ALIKE = 0.0, 1.0
"""Distances of who says no more than that two are alike, or not."""


def judgement_of(
    loop: str,
    decision_id: str,
    other_decision_id: str,
    *,
    auditor: str,
    distance: float,
    judgement_id: str,
    ts: int,
) -> Judgement:
    """Check a judgement, and make an event of it.

    Parameters
    ----------
    loop
        Whose decisions.
    decision_id, other_decision_id
        The pair; the order makes no difference.
    auditor
        Who judges.
    distance
        How differently the two may be treated, in [0, 1].
    judgement_id
        The same one counts once.
    ts
        Now, in microseconds since the epoch.

    Raises
    ------
    InvalidInputError
        Naming the field and what was expected.
    """
    check_id("decision_id", decision_id)
    check_id("other_decision_id", other_decision_id)
    check_id("auditor", auditor)
    check_id("judgement_id", judgement_id)
    if decision_id == other_decision_id:
        raise InvalidInputError("other_decision_id", f"expected another one than {decision_id!r}")
    if not (math.isfinite(distance) and 0.0 <= distance <= 1.0):
        raise InvalidInputError("distance", f"expected a number in [0, 1], got {distance!r}")
    return Judgement(
        judgement_id=judgement_id,
        loop=loop,
        decision_id=decision_id,
        other_decision_id=other_decision_id,
        auditor=auditor,
        distance=distance,
        ts=ts,
    )
