"""``croupier tune``: what other configurations of a loop would have earned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from croupier.cli.options import (
    ConfigOption,
    DataDirOption,
    EngineOption,
    JsonOption,
    RayAddressOption,
    Session,
)
from croupier.cli.output import interval
from croupier.offline.tune import Trial, TuneReport, parse_grid, tune
from croupier.service.scorer import now_us

if TYPE_CHECKING:
    from croupier.offline.ope import Estimate

__all__ = ("register",)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("tune")(tune_command)


def tune_command(
    loop: Annotated[str, typer.Argument(help="The loop.")],
    grid: Annotated[
        list[str],
        typer.Option(
            help="Values to try, as TOML: oracle.learning_rate=[0.1,0.5]; can be given repeatedly, "
            "and every combination is tried."
        ),
    ],
    share: Annotated[
        float, typer.Option(help="Share of the learner's decisions that judge.", min=0.05, max=0.95)
    ] = 0.3,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
) -> None:
    """Estimate from the log what other oracles, explorations and trainings would have earned.

    Nothing is registered. The decisions that the gate judges by are not looked at.
    """
    session = Session.open(config, data_dir, json=json, engine=engine, ray_address=ray_address)
    asked = session.config.loop(loop)
    with session.output.progress(f"{loop}: tune") as progress:
        report = tune(
            session.lake,
            loop,
            asked,
            parse_grid(grid),
            judge_share=session.config.nightly.judge_share,
            seed=session.config.nightly.seed,
            created_us=now_us(),
            tuning_share=share,
            confidence=session.config.nightly.gate.confidence,
            progress=progress,
            engine=session.engine,
        )
    session.output.result(report, lambda: _show(session, report))


def _show(session: Session, report: TuneReport) -> None:
    session.output.table(
        f"{report.loop}: {len(report.trials)} configurations, trained on "
        f"{report.trained_rows:,} interactions and judged on {report.judged_rows:,}",
        ["configuration", "value", "interval", "better than the loop's own by", "interval"],
        [_row(trial) for trial in report.trials],
        note=f"Every interval is one of {100 * report.corrected_confidence:.4g} %, so that all "
        f"{report.compared} comparisons hold at once with {100 * report.confidence:g} %: "
        f"{report.correction}",
    )
    session.output.remark(
        f"The log's own policies earned {report.logged.value:.5f} on the learner's rows."
    )
    if report.better is None:
        session.output.remark("None is better than the loop's own, as far as this log can tell.")
    else:
        session.output.remark(
            f"{_name(report.better)} is better, also as the best of {report.compared}."
        )


def _row(trial: Trial) -> list[object]:
    if trial.failed is not None:
        return [_name(trial), trial.failed, "", "", ""]
    return [_name(trial), *_shown(trial.value), *_shown(trial.difference)]


def _shown(estimate: Estimate | None) -> list[object]:
    if estimate is None:
        return ["", ""]
    return [round(estimate.value, 5), interval(estimate.lower, estimate.upper)]


def _name(trial: Trial) -> str:
    changes = ", ".join(f"{name} = {value}" for name, value in trial.changes.items())
    return changes or "the loop's own"
