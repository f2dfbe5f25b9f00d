"""A comparison as a figure: every policy's values with intervals, differences, and day by day."""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from croupier.offline.grouped import DAY
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from croupier.offline.compare import Compared, Comparison
    from croupier.offline.ope.choice import EstimatorKind, Reading

__all__ = ("PlotFormat", "comparison_figure", "plot_format", "write_plot")

PlotFormat: TypeAlias = Literal["png", "svg", "html"]

_MOST_TICKS = 20
_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font-family: sans-serif; margin: 2em; }}
svg {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
{figure}
</body>
</html>
"""


def plot_format(path: Path) -> PlotFormat:
    """What a file's name asks for.

    Raises
    ------
    InvalidInputError
        If it doesn't end in ``.png``, ``.svg`` or ``.html``.
    """
    ending = path.suffix.lower().removeprefix(".")
    for kind in get_args(PlotFormat):
        if ending == kind:
            found: PlotFormat = kind
            return found
    raise InvalidInputError("plot", f"expected a name that ends in .png, .svg or .html, got {path}")


def write_plot(comparison: Comparison, path: Path) -> None:
    """Write the figure to a file, of the kind that its name asks for; a page needs nothing else.

    Raises
    ------
    InvalidInputError
        If the name asks for something else, or the file can't be written.
    """
    kind = plot_format(path)
    figure = comparison_figure(comparison)
    written = io.BytesIO()
    if kind == "png":
        figure.savefig(written, format="png", dpi=150)
    else:
        figure.savefig(written, format="svg", metadata={"Date": None})
    content = written.getvalue()
    if kind == "html":
        drawing = content.decode()
        drawing = drawing[drawing.index("<svg") :]
        title = html.escape(f"{comparison.loop}: policies on one log")
        content = _PAGE.format(title=title, figure=drawing).encode()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InvalidInputError(
            "plot", f"expected a file that can be written, got {path}: {error.strerror}"
        ) from error


def comparison_figure(comparison: Comparison) -> Figure:
    """Values of all policies, their differences from the first one, and the first estimator by day.

    What has no interval is a hollow mark without a line.
    """
    # Slow to import; without pyplot there is no state and no display.
    from matplotlib.figure import Figure  # noqa: PLC0415

    policies = comparison.total.policies
    rows = len(policies) * len(policies[0].values)
    several = len(policies) > 1
    figure = Figure(figsize=(11, 4.2 + 0.26 * rows), layout="constrained")
    figure.suptitle(
        f"{comparison.loop}: {comparison.total.rows:,} interactions, "
        f"{100 * comparison.confidence:g} % intervals ({comparison.interval})"
        + ("" if comparison.correction == "none" else ", differences and days: hold at once")
    )
    grid = figure.add_gridspec(2, 2 if several else 1, height_ratios=(1.0 + 0.1 * rows, 1.2))
    values = figure.add_subplot(grid[0, 0])
    _forest(values, [(each.name, each.values) for each in policies], first=0)
    values.set(title="value", xlabel="reward per decision")
    if several:
        differences = figure.add_subplot(grid[0, 1])
        _forest(differences, [(each.name, each.differences) for each in policies[1:]], first=1)
        differences.axvline(0.0, color="grey", linewidth=0.8)
        differences.set(title=f"difference from {policies[0].name}", xlabel="reward per decision")
    _by_day(figure.add_subplot(grid[1, :]), comparison.groups[DAY])
    return figure


def _forest(
    axes: Any, policies: Sequence[tuple[str, dict[EstimatorKind, Reading]]], *, first: int
) -> None:
    """A line for every policy and estimator; the policies from top to bottom."""
    labels: list[str] = []
    for number, (name, readings) in enumerate(policies):
        for reading in readings.values():
            place, colour = -len(labels), f"C{number + first}"
            labels.append(f"{name}  {reading.estimator.removesuffix('-difference')}")
            if reading.estimate is not None:
                ends = [reading.estimate.lower, reading.estimate.upper]
                axes.plot(ends, [place, place], color=colour, linewidth=2)
            if reading.value is not None:
                fill = colour if reading.estimate is not None else "none"
                axes.plot(
                    [reading.value], [place], "o", color=colour, markerfacecolor=fill, markersize=5
                )
    axes.set_yticks([-place for place in range(len(labels))], labels, fontsize=8)
    axes.grid(axis="x", linewidth=0.3)


def _by_day(axes: Any, days: Sequence[Compared]) -> None:
    """Every policy day by day, side by side within a day."""
    policies = len(days[0].policies)
    kind = next(iter(days[0].policies[0].values))
    for policy in range(policies):
        shift = 0.5 * (policy - (policies - 1) / 2.0) / policies
        colour, name = f"C{policy}", days[0].policies[policy].name
        shown = [
            (place + shift, found)
            for place, day in enumerate(days)
            if (found := day.policies[policy].values[kind]).value is not None
        ]
        axes.plot(
            [at for at, _ in shown],
            [each.value for _, each in shown],
            "o",
            color=colour,
            markersize=5,
        )
        for at, each in shown:
            if each.estimate is not None:
                axes.plot([at, at], [each.estimate.lower, each.estimate.upper], color=colour)
        axes.plot([], [], color=colour, marker="o", label=name)
    step = -(-len(days) // _MOST_TICKS)
    ticks = range(0, len(days), step)
    axes.set_xticks(ticks, [days[place].key for place in ticks], rotation=30, fontsize=8)
    axes.set_xlim(-0.6, len(days) - 0.4)
    axes.set(title=f"by day, {kind}", ylabel="reward per decision")
    axes.grid(axis="y", linewidth=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
