"""The page "Fairness audit": who is treated how, since when, and what it would cost to change."""

from __future__ import annotations

from itertools import combinations
from typing import Final

import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.charts import interval_chart, line_chart
from croupier.dashboards.data import INTERVAL_LEVEL
from croupier.dashboards.filters import choose_one, remark_source
from croupier.dashboards.formatting import MISSING, Rewards, count, share
from croupier.dashboards.glossary import meaning
from croupier.dashboards.layout import choose_loop, draw, show_empty
from croupier.offline.latest_signals import latest_signals

__all__ = ("agreement", "show")

_SIGNALS: Final = ("disparity_rises", "violations_rise")


def show() -> None:
    """Draw the page."""
    st.title("Fairness audit")
    version = data.generations_version()
    loops = data.loops_with_generations(version) if version >= 0 else []
    if not loops:
        show_empty("Audits")
        return
    loop = choose_loop(loops)
    generations = data.generations(version, loop)
    _signals(generations)
    _groups(data.fairness(loop))
    _violations(generations)
    _frontier(data.summary(loop, "frontier"))
    _panel(loop)
    remark_source(
        loop,
        "Groups with few decisions are not shown, and no number of theirs can be worked out from "
        "the others.",
    )


def _signals(generations: pl.DataFrame) -> None:
    rows = {row["generation"]: row for row in generations.to_dicts()}
    told = [each for each in latest_signals(rows) if each.name in _SIGNALS]
    if not told:
        st.info(
            "Nothing has been tested yet: name attributes in `[loops.<name>.fairness]`, or "
            "auditors in `[loops.<name>.individual_fairness]`; tests begin with the second "
            "generation that serves."
        )
    for each in told:
        p = MISSING if each.p_value is None else f"{each.p_value:.2g}"
        if each.raised:
            st.warning(f"Up to generation {each.generation}, {each.says} (p = {p}).")
        else:
            st.success(f"Not found up to generation {each.generation}: that {each.says} (p = {p}).")


def _groups(rows: pl.DataFrame) -> None:
    st.subheader("How are groups treated, generation by generation?", help=meaning("disparity"))
    if rows.is_empty():
        st.info("No attribute of this loop is audited, or no decision has been joined yet.")
        return
    left, middle, right = st.columns(3)
    with left:
        attributes = rows["attribute"].unique().sort().to_list()
        attribute = choose_one("Attribute", attributes, "attribute")
    mine = rows.filter(pl.col("attribute") == attribute)
    with middle:
        words = {"Reward": "reward", "Exposure to an action": "exposure"}
        there = [name for name, kind in words.items() if kind in mine["measure"]]
        measure = words[choose_one("What", there, "measure")]
    mine = mine.filter(pl.col("measure") == measure)
    if measure == "exposure":
        with right:
            actions = mine["action"].drop_nulls().unique().sort().to_list()
            action = choose_one("Action", actions, "action", term="action")
        mine = mine.filter(pl.col("action") == action)
    shown = mine.filter(~pl.col("hidden"))
    if shown.is_empty():
        st.info("No group has enough decisions to be shown.")
        return
    rewards = Rewards.for_widths(shown["upper"] - shown["lower"])
    drawn = shown.with_columns(
        shown=pl.col("value").map_elements(rewards.value, pl.String),
        interval=rewards.intervals("lower", "upper").fill_null(MISSING),
        n=pl.col("decisions").map_elements(count, pl.String),
    )
    title = "Reward per decision" if measure == "reward" else "Probability of the action"
    draw(
        line_chart(
            drawn.sort("group", "generation"),
            "generation:O",
            title,
            series="group",
            tooltips=[
                ("group", attribute),
                ("generation", "Generation"),
                ("shown", "Value"),
                ("interval", "Interval"),
                ("n", "n"),
            ],
        ),
        f"Per generation and {attribute}, {title.lower()}, with intervals. The button below "
        "downloads the figures.",
        drawn.select("generation", "group", "decisions", "value", "lower", "upper", "p_value"),
        "groups",
    )
    gaps = mine.unique("generation", keep="first").drop_nulls("gap").sort("generation")
    if len(gaps):
        last = gaps.row(-1, named=True)
        ratio = "" if last["ratio"] is None else f", which is {share(last['ratio'])} of it"
        st.markdown(
            f"In generation {last['generation']} the group with the largest value is "
            f"**{rewards.value(last['gap'])}** above the one with the smallest{ratio}."
        )


def _violations(generations: pl.DataFrame) -> None:
    st.subheader("How often are alike decisions treated differently?", help=meaning("violation"))
    rows = generations.filter(pl.col("violation_rate").is_not_null())
    if rows.is_empty():
        st.info("Nobody judges this loop's decisions, or no pair could be judged yet.")
        return
    drawn = rows.select(
        "generation",
        value=pl.col("violation_rate"),
        lower=pl.col("violation_lower"),
        upper=pl.col("violation_upper"),
        pairs=pl.col("violation_pairs"),
        shown=pl.col("violation_rate").map_elements(share, pl.String),
        n=pl.col("violation_pairs").map_elements(count, pl.String),
    )
    draw(
        line_chart(
            drawn,
            "generation:O",
            "Pairs that violate",
            per_cent=True,
            tooltips=[("generation", "Generation"), ("shown", "Rate"), ("n", "Pairs")],
        ),
        "Per generation, the share of pairs of alike decisions that were treated too differently, "
        "with intervals.",
        drawn.select("generation", "value", "lower", "upper", "pairs"),
        "violations",
    )


def _frontier(rows: pl.DataFrame) -> None:
    st.subheader("What would fairness cost?", help=meaning("slack", "share of auditors"))
    if rows.is_empty():
        st.info("The night works this out for loops that have auditors, from their distances.")
        return
    left, right = st.columns(2)
    alphas, gammas = (rows[name].unique().sort().to_list() for name in ("alpha", "gamma"))
    with left:
        alpha = st.select_slider(
            "α, the slack", alphas, key="alpha", bind="query-params", help=meaning("slack")
        )
    with right:
        gamma = st.select_slider(
            "γ, the share of the auditors",
            gammas,
            key="share",
            bind="query-params",
            help=meaning("share of auditors"),
        )
    points = rows.filter(pl.col("alpha") == alpha, pl.col("gamma") == gamma).sort("rate", "policy")
    rewards = Rewards.for_widths(points["value_upper"] - points["value_lower"])
    st.markdown(
        f"Every policy under α = {alpha:g} and γ = {gamma:g}: how often it treats alike people "
        f"differently, on {count(points['rows'][0] / 2)} pairs, and what it is worth. "
        "**Efficient** ones are those that no other one beats in both."
    )
    drawn = points.with_columns(
        kind=pl.when("efficient").then(pl.lit("Efficient")).otherwise(pl.lit("Beaten by another")),
        value=pl.col("rate"),
        lower=pl.col("rate_lower"),
        upper=pl.col("rate_upper"),
        label=pl.format(
            "{} · {}",
            "policy",
            pl.col("value").map_elements(rewards.value, pl.String).fill_null(MISSING),
        ),
        shown=pl.col("rate").map_elements(share, pl.String),
        worth=pl.col("value").map_elements(rewards.value, pl.String).fill_null(MISSING),
        interval=rewards.intervals("value_lower", "value_upper").fill_null(MISSING),
    )
    draw(
        interval_chart(
            drawn,
            "label",
            "Share of the pairs that violate",
            series="kind",
            tooltips=[
                ("policy", "Policy"),
                ("shown", "Violations"),
                ("worth", "Worth"),
                ("interval", f"{INTERVAL_LEVEL} interval of its worth"),
            ],
        ),
        "For every policy, how often it violates, with an interval, and what it is worth.",
        points,
        "frontier",
    )


def _panel(loop: str) -> None:
    st.subheader("Do the people on the panel agree?")
    judged = data.judged(loop)
    pairs = agreement(judged)
    if judged.is_empty():
        st.info("No judgement of this loop is in the lake yet.")
    elif pairs.is_empty():
        st.info("No two people have judged the same pair yet.")
    else:
        st.dataframe(
            pairs,
            hide_index=True,
            column_config={
                "Mean difference": st.column_config.NumberColumn(
                    format="%.3f",
                    help="Of the distances that the two gave the same pair, in [0, 1]",
                ),
                "Same side of ½": st.column_config.NumberColumn(format="percent"),
            },
        )
    st.markdown("[Judge pairs of decisions](judge-pairs)")


def agreement(judged: pl.DataFrame) -> pl.DataFrame:
    """How far any two people are apart on the pairs that both have judged.

    Parameters
    ----------
    judged
        Columns ``decision_id``, ``other_decision_id``, ``auditor``, ``distance``.
    """
    pair = pl.concat_list("decision_id", "other_decision_id").list.sort().list.join("\n")
    wide = judged.select("auditor", "distance", pair=pair)
    people = wide["auditor"].unique().sort().to_list()
    rows = []
    for one, other in combinations(people, 2):
        first, second = (wide.filter(pl.col("auditor") == name) for name in (one, other))
        both = first.join(second, on="pair")
        if len(both):
            apart = (both["distance"] - both["distance_right"]).abs().mean()
            same = ((both["distance"] > 0.5) == (both["distance_right"] > 0.5)).mean()
            rows.append((one, other, len(both), apart, same))
    return pl.DataFrame(
        rows,
        schema={
            "One": pl.String,
            "Other": pl.String,
            "Pairs judged by both": pl.Int64,
            "Mean difference": pl.Float64,
            "Same side of ½": pl.Float64,
        },
        orient="row",
    )
