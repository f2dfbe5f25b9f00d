"""The page "Off-policy evaluation": what policies are worth, before they decide anything."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.charts import bar_chart, interval_chart
from croupier.dashboards.filters import choose_one, loop_of_page, remark_source
from croupier.dashboards.formatting import MISSING, Rewards, count, moment, share
from croupier.dashboards.glossary import meaning
from croupier.dashboards.layout import draw
from croupier.dashboards.replays import Replay, replay
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.exploration import (
    EpsilonGreedy,
    Exploration,
    Greedy,
    Softmax,
    SquareCB,
    Uniform,
)

__all__ = ("show",)

_NAMES: Final = {"dr": "DR", "snips": "SNIPS", "ips": "IPS"}
_DIFFERENCE: Final = "difference"
_ORDER: Final = pl.col("estimator").replace_strict({"dr": 0, "snips": 1, "ips": 2}, default=3)

_FEW: Final = 100
"""Effective sample sizes below it are pointed out."""


def show() -> None:
    """Draw the page."""
    st.title("Off-policy evaluation")
    loop = loop_of_page("Estimates")
    if loop is None:
        return
    estimates = data.summary(loop, "estimates")
    if estimates.is_empty():
        st.info("No generation of this loop has been judged yet.")
    else:
        numbers = [*map(str, estimates["generation"].unique().sort(descending=True).to_list())]
        left, _ = st.columns([1, 2])
        with left:
            chosen = choose_one("Judged generation", numbers, "judged", term="challenger")
        _judgement(estimates.filter(pl.col("generation") == int(chosen)))
    _what_if(loop)
    remark_source(loop, "Rewards are in the unit in which the application sends them.")


def _judgement(rows: pl.DataFrame) -> None:
    first = rows.row(0, named=True)
    number, against = first["generation"], first["against"]
    level = f"{100 * first['confidence']:g} %"
    policies = rows.filter(pl.col("policy") != _DIFFERENCE)
    rewards = Rewards.for_widths(policies["upper"] - policies["lower"])
    st.subheader(
        f"What are generation {number} and generation {against} worth?",
        help=meaning("DR", "SNIPS", "IPS", "interval"),
    )
    st.markdown(
        f"Judged {moment(first['judged'])} on **{count(first['rows'])}** decisions that neither "
        f"learned from."
    )
    drawn = _with_words(policies, rewards).sort(_ORDER, "policy")
    draw(
        interval_chart(
            drawn,
            "name",
            "Reward per decision",
            series="policy",
            tooltips=_hints(level),
        ),
        "For every estimator, what both generations are worth, with intervals. The table below "
        "has the same figures.",
        drawn.select("policy", "estimator", "value", "lower", "upper", "rows", "ess"),
        "estimates",
    )
    st.subheader("Is the challenger better?")
    leads = rows.filter(pl.col("policy") == _DIFFERENCE)
    signed = Rewards.for_widths(leads["upper"] - leads["lower"], signed=True)
    drawn = _with_words(leads, signed).sort(_ORDER)
    draw(
        interval_chart(
            drawn,
            "name",
            "Challenger less champion, in reward per decision",
            tooltips=_hints(level),
            reference=0.0,
        ),
        "For every estimator, the challenger's value less the champion's, with an interval.",
        drawn.select("estimator", "value", "lower", "upper", "rows"),
        "lead",
    )
    _support(policies)
    _table(rows, rewards)


def _hints(level: str) -> list[tuple[str, str]]:
    return [
        ("policy", "Policy"),
        ("name", "Estimator"),
        ("shown", "Value"),
        ("interval", f"{level} interval"),
        ("n", "n"),
        ("effective", "Effective sample size"),
    ]


def _with_words(rows: pl.DataFrame, rewards: Rewards) -> pl.DataFrame:
    return rows.with_columns(
        name=pl.col("estimator").replace(_NAMES),
        shown=pl.col("value").map_elements(rewards.value, pl.String),
        interval=rewards.intervals("lower", "upper").fill_null(MISSING),
        n=pl.col("rows").map_elements(count, pl.String),
        effective=pl.col("ess").map_elements(count, pl.String).fill_null(MISSING),
    )


def _support(policies: pl.DataFrame) -> None:
    st.subheader(
        "Can the log tell?", help=meaning("support", "importance weight", "effective sample size")
    )
    for row in policies.unique("policy", keep="first", maintain_order=True).to_dicts():
        few = row["ess"] is not None and row["ess"] < _FEW
        unseen = row["deficient"]
        text = (
            f"**{row['policy']}**: effective sample size {count(row['ess'])} of "
            f"{count(row['rows'])}, largest weight {row['max_weight']:.1f}, mean weight "
            f"{row['mean_weight']:.3f} (should be 1)"
        )
        text += "." if unseen is None else f", {share(unseen)} of its choices were never possible."
        if few:
            st.warning(f"{text} That is little to go by.")
        else:
            st.markdown(text)
    challenger = policies.row(-1, named=True)
    if challenger["weight_counts"] is None:
        return
    ends = [str(Fraction(each)) for each in challenger["weight_bins"]]
    labels = ["0", *(f"≤ {end}" for end in ends), f"> {ends[-1]}"]
    drawn = pl.DataFrame({"weight": labels, "value": challenger["weight_counts"]})
    # What no decision has at either end only takes room.
    there = [place for place, value in enumerate(drawn["value"]) if value > 0]
    drawn = drawn[: 1 + max(there, default=0)]
    draw(
        bar_chart(drawn, "weight", "Decisions", x_title="Importance weight of the challenger"),
        "How many judged decisions have which importance weight under the challenger.",
        drawn,
        "weights",
    )


def _table(rows: pl.DataFrame, rewards: Rewards) -> None:
    number = st.column_config.NumberColumn(format=f"%.{rewards.decimals}f")
    with st.expander("All estimates"):
        st.dataframe(
            rows.select(
                pl.col("policy").alias("Policy"),
                pl.col("estimator").replace(_NAMES).alias("Estimator"),
                pl.col("value").alias("Value"),
                pl.col("lower").alias("Lower"),
                pl.col("upper").alias("Upper"),
                pl.col("rows").alias("n"),
                pl.col("nonzero_rewards").alias("With a reward other than 0"),
                pl.col("ess").round().cast(pl.Int64).alias("ESS"),
                pl.col("max_weight").alias("Largest weight"),
            ),
            hide_index=True,
            placeholder=MISSING,
            column_config={"Value": number, "Lower": number, "Upper": number},
        )


def _what_if(loop: str) -> None:
    st.subheader("What if it explored otherwise?", help=meaning("exploration", "score", "entropy"))
    st.markdown(
        "A policy of your choice, with the scores that were logged at the time. It decides "
        "nothing; to train with it, put it into the loop's configuration."
    )
    exploration = _chosen()
    try:
        found = _replayed(data.summary_version(loop), loop, exploration.describe(), exploration)
    except NotEnoughDataError as error:
        st.info(f"The log of the latest days can't tell: {error}.")
        return
    widths = pl.Series([each.upper - each.lower for each in found.estimates.values()])
    rewards = Rewards.for_widths(widths)
    best = found.estimates["dr"]
    cards = (
        ("Estimated value (DR)", rewards.value(best.value), _ends(rewards, best.lower, best.upper)),
        (
            "The log earned",
            rewards.value(found.logged.value),
            _ends(rewards, found.logged.lower, found.logged.upper),
        ),
        ("Effective sample size", count(best.ess), f"n = {count(found.rows)} sampled decisions"),
        ("Entropy", f"{found.entropy:.3f}", f"the log's was {found.logged_entropy:.3f} nats"),
        ("Plays the best score", share(found.greedy), "of the time, on average"),
    )
    for column, (label, value, note) in zip(st.columns(len(cards)), cards, strict=True):
        with column.container(border=True, height="stretch", gap="xsmall"):
            st.metric(label, value)
            st.markdown(f":small[{note}]")
    rows = [
        {"name": _NAMES[name], "policy": "your policy", "estimator": name}
        | {"value": each.value, "lower": each.lower, "upper": each.upper}
        | {"rows": each.n, "ess": each.ess}
        for name, each in found.estimates.items()
    ]
    drawn = _with_words(pl.DataFrame(rows), rewards)
    draw(
        interval_chart(
            drawn,
            "name",
            "Reward per decision",
            tooltips=_hints("95 %"),
            reference=found.logged.value,
        ),
        "For every estimator, what the chosen policy would have earned, with an interval. The "
        "dashed line is what the log earned.",
        drawn.select("estimator", "value", "lower", "upper", "rows", "ess"),
        "what_if",
    )
    if found.left_out:
        st.markdown(
            f":small[{count(found.left_out)} sampled decisions have no scores, or could not have "
            "shown what this policy does; they are left out.]"
        )


def _ends(rewards: Rewards, lower: float, upper: float) -> str:
    return f"95 % interval {rewards.interval(lower, upper)}"


@st.cache_resource(max_entries=64, show_spinner="Replaying …")
def _replayed(
    version: str,  # noqa: ARG001 - a key
    loop: str,
    described: str,  # noqa: ARG001 - a key
    _exploration: Exploration,
) -> Replay:
    # The exploration has what depends on the training's size set already.
    return replay(data.summary(loop, "sample"), _exploration, training_rows=1)


_KINDS: Final = ("SquareCB", "ε-greedy", "Softmax", "Greedy", "Uniform")


def _chosen() -> Exploration:
    """The exploration that people set up."""
    left, middle, right = st.columns(3)
    with left:
        kind = choose_one("Exploration", _KINDS, "exploration", term="exploration")
    with right:
        floor = st.slider(
            "Smallest probability",
            0.0,
            0.2,
            0.0,
            0.005,
            key="floor",
            bind="query-params",
            format="%.3f",
            help="Of every action that may be chosen.",
        )
    with middle:
        return _of_kind(kind, float(floor))


def _of_kind(kind: str, floor: float) -> Exploration:
    match kind:
        case "SquareCB":
            gamma = st.select_slider(
                "Greediness γ",
                [1, 3, 10, 30, 100, 300, 1000, 3000, 10000],
                value=100,
                key="gamma",
                bind="query-params",
                help="0 is uniform, large is greedy. A trained generation's γ is gamma_scale · "
                "n ^ gamma_exponent, with n the interactions that it learned from.",
            )
            return SquareCB(gamma_scale=float(gamma), gamma_exponent=0.0, floor=floor)
        case "ε-greedy":
            epsilon = st.slider("ε", 0.0, 1.0, 0.1, 0.01, key="epsilon", bind="query-params")
            return EpsilonGreedy(epsilon=float(epsilon), floor=floor)
        case "Softmax":
            temperature = st.select_slider(
                "Temperature τ",
                [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
                value=0.1,
                key="temperature",
                bind="query-params",
                help="In units of reward: a gap of τ makes an action e times likelier.",
            )
            return Softmax(temperature=float(temperature), floor=floor)
        case "Greedy":
            return Greedy(floor=floor)
        case _:
            return Uniform(floor=floor)
