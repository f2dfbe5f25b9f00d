"""``croupier evaluate``: what policies are worth, by the log of another one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import polars as pl
import typer

from croupier.cli.comparisons import show_comparison
from croupier.cli.findings import show_evaluation
from croupier.cli.options import (
    ConfigOption,
    DataDirOption,
    EngineOption,
    JsonOption,
    LoopOption,
    RayAddressOption,
    Session,
)
from croupier.cli.output import interval as shown_interval
from croupier.cli.output import write_json
from croupier.cli.session_values import evaluate_sessions
from croupier.offline.compare import DEFAULT_ESTIMATORS, Comparison, compare
from croupier.offline.comparison_plot import plot_format, write_plot
from croupier.offline.delays import settled_interactions
from croupier.offline.evaluate import Evaluation, evaluate, logged_value
from croupier.offline.gate import judge_challenger
from croupier.offline.interactions import current_interactions
from croupier.offline.judged import judged_interactions
from croupier.offline.learner_log import LearnerLog
from croupier.offline.multiplicity import Correction
from croupier.offline.ope.choice import estimator_kind, interval_kind
from croupier.offline.policies import FixedAction, named_policies
from croupier.offline.retrain import is_judged, retrain
from croupier.policy.errors import InvalidInputError
from croupier.policy.generation import Generation
from croupier.policy.loop import LoopConfig
from croupier.service.scorer import now_us

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from croupier.offline.counterfactual import Policy
    from croupier.offline.ope import Estimate
    from croupier.offline.ope.choice import EstimatorKind, IntervalKind
    from croupier.offline.ope.diagnostics import SupportLimits

__all__ = ("register",)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("evaluate")(evaluate_command)


def evaluate_command(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    loop: LoopOption = None,
    generation: Annotated[
        int | None, typer.Option(help="A registered generation, against the champion.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="A generation's number, champion, logged, uniform, baseline, best-fixed or "
            "fixed:<action>; again for every policy. Others are compared with the first."
        ),
    ] = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            help="With --policy: ips, snips, dm, dr, sndr, adjusted-dr, clipped, clipped-dr, "
            "shrunk, dros, switch, subgaussian or subgaussian-dr; again for every one. snips, ips "
            "and dr unless given."
        ),
    ] = None,
    interval: Annotated[
        str | None,
        typer.Option(
            help="With --policy: empirical-likelihood (unless given), normal, outer, bootstrap, "
            "empirical-bernstein, clopper-pearson or sequence."
        ),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="With --policy: of all intervals; the gate's unless given.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="With --policy: day, generation, a path in the context or audit.<name>; again for "
            "every one."
        ),
    ] = None,
    correction: Annotated[
        Correction | None,
        typer.Option(
            help="With --policy: bonferroni (unless given), holm or none, for how many there are."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="With --policy: a figure, .png, .svg or .html.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="With --policy: a file for what --json prints.")
    ] = None,
    sessions: Annotated[
        bool,
        typer.Option(
            "--sessions",
            help="With --policy: what whole sessions are worth, where the loop has some; "
            "estimators are pdis, wpdis, sdr, wdr, mis, wmis, mdr and wmdr, all of them else.",
        ),
    ] = False,
    anyway: Annotated[
        bool, typer.Option(help="Give figures even of a log that can't tell what they should be.")
    ] = False,
    json: JsonOption = False,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
) -> None:
    """Estimate from the log what policies are worth, with intervals.

    With --policy any number of them are compared on the rows that none has learned from. Without,
    a generation is compared with the champion; and without --generation a policy is trained on one
    half of the log and evaluated on the other, beside the policy that made the log. Where the log
    says too little about a policy, or can't be believed, the reasons are given instead of figures.
    """
    session = Session.open(config, data_dir, json=json, engine=engine, ray_address=ray_address)
    asked: dict[str, Any] = {
        "estimator": estimator,
        "interval": interval,
        "confidence": confidence,
        "by": by,
        "correction": correction,
        "plot": plot,
        "output": output,
    }
    if policy:
        if generation is not None:
            raise InvalidInputError("generation", "expected it as a --policy, beside the others")
        if sessions:
            _over_sessions(session, policy, loop, asked)
            return
        wish = _Wish.of(session, policy, **asked)
        _compare(session, wish, loop, anyway=anyway)
    for name, value in (*asked.items(), ("sessions", sessions)):
        if value:
            raise InvalidInputError(name, "expected at least one --policy with it")
    _evaluate(session, loop, generation, anyway=anyway)


def _over_sessions(
    session: Session, policies: Sequence[str], loop: str | None, asked: Mapping[str, Any]
) -> None:
    """Compare policies over sessions, for which some of the options have no meaning."""
    for name in ("interval", "by", "correction", "plot"):
        if asked[name]:
            raise InvalidInputError(name, "expected it without --sessions")
    confidence, output = asked["confidence"], asked["output"]
    _require_options(confidence, {"output": output})
    evaluate_sessions(
        session,
        policies,
        loop,
        estimators=tuple(dict.fromkeys(asked["estimator"] or ())),
        confidence=confidence or session.config.nightly.gate.confidence,
        output=output,
    )


def _require_options(confidence: float | None, files: Mapping[str, Path | None]) -> None:
    """Raise InvalidInputError if a level or a file can't be."""
    if confidence is not None and not 0.0 < confidence < 1.0:
        raise InvalidInputError("confidence", f"expected a number in (0, 1), got {confidence}")
    for name, path in files.items():
        if path is not None and not path.absolute().parent.is_dir():
            raise InvalidInputError(name, f"expected a file in a directory that is, got {path}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What is wanted of a comparison, read."""

    policies: list[str]
    estimators: tuple[EstimatorKind, ...]
    interval: IntervalKind
    confidence: float
    by: tuple[str, ...]
    correction: Correction
    plot: Path | None
    output: Path | None

    @classmethod
    def of(
        cls,
        session: Session,
        policies: list[str],
        *,
        estimator: Sequence[str] | None,
        interval: str | None,
        confidence: float | None,
        by: Sequence[str] | None,
        correction: Correction | None,
        plot: Path | None,
        output: Path | None,
    ) -> _Wish:
        """Read options; raises InvalidInputError, which names one."""
        kinds = tuple(dict.fromkeys(estimator_kind(each) for each in estimator or ()))
        if plot is not None:
            plot_format(plot)
        _require_options(confidence, {"plot": plot, "output": output})
        return cls(
            policies=policies,
            estimators=kinds or DEFAULT_ESTIMATORS,
            interval=interval_kind(interval or "empirical-likelihood"),
            confidence=confidence or session.config.nightly.gate.confidence,
            by=tuple(dict.fromkeys(by or ())),
            correction=correction or "bonferroni",
            plot=plot,
            output=output,
        )


def _compare(session: Session, wish: _Wish, loop: str | None, *, anyway: bool) -> None:
    """Compare policies; ends the command."""
    names = [loop] if loop is not None else _loops_with_interactions(session)
    if wish.plot is not None and len(names) > 1:
        raise InvalidInputError("plot", f"expected --loop, one of {', '.join(names)}")
    found = {name: _compare_in(session, wish, name) for name in names}
    facts = {name: _facts(each, anyway=anyway) for name, each in found.items()}
    if wish.output is not None:
        write_json(wish.output, facts)
    for each in found.values():
        if wish.plot is not None and (anyway or not each.refusals):
            write_plot(each, wish.plot)

    def show() -> None:
        for each in found.values():
            show_comparison(session.output, each, wish.by, anyway=anyway)

    session.output.result(facts, show)
    refused = not anyway and any(each.refusals for each in found.values())
    raise typer.Exit(1 if refused else 0)


def _compare_in(session: Session, wish: _Wish, name: str) -> Comparison:
    """Compare policies on a loop's log."""
    config = session.config.loops.get(name, LoopConfig())
    nightly = session.config.nightly

    def learner_rows() -> pl.DataFrame:
        version = session.lake.version("interactions")
        log = LearnerLog(session.lake, name, config, nightly.judge_share, version=version)
        return log.rows()

    policies = named_policies(wish.policies, session.registry, name, config, learner_rows)
    generations = [each for each in policies.values() if isinstance(each, Generation)]
    if any(each.oracle is not None for each in generations) or "best-fixed" in wish.policies:
        rows = judged_interactions(
            session.lake,
            name,
            config,
            generations,
            judge_share=nightly.judge_share,
            judge_window=nightly.judge_window,
        )
    else:
        rows = settled_interactions(session.lake, name, config).collect()
    if rows.is_empty():
        raise InvalidInputError("loop", f"expected a loop with interactions, got {name!r}")
    _require_known(rows, policies)
    with session.output.progress(f"{name}: evaluate") as progress:
        return compare(
            rows,
            policies,
            config,
            estimators=wish.estimators,
            interval=wish.interval,
            confidence=wish.confidence,
            by=wish.by,
            correction=wish.correction,
            limits=nightly.gate,
            calibration_level=nightly.gate.calibration_level,
            seed=nightly.seed,
            progress=progress,
            engine=session.engine,
        )


def _require_known(rows: pl.DataFrame, policies: Mapping[str, Generation | Policy | None]) -> None:
    """Refuse a policy that none of the rows could be of."""
    if "baseline" in policies and rows["baseline"].null_count() == len(rows):
        raise InvalidInputError("policy", "expected no baseline of a log that doesn't tell it")
    offered = set(rows["action_ids"].explode().unique().to_list())
    for policy in policies.values():
        if isinstance(policy, FixedAction) and policy.action not in offered:
            raise InvalidInputError(
                "policy", f"expected an action of the log, got fixed:{policy.action}"
            )


def _facts(comparison: Comparison, *, anyway: bool) -> dict[str, Any]:
    """What programs are told: of a log that can't be believed, everything but the figures."""
    told: dict[str, Any] = msgspec.to_builtins(comparison)
    if comparison.refusals and not anyway:
        for name in ("total", "groups"):
            told.pop(name)
        # What the log is good for is an estimate too, but for its coverage.
        told["quality"] = {name: told["quality"][name] for name in ("state", "coverage")}
        told["support"] = {
            each.name: msgspec.to_builtins(each.support) for each in comparison.total.policies
        }
    return told


def _evaluate(session: Session, loop: str | None, generation: int | None, *, anyway: bool) -> None:
    """Evaluate a generation, or what one half of the log teaches; ends the command."""
    evaluations, verdicts = {}, {}
    for name in [loop] if loop is not None else _loops_with_interactions(session):
        with session.output.progress(f"{name}: evaluate") as progress:
            if generation is None:
                evaluation = _evaluate_half(session, name, progress)
                verdict = judge_challenger(session.config.nightly.gate, evaluation)
            else:
                session.config.loop(name)
                challenger = session.nightly.generation(name, generation)
                evaluation, verdict = session.nightly.judge(challenger, progress)
        evaluations[name], verdicts[name] = evaluation, verdict
    logged = {name: _logged_value(session, name) for name in evaluations}
    refused = {} if anyway else _refused(evaluations, session.config.nightly.gate)
    facts = {
        name: {
            **(
                {"loop": name, "rows": evaluation.rows, "refused": refused[name]}
                if name in refused
                else msgspec.to_builtins(evaluation)
            ),
            "logged": msgspec.to_builtins(logged[name]),
            "verdict": msgspec.to_builtins(verdicts[name]),
        }
        for name, evaluation in evaluations.items()
    }

    def show() -> None:
        for name, evaluation in evaluations.items():
            whole = logged[name]
            session.output.remark(
                f"{name}: the whole log's mean reward is {whole.value:.4f}, "
                f"{100 * whole.confidence:g} % interval {shown_interval(whole.lower, whole.upper)} "
                f"({whole.n:,} interactions, {whole.nonzero_rewards:,} with a reward)"
            )
            if name not in refused:
                show_evaluation(session, evaluation, verdicts[name])
            for reason in refused.get(name, ()):
                session.output.remark(f"{name}: no figures (--anyway gives them): {reason}")

    session.output.result(facts, show)
    raise typer.Exit(1 if refused else 0)


def _refused(evaluations: Mapping[str, Evaluation], limits: SupportLimits) -> dict[str, list[str]]:
    """What speaks against giving figures, of the loops of which anything does."""
    found = {
        name: [each for policy in evaluation.policies for each in policy.objections(limits)]
        for name, evaluation in evaluations.items()
    }
    return {name: reasons for name, reasons in found.items() if reasons}


def _loops_with_interactions(session: Session) -> list[str]:
    names = session.lake.scan("interactions").select(pl.col("loop").unique().sort()).collect()
    if names.is_empty():
        raise InvalidInputError(
            "loop", f"expected interactions in {session.paths.lake}; import or join some first"
        )
    return names["loop"].to_list()


def _evaluate_half(session: Session, name: str, progress: Callable[[int, int], None]) -> Evaluation:
    """Train on one half of a loop's log, judge on the other, against whatever made the log."""
    loop = session.config.loops.get(name, LoopConfig())
    half = settled_interactions(session.lake, name, loop).filter(is_judged(0.5))
    judged = half.sort("offset", "decision_id").collect()
    if judged.is_empty():
        raise InvalidInputError("loop", f"expected a loop with interactions, got {name!r}")
    challenger = retrain(
        session.lake,
        name,
        loop,
        number=0,
        parent=0,
        judge_share=0.5,
        seed=session.config.nightly.seed,
        created_us=now_us(),
    )
    confidence = session.config.nightly.gate.confidence
    evaluation = evaluate(
        judged,
        None,
        challenger,
        loop,
        confidence=confidence,
        progress=progress,
        engine=session.engine,
    )
    trained = f"{challenger.exploration.describe()} trained on the other half"
    logged, policy = evaluation.policies
    return msgspec.structs.replace(
        evaluation, policies=(logged, msgspec.structs.replace(policy, name=trained))
    )


def _logged_value(session: Session, name: str) -> Estimate:
    """What the policies that made a loop's log earned, over all of it."""
    loop = session.config.loops.get(name, LoopConfig())
    columns = ("reward", "propensity", "keep_prob")
    rows = current_interactions(session.lake, name).select(columns).collect()
    return logged_value(rows, loop, confidence=session.config.nightly.gate.confidence)
