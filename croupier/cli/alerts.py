"""The command that lists what the nights' rules have found: ``croupier alerts``."""

from __future__ import annotations

from typing import Annotated

import polars as pl
import typer

from croupier.cli.options import ConfigOption, DataDirOption, JsonOption, LoopOption, Session
from croupier.offline.summaries.tables import summaries_of

__all__ = ("register",)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(alerts)


def alerts(
    loop: LoopOption = None,
    past: Annotated[bool, typer.Option("--past", help="Also those that are closed.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """List alerts, as the last night has left them; exit code 1 if any is open."""
    session = Session.open(config, data_dir, json=json)
    summaries = summaries_of(session.lake)
    found: dict[str, list[dict[str, object]]] = {}
    for name in session.loops(loop):
        rows = summaries.read(name, "alerts")
        kept = rows if past else rows.filter(pl.col("closed").is_null())
        found[name] = kept.sort("first", descending=True).to_dicts()
    still = sum(row["closed"] is None for rows in found.values() for row in rows)

    def show() -> None:
        columns = ["loop", "severity", "alert", "since", "closed", "id"]
        table = [
            [
                name,
                row["severity"],
                f"{row['title']}. {row['told']}",
                row["first"],
                row["closed"],
                row["alert_id"],
            ]
            for name, rows in found.items()
            for row in rows
        ]
        session.output.table("Alerts", columns, table)

    session.output.result(found, show)
    raise typer.Exit(1 if still else 0)
