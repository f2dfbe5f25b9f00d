"""What a loop means by individual fairness: its auditors, the slack, and the gate's limit."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import msgspec

__all__ = (
    "AlikeIfSame",
    "AuditorConfig",
    "IndividualFairness",
    "LearnedDistance",
    "Person",
    "WeightedDistance",
)


class WeightedDistance(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="distance"
):
    """A given distance: ``d(x, x') = min(1, sqrt(Σ_k (w_k Δ_k)²))``.

    What has no weight doesn't matter: a rule that an attribute must make no difference is a
    distance without it.

    Attributes
    ----------
    weights
        By feature, as a path with dots: how far apart two are that differ in it by 1, or in the
        value of a word; at least 0. A path that starts with ``audit.`` is one of the decision's
        audit attributes, any other one of its context's features.
    """

    weights: dict[str, float]

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("weights must name at least one feature")
        for name, weight in self.weights.items():
            if not 0.0 <= weight < math.inf:
                raise ValueError(f"weights must be at least 0 and finite, got {weight} of {name!r}")


class LearnedDistance(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="learned"
):
    """A distance whose weights are learned from people's judgements.

    Attributes
    ----------
    features
        Paths of the features that it may depend on, as in :class:`WeightedDistance`.
    people
        Whose judgements are learned from; everybody's if empty.
    least
        How many judgements there have to be; with fewer it abstains.
    """

    features: tuple[str, ...]
    people: tuple[str, ...] = ()
    least: int = 10

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("features must name at least one feature")
        if self.least < 1:
            raise ValueError(f"least must be at least 1, got {self.least}")


class AlikeIfSame(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="alike_if_same"
):
    """A rule: two who have the same values are alike (0), all others are not (1).

    Attributes
    ----------
    features
        Paths of the features whose values have to be the same, as in :class:`WeightedDistance`.
    """

    features: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("features must name at least one feature")


class Person(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="person"):
    """A person's own judgements; she abstains on pairs that she hasn't judged.

    Attributes
    ----------
    name
        As it stands in the judgements; anybody's if None: of a pair that several have judged, each
        of them is an auditor.
    """

    name: str | None = None


AuditorConfig: TypeAlias = WeightedDistance | LearnedDistance | AlikeIfSame | Person


class IndividualFairness(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When two decisions of a loop are treated more differently than they may be.

    Attributes
    ----------
    auditors
        The panel, by name.
    alpha
        Slack α in [0, 1): by how much the treatment may differ beyond the distance.
    gamma
        Share γ in (0, 1] of the auditors that have to see a violation.
    action
        Id of the action whose probability is the treatment, such as ``approve``; decisions that
        don't offer it are left out. All actions' probabilities if None.
    gap
        How differently two are treated if no action is named: ``any`` takes the action whose
        probabilities differ most, ``total_variation`` half of the sum over all.
    max_violation_rate
        Share of the pairs of decisions that may violate, in [0, 1]: the gate refuses a challenger
        unless the upper end of the rate's interval is at most this. None only tells the rate.
    """

    auditors: dict[str, AuditorConfig]
    alpha: float = 0.1
    gamma: float = 0.5
    action: str | None = None
    gap: Literal["any", "total_variation"] = "any"
    max_violation_rate: float | None = None

    def __post_init__(self) -> None:
        if not self.auditors:
            raise ValueError("auditors must name at least one auditor")
        if not 0.0 <= self.alpha < 1.0:
            raise ValueError(f"alpha must be in [0, 1), got {self.alpha}")
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"gamma must be in (0, 1], got {self.gamma}")
        limit = self.max_violation_rate
        if limit is not None and not 0.0 <= limit <= 1.0:
            raise ValueError(f"max_violation_rate must be in [0, 1], got {limit}")
