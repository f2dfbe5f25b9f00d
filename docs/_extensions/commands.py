"""The directive ``croupier-commands``: every command with its arguments and options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer.main
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from croupier.cli.commands import app as commands

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("croupier-commands", _Commands)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


class _Commands(SphinxDirective):
    """A section for every command, in the order of ``croupier --help``."""

    def run(self) -> list[nodes.Node]:
        return [
            _section(path, command)
            for path, command in _walk("croupier", typer.main.get_command(commands))
        ]


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Commands that do something, and below their groups."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
        return
    for name, each in below.items():
        yield from _walk(f"{path} {name}", each)


def _section(path: str, command: Any) -> nodes.section:
    title = nodes.title("", "", nodes.literal(text=path))
    section = nodes.section("", title, ids=[nodes.make_id(path)], names=[path])
    for paragraph in (command.help or "").replace("\b", "").strip().split("\n\n"):
        section += nodes.paragraph(text=" ".join(paragraph.split()))
    # The records are what `--help` prints: how a parameter is written, and what it is.
    context = command.context_class(command, info_name=path)
    records = [each.get_help_record(context) for each in command.params if each.name != "help"]
    rows = [record for record in records if record is not None]
    if rows:
        section += _table(rows)
    return section


def _table(rows: list[tuple[str, str]]) -> nodes.table:
    body = nodes.tbody("")
    for written, described in rows:
        body += nodes.row(
            "",
            nodes.entry("", nodes.paragraph("", "", nodes.literal(text=written))),
            nodes.entry("", nodes.paragraph(text=" ".join(described.split()))),
        )
    columns = [nodes.colspec(colwidth=each) for each in (2, 3)]
    return nodes.table("", nodes.tgroup("", *columns, body, cols=2))
