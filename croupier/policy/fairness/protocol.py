"""Rounds of individually fair classification with one-sided feedback.

In every round the learner fixes a distribution π over hypotheses, k instances come, one hypothesis
is drawn and decides on all of them, a panel audits π on the round's pairs, and the labels of those
who were approved are seen. Bechavod and Roth, "Individually Fair Learning with One-Sided Feedback",
2022, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("FairLearner", "Feedback", "Play", "RoundOutcome", "Violation", "audit", "play_round")

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Violation:
    """The pair of a round that a panel reports: ρ = (x_over, x_under).

    Attributes
    ----------
    over, under
        Places, in the round, of who is approved too often and of who too rarely.
    excess
        By how much their chances differ more than they may, positive.
    """

    over: int
    under: int
    excess: float


@dataclass(frozen=True, slots=True)
class Play:
    """What a learner does in a round.

    Attributes
    ----------
    contexts
        Of the instances, a row each, shape (k, d).
    chances
        π(x) = P(h(x) = 1) of each instance, which is what the panel audits, shape (k,).
    approved
        What the hypothesis that was drawn decides, shape (k,).
    inverse
        Estimates of one over the probability with which each instance was to be approved, at least
        1, shape (k,); read where it was approved.
    """

    contexts: FloatArray
    chances: FloatArray
    approved: BoolArray
    inverse: FloatArray


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a learner is told of its play.

    Attributes
    ----------
    labels
        0 or 1 (or between), where the instance was approved; anything elsewhere, shape (k,).
    violation
        What the panel reports; None if nothing.
    weights
        How many instances like it each counts for, positive, shape (k,); 1 each if None.
    """

    labels: FloatArray
    violation: Violation | None
    weights: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """A round, as whoever knows all labels sees it.

    Attributes
    ----------
    play
        What the learner did.
    violation
        What the panel reported; None if nothing.
    error
        E over h ~ π of how many instances h gets wrong, in [0, k].
    """

    play: Play
    violation: Violation | None
    error: float


class FairLearner(Protocol):
    """Plays rounds and learns from them, one after the other."""

    def act(self, contexts: FloatArray, rng: np.random.Generator) -> Play:
        """Fix π, and draw a hypothesis that decides on the instances, shape (k, d)."""
        ...

    def learn(self, play: Play, feedback: Feedback) -> None:
        """Take in what became of the latest play."""
        ...


def audit(chances: FloatArray, allowed: NDArray[np.floating], alpha: float) -> Violation | None:
    """The pair whose chances differ most beyond what is allowed; None if none does.

    ``π(x) - π(x') > d(x, x') + α``, where d is the panel's order statistic.

    Parameters
    ----------
    chances
        π(x) of each instance, in [0, 1], shape (k,).
    allowed
        The panel's d(x, x') of each ordered pair, in [0, 1], shape (k, k).
    alpha
        Slack of the audit, at least 0.

    Raises
    ------
    InvalidInputError
        If the shapes don't fit together.
    """
    if allowed.shape != (chances.size, chances.size):
        raise InvalidInputError(
            "allowed", f"expected shape {(chances.size, chances.size)}, got {allowed.shape}"
        )
    excess = chances[:, None] - chances[None, :] - allowed
    worst = int(excess.argmax())
    over, under = divmod(worst, chances.size)
    beyond = float(excess[over, under]) - alpha
    # A pair exactly at its limit must not be reported for the last bit of a sum.
    return Violation(over, under, beyond) if beyond > _ROUNDING else None


def play_round(
    learner: FairLearner,
    contexts: FloatArray,
    labels: FloatArray,
    panel: Callable[[Play], Violation | None],
    rng: np.random.Generator,
    *,
    full_information: bool = False,
) -> RoundOutcome:
    """Play one round.

    Parameters
    ----------
    learner
        Who plays.
    contexts, labels
        Of the instances, shapes (k, d) and (k,).
    panel
        Audits the play, see :func:`audit`.
    rng
        What is random in the learner.
    full_information
        Whether the learner sees the labels of those whom it declined too, as if everybody had been
        approved: what one-sided feedback costs is the difference.
    """
    play = learner.act(contexts, rng)
    violation = panel(play)
    seen = play
    if full_information:
        ones = np.ones(labels.size)
        seen = replace(play, approved=np.ones(labels.size, dtype=np.bool_), inverse=ones)
    learner.learn(seen, Feedback(np.where(seen.approved, labels, np.nan), violation))
    error = float((labels + play.chances * (1.0 - 2.0 * labels)).sum())
    return RoundOutcome(play, violation, error)
