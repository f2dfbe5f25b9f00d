"""The charts that pages share: points with intervals, lines over time, and stacks of days."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import altair as alt
import polars as pl

from croupier.dashboards.generation_charts import BLUE, GREY, VERMILION, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("PALETTE", "bar_chart", "interval_chart", "line_chart", "stack_chart")

PALETTE: Final = (BLUE, VERMILION, "#00805C", "#A5508A", "#8A6D00", GREY, "#3D3D3D", "#56A0D3")
"""Told apart by people with any kind of colour vision; shapes and dashes say the same."""

_SHAPES: Final = ("circle", "diamond", "square", "triangle-up", "cross", "triangle-down")
_DASHES: Final = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [1, 3])
_ROW: Final = 26


def interval_chart(
    rows: pl.DataFrame,
    label: str,
    title: str,
    *,
    series: str | None = None,
    kinds: Sequence[str] | None = None,
    tooltips: Sequence[tuple[str, str]] = (),
    reference: float | None = None,
) -> alt.LayerChart:
    """Values with intervals, one row for each label.

    Parameters
    ----------
    rows
        With ``value``, ``lower``, ``upper``, and the columns that are named.
    label
        Column of the labels, in the order in which they are shown.
    title
        Of the axis of values, with its unit.
    series
        Column that colour and shape tell.
    kinds
        What the series can be, in the order of colours; those in the rows if None.
    tooltips
        Columns and what they are called.
    reference
        A value to be marked by a dashed line.
    """
    order = rows[label].unique(maintain_order=True).to_list()
    y = alt.Y(f"{label}:N", title=None, sort=order, axis=alt.Axis(labelLimit=190, grid=False))
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=False))
    base = alt.Chart(rows).encode(
        y=y, tooltip=[alt.Tooltip(f"{c}:N", title=t) for c, t in tooltips]
    )
    if series is not None:
        kinds = kinds or rows[series].unique(maintain_order=True).to_list()
        legend = alt.Legend(title=None, orient="top", columns=2, labelLimit=0, symbolSize=110)
        base = base.encode(
            yOffset=alt.YOffset(f"{series}:N", sort=kinds),
            color=alt.Color(f"{series}:N", scale=_colours(kinds), legend=legend),
        )
        whiskers = base.mark_rule(aria=False, strokeWidth=2)
        shape = alt.Shape(f"{series}:N", scale=_shapes(kinds), legend=legend)
        points = base.mark_point(filled=True, size=80, opacity=1).encode(shape=shape)
    else:
        whiskers = base.mark_rule(aria=False, strokeWidth=2, color=BLUE)
        points = base.mark_point(filled=True, size=80, opacity=1, color=BLUE)
    there = "isValid(datum.lower) && isValid(datum.upper)"
    layers = [
        whiskers.transform_filter(there).encode(x=alt.X("lower:Q", title=title), x2="upper:Q"),
        points.encode(x=x),
    ]
    if reference is not None:
        mark = alt.Chart(pl.DataFrame({"at": [reference]})).mark_rule(
            aria=False, strokeDash=[5, 4], color=GREY, strokeWidth=1.5
        )
        layers.append(mark.encode(x="at:Q"))
    count = len(order) * (1 if series is None else max(1, rows[series].n_unique()))
    return plain(layers, height=max(90, _ROW * count + 30))


def line_chart(
    rows: pl.DataFrame,
    x: str,
    title: str,
    *,
    series: str | None = None,
    tooltips: Sequence[tuple[str, str]] = (),
    per_cent: bool = False,
    height: int = 280,
) -> alt.LayerChart:
    """A value over time or generations, within its interval where it has one.

    Parameters
    ----------
    rows
        With ``value``, and ``lower`` and ``upper`` if there are intervals.
    x
        As Altair has it, with its type: ``hour:T``, ``date:T`` or ``generation:O``.
    title
        Of the axis of values, with its unit.
    series
        Column that colour, shape and dashes tell.
    tooltips
        Columns and what they are called.
    per_cent
        Whether values are shares.
    height
        In pixels.
    """
    name, kind = x.split(":")
    marks = _X_FORMATS.get(name, alt.Undefined)
    axis = alt.Axis(labelOverlap=True, labelSeparation=8, grid=False, labelAngle=0, format=marks)
    # Days are those of UTC wherever the viewer is; hours are the viewer's own.
    across = alt.Scale(type="utc") if name == "date" else alt.Scale(zero=False)
    place = alt.X(x, title=_X_TITLES.get(name, name.capitalize()), axis=axis, scale=across)
    scale = alt.Scale(zero=False)
    value = alt.Axis(format="%") if per_cent else alt.Axis()
    hints = [alt.Tooltip(f"{c}:N", title=t) for c, t in tooltips]
    base = alt.Chart(rows).encode(x=place)
    # What has no tooltip says nothing to a screen reader: the points do.
    line = base.mark_line(aria=False, strokeWidth=2, color=BLUE)
    points = base.mark_point(filled=True, size=50, opacity=1, color=BLUE)
    if kind == "T":
        band = base.mark_area(aria=False, opacity=0.2, color=BLUE)
    else:
        band = base.mark_rule(aria=False, strokeWidth=2, color=BLUE)
    if series is not None:
        kinds = rows[series].unique(maintain_order=True).to_list()
        legend = alt.Legend(title=None, orient="top", columns=2, labelLimit=0, symbolSize=110)
        colour = alt.Color(f"{series}:N", scale=_colours(kinds), legend=legend)
        scale_of_dashes = alt.Scale(
            domain=kinds, range=[_DASHES[place % len(_DASHES)] for place in range(len(kinds))]
        )
        dashes = alt.StrokeDash(f"{series}:N", scale=scale_of_dashes, legend=None)
        line = line.encode(color=colour, strokeDash=dashes)
        shape = alt.Shape(f"{series}:N", scale=_shapes(kinds), legend=legend)
        points, band = points.encode(color=colour, shape=shape), band.encode(color=colour)
    y = alt.Y("value:Q", title=title, scale=scale, axis=value)
    layers = [line.encode(y=y), points.encode(y=y, tooltip=hints)]
    if "lower" in rows.columns:
        ends = band.transform_filter("isValid(datum.lower) && isValid(datum.upper)")
        layers.insert(0, ends.encode(y=alt.Y("lower:Q", title=title, scale=scale), y2="upper:Q"))
    return plain(layers, height=height)


def stack_chart(
    rows: pl.DataFrame,
    kinds: Sequence[tuple[str, str]],
    title: str,
    tooltips: Sequence[tuple[str, str]],
) -> alt.LayerChart:
    """Shares of every day, one above the other.

    Parameters
    ----------
    rows
        With ``date``, ``kind``, ``share``, and the columns that are named.
    kinds
        In the order from below, each with its colour.
    title
        Of the axis of shares.
    tooltips
        Columns and what they are called.
    """
    names, colours = [name for name, _ in kinds], [colour for _, colour in kinds]
    legend = alt.Legend(title=None, orient="top", columns=3, labelLimit=0)
    order = {name: place for place, name in enumerate(names)}
    ordered = rows.with_columns(place=pl.col("kind").replace_strict(order, return_dtype=pl.Int64))
    bars = (
        alt.Chart(ordered)
        .mark_bar(stroke="white", strokeWidth=0.5)
        .encode(
            x=alt.X(
                "utcyearmonthdate(date):O",
                title="Day (UTC)",
                axis=alt.Axis(format="%d %b", labelAngle=0, labelOverlap=True, grid=False),
            ),
            y=alt.Y("share:Q", title=title, axis=alt.Axis(format="%"), stack="zero"),
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=names, range=colours),
                legend=legend,
                sort=names,
            ),
            order=alt.Order("place:Q"),
            tooltip=[alt.Tooltip(f"{c}:N", title=t) for c, t in tooltips],
        )
    )
    return plain([bars], height=280)


def bar_chart(
    rows: pl.DataFrame, label: str, title: str, *, x_title: str, height: int = 240
) -> alt.LayerChart:
    """A count for every label: columns ``value`` and the label's."""
    order = rows[label].unique(maintain_order=True).to_list()
    bars = (
        alt.Chart(rows)
        .mark_bar(color=BLUE)
        .encode(
            x=alt.X(
                f"{label}:N",
                title=x_title,
                sort=order,
                axis=alt.Axis(labelAngle=0, labelOverlap=True, grid=False),
            ),
            y=alt.Y("value:Q", title=title),
            tooltip=[
                alt.Tooltip(f"{label}:N", title=x_title),
                alt.Tooltip("value:Q", title=title, format=","),
            ],
        )
    )
    return plain([bars], height=height)


_X_TITLES: Final = {
    "hour": "Hour (your time)",
    "date": "Day (UTC)",
    "predicted": "Mean score of the chosen actions",
}
_X_FORMATS: Final = {"hour": "%d %b %H:%M", "date": "%d %b"}


def _colours(kinds: Sequence[str]) -> alt.Scale:
    colours = [PALETTE[place % len(PALETTE)] for place in range(len(kinds))]
    return alt.Scale(domain=list(kinds), range=colours)


def _shapes(kinds: Sequence[str]) -> alt.Scale:
    shapes = [_SHAPES[place % len(_SHAPES)] for place in range(len(kinds))]
    return alt.Scale(domain=list(kinds), range=shapes)
