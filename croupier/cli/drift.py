"""The command that compares generations' logs: who asks, and what is earned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from croupier.cli.options import ConfigOption, DataDirOption, JsonOption, LoopOption, Session
from croupier.offline.drift import drift
from croupier.offline.interactions import current_interactions

if TYPE_CHECKING:
    from croupier.offline.drift import DriftReport, FeatureDrift

__all__ = ("register",)

_SHOWN = 10
_COLUMNS = (
    "generation",
    "decision_id",
    "offset",
    "context",
    "action_ids",
    "excluded",
    "propensity",
    "keep_prob",
    "reward",
)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("drift")(drift_command)


def drift_command(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    loop: LoopOption = None,
    level: Annotated[
        float, typer.Option(help="Chance, at most, of a finding where nothing has changed.")
    ] = 0.01,
    json: JsonOption = False,
) -> None:
    """Say whether requests and rewards have changed from generation to generation.

    Rewards are those that the uniform policy would have earned: no generation has a part in them.
    """
    session = Session.open(config, data_dir, json=json)
    reports = {}
    for name in session.loops(loop):
        rows = current_interactions(session.lake, name).select(_COLUMNS).sort("offset").collect()
        reports[name] = drift(rows, level=level)

    def show() -> None:
        for name, report in reports.items():
            _show(session, name, report)

    session.output.result(reports, show)


def _show(session: Session, loop: str, report: DriftReport) -> None:
    session.output.table(
        f"{loop}: what was earned, and what the uniform policy would have earned",
        ["generations", "mean reward", "uniform policy", "p-value", "drift"],
        [
            [
                f"{each.before} to {each.after}",
                f"{each.mean_before:.4f} to {each.mean_after:.4f}",
                f"{each.uniform_before:.4f} to {each.uniform_after:.4f}",
                f"{each.p_value:.2g}",
                "yes" if each.significant else "",
            ]
            for each in report.rewards
        ],
    )
    # All that was found, and what came nearest to it.
    found = [each for each in report.features if each.significant]
    others = sorted((each for each in report.features if not each.significant), key=_p_value)
    shown = [*found, *others[: max(0, _SHOWN - len(found))]]
    session.output.table(
        f"{loop}: features of the context",
        ["generations", "feature", "compared", "distance", "p-value", "drift"],
        [
            [
                f"{each.before} to {each.after}",
                each.feature,
                each.kind,
                round(each.distance, 4),
                f"{each.p_value:.2g}",
                "yes" if each.significant else "",
            ]
            for each in shown
        ],
        note=f"{len(report.features) - len(shown):,} more without drift"
        if len(report.features) > len(shown)
        else "",
    )


def _p_value(found: FeatureDrift) -> float:
    return found.p_value
