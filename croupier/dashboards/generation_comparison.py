"""Of the generations page: two generations action by action, by segment, and by feature."""

from __future__ import annotations

from typing import Final

import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.charts import interval_chart
from croupier.dashboards.figures import (
    Z,
    action_figures,
    mean_columns,
    open_segments,
    share_interval,
)
from croupier.dashboards.filters import choose_one
from croupier.dashboards.formatting import MISSING, Rewards, count, share
from croupier.dashboards.glossary import meaning
from croupier.dashboards.layout import draw

__all__ = ("show_comparison",)

_EVERYONE: Final = "Everyone"
_ALL_OTHERS: Final = "(all others)"
_ROWS: Final = 16
"""Rows of a chart that are drawn; its data has all."""

_OF: Final = ("series", "Of")


@st.fragment
def show_comparison(loop: str) -> None:
    """Draw two generations that people choose: their actions, segments and features."""
    st.subheader("How do two generations differ?", help=meaning("generation", "pmf"))
    actions = data.summary(loop, "actions").drop_nulls("generation")
    numbers = actions["generation"].unique().sort(descending=True).to_list()
    influences = data.summary(loop, "influences")
    known = sorted({*numbers, *influences["generation"].to_list()}, reverse=True)
    if len(known) < 2:
        st.info("Two generations have to have decided something, or to be compared by a night.")
        return
    one, other, by = st.columns(3)
    with one:
        first = int(choose_one("Generation", list(map(str, known)), "one"))
    with other:
        rest = [str(each) for each in known if each != first]
        second = int(choose_one("Compared with", rest, "other"))
    with by:
        names = actions["by"].drop_nulls().unique().sort().to_list()
        told = choose_one("Told apart by", [_EVERYONE, *names], "compare_by")
    pair = (first, second)
    cut = pl.col("by").is_null() if told == _EVERYONE else pl.col("by") == told
    mine, hidden = open_segments(actions.filter(cut, pl.col("generation").is_in(pair)))
    if hidden:
        st.markdown(
            f":small[{hidden} segments with few decisions are not shown, and no number of theirs "
            "can be worked out from the others.]"
        )
    _actions(mine, pair)
    _segments(mine, data.summary(loop, "segments").filter(cut), pair)
    _features(influences, data.summary(loop, "responses"), pair)


def _actions(rows: pl.DataFrame, pair: tuple[int, int]) -> None:
    st.markdown("##### Which actions do they take?")
    if rows.is_empty():
        st.info("Neither has decided anything.")
        return
    figures = action_figures(
        rows.with_columns(action=pl.col("action").fill_null(_ALL_OTHERS)),
        ["generation", "segment", "action"],
    ).with_columns(
        label=pl.when(pl.col("segment").is_null())
        .then("action")
        .otherwise(pl.format("{} · {}", "segment", "action"))
    )
    total = pl.col("decisions") / pl.col("share")
    _, lower, upper = share_interval(pl.col("decisions"), total)
    drawn = figures.with_columns(
        series=_series(),
        value=pl.col("share"),
        lower=lower,
        upper=upper,
        shown=pl.col("share").map_elements(share, pl.String),
        n=pl.col("decisions").map_elements(count, pl.String),
    ).sort("label", pl.col("generation") != pair[0])
    draw(
        interval_chart(
            drawn.filter(pl.col("label").is_in(_largest(drawn, "decisions").implode())),
            "label",
            "Share of the decisions",
            series="series",
            kinds=_names(pair),
            tooltips=[("label", "Action"), _OF, ("shown", "Share"), ("n", "Decisions")],
        ),
        "For every action, which share of the decisions of either generation it got, with "
        "intervals.",
        drawn.select("generation", "segment", "action", "decisions", "share", "mean", "worth"),
        "comparison",
    )


def _segments(rows: pl.DataFrame, estimates: pl.DataFrame, pair: tuple[int, int]) -> None:
    """What both earned and would earn, segment by segment."""
    st.markdown("##### What are they worth, and to whom?")
    earned = (
        rows.filter(pl.col("decisions") > 0)
        .group_by("generation", "segment")
        .agg(pl.col("decisions", "joined", "reward_sum", "reward_squares").sum())
        .with_columns(*mean_columns())
        .with_columns(traffic=pl.col("decisions") / pl.col("decisions").sum().over("generation"))
    )
    keys = ["generation", "segment"]
    estimated = estimates.filter(pl.col("generation").is_in(pair)).select(
        *keys,
        "estimator",
        "rows",
        "ess",
        worth="value",
        worth_lower="lower",
        worth_upper="upper",
    )
    if not earned.is_empty():
        # What is too small to be shown of the decisions is not told by estimates either.
        estimated = estimated.join(
            earned.select("segment").unique(), on="segment", how="semi", nulls_equal=True
        )
    both = earned.join(estimated, on=keys, how="full", coalesce=True, nulls_equal=True).sort(
        "segment", pl.col("generation") != pair[0]
    )
    if both.is_empty():
        st.info("Nothing is known of either.")
        return
    rewards = Rewards.for_widths(
        pl.concat([both["upper"] - both["lower"], both["worth_upper"] - both["worth_lower"]])
    )
    label = pl.col("segment").fill_null(_EVERYONE)
    drawn = both.drop_nulls("worth").with_columns(
        label=label,
        series=_series(),
        value="worth",
        lower="worth_lower",
        upper="worth_upper",
        shown=pl.col("worth").map_elements(rewards.value, pl.String),
        interval=rewards.intervals("worth_lower", "worth_upper").fill_null(MISSING),
        n=pl.col("rows").map_elements(count, pl.String),
        effective=pl.col("ess").map_elements(count, pl.String).fill_null(MISSING),
    )
    if drawn.is_empty():
        st.info("The night estimates the champion and the latest generations, if the log can tell.")
    else:
        draw(
            interval_chart(
                drawn.filter(pl.col("label").is_in(_largest(drawn, "rows").implode())),
                "label",
                "Estimated reward per decision",
                series="series",
                kinds=_names(pair),
                tooltips=[
                    ("label", "Segment"),
                    _OF,
                    ("shown", "Estimate"),
                    ("interval", "Interval"),
                    ("n", "Interactions"),
                    ("effective", "Effective sample size"),
                ],
            ),
            "For every segment, what either generation would earn there, with intervals.",
            both,
            "segments",
        )
    st.dataframe(
        both.select(
            label.alias("Segment"),
            pl.col("generation").alias("Generation"),
            pl.col("traffic").map_elements(share, pl.String).alias("Of its traffic"),
            pl.col("decisions").alias("Decisions"),
            pl.col("mean").alias("Earned"),
            rewards.intervals("lower", "upper").alias("Earned, interval"),
            pl.col("worth").alias("Estimate"),
            rewards.intervals("worth_lower", "worth_upper").alias("Estimate, interval"),
            pl.col("rows").alias("Estimated on"),
            pl.col("estimator").str.to_uppercase().alias("Estimator"),
        ),
        hide_index=True,
        placeholder=MISSING,
        column_config={
            "Generation": st.column_config.NumberColumn(format="%d"),
            "Decisions": st.column_config.NumberColumn(format="localized"),
            "Earned": st.column_config.NumberColumn(
                format=f"%.{rewards.decimals}f",
                help="Mean reward of the joined decisions that it made itself",
            ),
            "Estimate": st.column_config.NumberColumn(
                format=f"%.{rewards.decimals}f",
                help="What it would earn, on the same interactions for all generations, which "
                "none has learned from",
            ),
            "Estimated on": st.column_config.NumberColumn(
                format="localized", help="Interactions of the latest 14 days"
            ),
        },
    )


def _features(influences: pl.DataFrame, answers: pl.DataFrame, pair: tuple[int, int]) -> None:
    st.markdown("##### What do they make of each feature?")
    rows = influences.filter(pl.col("generation").is_in(pair))
    if rows["generation"].n_unique() < 2:
        st.info(
            "The night compares the champion and the latest generations on a panel of requests; "
            "these are not both among them, or the requests have no features that vary."
        )
        return
    half = Z * pl.col("error")
    total = pl.col("total_variation").sum().over("feature")
    drawn = rows.with_columns(
        label="feature",
        series=_series(),
        value="total_variation",
        lower=(pl.col("total_variation") - half).clip(0.0, 1.0),
        upper=(pl.col("total_variation") + half).clip(0.0, 1.0),
        shown=pl.col("total_variation").map_elements(share, pl.String),
        scores=pl.col("score_shift").map_elements(_score, pl.String).fill_null(MISSING),
        n=pl.col("requests").map_elements(count, pl.String),
    ).sort(total, "feature", pl.col("generation") != pair[0], descending=[True, False, False])
    draw(
        interval_chart(
            drawn.head(2 * _ROWS),
            "label",
            "Share of the play that changes with it",
            series="series",
            kinds=_names(pair),
            tooltips=[
                ("label", "Feature"),
                _OF,
                ("shown", "Total variation"),
                ("scores", "Mean change of scores"),
                ("n", "Requests"),
            ],
        ),
        "For every feature, how much otherwise either generation would play if requests had "
        "another one's value of it, with intervals.",
        drawn.select(*influences.columns),
        "influences",
    )
    st.markdown(
        ":small[How much otherwise it would play if a request had another request's value of the "
        "feature: the mean total variation of its probabilities over a panel of requests that all "
        "of these generations were asked about. Features of actions begin with “action”.]"
    )
    _answers(answers.filter(pl.col("generation").is_in(pair)), drawn, pair)


def _answers(rows: pl.DataFrame, ranked: pl.DataFrame, pair: tuple[int, int]) -> None:
    """How both play by the value of a feature that people choose."""
    left, _ = st.columns([1, 2])
    with left:
        names = ranked["feature"].unique(maintain_order=True).to_list()
        feature = choose_one("Feature", names, "feature")
    mine = rows.filter(pl.col("feature") == feature)
    told = pl.when(mine["action"].is_null().all()).then(pl.lit("any such action"))
    drawn = mine.with_columns(
        name=pl.col("action").fill_null(told.otherwise(pl.lit(_ALL_OTHERS))),
        series=_series(),
    )
    drawn = drawn.with_columns(
        label=pl.format("{} · {}", "value", "name"),
        apart=(pl.col("mass").max() - pl.col("mass").min()).over("place", "name"),
        shown=pl.col("mass").map_elements(share, pl.String),
        scores=pl.col("score").map_elements(_score, pl.String).fill_null(MISSING),
        n=pl.col("requests").map_elements(count, pl.String),
    ).sort("place", "name", pl.col("generation") != pair[0])
    draw(
        interval_chart(
            drawn.filter(pl.col("label").is_in(_largest(drawn, "apart").implode())).with_columns(
                value="mass", lower=pl.lit(None, pl.Float64), upper=pl.lit(None, pl.Float64)
            ),
            "label",
            "Mean probability",
            series="series",
            kinds=_names(pair),
            tooltips=[
                ("label", "Value and action"),
                _OF,
                ("shown", "Mean probability"),
                ("scores", "Mean score"),
                ("n", "Requests"),
            ],
        ),
        f"By the value of {feature}, the mean probability that either generation gives to an "
        "action.",
        drawn.select(*rows.columns),
        "responses",
    )


def _series() -> pl.Expr:
    return pl.format("generation {}", "generation")


def _names(pair: tuple[int, int]) -> list[str]:
    """The same colours in all charts, whichever of the two a chart has."""
    return [f"generation {each}" for each in pair]


def _largest(drawn: pl.DataFrame, column: str) -> pl.Series:
    """Labels of which a column is largest, both generations together."""
    totals = drawn.group_by("label").agg(pl.col(column).sum())
    return totals.sort(column, "label", descending=[True, False]).head(_ROWS)["label"]


def _score(value: float) -> str:
    return f"{value:.3g}"
