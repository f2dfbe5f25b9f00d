"""Guardrails: further rewards of a loop's decisions, which a new champion must not harm."""

from __future__ import annotations

import math
import re
from typing import Literal, TypeAlias

import msgspec

from croupier.policy.exploration.base import require_range

__all__ = ("Aggregation", "Guardrail", "valid_guardrail_name")

Aggregation: TypeAlias = Literal[
    "earliest", "latest", "last", "sum", "mean", "median", "min", "max"
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class Guardrail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one of the named rewards that outcomes carry counts, and what a challenger may do to it.

    Attributes
    ----------
    default_reward
        What a decision counts of which no outcome names the guardrail.
    aggregation
        How what several outcomes say of it becomes one number, as in
        :class:`~croupier.policy.loop.LoopConfig`; the loop's own if None.
    reward_min, reward_max
        Its range. Outcomes outside it are refused, and intervals rely on it.
    direction
        Which way is better: ``higher``, as with a margin, or ``lower``, as with complaints.
    max_fall
        By how much the challenger's value may be worse than the champion's, at least 0.
    evidence
        What the gate asks for. ``no_proof_of_harm`` refuses a challenger that is shown to be worse
        by more than `max_fall`: one that isn't is refused with a probability of at most half of
        what the gate's confidence leaves, for all such guardrails together. ``proof_of_no_harm``
        refuses one that isn't shown to be worse by less than `max_fall` (non-inferiority): one that
        is worse by as much is promoted with a probability of at most that half. It needs a
        `max_fall` above 0.
    """

    default_reward: float = 0.0
    aggregation: Aggregation | None = None
    reward_min: float = 0.0
    reward_max: float = 1.0
    direction: Literal["higher", "lower"] = "higher"
    max_fall: float = 0.0
    evidence: Literal["no_proof_of_harm", "proof_of_no_harm"] = "no_proof_of_harm"

    def __post_init__(self) -> None:
        require_range(self.reward_min, self.reward_max)
        if not self.reward_min <= self.default_reward <= self.reward_max:
            raise ValueError(
                f"default_reward must be in [reward_min, reward_max] = "
                f"[{self.reward_min:g}, {self.reward_max:g}], got {self.default_reward}"
            )
        if not 0.0 <= self.max_fall < math.inf:
            raise ValueError(f"max_fall must be at least 0 and finite, got {self.max_fall}")
        if self.evidence == "proof_of_no_harm" and self.max_fall == 0.0:
            # Equal policies would be refused for ever, however many rows there are.
            raise ValueError("max_fall must be above 0 with evidence = proof_of_no_harm, got 0")


def valid_guardrail_name(name: str) -> bool:
    """Whether a guardrail can be called so: it becomes the name of a column."""
    return _NAME.fullmatch(name) is not None
