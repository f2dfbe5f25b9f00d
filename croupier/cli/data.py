"""Commands about the data directory as a whole: its format, and copies of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from croupier.cli.config import load_config
from croupier.cli.options import ConfigOption, DataDirOption, JsonOption, Session
from croupier.cli.output import Output
from croupier.offline.backup import backup, restore
from croupier.offline.data_format import FORMAT, migrate

__all__ = ("register",)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("migrate")(migrate_command)
    app.command("backup")(backup_command)
    app.command("restore")(restore_command)


def migrate_command(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Bring a data directory that an earlier version has written to the present format.

    Nothing else may use it meanwhile. What it was before is not kept: make a backup first.
    """
    _, paths = load_config(config, flags={"data_dir": data_dir})
    output = Output(json=json)
    before, segments = migrate(paths.root)
    output.result(
        {"before": before, "format": FORMAT, "segments": segments},
        lambda: output.table(
            f"Data directory {paths.root}",
            ["format before", "format now", "segments of the log rewritten"],
            [[before, FORMAT, segments]],
        ),
    )


def backup_command(
    into: Annotated[Path, typer.Argument(help="Folder of the backup; must not exist.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Copy log, lake and registry while scorers go on.

    All that was acknowledged before is in it. The lake must not be written to meanwhile. A registry
    or log that is not in the data directory is not in the backup either.
    """
    session = Session.open(config, data_dir, json=json)
    with session.output.progress(f"backup into {into}") as progress:
        made = backup(session.paths.root, session.lake, into)
        progress(1, 1)
    session.output.result(
        made,
        lambda: session.output.table(
            f"Backup of {session.paths.root}",
            ["folder", "parts"],
            [[str(into), ", ".join(made.parts)]],
        ),
    )


def restore_command(
    source: Annotated[Path, typer.Argument(help="Folder of the backup.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Make the data directory from a backup; there must be nothing in it."""
    session = Session.open(config, data_dir, json=json, settings=False)
    with session.output.progress(f"restore from {source}") as progress:
        made = restore(source, session.paths.root)
        progress(1, 1)
    session.output.result(
        made,
        lambda: session.output.table(
            f"Data directory {session.paths.root}", ["parts"], [[", ".join(made.parts)]]
        ),
    )
