"""Text of a promotion report's page: escaped, and numbers as people read them."""

from __future__ import annotations

import html
import math
import unicodedata
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("cell", "escaped", "interval", "moment", "number", "table")

_KEPT = frozenset("\n\t")
# Below it a number is what rounding has left.
_NOTHING = 1e-15


def escaped(text: str) -> str:
    """Text as it may stand in HTML and in its attributes.

    What isn't shown (control characters, marks that turn the direction of writing) becomes the
    replacement character: logs come from anywhere.
    """
    shown = "".join(
        "\ufffd" if unicodedata.category(each).startswith("C") and each not in _KEPT else each
        for each in text
    )
    return html.escape(shown)


def number(value: float) -> str:
    """A number with four digits or so."""
    if math.isnan(value):
        return "unknown"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) < _NOTHING:
        return "0"
    if value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def interval(lower: float | None, upper: float | None) -> str:
    """An interval; a dash where there is none."""
    if lower is None or upper is None:
        return "–"
    return f"[{number(lower)}, {number(upper)}]"


def moment(ts_us: int | None) -> str:
    """A time in microseconds since the epoch, to the second."""
    if ts_us is None:
        return "–"
    return datetime.fromtimestamp(ts_us // 1_000_000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def cell(value: object) -> str:
    """A value of a table, escaped."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return number(float(value))
        case _:
            return escaped(str(value))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> str:
    """A table of HTML; what stands in it is escaped here, numbers stand to the right."""
    numeric = [
        all(isinstance(row[place], int | float | None) for row in rows) and bool(rows)
        for place in range(len(columns))
    ]
    sides = ['class="n"' if each else "" for each in numeric]
    head = "".join(
        f'<th scope="col" {side}>{escaped(name)}</th>'
        for name, side in zip(columns, sides, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td {side}>{cell(each)}</td>" for each, side in zip(row, sides, strict=True))
        + "</tr>"
        for row in rows
    )
    title = f"<caption>{escaped(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
