"""More of the generations page: what happened when, and how generations behave."""

from __future__ import annotations

from typing import Any, Final

import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.charts import line_chart
from croupier.dashboards.figures import generation_figures, share_interval
from croupier.dashboards.filters import choose_one
from croupier.dashboards.formatting import MISSING, Rewards, count, moment
from croupier.dashboards.glossary import meaning
from croupier.dashboards.layout import draw
from croupier.dashboards.overriding import asked_happenings

__all__ = ("happenings", "show_behaviour", "show_timeline")

_EVENTS: Final = 200

_MEASURES: Final = {
    "Entropy": ("entropy", "Mean entropy, in nats", "entropy"),
    "Smallest probability": ("least_possible", "Smallest probability of any action", "pmf"),
    "Positive rate": ("positive_rate", "Share of rewards above 0", "outcome"),
    "Chose the baseline": ("baseline_share", "Share of the decisions", "baseline"),
    "Total variation": ("total_variation", "To the champion of its day", "total variation"),
    "Flip rate": ("flip_rate", "To the champion of its day", "total variation"),
}


def happenings(rows: pl.DataFrame, changes: pl.DataFrame) -> list[dict[str, Any]]:
    """Everything that was done to a loop's generations, the latest first.

    Parameters
    ----------
    rows
        One loop's rows of the generations table.
    changes
        The small table of these, of the registry.
    """
    found = []
    for row in rows.to_dicts():
        number = row["generation"]
        by_hand = row["override_reason"] is not None
        for name, what, by, why in (
            ("created", "trained", None, None),
            (
                "promoted",
                "promoted by override" if by_hand else "promoted",
                row["override_by"] if by_hand else "the gate",
                row["override_reason"],
            ),
            ("restored", "restored by a rollback", None, None),
            (
                "rolled_back",
                f"rolled back to generation {row['rolled_back_to']}",
                row["rolled_back_by"],
                row["rollback_reason"],
            ),
        ):
            if row[name] is not None:
                told = f"Generation {number} {what}"
                found.append({"ts": row[name], "what": told, "by": by, "why": why})
    found += [
        {"ts": each["ts"], "what": each["what"], "by": each["by"], "why": each["reason"] or None}
        for each in changes.to_dicts()
    ]
    return sorted(found, key=lambda each: each["ts"], reverse=True)


def show_timeline(loop: str, rows: pl.DataFrame) -> None:
    """Draw what happened when."""
    st.subheader("What happened when?", help=meaning("champion", "challenger"))
    found = happenings(rows, data.summary(loop, "changes"))
    found += asked_happenings(data.overrides(loop))
    found.sort(key=lambda each: each["ts"], reverse=True)
    if not found:
        st.info("Nothing was trained yet.")
        return
    table = pl.DataFrame(
        [
            {
                "When": moment(each["ts"]),
                "What": each["what"],
                "By": each["by"],
                "Why": each["why"],
            }
            for each in found[:_EVENTS]
        ],
        schema={"When": pl.String, "What": pl.String, "By": pl.String, "Why": pl.String},
    )
    st.dataframe(
        table,
        hide_index=True,
        placeholder=MISSING,
        height=min(38 * (len(table) + 1), 320),
        column_config={"Why": st.column_config.TextColumn(width="large")},
    )


@st.fragment
def show_behaviour(loop: str, rows: pl.DataFrame) -> None:
    """Draw how generations behave, by a measure that people choose."""
    st.subheader("How do generations behave?")
    figures = generation_figures(data.summary(loop, "hours")).drop_nulls("generation")
    if figures.is_empty():
        st.info("The next night will sum up what each generation did.")
        return
    left, _ = st.columns([1, 2])
    with left:
        chosen = choose_one("Measure", list(_MEASURES), "measure_of")
    name, title, term = _MEASURES[chosen]
    table = figures.join(
        rows.select("generation", "total_variation", "flip_rate"), on="generation", how="left"
    )
    if name == "positive_rate":
        value, lower, upper = share_interval(pl.col("positive"), pl.col("joined"))
        table = table.with_columns(value=value, lower=lower, upper=upper)
    else:
        table = table.with_columns(value=pl.col(name))
    drawn = table.drop_nulls("value").with_columns(
        shown=pl.col("value").map_elements(lambda each: f"{each:.4g}", pl.String),
        n=pl.col("decisions").map_elements(count, pl.String),
    )
    if drawn.is_empty():
        st.info("No generation has it.")
        return
    ends = [
        each for each in ("lower", "upper") if each in drawn.columns and name == "positive_rate"
    ]
    draw(
        line_chart(
            drawn.select("generation", "value", *ends, "shown", "n"),
            "generation:O",
            title,
            tooltips=[("generation", "Generation"), ("shown", chosen), ("n", "Decisions")],
        ),
        f"By generation: {title.lower()}.",
        drawn.select("generation", "value", *ends, "decisions"),
        "behaviour",
    )
    st.markdown(f":small[{meaning(term)}]")
    _calibration(loop)


def _calibration(loop: str) -> None:
    st.subheader("Do scores predict rewards?", help=meaning("calibration", "score"))
    bins = (
        data.summary(loop, "calibration")
        .group_by("generation", "bin")
        .agg(pl.col("rows", "predicted_sum", "reward_sum", "reward_squares").sum())
        .filter(pl.col("rows") >= 20)
        .sort("generation", "bin")
    )
    if bins.is_empty():
        st.info("No joined decision has scores yet.")
        return
    latest = bins.filter(pl.col("generation") == pl.col("generation").max())
    number = latest["generation"].to_list()[0]
    mean = pl.col("reward_sum") / pl.col("rows")
    spread = (pl.col("reward_squares") / pl.col("rows") - mean**2).clip(lower_bound=0.0)
    half = 1.96 * (spread / pl.col("rows")).sqrt()
    drawn = latest.with_columns(
        predicted=pl.col("predicted_sum") / pl.col("rows"),
        value=mean,
        lower=mean - half,
        upper=mean + half,
    )
    rewards = Rewards.for_widths(drawn["upper"] - drawn["lower"])
    both = pl.concat(
        [
            drawn.select(
                "predicted",
                kind=pl.lit("Came"),
                value="value",
                lower="lower",
                upper="upper",
                rows="rows",
            ),
            drawn.select(
                "predicted",
                kind=pl.lit("Would come if calibrated"),
                value="predicted",
                lower=pl.lit(None, pl.Float64),
                upper=pl.lit(None, pl.Float64),
                rows="rows",
            ),
        ]
    ).with_columns(
        score=pl.col("predicted").map_elements(rewards.value, pl.String),
        shown=pl.col("value").map_elements(rewards.value, pl.String),
        n=pl.col("rows").map_elements(count, pl.String),
    )
    draw(
        line_chart(
            both,
            "predicted:Q",
            "Reward per decision",
            series="kind",
            tooltips=[("score", "Mean score"), ("kind", "Shown"), ("shown", "Value"), ("n", "n")],
        ),
        f"Of generation {number}, by the score of the chosen action, the mean reward that came, "
        "with intervals, beside what would come if scores were right.",
        drawn.select("generation", "predicted", "value", "lower", "upper", "rows"),
        "calibration",
    )
