"""The page "Generations": did what was promised before promotion come true?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.data import INTERVAL_LEVEL
from croupier.dashboards.formatting import MISSING, Rewards, count, moment
from croupier.dashboards.generation_charts import difference_chart, promise_chart
from croupier.dashboards.layout import choose_loop, show_empty

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("show",)

_DRAWN: Final = 30
"""Newest generations that the charts show; the table shows all."""


def show() -> None:
    """Draw the page."""
    st.title("Generations")
    version = data.generations_version()
    loops = data.loops_with_generations(version)
    if not loops:
        show_empty("Generations")
        return
    rows = data.generations(version, choose_loop(loops))
    rewards = Rewards.for_widths(
        pl.concat([rows["upper"] - rows["lower"], rows["realised_upper"] - rows["realised_lower"]])
    )
    champion = _champion(rows)
    _headline(champion, rewards)
    number = None if champion is None else champion["generation"]
    drawn = _drawn(rows, number)
    _promises(rows, drawn, rewards, number)
    _differences(drawn, rewards, number)
    _table(rows, rewards)
    st.caption(
        f"All intervals are {INTERVAL_LEVEL} intervals, the default of the promotion gate. "
        f"Rewards are in the unit the application sends them in. "
        f"Version {version} of the lake's table `generations`."
    )


def _champion(rows: pl.DataFrame) -> dict[str, Any] | None:
    """The champion's row; without one the cold start's, which serves until the first promotion."""
    named = rows.filter(pl.col("status") == "champion")
    serving = named if len(named) else rows.filter(pl.col("generation") == 0)
    return serving.row(-1, named=True) if len(serving) else None


def _headline(champion: Mapping[str, Any] | None, rewards: Rewards) -> None:
    if champion is None:
        st.info("No generation of this loop is champion yet: the baseline is served.")
        return
    since = "never promoted" if champion["promoted"] is None else moment(champion["promoted"])
    if champion["override_reason"] is not None:
        since += f", by override: {champion['override_reason']}"
    cards = (
        (
            "Champion",
            "Cold start" if champion["generation"] == 0 else f"Generation {champion['generation']}",
            [f"Exploration `{champion['exploration'] or 'not recorded'}`", f"Promoted: {since}"],
        ),
        ("Decisions served", count(champion["decisions"]), ["joined with their reward"]),
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
        with column.container(border=True, height="stretch"):
            st.metric(label, value)
            st.caption("  \n".join(notes))


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
        f"n = {count(row['judged_rows'])} judged, effective sample size {count(row['ess'])}",
        f"Estimator `{row['estimator'] or MISSING}`",
    ]


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
    st.altair_chart(
        promise_chart(shown, rewards, champion),
        alt="Per generation, the mean reward estimated before promotion and the realised mean, "
        "with intervals. The table below has the same figures.",
    )
    omitted = len(rows) - len(drawn)
    if omitted:
        st.caption(f"{omitted} older generations are not drawn; the table below has them.")


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


def _differences(drawn: pl.DataFrame, rewards: Rewards, champion: int | None) -> None:
    st.subheader("Was the challenger better than the champion?")
    shown = drawn.filter(pl.col("difference").is_not_null())
    if shown.is_empty():
        st.info("No generation was compared with a champion yet.")
        return
    st.markdown(
        "Challenger less the champion of its day, on the same judged decisions. "
        "Above the dashed line the challenger is better."
    )
    st.altair_chart(
        difference_chart(shown, rewards, champion),
        alt="Per generation, the estimated difference in mean reward to the champion of its day, "
        "with intervals. The table below has the same figures.",
    )


def _table(rows: pl.DataFrame, rewards: Rewards) -> None:
    st.subheader("All generations")
    reward = st.column_config.NumberColumn(format=f"%.{rewards.decimals}f")
    time = st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm", timezone="UTC")
    number = st.column_config.NumberColumn(format="localized", step=1)

    def interval(lower: str, upper: str) -> pl.Expr:
        ends = pl.struct(lower=lower, upper=upper)
        return ends.map_elements(lambda end: rewards.interval(**end), pl.String)

    table = rows.sort("generation", descending=True).select(
        pl.col("generation").alias("Generation"),
        pl.col("status").str.to_titlecase().alias("Status"),
        pl.col("estimate").alias("Estimate"),
        interval("lower", "upper").alias("Estimate, interval"),
        pl.col("realised_mean").alias("Realised"),
        interval("realised_lower", "realised_upper").alias("Realised, interval"),
        pl.col("decisions").alias("Decisions"),
        pl.col("difference").alias("Difference"),
        interval("difference_lower", "difference_upper").alias("Difference, interval"),
        pl.col("judged_rows").alias("Judged"),
        pl.col("ess").alias("ESS"),
        pl.col("propensity_p_value").alias("Propensity p"),
        pl.col("verdict").alias("Verdict"),
        pl.col("override_reason").alias("Override"),
        pl.col("exploration").alias("Exploration"),
        pl.col("created").alias("Created (UTC)"),
        pl.col("promoted").alias("Promoted (UTC)"),
    )
    st.dataframe(
        table,
        hide_index=True,
        placeholder=MISSING,
        column_config={
            "Generation": st.column_config.NumberColumn(pinned=True, format="%d"),
            "Estimate": reward,
            "Realised": reward,
            "Difference": reward,
            "Decisions": number,
            "Judged": number,
            "ESS": st.column_config.NumberColumn(
                format="%.0f", help="Effective sample size of the estimate, in judged decisions"
            ),
            "Propensity p": st.column_config.NumberColumn(
                format="%.3g",
                help="Of a test that actions were drawn with the logged probabilities; below "
                "0.001 they hardly were",
            ),
            "Verdict": st.column_config.TextColumn(width="large"),
            "Created (UTC)": time,
            "Promoted (UTC)": time,
        },
    )
