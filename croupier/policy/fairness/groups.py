"""Fairness of a loop: whose treatment is compared, what is held against it, and what is no feature.

Attributes that are logged for audits (:attr:`~croupier.policy.requests.DecisionRequest.audit`) are
what groups are made of. Those that no oracle may see are named here too, see
:mod:`croupier.policy.sensitive`.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import msgspec

__all__ = ("CROSSED", "Evidence", "FairnessConfig", "FairnessLimits", "parts_of")

CROSSED = "*"
"""Between the attributes whose values are crossed, as in ``gender * age``."""

Evidence: TypeAlias = Literal["no_proof_of_harm", "proof_of_no_harm"]

_MOST_CROSSED = 3


class FairnessLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the gate holds a challenger to, for every attribute of the loop; None is not asked.

    Attributes
    ----------
    max_value_gap
        Largest difference between two groups' values, at least 0, in the reward's unit.
    max_value_fall
        By how much any group's value may be below what the champion is worth to it, at least 0.
    max_regret_gap
        Largest difference between two groups' regrets, at least 0.
    max_exposure_gap
        Largest difference between the probabilities with which two groups get an action, in [0, 1].
    min_exposure_ratio
        Smallest ratio of these probabilities, in (0, 1]; 0.8 is the four-fifths rule.
    exposure_actions
        Actions that the two limits of exposure are for; all that are shown if empty.
    evidence
        ``no_proof_of_harm`` refuses a challenger that is shown to break a limit;
        ``proof_of_no_harm`` refuses one that isn't shown to keep all of them.
    """

    max_value_gap: float | None = None
    max_value_fall: float | None = None
    max_regret_gap: float | None = None
    max_exposure_gap: float | None = None
    min_exposure_ratio: float | None = None
    exposure_actions: tuple[str, ...] = ()
    evidence: Evidence = "no_proof_of_harm"

    def __post_init__(self) -> None:
        for name in ("max_value_gap", "max_value_fall", "max_regret_gap"):
            limit = getattr(self, name)
            if limit is not None and not 0.0 <= limit < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {limit}")
        gap, ratio = self.max_exposure_gap, self.min_exposure_ratio
        if gap is not None and not 0.0 <= gap <= 1.0:
            raise ValueError(f"max_exposure_gap must be in [0, 1], got {gap}")
        if ratio is not None and not 0.0 < ratio <= 1.0:
            raise ValueError(f"min_exposure_ratio must be in (0, 1], got {ratio}")
        if self.exposure_actions and gap is None and ratio is None:
            raise ValueError(
                "exposure_actions needs max_exposure_gap or min_exposure_ratio, which are unset"
            )
        strictest = ("max_value_gap", 0.0), ("max_value_fall", 0.0), ("max_regret_gap", 0.0)
        for name, end in (*strictest, ("max_exposure_gap", 0.0), ("min_exposure_ratio", 1.0)):
            if self.evidence == "proof_of_no_harm" and getattr(self, name) == end:
                # Equal groups would be refused for ever, however many rows there are.
                raise ValueError(
                    f"{name} must not be {end:g} with evidence = proof_of_no_harm: no log shows "
                    f"groups to be exactly equal"
                )

    @property
    def asked(self) -> int:
        """How many limits are set."""
        limits = (
            *(self.max_value_gap, self.max_value_fall, self.max_regret_gap),
            *(self.max_exposure_gap, self.min_exposure_ratio),
        )
        return sum(each is not None for each in limits)


class FairnessConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a loop's fairness is audited.

    Attributes
    ----------
    attributes
        What groups are made of: names of audit attributes (``gender``, ``audit.gender``), paths in
        the context (``context.user.country``), or two or three of them crossed (``gender * age``).
    sensitive
        Names or dotted paths of features that no oracle may see: a request that has one in its
        context, slots or actions is refused, on every route, and interactions that have one are not
        learned from. See :class:`~croupier.policy.sensitive.SensitiveFeatures`.
    allow_as_features
        Of the sensitive ones, those that are allowed after all, perhaps in one place alone, such as
        ``actions.gender``.
    min_cell
        Fewest decisions of a group that is shown, at least 2.
    max_groups
        Most groups of an attribute that are shown by themselves, at least 2; the smaller ones are
        taken together.
    max_actions
        Most actions whose exposure is compared, the most probable ones, at least 1.
    alpha
        Chance of a false alarm, in (0, 0.5): of all tests of a generation's groups together, and of
        all limits of the gate together.
    min_rise
        By how much a disparity has to rise from earlier generations to the latest for a signal, at
        least 0: a probability for exposures, a share of the reward's range for rewards.
    limits
        What the gate asks.
    """

    attributes: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()
    allow_as_features: tuple[str, ...] = ()
    min_cell: int = 20
    max_groups: int = 8
    max_actions: int = 10
    alpha: float = 0.05
    min_rise: float = 0.02
    limits: FairnessLimits = FairnessLimits()

    def __post_init__(self) -> None:
        for name in self.attributes:
            parts_of(name)
        if len(set(self.attributes)) < len(self.attributes):
            raise ValueError(f"attributes must be different ones, got {list(self.attributes)}")
        for field, least in (("min_cell", 2), ("max_groups", 2), ("max_actions", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} must be at least {least}, got {getattr(self, field)}")
        if not 0.0 < self.alpha < 0.5:
            raise ValueError(f"alpha must be in (0, 0.5), got {self.alpha}")
        if not 0.0 <= self.min_rise < math.inf:
            raise ValueError(f"min_rise must be at least 0 and finite, got {self.min_rise}")
        if self.limits.asked and not self.attributes:
            raise ValueError("limits need attributes that groups are made of, and there are none")
        for field in ("sensitive", "allow_as_features"):
            if not all(map(_is_path, getattr(self, field))):
                raise ValueError(
                    f"{field} must be names or dotted paths without empty parts, "
                    f"got {list(getattr(self, field))}"
                )
        for allowed in self.allow_as_features:
            if not any(_within(each, allowed) for each in self.sensitive):
                raise ValueError(
                    f"allow_as_features must name what sensitive names, got {allowed!r}"
                )

    @property
    def for_training(self) -> FairnessConfig:
        """What of it changes what is learned: which features there are."""
        return FairnessConfig(sensitive=self.sensitive, allow_as_features=self.allow_as_features)


def parts_of(attribute: str) -> tuple[str, ...]:
    """The attributes that are crossed, one if none are.

    Raises
    ------
    ValueError
        If one has no name, is there twice, or there are more than three.
    """
    parts = tuple(each.strip() for each in attribute.split(CROSSED))
    if not all(parts) or len(set(parts)) < len(parts) or len(parts) > _MOST_CROSSED:
        raise ValueError(
            f"attributes must be names, or up to {_MOST_CROSSED} different ones crossed as in "
            f"'gender * age', got {attribute!r}"
        )
    return parts


def _is_path(text: str) -> bool:
    return all(part.strip() == part and part for part in text.split("."))


def _within(inner: str, outer: str) -> bool:
    return f".{inner.casefold()}." in f".{outer.casefold()}."
