"""The page "Simulators": what policies from simulators are worth outside of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.charts import interval_chart, line_chart
from croupier.dashboards.filters import choose_one
from croupier.dashboards.formatting import MISSING, Rewards, count, share
from croupier.dashboards.glossary import meaning
from croupier.dashboards.layout import choose_loop, draw, small
from croupier.dashboards.settings import data_dir
from croupier.dashboards.studies import StudyUnreadableError, curves, read_study, studies

if TYPE_CHECKING:
    from croupier.dashboards.studies import Study

__all__ = ("show",)

_FOLDER: Final = "simulations"
_DRAWN: Final = 24
_GAP: Final = (
    *("session_value", "session_lower", "session_upper", "simulated_value", "simulated_sessions"),
    *("simulator_gap", "simulator_gap_lower", "simulator_gap_upper", "simulator_error"),
    "simulator_disagreement",
)


def show() -> None:
    """Draw the page."""
    st.title("Simulators")
    _gaps()
    st.header("Studies")
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


def _gaps() -> None:
    """What simulators of the users of a loop say of generations, beside what these earned."""
    version = data.generations_version()
    loops = data.loops_with_generations(version)
    if not loops:
        return
    loop = choose_loop(loops)
    st.header("Nights")
    st.subheader("How far are simulators of the users from the truth?", help=meaning("gap"))
    rows = data.generations(version, loop).drop_nulls("simulator_gap")
    if rows.is_empty():
        st.info(
            "The night measures it for a loop with sections `sessions` and `simulators`, once a "
            "generation has answered 30 sessions of 10 users."
        )
        return
    last = rows.row(-1, named=True)
    if last["simulators_err"]:
        st.warning(
            f"The simulators are off by more than they may be in what generation "
            f"{last['generation']} earns in a session (p = {last['simulator_p_value']:.2g})."
        )
    gaps = Rewards.for_widths(
        rows["simulator_gap_upper"] - rows["simulator_gap_lower"], signed=True
    )
    values = Rewards(gaps.decimals)
    drawn = rows.with_columns(
        label=pl.format("generation {}", "generation"),
        value="simulator_gap",
        lower="simulator_gap_lower",
        upper="simulator_gap_upper",
        shown=pl.col("simulator_gap").map_elements(gaps.value, pl.String),
        interval=gaps.intervals("simulator_gap_lower", "simulator_gap_upper").fill_null(MISSING),
        n=pl.col("simulated_sessions").map_elements(count, pl.String),
    )
    draw(
        interval_chart(
            drawn.tail(_DRAWN),
            "label",
            "Simulated less real return of a session",
            tooltips=[
                ("label", "Of"),
                ("shown", "Gap"),
                ("interval", "Interval"),
                ("n", "Sessions"),
            ],
            reference=0.0,
        ),
        "For every generation, the simulated return of a session less the real one, with an "
        "interval. The dashed line is no gap. The table below has the same figures.",
        rows.select("generation", *_GAP),
        "simulator_gap",
    )
    _gap_table(rows, values, gaps)


def _gap_table(rows: pl.DataFrame, values: Rewards, gaps: Rewards) -> None:
    plain = st.column_config.NumberColumn(format=f"%.{values.decimals}f")
    st.dataframe(
        rows.sort("generation", descending=True).select(
            pl.col("generation").alias("Generation"),
            pl.col("session_value").alias("Real return"),
            values.intervals("session_lower", "session_upper").alias("Real, interval"),
            pl.col("simulated_value").alias("Simulated return"),
            pl.col("simulator_gap").alias("Gap"),
            gaps.intervals("simulator_gap_lower", "simulator_gap_upper").alias("Gap, interval"),
            pl.col("simulator_error").alias("Error"),
            pl.col("simulator_disagreement").alias("Disagreement"),
            pl.col("simulated_sessions").alias("Sessions"),
        ),
        hide_index=True,
        placeholder=MISSING,
        column_config={
            "Generation": st.column_config.NumberColumn(format="%d"),
            "Real return": plain,
            "Simulated return": plain,
            "Gap": st.column_config.NumberColumn(format=f"%+.{gaps.decimals}f"),
            "Error": st.column_config.NumberColumn(
                format=f"%.{values.decimals}f",
                help="Root mean square of simulated less real over sessions; chance is part of it",
            ),
            "Disagreement": st.column_config.NumberColumn(
                format=f"%.{values.decimals}f",
                help="Standard deviation of the mean returns of the simulators, which are members "
                "of an ensemble",
            ),
            "Sessions": st.column_config.NumberColumn(
                format="localized",
                help="Held out: the simulators have learned from none of their users",
            ),
        },
    )
    small(
        [
            "Returns are sums of a session's rewards, as the application sends them.",
            "In intervals the sessions of one user count as one observation.",
        ]
    )


def _transfer(study: Study) -> None:
    st.subheader("What are policies worth to users that no simulator knew?")
    rows = study.results()
    rewards = Rewards.for_widths(rows["upper"] - rows["lower"])
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
            reference=study.optimum,
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
    # At level 0 are those that have trained with the truth, to be seen beside all others.
    levels = [str(each) for each in rows["level"].unique().sort().to_list() if each]
    if not levels:
        st.info("No policy was trained in simulators.")
        return
    left, _ = st.columns([1, 2])
    with left:
        chosen = choose_one("Level", levels, "level")
    mine = rows.filter(pl.col("level").is_in([0, int(chosen)])).sort(
        "level", descending=True, maintain_order=True
    )
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
