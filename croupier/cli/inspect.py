"""Commands that look closer: audit, check-policy."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import Annotated, Any

import msgspec
import numpy as np
import typer

from croupier.cli.fairness import show_candidate, show_groups, show_rises
from croupier.cli.options import ConfigOption, DataDirOption, JsonOption, LoopOption, Session
from croupier.cli.output import Output
from croupier.cli.pairs import PairOptions, run_pairs
from croupier.offline.audit import PropensityAudit, audit_propensities
from croupier.offline.fairness.candidate_audit import audit_candidate
from croupier.offline.fairness.fairness_section import fairness_section, gate_confidence
from croupier.offline.fairness.group_audit import GroupAudit, audit_groups
from croupier.offline.fairness.signals import Rise, stored_rises
from croupier.policy.conformance import check_exploration
from croupier.policy.errors import InvalidInputError
from croupier.policy.exploration import ENTRY_POINTS, Exploration
from croupier.policy.loop import LoopConfig

__all__ = ("register",)

_SIGNIFICANCE = 1e-3
_SHOWN_ACTIONS = 10


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(audit)
    app.command("check-policy")(check_policy)


def audit(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    loop: LoopOption = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="What groups are made of, instead of the loop's fairness.attributes: an audit "
            "attribute, context.<path>, or some crossed with *. May be given again."
        ),
    ] = None,
    candidate: Annotated[
        int | None,
        typer.Option(help="Audit this generation against the champion, before it is released."),
    ] = None,
    generations: Annotated[
        int, typer.Option(help="How many of the latest generations are shown in tables.")
    ] = 1,
    json: JsonOption = False,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="Look for pairs that are treated too differently instead."),
    ] = False,
    distance: Annotated[
        str | None,
        typer.Option(help="With --pairs: weights by feature, in JSON, instead of the auditors."),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="With --pairs: the slack.")] = None,
    gamma: Annotated[
        float | None, typer.Option(help="With --pairs: share of the auditors to see a violation.")
    ] = None,
    action: Annotated[
        str | None, typer.Option(help="With --pairs: whose probability is the treatment.")
    ] = None,
    propose: Annotated[
        int, typer.Option(min=0, help="With --pairs: how many pairs to propose.")
    ] = 10,
    worst: Annotated[
        int, typer.Option(min=0, help="With --pairs: how many violations to show.")
    ] = 10,
    most: Annotated[
        int, typer.Option(min=2, help="With --pairs: how many decisions to look through.")
    ] = 1_000_000,
) -> None:
    """Check logged propensities, and who is treated how: by group, generation by generation.

    With --candidate: what a generation would do to groups, estimated from the log alone. With
    --pairs: whether decisions that are alike were treated alike.
    """
    if generations < 1:
        raise InvalidInputError("generations", f"expected at least 1, got {generations}")
    session = Session.open(config, data_dir, json=json)
    if pairs:
        wish = PairOptions(distance, alpha, gamma, action, propose, worst, most)
        raise typer.Exit(0 if run_pairs(session, loop, wish) else 1)
    if candidate is not None:
        raise typer.Exit(0 if _audit_candidate(session, loop, by, candidate) else 1)
    audits: dict[str, LoopAudit] = {}
    for name in session.loops(loop):
        decisions = session.lake.scan("decisions", name).sort("offset").collect()
        with session.output.progress(f"{name}: replay draws") as progress:
            found = audit_propensities(decisions, progress)
        asked = with_attributes(session.config.loop(name), by)
        groups, rises = None, []
        if asked.fairness.attributes:
            groups = audit_groups(session.lake, name, asked)
            rises = stored_rises(session.lake, name, asked)
        audits[name] = LoopAudit(propensities=found, groups=groups, rises=rises)

    def show() -> None:
        for name, found in audits.items():
            if found.groups is not None:
                show_groups(session.output, found.groups, latest=generations)
                show_rises(session.output, name, found.rises)
            _show_audit(session.output, name, found.propensities)

    session.output.result({name: found.facts() for name, found in audits.items()}, show)
    raise typer.Exit(0 if all(_is_sound(found.propensities) for found in audits.values()) else 1)


class LoopAudit(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in a loop's log: of draws, and of groups if there are attributes."""

    propensities: PropensityAudit
    groups: GroupAudit | None
    rises: list[Rise]

    def facts(self) -> dict[str, Any]:
        """For programs: the audit of propensities, with the groups beside it."""
        facts: dict[str, Any] = msgspec.to_builtins(self.propensities)
        return facts | {"groups": self.groups, "rises": self.rises}


def with_attributes(config: LoopConfig, by: list[str] | None) -> LoopConfig:
    """The loop's configuration with other attributes, if any were asked for.

    Raises
    ------
    InvalidInputError
        If one can't be meant.
    """
    if not by:
        return config
    try:
        fairness = msgspec.structs.replace(config.fairness, attributes=tuple(by))
    except ValueError as error:
        raise InvalidInputError("by", str(error)) from error
    return msgspec.structs.replace(config, fairness=fairness)


def _audit_candidate(session: Session, loop: str | None, by: list[str] | None, number: int) -> bool:
    """Audit a generation that isn't released, and say whether the limits let it through."""
    name = session.one_loop(loop)
    nightly, config = session.nightly, with_attributes(session.config.loop(name), by)
    fairness = config.fairness
    challenger = nightly.generation(name, number)
    champion = nightly.generation(name, session.registry.champion(name))
    rows = nightly.judged(name, champion, challenger)
    with session.output.progress(f"{name}: audit") as progress:
        found = audit_candidate(
            rows,
            {f"generation {each.number}": each for each in (champion, challenger)},
            config,
            confidence=gate_confidence(fairness.limits, fairness.alpha),
            limits=session.config.nightly.gate,
            progress=progress,
            engine=session.engine,
        )
    section = fairness_section(found, fairness.limits)
    session.output.result(
        {"audit": found, "section": section},
        lambda: show_candidate(session.output, name, found, section),
    )
    return all(each.objection is None for each in section.findings)


def check_policy(
    path: Annotated[
        str,
        typer.Argument(
            help="module:Class or entry point of an exploration, or the kind of one of ours."
        ),
    ],
    params: Annotated[str, typer.Option(help="Its parameters, as a JSON object.")] = "{}",
    json: JsonOption = False,
) -> None:
    """Check that an exploration gives exact, well-behaved probabilities."""
    output = Output(json=json)
    exploration = _exploration(path, params)
    if exploration.caution is not None:
        output.warn(f"{exploration.describe()}: {exploration.caution}")
    findings = check_exploration(exploration)
    passed = all(finding.passed for finding in findings)
    sampled = exploration.approximation(np.full(_SHOWN_ACTIONS, 1.0 / _SHOWN_ACTIONS))

    def show() -> None:
        output.table(
            exploration.describe(),
            ["property", "holds", "counterexample"],
            [[each.check, each.passed, each.counterexample] for each in findings],
        )
        if sampled is not None:
            output.remark(
                f"Its probabilities are sampled, and drawn and logged as they are. With "
                f"{_SHOWN_ACTIONS} actions they are within {sampled.largest:.3f} of those that "
                f"were meant, and a policy's value within {sampled.total_variation:.3f} of the "
                f"reward's range, with confidence {sampled.confidence:g}."
            )
        output.remark("Conforms." if passed else "Does not conform.")

    bounds = None
    if sampled is not None:
        bounds = {
            "actions": _SHOWN_ACTIONS,
            "largest": sampled.largest,
            "total_variation": sampled.total_variation,
            "confidence": sampled.confidence,
        }
    output.result({"conforms": passed, "findings": findings, "sampled": bounds}, show)
    raise typer.Exit(0 if passed else 1)


def _exploration(path: str, params: str) -> Exploration:
    """One of our explorations by its kind, or a user's by its path."""
    try:
        given = msgspec.json.decode(params, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise InvalidInputError("params", f"expected a JSON object: {error}") from error
    # A user's class is looked for where the command is run, as `python -m` would.
    sys.path.insert(0, "")
    own = ":" in path or path in entry_points(group=ENTRY_POINTS).names
    asked = {"kind": "custom", "path": path, "params": given} if own else None
    try:
        exploration: Exploration = msgspec.convert(asked or {"kind": path, **given}, Exploration)
    except msgspec.ValidationError as error:
        raise InvalidInputError("path", str(error)) from error
    return exploration


def _show_audit(output: Output, name: str, found: PropensityAudit) -> None:
    violations = found.violations
    test = found.test
    rows: list[list[object]] = [
        ["decisions", found.decisions],
        ["without a pmf", found.without_pmf],
        ["pmf not summing to 1", None if violations is None else violations.bad_sum],
        ["pmf entry invalid", None if violations is None else violations.bad_entry],
        ["propensity not the pmf's", None if violations is None else violations.bad_propensity],
        ["keep_prob invalid", found.bad_keep_prob],
        ["draws replayed", found.replayed],
        ["replayed differently", found.replay_mismatches],
        ["chi-square", None if test is None else round(test.statistic, 2)],
        ["degrees of freedom", None if test is None else test.dof],
        ["p-value by action", None if test is None else round(test.p_value, 4)],
        ["p-value by level of probability", None if test is None else round(test.bin_p_value, 4)],
    ]
    output.table(f"{name}: propensities", ["check", "found"], rows)
    if test is not None:
        output.table(
            f"{name}: draws against propensities, by generation",
            ["generation", "decisions", "chi-square", "degrees of freedom", "p-value"],
            [
                [each.generation, each.n, round(each.statistic, 2), each.dof, each.p_value]
                for each in test.generations
            ],
        )
    output.remark("Sound." if _is_sound(found) else "Not sound: don't evaluate from this log.")


def _is_sound(found: PropensityAudit) -> bool:
    return (
        (found.violations is None or found.violations.rows == 0)
        and found.bad_keep_prob == 0
        and found.replay_mismatches == 0
        and (found.test is None or not found.test.rejects(_SIGNIFICANCE))
    )
