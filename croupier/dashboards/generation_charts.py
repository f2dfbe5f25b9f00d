"""Charts of the generations page: what was promised beside what came, and challengers' leads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import altair as alt
import polars as pl

from croupier.dashboards.data import INTERVAL_LEVEL
from croupier.dashboards.formatting import MISSING, count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.dashboards.formatting import Rewards

__all__ = (
    "BLUE",
    "GREY",
    "PROMISED",
    "REALISED",
    "VERMILION",
    "Unchecked",
    "difference_chart",
    "plain",
    "promise_chart",
)

PROMISED: Final = "Promised estimate"
REALISED: Final = "Realised mean"

# Of Okabe and Ito's palette those that keep 3:1 against a white and a black background. Shapes
# say the same as colours.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#767676"

_HEIGHT: Final = 340


def promise_chart(rows: pl.DataFrame, rewards: Rewards, champion: int | None) -> alt.LayerChart:
    """For every generation, the estimate made before promotion beside the realised mean.

    Parameters
    ----------
    rows
        Of the generations table, one loop's; estimates and realised means may be missing.
    rewards
        How to write values.
    champion
        Number of the generation to mark, if any.
    """
    series = pl.concat(
        [
            _series(
                rows,
                PROMISED,
                ("estimate", "lower", "upper"),
                rewards,
                n=pl.col("judged_rows"),
                ess=pl.col("ess"),
            ),
            _series(
                rows,
                REALISED,
                ("realised_mean", "realised_lower", "realised_upper"),
                rewards,
                n=pl.col("decisions"),
                ess=pl.lit(None, pl.Float64),
            ),
        ]
    )
    kinds = (PROMISED, REALISED)
    return _intervals(
        series,
        "Mean reward per decision",
        _generation_axis(rows),
        (kinds, (VERMILION, BLUE), ("circle", "diamond")),
        offset=alt.XOffset("kind:N", sort=list(kinds), scale=alt.Scale(paddingOuter=0.7)),
        marks=_champion_mark(rows, champion),
    )


def difference_chart(rows: pl.DataFrame, rewards: Rewards, champion: int | None) -> alt.LayerChart:
    """For every generation, its lead over the champion of its day.

    Parameters
    ----------
    rows
        Of the generations table, one loop's; differences may be missing.
    rewards
        How to write values.
    champion
        Number of the generation to mark, if any.
    """
    kinds = ("Promoted", "Promoted by override", "Not promoted")
    kind = (
        pl.when(pl.col("promoted").is_null())
        .then(pl.lit(kinds[2]))
        .when(pl.col("override_reason").is_null())
        .then(pl.lit(kinds[0]))
        .otherwise(pl.lit(kinds[1]))
    )
    series = _series(
        rows,
        kind,
        ("difference", "difference_lower", "difference_upper"),
        rewards,
        n=pl.col("judged_rows"),
        ess=pl.col("ess"),
    )
    zero = alt.Chart(pl.DataFrame({"zero": [0.0]})).mark_rule(
        aria=False, strokeDash=[5, 4], color=GREY, strokeWidth=1.5
    )
    return _intervals(
        series,
        "Difference in mean reward",
        _generation_axis(rows),
        (kinds, (BLUE, VERMILION, GREY), ("circle", "triangle-up", "cross")),
        marks=[zero.encode(y="zero:Q"), *_champion_mark(rows, champion)],
    )


def _series(
    rows: pl.DataFrame,
    kind: str | pl.Expr,
    columns: tuple[str, str, str],
    rewards: Rewards,
    *,
    n: pl.Expr,
    ess: pl.Expr,
) -> pl.DataFrame:
    """Generations that have a value, in the columns that the charts draw and their tooltips tell.

    What tooltips tell is text: Vega would write "null" for what is missing.
    """
    value, lower, upper = columns
    return rows.filter(pl.col(value).is_not_null()).select(
        "generation",
        kind=pl.lit(kind) if isinstance(kind, str) else kind,
        value=value,
        lower=lower,
        upper=upper,
        shown=pl.col(value).map_elements(rewards.value, pl.String),
        interval=rewards.intervals(lower, upper).fill_null(MISSING),
        n=n.map_elements(count, pl.String).fill_null(MISSING),
        ess=ess.map_elements(count, pl.String).fill_null(MISSING),
        status=pl.col("status").fill_null(MISSING),
    )


def _intervals(
    series: pl.DataFrame,
    title: str,
    x: alt.X,
    look: tuple[Sequence[str], Sequence[str], Sequence[str]],
    *,
    offset: alt.XOffset | None = None,
    marks: Sequence[alt.Chart] = (),
) -> alt.LayerChart:
    """Points with whiskers; only the kinds that are there get into the legend."""
    there = set(series["kind"])
    used = [entry for entry in zip(*look, strict=True) if entry[0] in there]
    kinds, colours, shapes = ([entry[k] for entry in used] for k in range(3))
    # Two columns fit on a phone, where a legend in one row would be cut off.
    legend = alt.Legend(title=None, orient="top", columns=2, labelLimit=0, symbolSize=110)
    colour = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=colours), legend=legend)
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=shapes), legend=legend)
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False))
    tooltip = [
        alt.Tooltip("generation:O", title="Generation"),
        alt.Tooltip("status:N", title="Status"),
        alt.Tooltip("kind:N", title="Shown"),
        alt.Tooltip("shown:N", title="Value"),
        alt.Tooltip("interval:N", title=f"{INTERVAL_LEVEL} interval"),
        alt.Tooltip("n:N", title="n"),
        alt.Tooltip("ess:N", title="Effective sample size"),
    ]
    base = alt.Chart(series).encode(x=x, color=colour, tooltip=tooltip)
    if offset is not None:
        base = base.encode(xOffset=offset)
    whiskers = base.transform_filter("isValid(datum.lower) && isValid(datum.upper)").mark_rule(
        strokeWidth=2
    )
    points = base.mark_point(filled=True, size=80, opacity=1.0).encode(y=y, shape=shape)
    layers = [whiskers.encode(y=alt.Y("lower:Q", title=title), y2="upper:Q"), points, *marks]
    return plain(layers)


class Unchecked(alt.LayerChart):
    """A chart that isn't held against Vega-Lite's schema each time that it is drawn.

    That takes more than half of a page's time on the server. The tests hold all charts against it.
    """

    def to_dict(self, validate: bool = False, **options: Any) -> dict[str, Any]:  # noqa: FBT001, FBT002
        """The chart in Vega-Lite's JSON."""
        return super().to_dict(validate, **options)


def plain(layers: Sequence[alt.Chart], *, height: int = _HEIGHT) -> alt.LayerChart:
    """Layers of one chart, in the look that all charts have.

    Parameters
    ----------
    layers
        From the lowest to the highest.
    height
        In pixels.
    """
    axes = alt.AxisConfig(domain=False, ticks=False, titleFontWeight="normal", tickCount=6)
    return Unchecked(
        layer=list(layers),
        height=height,
        config=alt.Config(view=alt.ViewConfig(stroke=None), axis=axes),
    )


def _generation_axis(rows: pl.DataFrame) -> alt.X:
    numbers = rows["generation"].to_list()
    axis = alt.Axis(labelAngle=0, labelOverlap=True, labelSeparation=6, grid=False, labelPadding=8)
    return alt.X("generation:O", title="Generation", scale=alt.Scale(domain=numbers), axis=axis)


def _champion_mark(rows: pl.DataFrame, champion: int | None) -> list[alt.Chart]:
    """The word above the champion's place; on the axis it could be dropped for want of room."""
    if champion not in rows["generation"]:
        return []
    text = alt.Chart(pl.DataFrame({"generation": [champion]})).mark_text(
        text="champion ▼",
        font="Source Sans, sans-serif",
        fontSize=12,
        color=GREY,
        align="right",
        baseline="bottom",
        dx=5,
    )
    return [text.encode(x="generation:O", y=alt.value(-4))]
