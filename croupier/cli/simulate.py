"""``croupier simulate``: simulators and what policies are worth in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import numpy as np
import typer

from croupier.cli.options import (
    ConfigOption,
    DataDirOption,
    JsonOption,
    LoopOption,
    Session,
)
from croupier.cli.output import Output
from croupier.cli.simulate_log import log
from croupier.offline.sequential import sequential_generation
from croupier.policy.errors import InvalidInputError
from croupier.policy.recurrent import load_recurrent
from croupier.service.ids import now_us
from croupier.sim2rec.jax_extra import require_jax
from croupier.sim2rec.lts import TEST_GROUP_MEAN, TRANSFER_LEVELS, LTSConfig
from croupier.sim2rec.study import constant_policy_study
from croupier.sim2rec.transfer_config import BUDGETS
from croupier.sim2rec.transfer_figure import draw_transfer
from croupier.sim2rec.transfer_runs import run_transfer, test_population
from croupier.sim2rec.transfer_study import summarise_transfer

if TYPE_CHECKING:
    import polars as pl

    from croupier.offline.study.oscillation import Mean
    from croupier.sim2rec.transfer_study import ArmResult, TransferStudy

__all__ = ("register",)

_ALL: Final = "all"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    simulate = typer.Typer(
        help="Simulators and what policies are worth in them.", no_args_is_help=True
    )
    simulate.command()(lts)
    simulate.command(name="register")(register_policy)
    simulate.command()(log)
    app.add_typer(simulate, name="simulate")


def lts(
    mu_c: Annotated[float, typer.Option(help="Mean engagement with clickbait.")] = TEST_GROUP_MEAN,
    users: Annotated[int, typer.Option(help="Test users to draw, at least 2.")] = 750,
    seed: Annotated[int, typer.Option(help="Of test users and noise.")] = 0,
    level: Annotated[
        str | None,
        typer.Option(
            help="Also train policies in simulators of this transfer level: 2, 3, 4 or all."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="With --level: trainings of each arm.")] = 5,
    budget: Annotated[
        str, typer.Option(help=f"With --level: how long they are, {' or '.join(BUDGETS)}.")
    ] = "reduced",
    output: Annotated[
        Path,
        typer.Option(help="With --level: where runs, policies, table and figure are written."),
    ] = Path("lts-study"),
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="With --level: processes; one for each processor else."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Values of constant policies and the optimum in the Long-Term-Satisfaction environment.

    With --level: also of policies that were trained in simulators of other groups of users. What
    was stopped goes on where it was.
    """
    if users < 2:
        raise InvalidInputError("users", f"expected at least 2, got {users}")
    shown = Output(json=json)
    if level is None:
        yardsticks = _yardsticks(shown, LTSConfig(mu_c=mu_c), users, seed)
        shown.result(yardsticks.to_dicts(), lambda: _show_yardsticks(shown, yardsticks, mu_c))
        return
    levels = _levels(level)
    if budget not in BUDGETS:
        raise InvalidInputError("budget", f"expected one of {', '.join(BUDGETS)}, got {budget!r}")
    if mu_c != TEST_GROUP_MEAN:
        raise InvalidInputError("mu_c", f"expected {TEST_GROUP_MEAN:g} with --level, got {mu_c:g}")
    require_jax("level")
    config = BUDGETS[budget]
    yardsticks = _yardsticks(shown, config.environment, users, seed)
    with shown.progress("trainings") as progress:
        runs = run_transfer(
            config,
            levels,
            range(seeds),
            users=users,
            user_seed=seed,
            directory=output,
            jobs=jobs or os.cpu_count() or 1,
            progress=progress,
        )
    study = summarise_transfer(runs, yardsticks, levels)
    figure = output / "lts.png"
    draw_transfer(runs, yardsticks, levels).savefig(figure, dpi=150)
    (output / "lts.json").write_bytes(msgspec.json.format(msgspec.json.encode(study)))

    def show() -> None:
        _show_yardsticks(shown, yardsticks, mu_c)
        _show_study(shown, study)

    shown.result(study, show)
    shown.remark(f"learning curves are in {output / 'runs'}, the figure is {figure}")


def register_policy(
    policy: Annotated[Path, typer.Argument(help="Folder of an exported policy.")],
    loop: LoopOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Register a policy that was trained in simulators as a loop's next generation.

    It is a challenger like any other: croupier split tries it, croupier promote asks the gate.
    """
    session = Session.open(config, data_dir, json=json)
    name = session.one_loop(loop)
    found = load_recurrent(policy)
    nightly = session.nightly
    with session.lake.lock():
        generation = sequential_generation(
            found,
            name,
            session.config.loop(name),
            number=nightly.next_number(name),
            parent=session.registry.champion(name),
            created_us=now_us(),
        )
        nightly.publish(generation)
    published = session.registry.published(name, generation.number)
    facts = {"loop": name, "generation": generation.number, "run_id": published.run_id}
    session.output.result(
        facts,
        lambda: session.output.remark(
            f"{name}: generation {generation.number} is a challenger now "
            f"({len(found.config.actions)} actions, run {published.run_id})"
        ),
    )


def _levels(text: str) -> list[int]:
    known = {str(level): [level] for level in TRANSFER_LEVELS} | {_ALL: list(TRANSFER_LEVELS)}
    if text not in known:
        raise InvalidInputError("level", f"expected one of {', '.join(known)}, got {text!r}")
    return known[text]


def _yardsticks(shown: Output, environment: LTSConfig, users: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    config = msgspec.structs.replace(BUDGETS["reduced"], environment=environment)
    population = test_population(config, users, seed)
    with shown.progress("simulate") as progress:
        return constant_policy_study(environment, population, rng, progress)


def _show_yardsticks(shown: Output, yardsticks: pl.DataFrame, mu_c: float) -> None:
    users = yardsticks["users"][0]
    shown.table(
        f"Return over {LTSConfig().horizon} steps, mu_c = {mu_c:g}, {users:,} users",
        yardsticks.columns,
        yardsticks.rows(),
    )


def _show_study(shown: Output, study: TransferStudy) -> None:
    for level in dict.fromkeys(each.level for each in study.arms):
        arms = [each for each in study.arms if each.level == level]
        shown.table(
            f"level {level}: return of users of a group that no simulator knew",
            ["arm", "seeds", "return", "% of bound", "% of optimum", "lead", "p", "seconds"],
            [_row(each) for each in arms],
            note="± one standard error over seeds. Bound: the recurrent policy trained in the "
            "truth. Lead: over the arm above, seed by seed, with the p-value of a paired t-test. "
            "Seconds: processor time of one training.",
        )


def _row(arm: ArmResult) -> list[object]:
    return [
        arm.arm,
        arm.seeds,
        _shown(arm.test_return),
        100.0 * arm.of_upper_bound,
        100.0 * arm.of_optimum,
        None if arm.lead is None else _shown(arm.lead.difference),
        None if arm.lead is None else arm.lead.p_value,
        None if arm.seconds is None else round(arm.seconds),
    ]


def _shown(mean: Mean) -> str:
    error = "" if mean.error is None else f" ± {mean.error:.1f}"
    return f"{mean.value:.1f}{error}"
