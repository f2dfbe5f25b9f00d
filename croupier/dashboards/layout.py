"""What pages have in common: the loop selector, and what to say when there is nothing to show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import streamlit as st

from croupier.dashboards.settings import data_dir
from croupier.offline.spill import missing_since

if TYPE_CHECKING:
    from collections.abc import Sequence

    import altair as alt
    import polars as pl

    from croupier.dashboards.data import LakeUnreadableError

__all__ = ("choose_loop", "draw", "show_empty", "show_unreadable", "small", "warn_of_spill")

_LOOP: Final = "loop"
"""Name of the query parameter that holds the chosen loop, and key of the selector."""

_SHOWN: Final = "loop_shown"
"""Key of the loop that was shown last: pages forget their widgets when people leave them."""


def choose_loop(loops: Sequence[str]) -> str:
    """Let people choose a loop; the choice stands in the address, so that it can be shared.

    Parameters
    ----------
    loops
        At least one; the first is chosen if the address names none, or one that is not there.
    """
    state, asked = st.session_state, st.query_params.get(_LOOP)
    shown = state.get(_SHOWN)
    if asked in loops and asked != shown:
        # A link was opened, or the browser went back.
        state[_LOOP] = asked
    elif state.get(_LOOP) not in loops:
        state[_LOOP] = shown if shown in loops else loops[0]
    selector, _ = st.columns([1, 2])
    chosen: str = selector.selectbox("Loop", loops, key=_LOOP)
    if asked is not None and asked not in loops:
        # The name is not repeated: an address is anyone's text, and this would render it.
        st.warning(f"The address names a loop that is not in this lake; this is “{chosen}”.")
    st.query_params[_LOOP] = state[_SHOWN] = chosen
    return chosen


def warn_of_spill() -> None:
    """Say so if the newest events are on a scorer's disk, where no page can see them."""
    since = missing_since(data_dir())
    if since is not None:
        st.warning(
            f"The log's cluster has been away since {since:%Y-%m-%d %H:%M} UTC. Decisions go on; "
            "those made since then wait on the scorers' disks, and aren't shown here yet."
        )


def draw(chart: alt.LayerChart, description: str, data: pl.DataFrame, name: str) -> None:
    """Draw a chart, with a button that downloads what it is made of.

    Parameters
    ----------
    chart
        In Altair.
    description
        What a screen reader says of it.
    data
        What it shows, without lists.
    name
        Of the file, without its ending; one of its own on a page.
    """
    # Streamlit's own theme writes axes in a grey of too little contrast.
    st.altair_chart(chart, theme=None, alt=description)
    st.download_button(
        "Download this chart's data",
        data.write_csv,
        file_name=f"{name}.csv",
        mime="text/csv",
        key=f"download_{name}",
        on_click="ignore",
        type="tertiary",
        icon=":material/download:",
    )


def small(lines: Sequence[str]) -> None:
    """Write lines of small print; a caption's grey would be too faint to read."""
    st.markdown("  \n".join(f":small[{line}]" for line in lines))


def show_empty(what: str) -> None:
    """Say that the lake has nothing for a page yet, and which command would fill it.

    Parameters
    ----------
    what
        That is missing, as the subject of a sentence in the plural.
    """
    st.info(f"**{what} will appear here after the first nightly run.**")
    st.markdown(
        "A nightly run joins decisions with their rewards, trains the next generation, judges it "
        "against the champion and records the result. To run it now:"
    )
    st.code("croupier nightly --config croupier.toml", language=None)
    st.markdown(
        "To look around without an application, run the demo. It fills a directory of its own and "
        "prints the command that opens the dashboard on it:"
    )
    st.code("croupier demo", language=None)
    small(["Reload this page when the nightly run has finished.", f"It reads `{data_dir()}`."])


def show_unreadable(error: LakeUnreadableError) -> None:
    """Say that the lake can't be read, what to check, and what the error was."""
    st.error("**The lake can't be read.**")
    st.markdown(
        f"- Check that the user who runs the dashboard may read `{error.root}`.\n"
        "- Check that the disk is there and not full.\n"
        "- If files are damaged, restore the directory from a backup, then run "
        "`croupier nightly --config croupier.toml`."
    )
    with st.expander("What exactly went wrong"):
        st.code(f"{type(error.cause).__name__}: {error.cause}", language=None, wrap_lines=True)
