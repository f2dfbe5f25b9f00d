"""Of the generations page: do generations go up and down more than noise alone would?"""

from __future__ import annotations

from typing import Any, Final

import altair as alt
import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.filters import choose_one
from croupier.dashboards.formatting import count, share
from croupier.dashboards.generation_charts import BLUE, GREY, VERMILION, plain
from croupier.dashboards.glossary import meaning
from croupier.dashboards.layout import draw

__all__ = ("show_swings",)

_STATISTICS: Final = {
    "Alternation": (
        "alternation",
        "Alternation, from -1 to 1",
        "Minus the correlation of neighbouring generations: near 1 if every other one is good.",
    ),
    "Spread of the differences": (
        "spread",
        "Spread, in reward",
        "The standard deviation of the differences between neighbouring generations.",
    ),
    "Peak to trough": (
        "peak_to_trough",
        "Peak to trough, in reward",
        "The best of the generations less the worst.",
    ),
    "Sign changes": (
        "sign_changes",
        "Share of the differences",
        "How often an improvement is followed by a loss, or a loss by an improvement.",
    ),
    "Returns": (
        "returns",
        "Share of the generations",
        "How often a generation undoes the one before (A, B, A).",
    ),
    "Autocorrelation of the differences": (
        "autocorrelation",
        "Autocorrelation, from -1 to 1",
        "How much a difference is like the one before. Here a low value tells of oscillation.",
    ),
}
"""What people choose, with its name in the table, its axis, and what it means."""

_INSIDE, _BEYOND = "Seen, within the band", "Seen, beyond the band"


@st.fragment
def show_swings(loop: str) -> None:
    """Draw a statistic of oscillation by generation, within what noise alone would show."""
    st.subheader("Do generations oscillate?", help=meaning("oscillation", "null band"))
    rows = data.summary(loop, "swings")
    if rows.is_empty():
        st.info("It can be told once six generations have made 30 decisions each.")
        return
    st.markdown(_signal(rows))
    left, _ = st.columns([1, 2])
    with left:
        chosen = choose_one("Statistic", list(_STATISTICS), "swing")
    name, title, told = _STATISTICS[chosen]
    drawn = _drawn(rows.filter(pl.col("statistic") == name))
    draw(
        _chart(drawn, title),
        f"Up to every generation, the statistic {chosen.lower()} of what the latest generations "
        "earned, within the band that noise alone would show.",
        drawn.select("generation", "generations", "seen", "expected", "lower", "upper", "p_value"),
        "swings",
    )
    level = drawn["level"].to_list()[-1]
    st.markdown(
        f":small[{told} The band holds what steady generations would show, known as exactly as "
        f"these are, from the lowest {share(level)} to the highest.]"
    )


def _signal(rows: pl.DataFrame) -> str:
    """What the latest test says; the night's signal."""
    last = rows.filter(pl.col("generation") == pl.col("generation").max())
    row = last.row(0, named=True)
    by_name = {each["statistic"]: each["p_value"] for each in last.to_dicts()}
    word = "**oscillate**" if row["oscillates"] else "**do not oscillate** more than chance does"
    return (
        f"The {row['generations']} generations up to {row['generation']} {word}: p = "
        f"{by_name['spread']:.2g} for the spread, {by_name['alternation']:.2g} for the "
        f"alternation; both have to be at most {row['level']:g} for the signal."
    )


def _drawn(rows: pl.DataFrame) -> pl.DataFrame:
    beyond = pl.col("p_value") <= pl.col("level")
    return rows.sort("generation").with_columns(
        kind=pl.when(beyond).then(pl.lit(_BEYOND)).otherwise(pl.lit(_INSIDE)),
        shown=pl.col("seen").map_elements(_written, pl.String),
        mean=pl.col("expected").map_elements(_written, pl.String),
        band=pl.struct("lower", "upper").map_elements(_band, pl.String),
        p=pl.col("p_value").map_elements(_written, pl.String),
        n=pl.col("generations").map_elements(count, pl.String),
    )


def _chart(rows: pl.DataFrame, title: str) -> alt.LayerChart:
    axis = alt.Axis(labelAngle=0, labelOverlap=True, labelSeparation=6, grid=False)
    kinds = [each for each in (_INSIDE, _BEYOND) if each in rows["kind"]]
    look = {_INSIDE: (BLUE, "circle"), _BEYOND: (VERMILION, "diamond")}
    legend = alt.Legend(title=None, orient="top", columns=2, labelLimit=0, symbolSize=110)
    base = alt.Chart(rows).encode(x=alt.X("generation:O", title="Up to generation", axis=axis))
    scale = alt.Scale(zero=False)
    band = base.mark_bar(aria=False, color=GREY, opacity=0.3)
    expected = base.mark_tick(aria=False, color=GREY, thickness=2, orient="horizontal")
    seen = base.mark_point(filled=True, size=80, opacity=1.0).encode(
        y=alt.Y("seen:Q", title=title, scale=scale),
        color=alt.Color(
            "kind:N",
            scale=alt.Scale(domain=kinds, range=[look[each][0] for each in kinds]),
            legend=legend,
        ),
        shape=alt.Shape(
            "kind:N",
            scale=alt.Scale(domain=kinds, range=[look[each][1] for each in kinds]),
            legend=legend,
        ),
        tooltip=[
            alt.Tooltip("generation:O", title="Up to generation"),
            alt.Tooltip("shown:N", title="Seen"),
            alt.Tooltip("band:N", title="Noise alone, band"),
            alt.Tooltip("mean:N", title="Noise alone, mean"),
            alt.Tooltip("p:N", title="p"),
            alt.Tooltip("n:N", title="Generations"),
        ],
    )
    layers = [
        band.encode(y=alt.Y("lower:Q", title=title, scale=scale), y2="upper:Q"),
        expected.encode(y=alt.Y("expected:Q", title=title, scale=scale)),
        seen,
    ]
    return plain(layers, height=260)


def _written(value: float) -> str:
    return f"{value:.3g}"


def _band(ends: dict[str, Any]) -> str:
    return f"{_written(ends['lower'])} to {_written(ends['upper'])}"
