"""What the gate makes of a candidate's audit: every limit is kept, broken, or neither is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from croupier.offline.engine import LOCAL
from croupier.offline.fairness.candidate_audit import audit_candidate
from croupier.offline.finding import Finding, Section
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from croupier.offline.engine import Engine
    from croupier.offline.fairness.candidate_audit import (
        CandidateAudit,
        CandidateOnAttribute,
        GapMeasure,
        GroupGap,
    )
    from croupier.offline.fairness.disparities import Interval
    from croupier.offline.finding import Bound, Held
    from croupier.offline.ope.diagnostics import SupportLimits
    from croupier.policy.fairness.groups import FairnessLimits
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

__all__ = ("fairness_section", "gate_confidence", "judge_fairness")


def judge_fairness(
    interactions: pl.DataFrame,
    policies: tuple[Generation, Generation],
    config: LoopConfig,
    *,
    limits: SupportLimits,
    engine: Engine = LOCAL,
) -> tuple[CandidateAudit | None, Section]:
    """Audit a challenger, and hold it to the loop's limits.

    Parameters
    ----------
    interactions
        Rows that judge.
    policies
        Champion and challenger.
    config
        Of the loop.
    limits
        From when on the log says too little about a policy in a group.
    engine
        Asks the policies.

    Returns
    -------
    CandidateAudit or None, Section
        Without an audit the section says why there is none.
    """
    asked = config.fairness
    if not asked.attributes:
        return None, Section.unmeasured("fairness")
    try:
        audit = audit_candidate(
            interactions,
            {f"generation {each.number}": each for each in policies},
            config,
            confidence=gate_confidence(asked.limits, asked.alpha),
            limits=limits,
            engine=engine,
        )
    except (InvalidInputError, NotEnoughDataError) as error:
        return None, Section.unmeasured("fairness", str(error))
    return audit, fairness_section(audit, asked.limits)


def gate_confidence(limits: FairnessLimits, alpha: float) -> float:
    """Confidence of a candidate's audit that is held to limits.

    With ``no_proof_of_harm`` every limit is one chance more of refusing a candidate that keeps all
    of them, so alpha is divided among them. With ``proof_of_no_harm`` a candidate has to be shown
    to keep every one, and gets through wrongly only if it does by each that it breaks (Berger,
    "Multiparameter Hypothesis Testing and Acceptance Sampling", Technometrics 1982).

    Parameters
    ----------
    limits
        What is asked.
    alpha
        In (0, 1).
    """
    shared = limits.asked if limits.evidence == "no_proof_of_harm" else 1
    return 1.0 - alpha / max(shared, 1)


def fairness_section(audit: CandidateAudit, limits: FairnessLimits) -> Section:
    """The section of a report, with what speaks against the candidate.

    Parameters
    ----------
    audit
        Of the candidate.
    limits
        What it is held to.
    """
    findings = tuple(
        finding
        for attribute in audit.attributes
        for finding in _of_attribute(audit, attribute, limits)
    )
    if not findings:
        names = ", ".join(each.attribute for each in audit.attributes)
        return Section.unmeasured(
            "fairness", f"the log tells of fewer than two groups of {names} what policies are worth"
        )
    note = (
        f"{audit.candidate} on {audit.rows:,} judged interactions, by group: values and regrets "
        f"doubly robust (reward model: {audit.model}), exposures from pmfs; all intervals of a "
        f"measure hold at once with {100 * audit.confidence:g} %."
    )
    return Section(name="fairness", measured=True, note=note, findings=findings)


def _of_attribute(
    audit: CandidateAudit, found: CandidateOnAttribute, limits: FairnessLimits
) -> Iterator[Finding]:
    yield from _gap(audit, found, "value", limits.max_value_gap, limits)
    yield from _fall(found, limits)
    yield from _gap(audit, found, "regret", limits.max_regret_gap, limits)
    exposures = [
        each
        for each in found.gaps
        if each.measure == "exposure"
        and each.policy == audit.candidate
        and (not limits.exposure_actions or each.action in limits.exposure_actions)
    ]
    if exposures:
        # Of all actions, the one that is nearest to breaking the limit, or farthest beyond it.
        worst = max(exposures, key=lambda each: (each.difference.lower, each.difference.value))
        if limits.evidence == "proof_of_no_harm":
            worst = max(exposures, key=lambda each: each.difference.upper)
        name = f"{found.attribute}: exposure gap of {worst.action} ({_groups(worst)})"
        yield _held(name, worst.difference, limits.max_exposure_gap, "at most", limits)
    rated = [(each, each.ratio) for each in exposures if each.ratio is not None]
    if rated:
        lowest, ratio = min(rated, key=lambda each: (each[1].upper, each[1].value))
        if limits.evidence == "proof_of_no_harm":
            lowest, ratio = min(rated, key=lambda each: each[1].lower)
        name = f"{found.attribute}: exposure ratio of {lowest.action} ({_groups(lowest)})"
        yield _held(name, ratio, limits.min_exposure_ratio, "at least", limits)
    if limits.asked and limits.evidence == "proof_of_no_harm":
        yield from _untold(found)


def _gap(
    audit: CandidateAudit,
    found: CandidateOnAttribute,
    measure: GapMeasure,
    limit: float | None,
    limits: FairnessLimits,
) -> Iterator[Finding]:
    gaps = [g for g in found.gaps if (g.measure, g.policy) == (measure, audit.candidate)]
    for gap in gaps:
        name = f"{found.attribute}: {measure} gap ({_groups(gap)})"
        yield _held(name, gap.difference, limit, "at most", limits)


def _fall(found: CandidateOnAttribute, limits: FairnessLimits) -> Iterator[Finding]:
    """The group that loses most by the candidate."""
    changes = [(each.group, each.change) for each in found.groups if each.change is not None]
    if not changes:
        return
    group, change = min(changes, key=lambda each: (each[1].upper, each[1].value))
    if limits.evidence == "proof_of_no_harm":
        group, change = min(changes, key=lambda each: each[1].lower)
    limit = None if limits.max_value_fall is None else -limits.max_value_fall
    name = f"{found.attribute}: change of value for {group}"
    yield _held(name, change, limit, "at least", limits)


def _untold(found: CandidateOnAttribute) -> Iterator[Finding]:
    """Groups that are shown, but of which nothing is known, where proof is asked for."""
    for each in found.groups:
        if each.why_none is not None:
            yield Finding(
                name=f"{found.attribute}: interactions of {each.group}",
                value=float(each.decisions),
                verdict="not shown",
                objection=f"fairness of {found.attribute}, group {each.group}: {each.why_none}",
            )


def _held(
    name: str, found: Interval, limit: float | None, bound: Bound, limits: FairnessLimits
) -> Finding:
    """A number, with whether it is shown to keep its limit, or to break it."""
    verdict: Held | None = None
    objection = None
    if limit is not None:
        kept, broken = found.upper <= limit, found.lower > limit
        if bound == "at least":
            kept, broken = found.lower >= limit, found.upper < limit
        verdict = "pass" if kept else "fail" if broken else "not shown"
        shown = (
            f"fairness of {name} is {found.value:+.4f}, interval "
            f"[{found.lower:+.4f}, {found.upper:+.4f}]"
        )
        if broken:
            objection = f"{shown}: shown not to be {bound} {limit:g}"
        elif not kept and limits.evidence == "proof_of_no_harm":
            objection = f"{shown}: not shown to be {bound} {limit:g}"
    return Finding(
        name=name,
        value=found.value,
        lower=found.lower,
        upper=found.upper,
        limit=limit,
        bound=bound,
        verdict=verdict,
        objection=objection,
    )


def _groups(gap: GroupGap) -> str:
    return f"{gap.highest} over {gap.lowest}" if gap.highest != gap.lowest else "all alike"
