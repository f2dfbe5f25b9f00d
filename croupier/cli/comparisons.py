"""How a comparison of policies is shown: what the log is worth first, then the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from croupier.cli.output import interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from croupier.cli.output import Output
    from croupier.offline.compare import Compared, Comparison, PolicyOnRows
    from croupier.offline.ope.choice import Reading

__all__ = ("show_comparison",)

# Those of differences are found by halving, and are not told apart below.
_LEAST_CHANCE = 1e-9


def show_comparison(
    output: Output, comparison: Comparison, by: Sequence[str], *, anyway: bool
) -> None:
    """Show the log's health, and figures unless it is not to be believed.

    Parameters
    ----------
    output
        Where to.
    comparison
        What was found.
    by
        The groupings that were asked for.
    anyway
        Whether figures are wanted in any case.
    """
    _show_health(output, comparison)
    _show_support(output, comparison)
    refused = comparison.refusals and not anyway
    for reason in comparison.refusals:
        word = "no figures (--anyway gives them)" if refused else "not to be believed"
        output.remark(f"{comparison.loop}: {word}: {reason}")
    if refused:
        return
    _show_values(output, comparison)
    _show_quality(output, comparison)
    for name in by:
        _show_groups(output, comparison, name)


def _show_health(output: Output, comparison: Comparison) -> None:
    health = comparison.health
    output.table(
        f"{comparison.loop}: can the log be believed?",
        [
            "part",
            "interactions",
            "p of draws",
            "corrected",
            "replayed",
            "differently",
            "contradictions",
            "SACo",
        ],
        [
            [
                each.part,
                each.rows,
                _chance(each.p_value),
                _chance(each.corrected_p_value),
                each.replayed,
                each.replay_mismatches,
                each.contradictions,
                round(each.coverage.saco, 3),
            ]
            for each in health.parts
        ],
        note=f"Corrected for the number of parts (Holm); refused below {health.level:g}. SACo: "
        f"pairs of state ({comparison.quality.state}) and action over those that uniform draws "
        f"would show.",
    )
    drifted = health.drifted
    if drifted is not None and drifted.rewards + drifted.features:
        output.remark(
            f"{comparison.loop}: between generations, {drifted.rewards} rewards and "
            f"{drifted.features} features have changed: figures speak for the time of the log; "
            f"`croupier drift` tells more"
        )


def _show_support(output: Output, comparison: Comparison) -> None:
    total = comparison.total
    rows: list[list[object]] = []
    for policy in total.policies:
        found = policy.support
        if found is None:
            rows.append([policy.name, *[None] * 5])
            continue
        rows.append(
            [
                policy.name,
                round(found.ess, 1),
                round(found.mean_weight, 4),
                round(found.max_weight, 2),
                _rounded(found.tail_index, 3),
                None if found.deficient is None else f"{100 * found.deficient:.2g} %",
            ]
        )
    output.table(
        f"{comparison.loop}: can {total.rows:,} interactions tell what policies are worth?",
        ["policy", "ESS", "mean weight", "max weight", "tail index", "never logged"],
        rows,
        note=f"{total.left_out:,} more don't tell about all of them and were left out"
        if total.left_out
        else "",
    )


def _show_values(output: Output, comparison: Comparison) -> None:
    total, percent = comparison.total, 100 * comparison.confidence
    first, *others = total.policies
    tested = _tests(total)
    columns = ["policy", "estimator", "value", f"{percent:g} % interval"]
    if others:
        columns += [f"less {first.name}", "interval"]
    if tested:
        columns.append("p (Holm)")
    rows: list[list[object]] = []
    for policy in total.policies:
        for kind, value in policy.values.items():
            row: list[object] = [policy.name, value.estimator, *_shown(value)]
            difference = policy.differences.get(kind)
            if others:
                row += [None, "–"] if difference is None else _shown(difference)
            if tested:
                row.append(
                    None if difference is None else _chance(difference.p_value, least=_LEAST_CHANCE)
                )
            rows.append(row)
    output.table(
        f"{comparison.loop}: {total.rows:,} interactions, {total.nonzero_rewards:,} with a reward; "
        f"{comparison.interval}",
        columns,
        rows,
        note="" if comparison.model is None else f"Reward model: {comparison.model}.",
    )
    if len(others) > 1:
        output.remark(_together(comparison, len(others), f"differences from {first.name}"))
    for reason in dict.fromkeys(_reasons(total.policies)):
        output.remark(f"{comparison.loop}: {reason}")


def _show_quality(output: Output, comparison: Comparison) -> None:
    found = comparison.quality
    if found.uniform is None or found.best is None or found.logged is None:
        output.remark(f"{comparison.loop}: no TQ: the log can't tell what uniform draws are worth")
        return
    tq = "undefined, as none is better than uniform" if found.tq is None else f"{found.tq:.3f}"
    output.remark(
        f"{comparison.loop}: TQ is {tq}: the log earned {found.logged:.4f}, uniform draws "
        f"{found.uniform:.4f}, {found.best_policy} {found.best:.4f} (SNIPS, {found.rows:,} "
        f"interactions)"
    )


def _show_groups(output: Output, comparison: Comparison, by: str) -> None:
    groups = comparison.groups[by]
    names = [each.name for each in comparison.total.policies]
    kind = next(iter(comparison.total.policies[0].values))
    tested = any(map(_tests, groups))
    columns = [by, "interactions", "policy", "value", "ESS", "max weight"]
    if len(names) > 1:
        columns.append(f"less {names[0]}")
    if tested:
        columns.append("p (Holm)")
    columns.append("enough")
    rows: list[list[object]] = []
    for group in groups:
        for policy in group.policies:
            support = policy.support
            row: list[object] = [group.key, group.rows, policy.name, _line(policy.values[kind])]
            row += (
                [None, None]
                if support is None
                else [round(support.ess, 1), round(support.max_weight, 2)]
            )
            difference = policy.differences.get(kind)
            if len(names) > 1:
                row.append("–" if difference is None else _line(difference))
            if tested:
                row.append(
                    None if difference is None else _chance(difference.p_value, least=_LEAST_CHANCE)
                )
            row.append("no" if policy.objections else "yes")
            rows.append(row)
    output.table(
        f"{comparison.loop}: by {by}, {kind}",
        columns,
        rows,
        note="enough: whether the interactions of a group can tell what the policy is worth there, "
        "by the limits of the gate.",
    )
    output.remark(_together(comparison, len(groups) * len(names), f"values by {by}"))


def _together(comparison: Comparison, count: int, what: str) -> str:
    """What has to be known of so many intervals side by side."""
    percent = 100 * comparison.confidence
    if comparison.correction == "none":
        missed = (1.0 - comparison.confidence) * count
        return (
            f"{comparison.loop}: of {count} {what}, about {missed:.1f} intervals miss by chance; "
            f"--correction bonferroni makes all hold at once"
        )
    return (
        f"{comparison.loop}: the {count} {what} hold at once with {percent:g} % (Bonferroni), "
        f"for each estimator"
    )


def _shown(reading: Reading) -> list[object]:
    estimate = reading.estimate
    ends = "–" if estimate is None else interval(estimate.lower, estimate.upper)
    return [_rounded(reading.value, 5), ends]


def _line(reading: Reading) -> str:
    if reading.value is None:
        return "–"
    estimate = reading.estimate
    ends = "" if estimate is None else f" {interval(estimate.lower, estimate.upper)}"
    return f"{reading.value:.4f}{ends}"


def _tests(rows: Compared) -> bool:
    return any(
        each.p_value is not None for policy in rows.policies for each in policy.differences.values()
    )


def _reasons(policies: Sequence[PolicyOnRows]) -> Iterator[str]:
    """Why intervals are missing, and doubts about those that are there."""
    for policy in policies:
        for reading in (*policy.values.values(), *policy.differences.values()):
            if reading.why_none is not None:
                yield f"{policy.name}, {reading.estimator}: {reading.why_none}"
            elif reading.estimate is not None and reading.estimate.doubts:
                doubts = ", ".join(reading.estimate.doubts)
                yield f"{policy.name}, {reading.estimator}: its interval may miss oftener: {doubts}"


def _chance(p_value: float | None, *, least: float = 0.0) -> str:
    if p_value is None:
        return "–"
    return f"< {least:g}" if p_value < least else f"{p_value:.2g}"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
