"""Limits on groups: kept, broken, or neither shown; and what the gate makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from croupier.offline.fairness.candidate_audit import (
    CandidateAudit,
    CandidateGroup,
    CandidateOnAttribute,
    GroupGap,
)
from croupier.offline.fairness.disparities import Interval
from croupier.offline.fairness.fairness_section import fairness_section, gate_confidence
from croupier.policy.fairness.groups import FairnessLimits


def interval(lower: float, value: float, upper: float) -> Interval:
    return Interval(value=value, lower=lower, upper=upper)


def gap(measure: Any, lower: float, value: float, upper: float, **more: Any) -> GroupGap:
    return GroupGap(
        measure=measure,
        policy=more.pop("policy", "generation 2"),
        highest="m",
        lowest="f",
        difference=interval(lower, value, upper),
        **more,
    )


AUDIT = CandidateAudit(
    champion="generation 1",
    candidate="generation 2",
    rows=1000,
    left_out=0,
    model="the oracle of generation 2",
    confidence=0.95,
    attributes=(
        CandidateOnAttribute(
            attribute="gender",
            groups=(
                CandidateGroup(group="m", decisions=600, change=interval(0.0, 0.05, 0.1)),
                CandidateGroup(group="f", decisions=300, change=interval(-0.2, -0.1, -0.05)),
                CandidateGroup(group="x", decisions=100, why_none="too few"),
            ),
            hidden=(),
            exposures=(),
            gaps=(
                gap("value", 0.0, 0.9, 0.95, policy="generation 1"),
                gap("value", 0.1, 0.2, 0.3),
                gap("regret", 0.0, 0.02, 0.05),
                gap("exposure", 0.0, 0.1, 0.2, action="a0", ratio=interval(0.6, 0.8, 0.9)),
                gap("exposure", 0.3, 0.4, 0.5, action="a1", ratio=interval(0.2, 0.3, 0.4)),
            ),
        ),
    ),
)


@pytest.mark.parametrize(
    ("limit", "name", "verdict"),
    [
        ({"max_value_gap": 0.3}, "value gap", "pass"),
        ({"max_value_gap": 0.2}, "value gap", "not shown"),
        ({"max_value_gap": 0.05}, "value gap", "fail"),
        ({"max_value_fall": 0.2}, "change of value for f", "pass"),
        ({"max_value_fall": 0.1}, "change of value for f", "not shown"),
        ({"max_value_fall": 0.01}, "change of value for f", "fail"),
        ({"max_regret_gap": 0.05}, "regret gap", "pass"),
        ({"max_regret_gap": 0.04}, "regret gap", "not shown"),
        ({"max_exposure_gap": 0.2}, "exposure gap of a1", "fail"),
        ({"max_exposure_gap": 0.2, "exposure_actions": ("a0",)}, "exposure gap of a0", "pass"),
        ({"min_exposure_ratio": 0.8}, "exposure ratio of a1", "fail"),
        (
            {"min_exposure_ratio": 0.8, "exposure_actions": ("a0",)},
            "exposure ratio of a0",
            "not shown",
        ),
    ],
)
def test_a_limit_is_kept_or_broken_or_neither_is_shown(
    limit: dict[str, Any], name: str, verdict: str
) -> None:
    for evidence in ("no_proof_of_harm", "proof_of_no_harm"):
        limits = FairnessLimits(evidence=evidence, **limit)
        section = fairness_section(AUDIT, limits)
        (held,) = [each for each in section.findings if each.limit is not None]
        assert held.name.startswith(f"gender: {name}")
        assert held.holds == verdict
        objects = verdict == "fail" or (verdict == "not shown" and evidence == "proof_of_no_harm")
        assert (held.objection is not None) is objects
        # A group that nothing is known of is an objection only to those who ask for proof.
        untold = [each for each in section.findings if "interactions of x" in each.name]
        assert len(untold) == (evidence == "proof_of_no_harm")


def test_without_limits_the_figures_are_told_and_nothing_is_objected_to() -> None:
    section = fairness_section(AUDIT, FairnessLimits())
    assert section.measured
    assert "1,000 judged interactions" in section.note
    assert [each.value for each in section.findings[:2]] == [0.2, -0.1]
    assert all(each.objection is None and each.holds is None for each in section.findings)


def test_where_nothing_can_be_told_nothing_was_measured() -> None:
    nothing = CandidateOnAttribute(
        attribute="gender", groups=(), hidden=("f", "m"), exposures=(), gaps=()
    )
    found = CandidateAudit(
        champion="a",
        candidate="b",
        rows=10,
        left_out=0,
        model="x",
        confidence=0.95,
        attributes=(nothing,),
    )
    section = fairness_section(found, FairnessLimits())
    assert not section.measured
    assert "fewer than two groups of gender" in section.note


def test_alpha_is_shared_by_limits_that_refuse_on_proof_of_harm() -> None:
    limits: dict[str, Any] = {"max_value_gap": 0.1, "max_regret_gap": 0.1}
    assert gate_confidence(FairnessLimits(**limits), 0.05) == pytest.approx(0.975)
    strict = FairnessLimits(evidence="proof_of_no_harm", **limits)
    assert gate_confidence(strict, 0.05) == pytest.approx(0.95)
    assert gate_confidence(FairnessLimits(), 0.05) == pytest.approx(0.95)
