"""How results are shown: tables for people, JSON for machines, bars for what takes long."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ("Output", "cell", "interval", "with_interval", "write_json")

_PLAIN_WIDTH = 140


class Output:
    """Where a command's results go.

    Parameters
    ----------
    json
        Print one JSON object instead of tables; progress and remarks then go to stderr only.
    clock
        Now, in microseconds since the Unix epoch, to begin the lines of a log with; what goes to a
        terminal begins with no time, nor does anything if None.
    """

    def __init__(self, *, json: bool, clock: Callable[[], int] | None = None) -> None:
        self.json = json
        self._clock = clock
        # Into a file or a pipe there is no width to keep to; a table is not to be squeezed into 80.
        width = None if sys.stdout.isatty() else _PLAIN_WIDTH
        self.console = Console(highlight=False, width=width)
        self.errors = Console(stderr=True, highlight=False)

    def result(self, value: Any, show: Callable[[], None]) -> None:
        """Print a result: its JSON, or whatever `show` prints."""
        if self.json:
            sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
            sys.stdout.flush()
        else:
            show()

    @property
    def to_terminal(self) -> bool:
        """Whether a person is looking on, and not a log."""
        return self.console.is_terminal

    def remark(self, text: str) -> None:
        """Say something that isn't a result."""
        self._say(self.errors if self.json else self.console, text)

    def warn(self, text: str) -> None:
        """Say on stderr what a user should know of and no program has to."""
        sys.stderr.write(f"warning: {' '.join(text.split())}\n")
        sys.stderr.flush()

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = ""
    ) -> None:
        """Print a table; numbers stand to the right."""
        table = Table(title=title, title_justify="left", title_style="bold", caption=note or None)
        table.caption_justify = "left"
        for position, column in enumerate(columns):
            numeric = all(isinstance(row[position], int | float | None) for row in rows)
            table.add_column(column, justify="right" if numeric and rows else "left")
        for row in rows:
            table.add_row(*(Text(cell(value)) for value in row))
        self.console.print(table)

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar on stderr while a function that is given (done, in all) works.

        Where stderr is no terminal, one plain line at the end takes the bar's place.
        """
        if not self.errors.is_terminal:
            totals = [0]

            def note(_done: int, total: int) -> None:
                totals[0] = total

            yield note
            self._say(
                self.errors, f"{label}: {totals[0]:,} done" if totals[0] else f"{label}: done"
            )
            return
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.errors,
        ) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def _say(self, console: Console, text: str) -> None:
        """Print a line, which a log doesn't break."""
        in_log = not console.is_terminal
        if in_log and self._clock is not None:
            now = datetime.fromtimestamp(self._clock() // 1_000_000, tz=UTC)
            text = f"{now:%Y-%m-%dT%H:%M:%SZ} {text}"
        # It may quote a user, who may write in brackets.
        console.print(text, markup=False, soft_wrap=in_log)


def cell(value: object) -> str:
    """A value as people read it."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        case datetime():
            return value.strftime("%Y-%m-%d %H:%M:%S")
        case _:
            return str(value)


def with_interval(value: float | None, lower: float | None, upper: float | None) -> str:
    """A value and its interval as people read them."""
    return "–" if value is None else f"{value:.3f} {interval(lower, upper, digits=3)}"


def interval(lower: float | None, upper: float | None, *, digits: int = 4) -> str:
    """An interval as people read it."""
    if lower is None or upper is None:
        return "–"
    return f"[{lower:.{digits}f}, {upper:.{digits}f}]"


def write_json(path: Path, value: Any) -> None:
    """Write what ``--json`` prints into a file.

    Raises
    ------
    InvalidInputError
        If it can't be written; the error names ``output``.
    """
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(value)) + b"\n")
    except OSError as error:
        raise InvalidInputError(
            "output", f"expected a file that can be written, got {path}: {error.strerror}"
        ) from error
