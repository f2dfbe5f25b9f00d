"""What pages have in common: the loop selector, and what to say when there is nothing to show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import streamlit as st

from croupier.dashboards.data import data_dir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.dashboards.data import LakeUnreadableError

__all__ = ("choose_loop", "show_empty", "show_unreadable")

_LOOP: Final = "loop"
"""Key of the selector, and so the name of the query parameter that holds the choice."""


def choose_loop(loops: Sequence[str]) -> str:
    """Let people choose a loop; the choice stands in the address, so that it can be shared.

    Parameters
    ----------
    loops
        At least one; the first is chosen if the address names none, or one that is not there.
    """
    asked = st.query_params.get(_LOOP)
    if asked is not None and asked not in loops:
        st.warning(f"There is no loop named “{asked}” here; showing “{loops[0]}” instead.")
    if asked not in loops and st.session_state.get(_LOOP) not in loops:
        st.session_state[_LOOP] = loops[0]
    # A selector with a default would leave that one out of the address: what is shared would
    # then show another loop as soon as one is added before it.
    chosen = st.selectbox(
        "Loop", loops, index=None, key=_LOOP, bind="query-params", required=True, width=320
    )
    return loops[0] if chosen is None else chosen


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
    st.code("croupier nightly --config croupier.toml", language="shell")
    st.markdown("To look around without an application, let simulated users fill a lake:")
    st.code("croupier demo", language="shell")
    st.caption(f"This dashboard reads `{data_dir()}`. Reload the page once a command has finished.")


def show_unreadable(error: LakeUnreadableError) -> None:
    """Say that the lake can't be read, what to check, and what the error was."""
    st.error("**The lake can't be read.** Nothing on this page is up to date.")
    st.markdown(
        f"- Check that the user who runs the dashboard may read `{error.root}`.\n"
        "- Check that the disk is there and not full.\n"
        "- If files are damaged, restore the directory from a backup, then run "
        "`croupier nightly --config croupier.toml`."
    )
    with st.expander("What went wrong, for a bug report"):
        st.code(f"{type(error.cause).__name__}: {error.cause}", language=None, wrap_lines=True)
