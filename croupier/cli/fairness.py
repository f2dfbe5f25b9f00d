"""How audits of groups are shown: of what was served, and of a candidate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from croupier.cli.output import with_interval

if TYPE_CHECKING:
    from croupier.cli.output import Output
    from croupier.offline.fairness.candidate_audit import CandidateAudit, CandidateOnAttribute
    from croupier.offline.fairness.disparities import Interval
    from croupier.offline.fairness.group_audit import AttributeAudit, GenerationAudit, GroupAudit
    from croupier.offline.fairness.signals import Rise
    from croupier.offline.finding import Section

__all__ = ("show_candidate", "show_groups", "show_rises")


def show_groups(output: Output, audit: GroupAudit, *, latest: int) -> None:
    """Show what groups got of the latest generations that served, and what was found in all."""
    for generation in audit.generations[-latest:]:
        for attribute in generation.attributes:
            _show_attribute(output, audit, generation, attribute)
    for generation in audit.generations:
        name = f"{audit.loop}: generation {generation.generation}"
        for found in generation.found:
            output.remark(f"{name}: {found}")
        if not generation.found and generation.tests:
            output.remark(f"{name}: no group differs from the rest in {generation.tests} tests")
    omitted = len(audit.generations) - latest
    if omitted > 0:
        output.remark(f"{audit.loop}: {omitted} earlier generations; --generations shows more")


def show_rises(output: Output, loop: str, rises: list[Rise]) -> None:
    """Warn of disparities that have risen."""
    for each in rises:
        output.warn(f"{loop}: a disparity has risen: {each.told()}")


def show_candidate(output: Output, loop: str, audit: CandidateAudit, section: Section) -> None:
    """Show what a candidate would do to groups, and what the gate makes of it."""
    output.remark(
        f"{loop}: {audit.candidate} against {audit.champion} on {audit.rows:,} judged interactions "
        f"({audit.left_out:,} more don't tell about both); reward model: {audit.model}; all "
        f"intervals of a measure hold at once with {100 * audit.confidence:g} %"
    )
    for found in audit.attributes:
        _show_values(output, loop, audit, found)
        _show_gaps(output, loop, found)
    for finding in section.findings:
        if finding.holds is not None:
            limit = "" if finding.limit is None else f" ({finding.bound} {finding.limit:g})"
            output.remark(f"{loop}: {finding.name}{limit}: {finding.holds}")


def _show_attribute(
    output: Output, audit: GroupAudit, generation: GenerationAudit, found: AttributeAudit
) -> None:
    title = f"{audit.loop}: generation {generation.generation} by {found.attribute}"
    contrasts = {
        (disparity.action, each.group): each
        for disparity in found.disparities
        for each in disparity.contrasts
    }
    gaps = {each.action: each.gap for each in found.disparities}
    rows: list[list[object]] = []
    for group in found.groups:
        tested = contrasts.get((None, group.group))
        rows.append(
            [
                *(group.group, group.decisions, "reward", _shown(group.reward), None, None),
                None if tested is None else round(tested.against.difference.value, 4) + 0.0,
                None if tested is None else f"{tested.corrected_p_value:.2g}",
            ]
        )
    for each in found.exposures:
        tested = contrasts.get((each.action, each.group))
        rows.append(
            [
                *(each.group, None, each.action, _shown(each.exposure)),
                *(round(each.chosen, 4), each.propensity),
                None if tested is None else round(tested.against.difference.value, 4) + 0.0,
                None if tested is None else f"{tested.corrected_p_value:.2g}",
            ]
        )
    notes = [
        f"{'reward' if action is None else action}: gap {gap.difference:.4f}"
        + ("" if gap.ratio is None else f", ratio {gap.ratio:.3f}")
        for action, gap in gaps.items()
    ]
    if found.hidden:
        notes.append(f"not shown, fewer than {audit.min_cell} decisions or next to such a group: ")
        notes[-1] += ", ".join(found.hidden)
    output.table(
        title,
        ["group", "decisions", "of", "mean", "chosen", "propensity", "less the rest", "p (Holm)"],
        rows,
        note="; ".join(notes),
    )


def _show_values(
    output: Output, loop: str, audit: CandidateAudit, found: CandidateOnAttribute
) -> None:
    names = audit.champion, audit.candidate
    output.table(
        f"{loop}: what policies are worth by {found.attribute}",
        ["group", "decisions", *names, "change", *(f"regret of {name}" for name in names)],
        [
            [
                *(each.group, each.decisions),
                *map(_shown, (each.champion, each.candidate, each.change)),
                *map(_shown, (each.champion_regret, each.candidate_regret)),
            ]
            for each in found.groups
        ],
        note=f"Not shown: {', '.join(found.hidden)}." if found.hidden else "",
    )
    for each in found.groups:
        if each.why_none is not None:
            output.remark(f"{loop}: {found.attribute} {each.group}: {each.why_none}")


def _show_gaps(output: Output, loop: str, found: CandidateOnAttribute) -> None:
    output.table(
        f"{loop}: gaps by {found.attribute}",
        ["policy", "of", "highest", "lowest", "gap", "ratio"],
        [
            [
                *(each.policy, each.action or each.measure, each.highest, each.lowest),
                *map(_shown, (each.difference, each.ratio)),
            ]
            for each in found.gaps
        ],
    )


def _shown(found: Interval | None) -> str:
    return "–" if found is None else with_interval(found.value, found.lower, found.upper)
