"""The filters that pages share; each stands in the address, so that a view can be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.formatting import moment
from croupier.dashboards.glossary import meaning
from croupier.dashboards.layout import choose_loop, show_empty, small

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = (
    "by_generation",
    "choose_one",
    "choose_period",
    "loop_of_page",
    "moment_of_us",
    "remark_source",
)

_PERIODS: Final[dict[str, int | None]] = {
    "Last day": 1,
    "Last 7 days": 7,
    "Last 30 days": 30,
    "Last 90 days": 90,
    "All days": None,
}
_ALL: Final = "All"


def loop_of_page(what: str) -> str | None:
    """Let people choose one of the loops that a night has summed up.

    Parameters
    ----------
    what
        The page shows, as the subject of a sentence in the plural, for when there is nothing yet.
    """
    loops = data.summarised_loops()
    if not loops:
        show_empty(what)
        return None
    return choose_loop(loops)


def choose_period() -> int | None:
    """How many of the latest days are shown; None for all."""
    chosen = st.selectbox(
        "Period",
        list(_PERIODS),
        index=2,
        key="period",
        bind="query-params",
        help="Days are those of UTC, back from the latest one that the lake has.",
    )
    return _PERIODS.get(str(chosen), 30)


def by_generation(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of the generation that people choose: all, or one of those in the rows."""
    numbers = rows["generation"].drop_nulls().unique().sort(descending=True).to_list()
    chosen = choose_one("Generation", [_ALL, *map(str, numbers)], "generation", term="generation")
    return rows if chosen == _ALL else rows.filter(pl.col("generation") == int(chosen))


def choose_one(label: str, options: Sequence[str], key: str, *, term: str | None = None) -> str:
    """One of some options, which the address names.

    Parameters
    ----------
    label, options
        At least one; the first unless another is chosen.
    key
        Its name in the address.
    term
        Of the glossary, to be explained.
    """
    chosen = st.selectbox(
        label,
        list(options),
        key=key,
        bind="query-params",
        help=None if term is None else meaning(term),
    )
    return str(chosen) if chosen in options else options[0]


def remark_source(loop: str, *lines: str) -> None:
    """Say what a page was made of, in small print."""
    state = data.summary_state(loop)
    made = "" if state is None else f" {moment_of_us(state.made)}"
    until = None if state is None else state.joined_until
    joined = [] if until is None else [f"Windows that closed before {moment_of_us(until)} count."]
    small([*lines, *joined, f"Read from the tables of the night of{made}."])


def moment_of_us(ts_us: int) -> str:
    """A time in microseconds since the epoch, where the viewer is."""
    return moment(pl.Series([ts_us]).cast(pl.Datetime("us", "UTC")).item())
