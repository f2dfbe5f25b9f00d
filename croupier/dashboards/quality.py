"""The page "Data quality": is the log whole, can it be believed, and why did nothing change?"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.charts import bar_chart, line_chart, stack_chart
from croupier.dashboards.data import INTERVAL_LEVEL
from croupier.dashboards.figures import day_shares, fates, in_period
from croupier.dashboards.filters import choose_period, loop_of_page, remark_source
from croupier.dashboards.formatting import MISSING, count, moment, share, viewer_zone
from croupier.dashboards.generation_charts import BLUE, VERMILION
from croupier.dashboards.glossary import meaning
from croupier.dashboards.layout import draw
from croupier.dashboards.standstill import reasons
from croupier.offline.summaries.tables import PROPENSITY_BOUNDS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("show",)

_FATES: Final = tuple(
    zip(
        ("observed", "revised", "late", "defaulted", "not joined"),
        (BLUE, "#00805C", VERMILION, "#A3A3A3", "#3D3D3D"),
        strict=True,
    )
)


def show() -> None:
    """Draw the page."""
    st.title("Data quality")
    loop = loop_of_page("Figures of the log")
    if loop is None:
        return
    left, _ = st.columns([1, 2])
    with left:
        period = choose_period()
    days = in_period(data.summary(loop, "days"), period)
    if days.is_empty():
        st.info("Nothing has been logged in this loop yet.")
        return
    _headline(days)
    _standstill(loop)
    _fates(days)
    _completeness(days)
    _outcomes(days)
    _propensities(in_period(data.summary(loop, "propensities"), period))
    _drift(data.summary(loop, "drift"))
    _nights(data.summary(loop, "nights"))
    remark_source(loop, f"All intervals are {INTERVAL_LEVEL} intervals (Wilson's, of shares).")


def _headline(days: pl.DataFrame) -> None:
    sums: dict[str, int] = days.drop("date").sum().row(0, named=True)
    joined, decided = sums["joined"], sums["decisions"]
    cards: Sequence[tuple[str, str, str, str]] = (
        (
            "Joined",
            _of(joined, decided),
            f"{count(joined)} of {count(decided)} decisions",
            "join completeness",
        ),
        (
            "Defaulted",
            _of(sums["defaulted"], joined),
            f"{count(sums['defaulted'])} of {count(joined)} joined",
            "defaulted",
        ),
        (
            "Late outcomes",
            _of(sums["late"] + sums["revised"], joined),
            f"{count(sums['late'] + sums['revised'])} of {count(joined)} joined",
            "late",
        ),
        (
            "Orphans",
            _of(sums["orphans"], sums["outcomes"]),
            f"{count(sums['orphans'])} of {count(sums['outcomes'])} outcomes",
            "orphan",
        ),
        (
            "Contradictions",
            count(sums["contradictions"]),
            "decisions whose pmf, choice and propensity don't agree",
            "propensity",
        ),
    )
    for column, (label, value, note, term) in zip(st.columns(len(cards)), cards, strict=True):
        with column.container(border=True, height="stretch", gap="xsmall"):
            st.metric(label, value, help=meaning(term))
            st.markdown(f":small[{note}]")


def _of(part: int, whole: int) -> str:
    return share(part / whole) if whole else MISSING


def _standstill(loop: str) -> None:
    st.subheader("Why did it not change?", help=meaning("generation", "champion", "challenger"))
    version = data.generations_version()
    rows = data.generations(version, loop) if version >= 0 else pl.DataFrame()
    told = reasons(rows, data.summary(loop, "nights"), data.summary(loop, "days"), moment)
    for mark, sentence in told:
        st.markdown(f"{_MARKS[mark]} {sentence}")


_MARKS: Final = {
    "good": ":material/check_circle:",
    "open": ":material/info:",
    "bad": ":material/warning:",
}


def _fates(days: pl.DataFrame) -> None:
    st.subheader("What became of each day's decisions?", help=meaning("defaulted", "late"))
    drawn = fates(days).with_columns(
        kind=pl.col("fate"),
        shown=pl.col("share").map_elements(share, pl.String),
        n=pl.col("count").map_elements(count, pl.String),
        of=pl.col("decisions").map_elements(count, pl.String),
    )
    draw(
        stack_chart(
            drawn,
            _FATES,
            "Share of the decisions",
            [
                ("date", "Day (UTC)"),
                ("fate", "Fate"),
                ("shown", "Share"),
                ("n", "Decisions"),
                ("of", "Of"),
            ],
        ),
        "By day, which share of the decisions got an outcome in time, in time and again later, too "
        "late, none, or is not joined yet.",
        drawn.select("date", "fate", "count", "decisions", "share"),
        "fates",
    )


def _completeness(days: pl.DataFrame) -> None:
    st.subheader("How complete is the join?", help=meaning("join completeness"))
    drawn = _line(day_shares(days.drop_nulls("date")).filter(pl.col("decisions") > 0), "complete")
    draw(
        line_chart(drawn, "date:T", "Joined", per_cent=True, tooltips=_SHARE_HINTS),
        "By day, the share of the decisions that has a reward. The latest day's windows may still "
        "be open.",
        drawn.select("date", "value", "lower", "upper", "joined", "decisions"),
        "completeness",
    )


def _outcomes(days: pl.DataFrame) -> None:
    st.subheader("How many outcomes find no decision?", help=meaning("orphan", "repeated"))
    drawn = _line(day_shares(days.drop_nulls("date")).filter(pl.col("outcomes") > 0), "orphaned")
    if drawn.is_empty():
        st.info("No outcome has come in this period.")
        return
    repeated = int(days["repeated"].sum())
    st.markdown(
        f"{count(repeated)} outcomes came to decisions that had one already; the loop's "
        "aggregation makes one reward of them."
    )
    draw(
        line_chart(drawn, "date:T", "Orphans", per_cent=True, tooltips=_SHARE_HINTS),
        "By day, the share of the outcomes whose decision is not in the lake.",
        drawn.select("date", "value", "lower", "upper", "orphans", "outcomes"),
        "orphans",
    )


_SHARE_HINTS: Final = [("date", "Day (UTC)"), ("shown", "Share"), ("interval", "Interval")]


def _line(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    ends = pl.struct(f"{name}_lower", f"{name}_upper")
    return rows.with_columns(
        value=pl.col(name),
        lower=pl.col(f"{name}_lower"),
        upper=pl.col(f"{name}_upper"),
        shown=pl.col(name).map_elements(share, pl.String),
        interval=ends.map_elements(
            lambda both: f"{share(both[f'{name}_lower'])} to {share(both[f'{name}_upper'])}",
            pl.String,
        ),
    )


def _propensities(rows: pl.DataFrame) -> None:
    st.subheader("How likely were the actions that were drawn?", help=meaning("propensity"))
    ends = ["0", *(f"{bound:g}" for bound in PROPENSITY_BOUNDS)]
    names = [f"{low} to {high}" for low, high in itertools.pairwise(ends)]
    counted = dict(rows.group_by("bin").agg(pl.col("decisions").sum()).iter_rows())
    drawn = pl.DataFrame(
        {"propensity": names, "value": [counted.get(place, 0) for place in range(len(names))]}
    )
    draw(
        bar_chart(drawn, "propensity", "Decisions", x_title="Propensity"),
        "How many decisions drew an action of which probability.",
        drawn,
        "propensities",
    )


def _drift(rows: pl.DataFrame) -> None:
    st.subheader("Did the world change?", help=meaning("drift"))
    if rows.is_empty():
        st.info("Two generations with 50 interactions each are needed to tell.")
        return
    before, after = rows.select("before", "after").row(0)
    found = rows.filter("significant")
    if found.is_empty():
        st.markdown(
            f"Between generations {before} and {after} nothing has changed that chance doesn't "
            f"explain, in {len(rows)} tests (1 %, Holm)."
        )
    else:
        names = ", ".join(f"`{each}`" for each in found["what"].to_list()[:5])
        st.warning(f"Between generations {before} and {after} there is a change in {names}.")
    with st.expander("All tests"):
        st.dataframe(
            rows.select(
                pl.col("what").alias("Of"),
                pl.col("kind").alias("Kind"),
                pl.col("distance").alias("Distance"),
                pl.col("p_value").alias("p"),
                pl.col("significant").alias("Changed"),
            ),
            hide_index=True,
            column_config={
                "Distance": st.column_config.NumberColumn(format="%.4f"),
                "p": st.column_config.NumberColumn(format="%.3g"),
            },
        )


def _nights(rows: pl.DataFrame) -> None:
    st.subheader("What did the last nights do?")
    if rows.is_empty():
        st.info("No night has been recorded yet.")
        return
    told: list[dict[str, Any]] = [
        {
            "Night": row["started"],
            "Joined": row["joined"],
            "Revised": row["revised"],
            "Late": row["late"],
            "Orphans": row["orphans"],
            "Repeated records": row["duplicates"],
            "Unreadable": row["set_aside"],
            "Missed": row["missed"],
            "Challenger": row["challenger"],
            "Came of it": _came_of(row),
        }
        for row in rows.sort("started", descending=True).head(30).to_dicts()
    ]
    table = pl.DataFrame(told, infer_schema_length=None).with_columns(
        pl.col("Night").dt.convert_time_zone(str(viewer_zone())).dt.replace_time_zone(None)
    )
    st.dataframe(
        table,
        hide_index=True,
        placeholder=MISSING,
        column_config={
            "Night": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm", pinned=True),
            "Orphans": st.column_config.NumberColumn(help=meaning("orphan")),
            "Came of it": st.column_config.TextColumn(width="large"),
        },
    )


def _came_of(row: dict[str, Any]) -> str:
    if row["failed"]:
        return f"failed: {row['failed']}"
    if row["skipped"]:
        return f"nothing trained or judged: {row['skipped']}"
    return "promoted" if row["promoted"] else "judged and not promoted"
