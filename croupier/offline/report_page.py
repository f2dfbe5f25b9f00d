"""The page of a promotion report: one file of HTML that needs nothing else, and runs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from croupier.offline.report_plots import Bars, Whisker, bar_plot, deviation_plot, whisker_plot
from croupier.offline.report_text import escaped, interval, moment, number, table
from croupier.offline.weight_histogram import WEIGHT_EDGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from croupier.offline.evaluate import Evaluation
    from croupier.offline.fairness.candidate_audit import CandidateAudit
    from croupier.offline.fairness.disparities import Interval
    from croupier.offline.finding import Section
    from croupier.offline.imitation import Imitation
    from croupier.offline.log_calibration import LogCalibration
    from croupier.offline.promotion_report import Judged, PromotionReport

__all__ = ("page",)

# Newest generations whose calibration is drawn; the table has all.
_DRAWN = 12
# Of Okabe and Ito's palette those that keep 3:1 against a white and a black background.
_STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1b;--quiet:#5f6368;--line:#d5d8dc;--paper:#fff;
--soft:#f4f5f7;--first:#0072B2;--second:#D55E00;--good:#0b6b45;--bad:#a32a00}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e8;--quiet:#a8adb3;--line:#3a3f45;--paper:#15171a;
--soft:#1f2226;--first:#56a8dd;--second:#e8813a;--good:#5cc598;--bad:#ff8a5c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1.5rem 1rem 4rem;background:var(--paper);
color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:0}h2{font-size:1.2rem;margin:2.5rem 0 .5rem}
h3{font-size:1rem;margin:1.25rem 0 .25rem}
p{margin:.4rem 0;overflow-wrap:anywhere}.quiet{color:var(--quiet)}
.verdict{border-left:.4rem solid var(--bad);background:var(--soft);
padding:.75rem 1rem;margin:1rem 0}
.verdict.passed{border-color:var(--good)}.verdict strong{font-size:1.15rem}
.verdict ul{margin:.4rem 0 0;padding-left:1.2rem;overflow-wrap:anywhere}
.objection{color:var(--bad)}
.wide{overflow-x:auto}.wide svg{min-width:32rem}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--quiet);padding:.25rem 0}
th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line);
vertical-align:top;overflow-wrap:break-word;max-width:34rem}
th:last-child,td:last-child{min-width:7rem}
th.n,td.n{text-align:right;white-space:nowrap;min-width:0}
svg{max-width:100%;height:auto;display:block;margin:.5rem 0;font:12px system-ui,sans-serif}
svg text{fill:var(--ink)}svg .end{text-anchor:end}svg .middle{text-anchor:middle}
svg .strong{font-weight:600}svg .grid{stroke:var(--line)}
svg .mark{stroke:var(--quiet);stroke-dasharray:5 4;stroke-width:1.5}
svg .band{fill:var(--quiet);opacity:.15}
svg g line{stroke-width:2}svg g.first line{stroke:var(--first)}
svg g.second line{stroke:var(--second)}svg g.quiet line{stroke:var(--quiet)}
svg .first,svg g.first *{fill:var(--first)}svg .second,svg g.second *{fill:var(--second)}
svg g.quiet *{fill:var(--quiet)}
.few{display:grid;grid-template-columns:repeat(auto-fill,minmax(18rem,1fr));gap:.5rem}
.key span{display:inline-block;width:.8rem;height:.8rem;margin:0 .35rem 0 .8rem}
.key .first{background:var(--first);border-radius:50%}.key .second{background:var(--second)}
"""


def page(report: PromotionReport) -> str:
    """The report as a page.

    Whatever comes from a log or a person is escaped; the page asks browsers to run and to load
    nothing.

    Parameters
    ----------
    report
        Of one generation.
    """
    title = f"Generation {report.generation} of {report.loop}"
    body = "".join(_body(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}: promotion report</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{escaped(title)}</h1>{body}</main></body></html>\n"
    )


def _body(report: PromotionReport) -> Iterator[str]:
    rows = "unknown" if report.training_rows is None else f"{report.training_rows:,}"
    yield _paragraph(
        f"Promotion report. Trained {moment(report.created)}, interactions learned from: {rows}; "
        f"exploration {report.exploration or 'not recorded'}, oracle "
        f"{report.oracle or 'not recorded'}.",
        "quiet",
    )
    judged = report.judged
    if judged is None:
        yield '<div class="verdict"><strong>Never judged.</strong></div>'
    else:
        yield from _verdict(judged)
    for last in report.events[-1:]:
        if last.kind not in {"judged", "promoted"}:
            by = f" by {last.by}" if last.by else ""
            yield _paragraph(f"Since then: {last.kind} {moment(last.ts)}{by}: {last.told}")
    yield from _events(report)
    if judged is None:
        return
    if judged.evaluation is not None:
        yield from _evaluation(judged, judged.evaluation)
    if judged.imitation is not None:
        yield from _imitation(report, judged, judged.imitation)
    for section in judged.verdict.sections:
        yield from _section(section)
        if section.name == "calibration" and judged.calibration is not None:
            yield from _calibration(judged.calibration)
        if section.name == "fairness" and judged.fairness is not None:
            yield from _fairness(judged.fairness)
    yield from _asked(judged)


def _verdict(judged: Judged) -> Iterator[str]:
    passed = judged.verdict.promote
    word = "The gate lets it through." if passed else "The gate holds it back."
    reasons = "".join(f"<li>{escaped(each)}</li>" for each in judged.verdict.reasons)
    yield (
        f'<div class="verdict{" passed" if passed else ""}"><strong>{word}</strong>'
        f"<ul>{reasons}</ul></div>"
    )
    yield _paragraph(
        f"Judged {moment(judged.ts)} against generation {judged.against}, the champion then.",
        "quiet",
    )
    if judged.since is not None:
        yield _paragraph(
            f"Because of a rollback, only decisions after {moment(judged.since)} counted."
        )


def _events(report: PromotionReport) -> Iterator[str]:
    yield "<h2>What happened</h2>"
    if not report.events:
        yield _paragraph("Nothing yet.", "quiet")
        return
    rows = [[moment(each.ts), each.kind, each.by or "–", each.told] for each in report.events]
    yield table(["when", "what", "by", "told"], rows)


def _evaluation(judged: Judged, evaluation: Evaluation) -> Iterator[str]:
    gate = judged.gate
    level = f"{100 * gate.confidence:g} %"
    champion, challenger = evaluation.policies
    yield "<h2>Is it better than the champion?</h2>"
    left = (
        f"; {evaluation.left_out:,} more say nothing about the two" if evaluation.left_out else ""
    )
    yield _paragraph(
        f"{evaluation.rows:,} judged interactions, {evaluation.nonzero_rewards:,} with a reward"
        f"{left}. Challenger less champion, {level} intervals; {gate.estimator} decides, and the "
        f"lower end of its interval must lie above {gate.margin:+g}, the dashed line."
    )
    yield whisker_plot(
        [
            Whisker(
                kind if kind != gate.estimator else f"{kind} (decides)",
                *(found.value, found.lower, found.upper),
                "first" if kind == gate.estimator else "quiet",
            )
            for kind, found in evaluation.differences.items()
        ],
        axis="difference in mean reward per decision",
        described="Difference of challenger and champion by estimator, against the margin",
        marks=[(gate.margin, f"margin {gate.margin:+g}")],
    )
    yield "<h3>What each is worth</h3>"
    yield (
        '<p class="key"><span class="second"></span>champion'
        '<span class="first"></span>challenger</p>'
    )
    yield whisker_plot(
        [
            Whisker(f"{kind}, {role}", found.value, found.lower, found.upper, colour)
            for kind in challenger.estimates
            for role, policy, colour in (
                ("champion", champion, "second"),
                ("challenger", challenger, "first"),
            )
            for found in [policy.estimates[kind]]
        ],
        axis="mean reward per decision",
        described="Value of both policies by estimator",
        marks=[],
    )
    estimates = [
        *(
            (policy.name, found)
            for policy in evaluation.policies
            for found in policy.estimates.values()
        ),
        *(("difference", found) for found in evaluation.differences.values()),
    ]
    yield table(
        ["policy", "estimator", "value", f"{level} interval", "effective rows", "largest weight"],
        [
            [
                *(name, found.estimator, found.value, interval(found.lower, found.upper)),
                *(found.ess, found.max_weight),
            ]
            for name, found in estimates
        ],
    )
    yield from _support(judged, evaluation)


def _support(judged: Judged, evaluation: Evaluation) -> Iterator[str]:
    gate, (champion, challenger) = judged.gate, evaluation.policies
    found = [each.support for each in (champion, challenger)]
    yield "<h2>Support: can the log tell?</h2>"
    yield table(
        ["what", "champion", "challenger", "limit for the challenger"],
        [
            ["effective sample size", *(each.ess for each in found), f"at least {gate.min_ess:g}"],
            [
                "share of choices never logged",
                *(each.deficient for each in found),
                f"at most {gate.max_deficient:g}",
            ],
            ["mean weight", *(each.mean_weight for each in found), "1, within its error"],
            [
                "index of the weights' tail",
                *(each.tail_index for each in found),
                "–" if gate.max_tail_index is None else f"at most {gate.max_tail_index:g}",
            ],
            ["largest weight", *(each.max_weight for each in found), "–"],
        ],
    )
    for objection in challenger.objections(gate):
        yield _paragraph(objection, "objection")
    yield "<h3>Importance weights</h3>"
    yield (
        '<p class="key"><span class="first"></span>challenger'
        '<span class="second"></span>champion</p>'
    )
    edges = [number(each) if each >= 1.0 else f"1/{1.0 / each:g}" for each in WEIGHT_EDGES]
    yield bar_plot(
        ["0", *(f"≤ {each}" for each in edges), f"> {edges[-1]}"],
        [
            Bars(policy.name, [policy.weights.zero, *policy.weights.counts])
            for policy in (challenger, champion)
        ],
        axis="weight of a row, up to",
        described="Decisions by importance weight",
    )


def _imitation(report: PromotionReport, judged: Judged, found: Imitation) -> Iterator[str]:
    yield "<h2>Does it choose as the baseline does?</h2>"
    rates = {
        f"champion, generation {judged.against}": found.champion,
        f"challenger, generation {report.generation}": found.challenger,
        "served": found.served,
    }
    shown = {name: rate for name, rate in rates.items() if rate is not None}
    yield whisker_plot(
        [
            Whisker(
                name.partition(",")[0],
                *(rate.value, rate.lower, rate.upper),
                "first" if rate is found.challenger else "second",
            )
            for name, rate in shown.items()
        ],
        axis="share of decisions with the baseline's choice",
        described="Match rates with their intervals",
        marks=[],
    )
    yield table(
        ["generation", "decisions", "match rate", f"{100 * judged.gate.confidence:g} % interval"],
        [
            [name, rate.rows, rate.value, interval(rate.lower, rate.upper)]
            for name, rate in shown.items()
        ],
    )
    yield _paragraph(
        f"Only the challenger matches in {found.wins:,} decisions, only the champion in "
        f"{found.losses:,}: one-sided p-value {found.p_value:.3g} of the sign test. "
        f"{found.left_out:,} decisions have no known baseline or no choice."
    )


def _section(section: Section) -> Iterator[str]:
    yield f"<h2>{escaped(section.title.capitalize())}</h2>"
    if not section.measured:
        yield _paragraph(f"Not measured: {section.note}.", "quiet")
        return
    yield _paragraph(section.note)
    if section.findings:
        yield table(
            ["what", "value", "interval", "limit", "holds"],
            [
                [
                    *(each.name, each.value, interval(each.lower, each.upper)),
                    "–" if each.limit is None else f"{each.bound} {number(each.limit)}",
                    each.holds,
                ]
                for each in section.findings
            ],
        )
    for each in section.findings:
        if each.objection is not None:
            yield _paragraph(each.objection, "objection")


def _fairness(audit: CandidateAudit) -> Iterator[str]:
    for found in audit.attributes:
        yield table(
            ["group", "judged rows", "champion", "challenger", "change", "challenger's regret"],
            [
                [
                    *(each.group, each.decisions),
                    *map(_between, (each.champion, each.candidate, each.change)),
                    _between(each.candidate_regret),
                ]
                for each in found.groups
            ],
            caption=f"What both are worth, by {found.attribute}",
        )
        if found.hidden:
            yield _paragraph(f"Too small to be shown: {', '.join(found.hidden)}.", "quiet")
        yield table(
            ["group", "action", "champion", "challenger"],
            [
                [each.group, each.action, _between(each.champion), _between(each.candidate)]
                for each in found.exposures
            ],
            caption=f"How often each group gets an action, by {found.attribute}",
        )


def _between(found: Interval | None) -> str:
    if found is None:
        return "–"
    return f"{number(found.value)} {interval(found.lower, found.upper)}"


def _calibration(calibration: LogCalibration) -> Iterator[str]:
    yield table(
        ["generation", "judged rows", "draws tested", "p-value", "largest deviation at", "z"],
        [
            [
                *(f"{each.generation}", each.judged, each.tested, each.p_value),
                *((None, None) if each.worst is None else (each.worst.name, each.worst.z)),
            ]
            for each in calibration.generations
        ],
        caption="Draws against logged probabilities, by generation",
    )
    yield _paragraph(
        "By level of probability: how much more often something was drawn than promised, in "
        "standard deviations. By chance, 95 % of the dots lie in the grey band.",
        "quiet",
    )
    plots = []
    for each in calibration.generations[-_DRAWN:]:
        labels = [f"({bin_.low:g}, {bin_.high:g}]" for bin_ in each.bins]
        plots.append(
            deviation_plot(
                f"Generation {each.generation}",
                labels,
                [bin_.z for bin_ in each.bins],
                described=f"Deviations of generation {each.generation} by level of probability",
            )
        )
    yield f'<div class="few">{"".join(plots)}</div>'
    omitted = len(calibration.generations) - len(plots)
    if omitted:
        yield _paragraph(f"{omitted} older generations are not drawn.", "quiet")


def _asked(judged: Judged) -> Iterator[str]:
    gate = judged.gate
    yield "<h2>What the gate asked</h2>"
    limits = {name: getattr(gate, name) for name in gate.__struct_fields__ if name != "required"}
    required = ", ".join(gate.required) or "none"
    yield table(
        ["setting", "value"],
        [*([name, _setting(value)] for name, value in limits.items()), ["required", required]],
    )


def _setting(value: object) -> str:
    match value:
        case None:
            return "not asked"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escaped(text)}</p>' if kind else f"<p>{escaped(text)}</p>"
