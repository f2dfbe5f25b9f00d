"""How what the batch side has found is shown: sinks, nights, evaluations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from croupier.cli.output import interval

if TYPE_CHECKING:
    from croupier.cli.options import Session
    from croupier.offline.evaluate import Evaluation
    from croupier.offline.gate import Verdict
    from croupier.offline.imitation import Imitation
    from croupier.offline.night import LoopNight, NightlyReport
    from croupier.offline.ope import Estimate
    from croupier.offline.simulator_gap import GenerationGap
    from croupier.offline.sink import SinkReport
    from croupier.policy.oracle import Became, Fidelity

__all__ = (
    "show_became",
    "show_evaluation",
    "show_fidelity",
    "show_nights",
    "show_sink",
    "told_by_log",
)


def show_nights(session: Session, report: NightlyReport) -> None:
    """Say what a night has brought: tables on a terminal, and in a log a line for each fact."""
    show_sink(session, report.sink)
    for night in report.loops:
        _show_night(session, night)
    for name, decisions in report.retention.decisions.items():
        session.output.remark(f"{name}: {decisions:,} decisions were old enough to forget")


def show_sink(session: Session, report: SinkReport) -> None:
    """Say what a sink has added."""
    session.output.remark(
        f"sink: {report.decisions:,} decisions and {report.outcomes:,} outcomes added, "
        f"{report.duplicates:,} records were there already; {_places(report)}"
    )
    if report.set_aside:
        session.output.warn(f"{report.set_aside:,} records can't be read and were set aside")
    if report.missed:
        session.output.warn(f"{report.missed:,} positions were gone from the log before the sink")


def _places(report: SinkReport) -> str:
    if isinstance(report.position, int):
        return f"log position {report.position:,}"
    return f"{len(report.position):,} partitions of the log"


def show_fidelity(session: Session, loop: str, fidelity: Fidelity | None) -> None:
    """Say how well a table stands for the oracle it was distilled from, if it is one."""
    if fidelity is not None:
        session.output.remark(
            f"{loop}: of {fidelity.rows:,} decisions held out, the table explains "
            f"{100 * fidelity.r2:.1f} % of the variance of its oracle's estimates, and has the "
            f"same best action in {100 * fidelity.agreement:.1f} %"
        )


def show_became(session: Session, loop: str, became: Became | None) -> None:
    """Say what an oracle that chooses by size has become, if it is one."""
    if became is None:
        return
    if became.columns is not None:
        session.output.remark(f"{loop}: auto is a {became.kind} of {became.columns:,} columns")
    else:
        session.output.remark(f"{loop}: auto is {became.kind}, as there are too many columns")


def _show_night(session: Session, night: LoopNight) -> None:
    joined = night.join
    session.output.remark(
        f"{night.loop}: {joined.joined:,} interactions joined ({joined.observed:,} observed, "
        f"{joined.defaulted:,} by default), {joined.open:,} windows open, "
        f"{joined.late:,} outcomes late, {joined.revised:,} interactions revised, "
        f"{joined.orphans:,} outcomes without a decision"
    )
    for risen in night.disparities:
        session.output.warn(f"{night.loop}: a disparity has risen: {risen}")
    if night.unaudited is not None:
        session.output.warn(f"{night.loop}: groups were not audited: {night.unaudited}")
    for gap in night.gaps:
        session.output.remark(
            f"{night.loop}: generation {gap.generation} earned {gap.value:.4g} in a session "
            f"{interval(gap.lower, gap.upper, digits=2)}, and {gap.simulated:.4g} in simulators: "
            f"{gap.gap:+.4g} {interval(gap.gap_lower, gap.gap_upper, digits=2)}, over "
            f"{gap.sessions:,} sessions held out"
        )
        session.output.remark(f"{night.loop}: {told_by_log(gap)}")
    _show_unusual(session, night)
    show_fidelity(session, night.loop, night.fidelity)
    show_became(session, night.loop, night.became)
    trained = "nothing" if night.challenger is None else f"generation {night.challenger}"
    if night.resumed:
        trained += ", of an earlier night,"
    if night.verdict is None:
        if night.failed is None:
            why = f": {night.skipped}" if night.skipped is not None else ""
            session.output.remark(f"{night.loop}: {trained} trained, nothing judged{why}")
        return
    if not session.output.to_terminal:
        session.output.remark(
            f"{night.loop}: {trained} trained, judged on {_judged_rows(night)}; "
            f"the gate {_gate(night.verdict)}: {'; '.join(night.verdict.reasons)}"
        )
    elif night.imitation is not None:
        _show_imitation(session, night, night.imitation, night.verdict)
    elif night.evaluation is not None:
        show_evaluation(session, night.evaluation, night.verdict)
    if night.report is not None:
        session.output.remark(f"{night.loop}: promotion report at {night.report}")
    session.output.remark(f"{night.loop}: champion is generation {night.champion}")


def told_by_log(gap: GenerationGap) -> str:
    """What the log says of a generation, and what the simulators promise beyond that."""
    told = gap.off_policy
    if told is None:
        return f"the log says too little of generation {gap.generation}: {gap.unsupported}"
    beyond = gap.simulated - told.value
    return (
        f"by the log generation {gap.generation} earns {told.value:.4g} in a session "
        f"{interval(told.lower, told.upper, digits=2)}, the simulators {beyond:+.4g} "
        f"{interval(gap.simulated - told.upper, gap.simulated - told.lower, digits=2)}, over "
        f"{told.sessions:,} sessions worth {told.ess:,.0f}"
    )


def _show_unusual(session: Session, night: LoopNight) -> None:
    if night.unsimulated is not None:
        session.output.warn(f"{night.loop}: simulators were not measured: {night.unsimulated}")
    if night.overridden is not None:
        session.output.remark(f"{night.loop}: {night.overridden}")


def _rows_of(evaluation: Evaluation) -> str:
    kind = "sessions" if evaluation.unit == "session" else "interactions"
    return f"{evaluation.rows:,} {kind}"


def _judged_rows(night: LoopNight) -> str:
    if night.imitation is not None:
        return f"{night.imitation.challenger.rows:,} interactions"
    return "0 interactions" if night.evaluation is None else _rows_of(night.evaluation)


def _gate(verdict: Verdict) -> str:
    return "lets it through" if verdict.promote else "holds it back"


def _show_imitation(
    session: Session, night: LoopNight, imitation: Imitation, verdict: Verdict
) -> None:
    rates = {
        "champion": imitation.champion,
        f"generation {night.challenger}": imitation.challenger,
        "served": imitation.served,
    }
    session.output.table(
        f"{night.loop}: how often the baseline's choice is the most probable one",
        ["generation", "decisions", "match rate", "interval"],
        [
            [name, rate.rows, round(rate.value, 5), interval(rate.lower, rate.upper)]
            for name, rate in rates.items()
            if rate is not None
        ],
    )
    session.output.remark(f"The gate {_gate(verdict)}: {'; '.join(verdict.reasons)}")


def show_evaluation(session: Session, evaluation: Evaluation, verdict: Verdict) -> None:
    """Show what two policies are worth, and what the gate makes of it."""
    rows: list[list[object]] = []
    for policy in evaluation.policies:
        rows.extend(_row(policy.name, estimate) for estimate in policy.estimates.values())
    rows.extend(_row("difference", estimate) for estimate in evaluation.differences.values())
    confidence = evaluation.differences["dr"].confidence
    session.output.table(
        f"{evaluation.loop}: judged on {_rows_of(evaluation)}, "
        f"{evaluation.nonzero_rewards:,} with a reward",
        ["policy", "estimator", "value", f"{100 * confidence:g} % interval", "ESS", "max weight"],
        rows,
        note=_note(evaluation),
    )
    _show_guardrails(session, evaluation)
    difference = evaluation.differences["dr"]
    if difference.lower > 0:
        finding = "The second policy is better, as far as this log can tell."
    elif difference.upper < 0:
        finding = "The second policy is worse, as far as this log can tell."
    else:
        finding = "This log can't tell the two policies apart."
    session.output.remark(finding)
    gate = "would let it through" if verdict.promote else "holds it back"
    session.output.remark(f"The gate {gate}: {'; '.join(verdict.reasons)}")


def _show_guardrails(session: Session, evaluation: Evaluation) -> None:
    rows: list[list[object]] = []
    for each in evaluation.guardrails:
        found = each.estimates
        if found is None:
            rows.append([each.name, each.rows, None, None, None, None])
            continue
        difference = found.difference
        ends = interval(difference.lower, difference.upper)
        values = (found.champion.value, found.challenger.value, difference.value)
        rows.append([each.name, each.rows, *(round(value, 5) for value in values), ends])
    if rows:
        first, second = (policy.name for policy in evaluation.policies)
        session.output.table(
            f"{evaluation.loop}: guardrails",
            ["guardrail", "rows", first, second, "difference", "interval"],
            rows,
        )


def _note(evaluation: Evaluation) -> str:
    if not evaluation.left_out:
        return ""
    return f"{evaluation.left_out:,} more say nothing about these policies and were left out"


def _row(name: str, estimate: Estimate) -> list[object]:
    return [
        name,
        estimate.estimator,
        round(estimate.value, 5),
        interval(estimate.lower, estimate.upper),
        round(estimate.ess, 1),
        round(estimate.max_weight, 1),
    ]
