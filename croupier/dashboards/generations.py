"""The page "Generations": did what was promised before promotion come true?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.data import INTERVAL_LEVEL
from croupier.dashboards.formatting import MISSING, Rewards, count, moment
from croupier.dashboards.generation_charts import difference_chart, promise_chart
from croupier.dashboards.generation_comparison import show_comparison
from croupier.dashboards.generation_details import show_behaviour, show_timeline
from croupier.dashboards.generation_swings import show_swings
from croupier.dashboards.layout import choose_loop, draw, show_empty, small
from croupier.dashboards.overriding import show_overriding

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("show",)

_DRAWN: Final = 24
"""Newest generations that the charts show; the table shows all."""

_SUSPICIOUS_P: Final = 0.001
"""Below it, the propensity test of a generation is pointed out."""


_ESTIMATED: Final = ("estimator", "estimate", "lower", "upper", "judged_rows", "ess")
_REALISED: Final = ("realised_mean", "realised_lower", "realised_upper", "decisions")
_LEADS: Final = ("difference", "difference_lower", "difference_upper", "judged_rows", "ess")


def show() -> None:
    """Draw the page."""
    st.title("Generations")
    version = data.generations_version()
    loops = data.loops_with_generations(version)
    if not loops:
        show_empty("Generations")
        return
    loop = choose_loop(loops)
    rows = data.generations(version, loop)
    rewards = Rewards.for_widths(
        pl.concat([rows["upper"] - rows["lower"], rows["realised_upper"] - rows["realised_lower"]])
    )
    leads = Rewards.for_widths(rows["difference_upper"] - rows["difference_lower"], signed=True)
    champion = _champion(rows)
    _headline(champion, rewards)
    _warn_of_propensities(rows)
    _warn_of_oscillation(rows)
    number = None if champion is None else champion["generation"]
    drawn = _drawn(rows, number)
    _promises(rows, drawn, rewards, number)
    _differences(drawn, leads, number)
    _table(rows, rewards, leads)
    show_overriding(loop, rows, number)
    show_timeline(loop, rows)
    show_swings(loop)
    show_behaviour(loop, rows)
    show_comparison(loop)
    small(
        [
            f"All intervals are {INTERVAL_LEVEL} intervals, the promotion gate's default.",
            "Rewards are in the unit in which the application sends them.",
            f"Read from version {version} of the lake's table `generations`.",
        ]
    )


def _champion(rows: pl.DataFrame) -> dict[str, Any] | None:
    """The champion's row; without one the cold start's, which serves until the first promotion."""
    named = rows.filter(pl.col("status") == "champion")
    serving = named if len(named) else rows.filter(pl.col("generation") == 0)
    return serving.row(-1, named=True) if len(serving) else None


def _headline(champion: Mapping[str, Any] | None, rewards: Rewards) -> None:
    if champion is None:
        st.info("No generation of this loop was promoted yet: the cold start serves.")
        return
    cards = (
        ("Champion: generation", str(champion["generation"]), _champion_notes(champion)),
        ("Decisions served", count(champion["decisions_made"]), _served_notes(champion)),
        (
            "Realised mean reward",
            rewards.value(champion["realised_mean"]),
            _realised_notes(champion, rewards),
        ),
        (
            "Estimate before promotion",
            rewards.value(champion["estimate"]),
            _estimate_notes(champion, rewards),
        ),
    )
    for column, (label, value, notes) in zip(st.columns(len(cards)), cards, strict=True):
        with column.container(border=True, height="stretch", gap="xsmall"):
            st.metric(label, value)
            small(notes)


def _champion_notes(row: Mapping[str, Any]) -> list[str]:
    notes = ["Cold start: nothing learned yet."] if row["generation"] == 0 else []
    notes.append(f"Exploration: `{row['exploration'] or 'not recorded'}`")
    if row["promoted"] is not None:
        how = "Promoted" if row["override_reason"] is None else "Promoted by override"
        notes.append(f"{how} {moment(row['promoted'])}")
    if row["restored"] is not None:
        notes.append(f"Restored by a rollback {moment(row['restored'])}")
    return notes


def _served_notes(row: Mapping[str, Any]) -> list[str]:
    if not _is_subsampled(row):
        return ["Joined with their reward."]
    return [f"Estimated from {count(row['decisions'])} that were logged and joined."]


def _is_subsampled(row: Mapping[str, Any]) -> bool:
    """Whether more decisions were made than logged."""
    return row["decisions"] is not None and row["decisions_made"] > row["decisions"]


def _realised_notes(row: Mapping[str, Any], rewards: Rewards) -> list[str]:
    if row["realised_mean"] is None:
        return ["No decision has been joined with its reward yet."]
    interval = rewards.interval(row["realised_lower"], row["realised_upper"])
    return [f"{INTERVAL_LEVEL} interval {interval}", f"n = {count(row['decisions'])} decisions"]


def _estimate_notes(row: Mapping[str, Any], rewards: Rewards) -> list[str]:
    if row["estimate"] is None:
        return ["No estimate was made."]
    return [
        f"{INTERVAL_LEVEL} interval {rewards.interval(row['lower'], row['upper'])}",
        f"n = {count(row['judged_rows'])} judged decisions",
        f"Effective sample size {count(row['ess'])}",
        f"Estimator: {(row['estimator'] or MISSING).upper()}",
    ]


def _warn_of_propensities(rows: pl.DataFrame) -> None:
    suspicious = rows.filter(pl.col("propensity_p_value") < _SUSPICIOUS_P)
    if suspicious.is_empty():
        return
    found = [
        f"generation {number} (p = {p:.2g})"
        for number, p in suspicious.select("generation", "propensity_p_value").iter_rows()
    ]
    st.warning(
        "The actions drawn do not fit the logged probabilities well: "
        f"{', '.join(found)}. Estimates from these decisions may be wrong."
    )


def _warn_of_oscillation(rows: pl.DataFrame) -> None:
    """Say that the latest generations go up and down, if the last one that served says so."""
    told = rows.filter(pl.col("oscillates").is_not_null())
    if told.is_empty():
        return
    last = told.row(-1, named=True)
    if last["oscillates"]:
        st.warning(
            f"The generations up to {last['generation']} oscillate: what they earned varies more "
            f"than chance does (p = {last['spread_p_value']:.2g}), up and down in turn "
            f"(p = {last['alternation_p_value']:.2g}). A longer memory, damping or a uniform slice "
            f"help; see the documentation on oscillation."
        )


def _drawn(rows: pl.DataFrame, champion: int | None) -> pl.DataFrame:
    """The newest generations, and the champion however old it is."""
    newest = rows["generation"].is_in(rows["generation"].tail(_DRAWN).implode())
    return rows.filter(newest | (pl.col("generation") == (-1 if champion is None else champion)))


def _promises(
    rows: pl.DataFrame, drawn: pl.DataFrame, rewards: Rewards, champion: int | None
) -> None:
    st.subheader("Did the promised value come true?")
    compared = rows.drop_nulls(["lower", "upper", "realised_lower", "realised_upper"])
    kept = compared.filter(
        (pl.col("lower") <= pl.col("realised_upper"))
        & (pl.col("realised_lower") <= pl.col("upper"))
    )
    if len(compared):
        st.markdown(_verdict(compared, kept))
    shown = drawn.filter(~pl.all_horizontal(pl.col("estimate", "realised_mean").is_null()))
    if shown.is_empty():
        st.info("Nothing was estimated or served yet.")
        return
    draw(
        promise_chart(shown, rewards, champion),
        "Per generation, the mean reward estimated before promotion and the realised mean, "
        "with intervals. The table below has the same figures.",
        shown.select("generation", *_ESTIMATED, *_REALISED),
        "promised_and_realised",
    )
    omitted = len(rows) - len(drawn)
    if omitted:
        small([f"{omitted} older generations are not drawn; the table below has them."])


def _verdict(compared: pl.DataFrame, kept: pl.DataFrame) -> str:
    broken = compared.filter(~pl.col("generation").is_in(kept["generation"].implode()))
    text = (
        f"The realised mean agrees with the estimate for **{len(kept)} of {len(compared)}** "
        "generations that have both (their intervals overlap)."
    )
    if broken.is_empty():
        return text
    sides = [
        f"{number} earned {'less' if mean < estimate else 'more'}"
        for number, mean, estimate in broken.select(
            "generation", "realised_mean", "estimate"
        ).iter_rows()
    ]
    return f"{text} Generation {', '.join(sides)} than promised."


def _differences(drawn: pl.DataFrame, leads: Rewards, champion: int | None) -> None:
    st.subheader("Was the challenger better than the champion?")
    shown = drawn.filter(pl.col("difference").is_not_null())
    if shown.is_empty():
        st.info("No generation was compared with a champion yet.")
        return
    st.markdown(
        "Challenger less the champion of its day, on the same judged decisions. "
        "Above the dashed line the challenger is better."
    )
    draw(
        difference_chart(shown, leads, champion),
        "Per generation, the estimated difference in mean reward to the champion of its day, "
        "with intervals. The table below has the same figures.",
        shown.select("generation", "status", *_LEADS),
        "differences",
    )
    judged = drawn.filter(pl.col("verdict").is_not_null())
    if len(judged):
        number, verdict = judged.select("generation", "verdict").row(-1)
        st.markdown(f"The latest verdict, on generation {number}: {verdict}.")


def _table(rows: pl.DataFrame, rewards: Rewards, leads: Rewards) -> None:
    st.subheader("All generations")
    reward = st.column_config.NumberColumn(format=f"%.{rewards.decimals}f")
    time = st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm")
    number = st.column_config.NumberColumn(format="localized")
    made = pl.col("decisions_made").round().cast(pl.Int64)
    subsampled = any(map(_is_subsampled, rows.iter_rows(named=True)))
    table = rows.sort("generation", descending=True).select(
        pl.col("generation").alias("Generation"),
        pl.col("status").str.replace_all("_", " ").str.to_titlecase().alias("Status"),
        pl.col("estimate").alias("Estimate"),
        rewards.intervals("lower", "upper").alias("Estimate, interval"),
        pl.col("realised_mean").alias("Realised"),
        rewards.intervals("realised_lower", "realised_upper").alias("Realised, interval"),
        pl.col("decisions").alias("Decisions"),
        *([made.alias("Made, estimated")] if subsampled else []),
        pl.col("difference").alias("Difference"),
        leads.intervals("difference_lower", "difference_upper").alias("Difference, interval"),
        pl.col("judged_rows").alias("Judged"),
        pl.col("ess").round().cast(pl.Int64).alias("ESS"),
        pl.col("total_variation").alias("Total variation"),
        pl.col("flip_rate").alias("Flip rate"),
        pl.col("propensity_p_value").alias("Propensity p"),
        # Without a zone the browser shows them as they are, not in its own.
        pl.col("created").dt.replace_time_zone(None).alias("Created (UTC)"),
        pl.col("promoted").dt.replace_time_zone(None).alias("Promoted (UTC)"),
        pl.col("rolled_back").dt.replace_time_zone(None).alias("Rolled back (UTC)"),
        pl.col("verdict").alias("Verdict"),
        pl.col("override_reason").alias("Override"),
        pl.col("rollback_reason").alias("Rollback"),
        pl.col("exploration").alias("Exploration"),
    )
    st.dataframe(
        table,
        hide_index=True,
        placeholder=MISSING,
        column_config={
            "Generation": st.column_config.NumberColumn(pinned=True, format="%d"),
            "Estimate": reward,
            "Realised": reward,
            "Difference": st.column_config.NumberColumn(format=f"%+.{leads.decimals}f"),
            "Decisions": st.column_config.NumberColumn(
                format="localized", help="Logged, and joined with their reward"
            ),
            "Made, estimated": st.column_config.NumberColumn(
                format="localized",
                help="All decisions, of which the log keeps a share: the sum of 1 / keep_prob",
            ),
            "Judged": number,
            "ESS": st.column_config.NumberColumn(
                format="localized",
                help="Effective sample size of the estimate, in judged decisions",
            ),
            "Total variation": st.column_config.NumberColumn(
                format="%.3f",
                help="Share of decisions that must come out otherwise than under the champion of "
                "its day",
            ),
            "Flip rate": st.column_config.NumberColumn(
                format="%.3f",
                help="Share of requests where the most probable action is another one than the "
                "champion's of its day",
            ),
            "Propensity p": st.column_config.NumberColumn(
                format="%.3g",
                help="Of a test that actions were drawn with the logged probabilities; below "
                f"{_SUSPICIOUS_P} is suspicious",
            ),
            "Verdict": st.column_config.TextColumn(width="large"),
            "Created (UTC)": time,
            "Promoted (UTC)": time,
            "Rolled back (UTC)": time,
        },
    )
