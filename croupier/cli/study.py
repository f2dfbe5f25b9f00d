"""``croupier study``: what happens over many generations, where the truth is known."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, Protocol, TypeVar

import msgspec
import typer

from croupier.cli.output import Output
from croupier.offline.study.arms import CONTROL, ORACLES, PLAIN, oscillation_arms
from croupier.offline.study.fair_figure import draw_fairness
from croupier.offline.study.fair_learners import FAIR_ARMS
from croupier.offline.study.fair_runs import run_fair_arms
from croupier.offline.study.fair_world import WORLDS
from croupier.offline.study.fairness import summarise_fair
from croupier.offline.study.figure import draw_study
from croupier.offline.study.oscillation import Mean, OscillationStudy, summarise
from croupier.offline.study.runs import EnvironmentChoice, run_arms
from croupier.policy.errors import InvalidInputError
from croupier.policy.loop import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.offline.study.fairness import FairArmSummary, FairnessStudy, Growth
    from croupier.offline.study.oscillation import ArmSummary

__all__ = ("register",)

_N = TypeVar("_N", bound="_Named")

_SHOWN = (PLAIN, CONTROL, f"{PLAIN}, all", f"{PLAIN}, adaptive")
_studies = typer.Typer(
    help="Studies of many generations, in environments whose truth is known.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    _studies.command("oscillation")(oscillation_command)
    _studies.command("fairness")(fairness_command)
    app.add_typer(_studies, name="study")


def oscillation_command(
    output: Annotated[
        Path,
        typer.Option(help="Where series, table and figure are written; a study goes on there."),
    ] = Path("oscillation-study"),
    environment: Annotated[
        str, typer.Option(help="module:function that makes the environment of a seed.")
    ] = "examples.payments:study",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A parameter of the environment, as name=value; repeatable."),
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option("--arm", help="Only this arm; repeatable. All of them else.")
    ] = None,
    oracle: Annotated[str, typer.Option(help=f"What learns: {', '.join(ORACLES)}.")] = "logistic",
    generations: Annotated[int, typer.Option(min=8, help="In each series.")] = 15,
    burn_in: Annotated[int, typer.Option(min=1, help="Of these, left out at the beginning.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Series of each arm.")] = 30,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes; one for each processor else.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Let generations learn from each other's logs, and tell which ways of doing so oscillate."""
    shown = Output(json=json)
    if generations - burn_in < 6:
        raise InvalidInputError("burn_in", "expected at least 6 generations after it")
    if oracle not in ORACLES:
        raise InvalidInputError("oracle", f"expected one of {', '.join(ORACLES)}, got {oracle!r}")
    arms = _chosen("arm", oscillation_arms(LoopConfig(oracle=ORACLES[oracle])), arm)
    choice = EnvironmentChoice(path=environment, parameters=_parameters(set_ or []))
    # Environments stand beside what is studied, as configurations do.
    sys.path.insert(0, str(Path.cwd()))
    with shown.progress("series") as progress:
        runs = run_arms(
            choice,
            arms,
            range(seeds),
            generations=generations,
            directory=output,
            jobs=jobs or os.cpu_count() or 1,
            progress=progress,
        )
    control = CONTROL if any(each.name == CONTROL for each in arms) else None
    study = summarise(runs, burn_in=burn_in, control=control)
    figure = output / "oscillation.png"
    draw_study(runs, study, [each.name for each in arms if each.name in _SHOWN]).savefig(
        figure, dpi=150
    )
    (output / "oscillation.json").write_bytes(msgspec.json.format(msgspec.json.encode(study)))
    shown.result(study, lambda: _show(shown, study))
    shown.remark(f"the series are in {output / 'series'}, the figure is {figure}")


def fairness_command(
    output: Annotated[
        Path,
        typer.Option(help="Where series, table and figure are written; a study goes on there."),
    ] = Path("fairness-study"),
    world: Annotated[
        list[str] | None,
        typer.Option("--world", help=f"{' or '.join(WORLDS)}; repeatable. All of them else."),
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option("--arm", help="Only this arm; repeatable. All of them else.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=64, help="T, of each series.")] = 10_000,
    instances: Annotated[int, typer.Option(min=2, help="k, in each round.")] = 100,
    seeds: Annotated[int, typer.Option(min=2, help="Series of each arm in each world.")] = 10,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes; one for each processor else.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Learn from approvals alone under auditors, and tell how regret and violations grow."""
    shown = Output(json=json)
    worlds = [each.name for each in _chosen("world", [_World(name) for name in WORLDS], world)]
    arms = [each.name for each in _chosen("arm", FAIR_ARMS, arm)]
    with shown.progress("series") as progress:
        runs = run_fair_arms(
            worlds,
            arms,
            range(seeds),
            rounds=rounds,
            instances=instances,
            directory=output,
            jobs=jobs or os.cpu_count() or 1,
            progress=progress,
        )
    study = summarise_fair(runs)
    figure = output / "fairness.png"
    draw_fairness(runs, study).savefig(figure, dpi=150)
    (output / "fairness.json").write_bytes(msgspec.json.format(msgspec.json.encode(study)))
    shown.result(study, lambda: _show_fairness(shown, study))
    shown.remark(f"the series are in {output / 'series'}, the figure is {figure}")


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class _World(NamedTuple):
    name: str


def _chosen(option: str, offered: Sequence[_N], names: list[str] | None) -> list[_N]:
    known = {each.name: each for each in offered}
    for name in names or []:
        if name not in known:
            raise InvalidInputError(option, f"expected one of {', '.join(known)}; got {name!r}")
    return list(offered) if names is None else [known[name] for name in names]


def _parameters(texts: list[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            found[name.strip()] = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise InvalidInputError("set", f"expected name=number, got {text!r}") from error
        if not (name.strip() and equals):
            raise InvalidInputError("set", f"expected name=number, got {text!r}")
    return found


def _show(shown: Output, study: OscillationStudy) -> None:
    shown.table(
        f"{study.generations} generations, the first {study.burn_in} left out",
        [
            "arm",
            "seeds",
            "gain %",
            "regret",
            "spread %",
            "lag 1",
            "returns",
            "distance",
            "ECE %",
            "p spread",
            "p alternates",
            "p (bootstrap)",
            "oscillates",
        ],
        [_row(each) for each in study.arms],
        note="± one standard error over seeds. Gain: true value above uniform's, in points. "
        "Regret: what is missing to the best, as a share of uniform's. Spread: standard deviation "
        "of what changing generations changes. Lag 1: its autocorrelation; -0.5 for noise alone. "
        "Returns: most probable actions that are those of two generations ago and not the last's. "
        "Distance: total variation to the last generation. p: of spread and of alternation by "
        "the control's noise, and by that of bootstrapped logs.",
    )


def _show_fairness(shown: Output, study: FairnessStudy) -> None:
    for world in dict.fromkeys(each.world for each in study.arms):
        arms = [each for each in study.arms if each.world == world]
        shown.table(
            f"{world}: {study.rounds} rounds of {study.instances}, {arms[0].seeds} seeds",
            ["arm", "error %", "regret", "grows as T^", "violations %", "late %", "grow as T^"],
            [_fair_row(each) for each in arms],
            note="± one standard error over seeds. Regret: errors above those of the best fair "
            "mixture in hindsight, over k. Growth: the exponent from round "
            f"{study.fitted_from} on, with its 95 % interval. Violations: share of the rounds "
            "with a reported pair; late: in the later half.",
        )
    if study.sidedness:
        shown.table(
            "what it costs to see the labels of the approved alone (exp2)",
            ["world", "regret", "violations, points"],
            [
                [each.world, _shown(each.regret), _shown(each.violations, 100.0)]
                for each in study.sidedness
            ],
        )


def _fair_row(arm: FairArmSummary) -> list[object]:
    return [
        arm.arm,
        _shown(arm.error, 100.0),
        _shown(arm.regret),
        _exponent(arm.regret_growth),
        _shown(arm.violations, 100.0),
        _shown(arm.late_violations, 100.0),
        _exponent(arm.violations_growth),
    ]


def _exponent(growth: Growth | None) -> str | None:
    if growth is None:
        return None
    return f"{growth.exponent:.2f} [{growth.lower:.2f}, {growth.upper:.2f}]"


def _row(arm: ArmSummary) -> list[object]:
    test, own = arm.test, arm.bootstrap_test
    return [
        arm.arm,
        arm.seeds,
        _shown(arm.gain, 100.0),
        _shown(arm.regret),
        _shown(arm.spread, 100.0),
        _shown(arm.autocorrelation),
        _shown(arm.returns),
        _shown(arm.total_variation),
        _shown(arm.ece, 100.0),
        None if test is None else test.p_values.spread,
        None if test is None else test.p_values.alternation,
        None if own is None else f"{own.p_values.spread:.3g}, {own.p_values.alternation:.3g}",
        None if test is None else test.oscillates,
    ]


def _shown(mean: Mean, times: float = 1.0) -> str:
    error = "" if mean.error is None else f" ± {times * mean.error:.2f}"
    return f"{times * mean.value:.2f}{error}"
