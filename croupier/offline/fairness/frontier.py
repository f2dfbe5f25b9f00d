"""What fairness costs: value against violations, from distances that are stored once.

Auditors are asked once about some pairs. From these distances the violations of any policy follow
for any α and γ, since a panel's verdict is an order statistic of them, so that the frontier can be
explored with no further feedback (Bechavod & Roth, ICML 2023).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.offline.shares import wilson_interval
from croupier.policy.errors import InvalidInputError
from croupier.policy.fairness.auditors import gap_of, panel_distance, violates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.offline.ope import Estimate
    from croupier.policy.fairness.auditors import FloatArray, NamedGap, Panel

__all__ = (
    "FrontierPoint",
    "PolicyOnPairs",
    "StoredDistances",
    "frontier",
    "frontier_figure",
    "mixed",
    "stored_distances",
)


class StoredDistances(msgspec.Struct, frozen=True, kw_only=True):
    """What auditors said of disjoint random pairs, to be kept.

    Attributes
    ----------
    decisions
        Ids of n decisions; pair i is of decisions 2 i and 2 i + 1.
    auditors
        Their names, m.
    distances
        By auditor, one for each of n/2 pairs; None where one says nothing.
    """

    decisions: list[str]
    auditors: list[str]
    distances: list[list[float | None]]

    def matrix(self) -> FloatArray:
        """The distances, shape (m, n/2), NaN where an auditor says nothing."""
        return np.array(
            [[math.nan if each is None else each for each in row] for row in self.distances],
            dtype=np.float64,
        ).reshape(len(self.auditors), len(self.decisions) // 2)


class PolicyOnPairs(msgspec.Struct, frozen=True, kw_only=True):
    """A policy of a family.

    Attributes
    ----------
    name
        For people.
    gaps
        How differently it treats the two of every stored pair, one number each.
    value
        What it is worth; None if that isn't known.
    value_lower, value_upper
        Interval of the value.
    """

    name: str
    gaps: list[float]
    value: float | None = None
    value_lower: float | None = None
    value_upper: float | None = None

    @classmethod
    def of(
        cls, name: str, treatments: FloatArray, value: Estimate | None, gap: NamedGap
    ) -> PolicyOnPairs:
        """From its probabilities on the stored decisions, shape (n, K)."""
        gaps = gap_of(gap)(treatments[0::2], treatments[1::2])
        return cls(
            name=name,
            gaps=gaps.tolist(),
            value=None if value is None else value.value,
            value_lower=None if value is None else value.lower,
            value_upper=None if value is None else value.upper,
        )


class FrontierPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A policy under one meaning of fairness.

    Attributes
    ----------
    policy
        Its name.
    alpha, gamma
        The meaning.
    rate, rate_lower, rate_upper
        Share of the pairs that violate, with a Wilson interval: the pairs have no decision in
        common.
    value, value_lower, value_upper
        What the policy is worth.
    efficient
        Whether no other policy is worth as much with fewer violations, or more with as many.
    """

    policy: str
    alpha: float
    gamma: float
    rate: float
    rate_lower: float
    rate_upper: float
    value: float | None
    value_lower: float | None
    value_upper: float | None
    efficient: bool


def stored_distances(
    panel: Panel, names: Sequence[str], decision_ids: Sequence[str]
) -> StoredDistances:
    """Ask all auditors about disjoint pairs: rows 0 and 1, 2 and 3, and so on.

    Parameters
    ----------
    panel
        Over n decisions in random order; an odd last one is left out.
    names
        Of its auditors.
    decision_ids
        Of the decisions.
    """
    n = len(decision_ids) // 2 * 2
    first = np.arange(0, n, 2)
    told = panel.each(first, first + 1)
    return StoredDistances(
        decisions=list(decision_ids[:n]),
        auditors=list(names),
        distances=[[None if math.isnan(each) else each for each in row] for row in told.tolist()],
    )


def frontier(
    stored: StoredDistances,
    policies: Sequence[PolicyOnPairs],
    alphas: Sequence[float],
    gammas: Sequence[float],
    *,
    confidence: float = 0.95,
) -> list[FrontierPoint]:
    """Rates and values of all policies for every α and γ, asking no auditor.

    Parameters
    ----------
    stored
        What auditors have said.
    policies
        With their gaps on the same pairs.
    alphas, gammas
        Slacks ≥ 0 and shares in (0, 1].
    confidence
        Of the intervals of rates, in (0, 1).

    Raises
    ------
    InvalidInputError
        If a policy has gaps of other pairs, or nobody has judged any.
    """
    told = stored.matrix()
    for policy in policies:
        if len(policy.gaps) != told.shape[1]:
            raise InvalidInputError(
                "policies",
                f"expected {told.shape[1]} gaps of {policy.name}, got {len(policy.gaps)}",
            )
    points: list[FrontierPoint] = []
    for gamma in gammas:
        distances = panel_distance(told, gamma)
        judged = np.isfinite(distances)
        if not judged.any():
            raise InvalidInputError("stored", "expected a pair that somebody has judged")
        for alpha in alphas:
            rates = [_rate(policy, distances, judged, alpha) for policy in policies]
            for policy, rate in zip(policies, rates, strict=True):
                lower, upper = wilson_interval(rate, int(judged.sum()), confidence)
                points.append(
                    FrontierPoint(
                        policy=policy.name,
                        alpha=alpha,
                        gamma=gamma,
                        rate=rate,
                        rate_lower=lower,
                        rate_upper=upper,
                        value=policy.value,
                        value_lower=policy.value_lower,
                        value_upper=policy.value_upper,
                        efficient=_efficient(policy, rate, policies, rates),
                    )
                )
    return points


def frontier_figure(points: Sequence[FrontierPoint], path: Path) -> None:
    """Draw value against violation rate, a line for every α and γ, into a file.

    Parameters
    ----------
    points
        As :func:`frontier` gives them; those without a value are left out.
    path
        Whose ending says of which kind, ``.png`` or ``.svg``.
    """
    from matplotlib import rc_context  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    lines: dict[tuple[float, float], list[FrontierPoint]] = {}
    for point in points:
        if point.value is not None:
            lines.setdefault((point.alpha, point.gamma), []).append(point)
    for (alpha, gamma), line in lines.items():
        ordered = sorted(line, key=lambda each: each.rate)
        rates = np.array([each.rate for each in ordered])
        values = np.array([each.value for each in ordered], dtype=np.float64)
        spread = np.array(
            [[each.rate - each.rate_lower, each.rate_upper - each.rate] for each in ordered]
        ).T
        label = f"α = {alpha:g}, γ = {gamma:g}"
        axes.errorbar(rates, values, xerr=spread, marker="o", capsize=2, label=label)
    axes.set_xlabel("violation rate")
    axes.set_ylabel("value")
    axes.legend()
    # Letters stay letters, for whoever looks for a word in it.
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(path)


def _rate(
    policy: PolicyOnPairs, distances: FloatArray, judged: NDArray[np.bool_], alpha: float
) -> float:
    return float(violates(np.array(policy.gaps), distances, alpha)[judged].mean())


def _efficient(
    policy: PolicyOnPairs,
    rate: float,
    policies: Sequence[PolicyOnPairs],
    rates: Sequence[float],
) -> bool:
    if policy.value is None:
        return False
    return not any(
        other.value is not None
        and other.value >= policy.value
        and theirs <= rate
        and (other.value > policy.value or theirs < rate)
        for other, theirs in zip(policies, rates, strict=True)
    )


def mixed(
    treatments: Mapping[str, FloatArray], uniform: FloatArray, shares: Sequence[float]
) -> dict[str, FloatArray]:
    """Every policy mixed with the uniform one, ``(1 - λ) π + λ u``, by name.

    With λ = 1 all are the uniform policy, which is there once.

    Parameters
    ----------
    treatments
        Probabilities of every policy, by name, shape (n, K).
    uniform
        Of the uniform policy, shape (n, K).
    shares
        λ in (0, 1].
    """
    found = dict(treatments)
    for name, given in treatments.items():
        for share in shares:
            if share == 1.0:
                continue
            found[f"{name}, {100 * share:g} % uniform"] = (1.0 - share) * given + share * uniform
    if 1.0 in shares:
        found["uniform"] = uniform
    return found
