"""Commands that look after the lake and take data out of it: delays, export, lake."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from croupier.cli.options import ConfigOption, DataDirOption, JsonOption, LoopOption, Session
from croupier.offline.delays import DelayCurve, delay_curve
from croupier.offline.export import export_dsjson, export_parquet
from croupier.offline.verify import LoopVerification, verify_loop
from croupier.policy.errors import InvalidInputError

__all__ = ("register",)

_POINTS = 20


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("delays")(delays)
    app.command("export")(export)
    lake = typer.Typer(help="Look after the lake.", no_args_is_help=True)
    lake.command("verify")(verify)
    lake.command("compact")(compact)
    app.add_typer(lake, name="lake")


def delays(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    loop: LoopOption = None,
    json: JsonOption = False,
) -> None:
    """Say how late outcomes come: which share of them has come by a delay.

    Decisions that are too young for slow outcomes are allowed for.
    """
    session = Session.open(config, data_dir, json=json)
    curves = {
        name: delay_curve(session.lake, name, session.config.loop(name)).thinned(_POINTS)
        for name in session.loops(loop)
    }

    def show() -> None:
        for name, curve in curves.items():
            _show_curve(session, name, curve)

    session.output.result(curves, show)


def export(
    loop: Annotated[str, typer.Argument(help="The loop.")],
    path: Annotated[Path, typer.Argument(help="File to write.")],
    fmt: Annotated[
        Literal["parquet", "dsjson"], typer.Option("--format", help="What to write.")
    ] = "parquet",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Write a loop's interactions to a file, for other programs.

    A Parquet file has the columns of the lake, and one for every guardrail of the loop.
    """
    session = Session.open(config, data_dir, json=json)
    configured = session.config.loops.get(loop)
    guardrails = [] if configured is None else sorted(configured.guardrails)
    try:
        count = (
            export_parquet(session.lake, loop, path, guardrails=guardrails)
            if fmt == "parquet"
            else export_dsjson(session.lake, loop, path)
        )
    except OSError as error:
        raise InvalidInputError("path", f"expected a file to write at {path}: {error}") from error
    session.output.result(
        {"interactions": count}, lambda: session.output.remark(f"{count:,} interactions in {path}")
    )


def verify(
    share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Of the rewards to work out again.")
    ] = 1.0,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    loop: LoopOption = None,
    json: JsonOption = False,
) -> None:
    """Recount the lake from the event log, and work its rewards out again."""
    session = Session.open(config, data_dir, json=json)
    found: dict[str, LoopVerification] = {}
    with session.log() as log, session.lake.lock():
        for name in session.loops(loop):
            with session.output.progress(f"{name}: recount") as progress:
                found[name] = verify_loop(
                    session.lake,
                    log,
                    name,
                    session.config.loop(name),
                    share=share,
                    progress=progress,
                )
    columns = LoopVerification.__struct_fields__
    session.output.result(
        found,
        lambda: session.output.table(
            "Lake against log",
            ["loop", *columns, "sound"],
            [
                [name, *(getattr(each, column) for column in columns), each.sound]
                for name, each in found.items()
            ],
        ),
    )
    raise typer.Exit(0 if all(each.sound for each in found.values()) else 1)


def compact(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Put the small files of days that are over into larger ones."""
    session = Session.open(config, data_dir, json=json)
    with session.lake.lock():
        removed = session.lake.compact()
    session.output.result(
        removed,
        lambda: session.output.table(
            "Compacted", ["table", "fewer files"], [list(each) for each in removed.items()]
        ),
    )


def _show_curve(session: Session, name: str, curve: DelayCurve) -> None:
    rows = zip(curve.delays_s, curve.share, curve.lower, curve.upper, strict=True)
    session.output.table(
        f"{name}: share of the outcomes that have come, from {curve.outcomes:,} of them",
        ["delay in s", "share", "lower", "upper"],
        [[round(value, 4) for value in row] for row in rows],
    )
