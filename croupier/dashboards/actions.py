"""The page "Actions and contexts": who gets which action, with what chance, and what it earns."""

from __future__ import annotations

from typing import Final

import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.charts import interval_chart, line_chart
from croupier.dashboards.data import INTERVAL_LEVEL
from croupier.dashboards.figures import (
    LEAST_CELL,
    action_figures,
    exploration_cost,
    in_period,
    new_and_vanished,
)
from croupier.dashboards.filters import (
    by_generation,
    choose_one,
    choose_period,
    loop_of_page,
    remark_source,
)
from croupier.dashboards.formatting import MISSING, Rewards, count, share
from croupier.dashboards.glossary import meaning
from croupier.dashboards.layout import draw
from croupier.offline.fairness.groups import shown_groups

__all__ = ("show",)

_DRAWN: Final = 12
_EVERYONE: Final = "Everyone"
_OTHERS: Final = "(all others)"
_SEGMENTS: Final = 6


def show() -> None:
    """Draw the page."""
    st.title("Actions and contexts")
    loop = loop_of_page("Actions")
    if loop is None:
        return
    whole = data.summary(loop, "actions")
    left, middle, right = st.columns(3)
    with left:
        days = choose_period()
    with middle:
        rows = by_generation(in_period(whole, days))
    with right:
        names = whole["by"].drop_nulls().unique().sort().to_list()
        by = choose_one("Told apart by", [_EVERYONE, *names], "by")
    if rows.is_empty():
        st.info("No decisions of this choice are in the lake.")
        return
    everyone = rows.filter(pl.col("by").is_null())
    _changes(in_period(whole, days))
    figures = action_figures(everyone, ["action"]).with_columns(
        action=pl.col("action").fill_null(_OTHERS)
    )
    rewards = Rewards.for_widths(figures["worth_upper"] - figures["worth_lower"])
    _traffic(figures)
    if by == _EVERYONE:
        _worth(figures, rewards)
    else:
        _segments(rows.filter(pl.col("by") == by), by)
    _cost(loop, days)
    _table(figures, rewards)
    remark_source(
        loop,
        f"All intervals are {INTERVAL_LEVEL} intervals. Rewards are in the unit in which the "
        "application sends them.",
        "Of a subsampled log, the decisions that were kept are counted.",
    )


def _changes(rows: pl.DataFrame) -> None:
    new, gone, day = new_and_vanished(rows)
    if day is None:
        return
    said = []
    if new:
        said.append(f"**New on {day}:** {_named(new)}.")
    if gone:
        said.append(f"**Could no longer be chosen on {day}:** {_named(gone)}.")
    if said:
        st.info("  \n".join(said), icon=":material/swap_horiz:")


def _named(actions: list[str]) -> str:
    shown = ", ".join(f"`{each.replace('`', ' ')}`" for each in actions[:_DRAWN])
    more = len(actions) - _DRAWN
    return f"{shown} and {more} more" if more > 0 else shown


def _traffic(figures: pl.DataFrame) -> None:
    st.subheader("Which actions get the traffic?", help=meaning("action", "pmf", "propensity"))
    drawn = figures.head(_DRAWN)
    taken = drawn.select(
        "action",
        kind=pl.lit("Share of the decisions"),
        value=pl.col("share"),
        lower=pl.lit(None, pl.Float64),
        upper=pl.lit(None, pl.Float64),
        n=pl.col("decisions"),
    )
    could = drawn.drop_nulls("chance").select(
        "action",
        kind=pl.lit("Mean probability where it could be chosen"),
        value=pl.col("chance"),
        lower=pl.lit(None, pl.Float64),
        upper=pl.lit(None, pl.Float64),
        n=pl.col("offered"),
    )
    both = pl.concat([taken, could]).with_columns(
        shown=pl.col("value").map_elements(share, pl.String),
        of=pl.col("n").map_elements(count, pl.String),
    )
    draw(
        interval_chart(
            both,
            "action",
            "Share",
            series="kind",
            tooltips=[
                ("action", "Action"),
                ("kind", "Shown"),
                ("shown", "Value"),
                ("of", "Decisions"),
            ],
        ),
        "For every action, its share of the decisions and its mean probability where it could be "
        "chosen. The table below has the same figures.",
        both.select("action", "kind", "value", "n"),
        "traffic",
    )


def _worth(figures: pl.DataFrame, rewards: Rewards) -> None:
    st.subheader(
        "What would each action earn if it were always taken?", help=meaning("SNIPS", "interval")
    )
    drawn = _with_words(figures.drop_nulls("worth").head(_DRAWN), rewards)
    if drawn.is_empty():
        st.info("No decision of this choice has been joined with its reward yet.")
        return
    mean: float = figures.select(pl.col("reward_sum").sum() / pl.col("joined").sum()).item()
    st.markdown(
        "Rewards are weighted by how unlikely the action was, so that an action that is only taken "
        f"where it is good gains nothing by it. The dashed line is what was earned: "
        f"**{rewards.value(mean)}** per decision."
    )
    draw(
        interval_chart(
            drawn,
            "action",
            "Reward per decision",
            tooltips=[
                ("action", "Action"),
                ("shown", "Value"),
                ("interval", f"{INTERVAL_LEVEL} interval"),
                ("n", "n"),
            ],
            reference=mean,
        ),
        "For every action, what it would earn if it were always taken, with an interval. The table "
        "below has the same figures.",
        drawn.select("action", "value", "lower", "upper", "joined"),
        "worth",
    )


def _segments(rows: pl.DataFrame, by: str) -> None:
    st.subheader(f"What does each action earn, by {by}?", help=meaning("SNIPS", "interval"))
    counts: dict[tuple[str, ...], int] = {
        (str(name),): decided
        for name, decided in rows.group_by("segment")
        .agg(pl.col("decisions").sum())
        .drop_nulls("segment")
        .iter_rows()
    }
    chosen = shown_groups(counts, least=LEAST_CELL, most=_SEGMENTS)
    names = {cell[0]: label for label, cells in chosen.groups.items() for cell in cells}
    open_rows = rows.filter(pl.col("segment").is_in(list(names))).with_columns(
        segment=pl.col("segment").replace(names), action=pl.col("action").fill_null(_OTHERS)
    )
    figures = action_figures(open_rows, ["segment", "action"]).drop_nulls("worth")
    if figures.is_empty():
        st.info("No segment has enough joined decisions to be shown.")
        return
    rewards = Rewards.for_widths(figures["worth_upper"] - figures["worth_lower"])
    top = figures.group_by("action").agg(pl.col("decisions").sum()).sort("decisions", "action")
    kept = top.tail(_DRAWN // 2)["action"]
    drawn = _with_words(figures.filter(pl.col("action").is_in(kept.implode())), rewards)
    drawn = drawn.sort("action", "segment")
    draw(
        interval_chart(
            drawn,
            "action",
            "Reward per decision",
            series="segment",
            tooltips=[
                ("segment", by),
                ("action", "Action"),
                ("shown", "Value"),
                ("interval", f"{INTERVAL_LEVEL} interval"),
                ("n", "n"),
            ],
        ),
        f"For every action and {by}, what the action would earn if it were always taken, with an "
        "interval. The button below downloads the figures.",
        drawn.select("segment", "action", "decisions", "share", "value", "lower", "upper"),
        "segments",
    )
    if chosen.hidden:
        st.markdown(
            f":small[{len(chosen.hidden)} segments with few decisions are not shown, and no number "
            "of theirs can be worked out from the others.]"
        )


def _with_words(figures: pl.DataFrame, rewards: Rewards) -> pl.DataFrame:
    return figures.with_columns(
        value=pl.col("worth"), lower=pl.col("worth_lower"), upper=pl.col("worth_upper")
    ).with_columns(
        shown=pl.col("value").map_elements(rewards.value, pl.String),
        interval=rewards.intervals("lower", "upper").fill_null(MISSING),
        n=pl.col("joined").map_elements(count, pl.String),
    )


def _cost(loop: str, days: int | None) -> None:
    st.subheader("What does exploration cost?", help=meaning("exploration cost", "exploration"))
    costs = exploration_cost(in_period(data.summary(loop, "hours"), days))
    if costs.is_empty():
        st.info("No decision of this period has scores: nothing was learned yet.")
        return
    rewards = Rewards.for_widths(costs["cost"])
    drawn = costs.with_columns(
        value=pl.col("cost"),
        shown=pl.col("cost").map_elements(rewards.value, pl.String),
        n=pl.col("scored").map_elements(count, pl.String),
    )
    draw(
        line_chart(
            drawn,
            "date:T",
            "Expected reward given up per decision",
            tooltips=[("date", "Day (UTC)"), ("shown", "Cost"), ("n", "n")],
        ),
        "By day, what the oracle expects its best action to earn, less what it expects of the "
        "probabilities that were played.",
        costs,
        "exploration_cost",
    )


def _table(figures: pl.DataFrame, rewards: Rewards) -> None:
    st.subheader("All actions")
    table = figures.select(
        pl.col("action").alias("Action"),
        pl.col("decisions").alias("Decisions"),
        pl.col("share").alias("Share"),
        pl.col("chance").alias("Mean probability"),
        pl.when(pl.col("decisions") > 0).then("least_propensity").alias("Smallest propensity"),
        pl.col("joined").alias("Joined"),
        pl.col("mean").alias("Mean reward"),
        rewards.intervals("lower", "upper").alias("Mean reward, interval"),
        pl.col("worth").alias("If always taken"),
        rewards.intervals("worth_lower", "worth_upper").alias("If always taken, interval"),
        pl.col("first").alias("First day"),
        pl.col("last").alias("Last day"),
    )
    reward = st.column_config.NumberColumn(format=f"%.{rewards.decimals}f")
    st.dataframe(
        table,
        hide_index=True,
        placeholder=MISSING,
        column_config={
            "Action": st.column_config.TextColumn(pinned=True),
            "Decisions": st.column_config.NumberColumn(format="localized"),
            "Joined": st.column_config.NumberColumn(format="localized"),
            "Share": st.column_config.NumberColumn(format="percent"),
            "Mean probability": st.column_config.NumberColumn(format="%.3f", help=meaning("pmf")),
            "Smallest propensity": st.column_config.NumberColumn(
                format="%.4f", help=meaning("propensity")
            ),
            "Mean reward": reward,
            "If always taken": st.column_config.NumberColumn(
                format=f"%.{rewards.decimals}f", help=meaning("SNIPS")
            ),
        },
    )
