"""The page "Simulators": what policies from simulators are worth outside of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl
import streamlit as st

from croupier.dashboards.charts import interval_chart, line_chart
from croupier.dashboards.filters import choose_one
from croupier.dashboards.formatting import MISSING, Rewards, count, share
from croupier.dashboards.layout import draw, small
from croupier.dashboards.settings import data_dir
from croupier.dashboards.studies import StudyUnreadableError, curves, read_study, studies

if TYPE_CHECKING:
    from croupier.dashboards.studies import Study

__all__ = ("show",)

_FOLDER: Final = "simulations"


def show() -> None:
    """Draw the page."""
    st.title("Simulators")
    folder = data_dir() / _FOLDER
    names = studies(folder)
    if not names:
        st.info("**Studies will appear here once one was run.**")
        st.markdown(
            "A study trains policies in simulators of some groups of users, and tells what they "
            "are worth to a group that no simulator knew. Have it written below the data directory:"
        )
        st.code(
            f"croupier simulate lts --level all --output {folder / 'lts'}",
            language=None,
            wrap_lines=True,
        )
        return
    left, _ = st.columns([1, 2])
    with left:
        name = choose_one("Study", names, "study")
    try:
        study = read_study(folder / name)
    except StudyUnreadableError as error:
        st.error(f"**The study can't be read.** {error}")
        return
    _transfer(study)
    _curves(curves(folder / name))
    small(
        [
            "Intervals are 95 % intervals over seeds; a single seed has none.",
            "A return is the sum of a user's rewards over a session.",
            f"Read from `{folder / name}`.",
        ]
    )


def _transfer(study: Study) -> None:
    st.subheader("What are policies worth to users that no simulator knew?")
    rows = study.results()
    rewards = Rewards.for_widths(rows["upper"] - rows["lower"])
    optimum = [each for each in study.yardsticks if each.policy == "optimal"]
    drawn = rows.with_columns(
        shown=pl.col("value").map_elements(rewards.value, pl.String),
        interval=rewards.intervals("lower", "upper").fill_null(MISSING),
        part=pl.col("of_optimum").map_elements(share, pl.String),
        n=pl.col("seeds").map_elements(count, pl.String),
    )
    draw(
        interval_chart(
            drawn,
            "arm",
            "Return of a test user",
            series="level",
            tooltips=[
                ("arm", "Arm"),
                ("level", "Level"),
                ("shown", "Return"),
                ("interval", "Interval"),
                ("part", "Of the optimum"),
                ("n", "Seeds"),
            ],
            reference=optimum[0].mean_return if optimum else None,
        ),
        "For every way of training and every level, the mean return of test users, with an "
        "interval. The dashed line is the optimum.",
        rows,
        "transfer",
    )
    st.dataframe(
        pl.DataFrame(
            [
                {
                    "Without training": each.policy,
                    "Return": each.mean_return,
                    "Standard error": each.standard_error,
                    "Users": each.users,
                }
                for each in study.yardsticks
            ]
        ),
        hide_index=True,
        column_config={
            "Return": st.column_config.NumberColumn(format="%.1f"),
            "Standard error": st.column_config.NumberColumn(format="%.2f"),
        },
    )


def _curves(rows: pl.DataFrame) -> None:
    st.subheader("How do they learn?")
    if rows.is_empty():
        st.info("No learning curves were kept.")
        return
    levels = [str(each) for each in rows["level"].unique().sort().to_list()]
    left, _ = st.columns([1, 2])
    with left:
        chosen = choose_one("Level", levels, "level")
    mine = rows.filter(pl.col("level") == int(chosen))
    rewards = Rewards.for_widths(mine["upper"] - mine["lower"])
    drawn = mine.with_columns(
        shown=pl.col("value").map_elements(rewards.value, pl.String),
        n=pl.col("seeds").map_elements(count, pl.String),
    )
    draw(
        line_chart(
            drawn,
            "iteration:O",
            "Return of a test user",
            series="arm",
            tooltips=[
                ("arm", "Arm"),
                ("iteration", "Iteration"),
                ("shown", "Return"),
                ("n", "Seeds"),
            ],
        ),
        "By iteration, the mean return of test users of every way of training.",
        mine,
        "curves",
    )
