"""The command that explores what fairness costs: ``croupier frontier``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from croupier.cli.options import ConfigOption, DataDirOption, JsonOption, LoopOption, Session
from croupier.cli.output import interval
from croupier.offline.fairness.exploring import explore_frontier
from croupier.offline.fairness.frontier import frontier_figure
from croupier.offline.judged import judged_interactions
from croupier.policy.errors import ConfigError, InvalidInputError

if TYPE_CHECKING:
    from croupier.offline.fairness.exploring import Frontier
    from croupier.policy.generation import Generation

__all__ = ("register",)

_PLOTS = {".png", ".svg"}


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(frontier)


def frontier(
    generations: Annotated[
        list[int] | None, typer.Argument(help="Numbers; the champion and the latest unless given.")
    ] = None,
    alpha: Annotated[
        list[float] | None, typer.Option(help="A slack; may be given again. The loop's if not.")
    ] = None,
    gamma: Annotated[
        list[float] | None, typer.Option(help="A share of the auditors; may be given again.")
    ] = None,
    uniform: Annotated[
        list[float] | None, typer.Option(help="Share of the uniform policy in a mixture; again.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="A figure, .png or .svg.")] = None,
    loop: LoopOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Show what policies are worth against how often they treat alike people differently.

    From the auditors' distances of some pairs, for any slack and share: nobody is asked again. With
    --json these distances are told too.
    """
    session = Session.open(config, data_dir, json=json)
    name = session.one_loop(loop)
    loop_config = session.config.loop(name)
    fairness = loop_config.individual_fairness
    if fairness is None:
        raise ConfigError(f"loops.{name}.individual_fairness", "expected auditors")
    if plot is not None and plot.suffix.lower() not in _PLOTS:
        raise InvalidInputError("plot", f"expected a name that ends in .png or .svg, got {plot}")
    shares = uniform or [0.25, 0.5, 0.75, 1.0]
    if not all(0.0 < each <= 1.0 for each in shares):
        raise InvalidInputError("uniform", f"expected shares in (0, 1], got {shares}")
    if not all(0.0 <= each < 1.0 for each in alpha or ()):
        raise InvalidInputError("alpha", f"expected slacks in [0, 1), got {alpha}")
    policies = _generations(session, name, generations)
    rows = judged_interactions(
        session.lake,
        name,
        loop_config,
        policies.values(),
        judge_share=session.config.nightly.judge_share,
        judge_window=session.config.nightly.judge_window,
    )
    found = explore_frontier(
        session.lake,
        rows,
        policies,
        loop_config,
        fairness,
        alphas=alpha or [fairness.alpha],
        gammas=gamma or [fairness.gamma],
        uniform_shares=shares,
        confidence=session.config.nightly.gate.confidence,
    )
    if plot is not None:
        frontier_figure(found.points, plot)
    session.output.result(found, lambda: _show(session, name, found))


def _generations(session: Session, loop: str, numbers: list[int] | None) -> dict[str, Generation]:
    known = session.registry.numbers(loop)
    champion = session.registry.champion(loop)
    wanted = numbers or sorted({champion, *known[-1:]})
    for number in wanted:
        if number not in {0, *known}:
            raise InvalidInputError(
                "generations",
                f"expected generations of {loop} (0, {', '.join(map(str, known))}), got {number}",
            )
    return {f"generation {number}": session.nightly.generation(loop, number) for number in wanted}


def _show(session: Session, loop: str, found: Frontier) -> None:
    columns = ["policy", "α", "γ", "violation rate", "interval", "value", "interval", "efficient"]
    session.output.table(
        f"{loop}: value and violations, on {found.rows:,} judged interactions",
        columns,
        [
            [
                each.policy,
                each.alpha,
                each.gamma,
                each.rate,
                interval(each.rate_lower, each.rate_upper),
                each.value,
                interval(each.value_lower, each.value_upper),
                each.efficient,
            ]
            for each in found.points
        ],
        note="Efficient: no other policy here is worth as much with fewer violations.",
    )
