"""Entry point of the dashboard, run by Streamlit: the pages and what they share.

Streamlit puts this folder on the module path, so no module in it may be named like one of the
standard library's.
"""

from __future__ import annotations

import streamlit as st

from croupier.dashboards import delays, generations, pairs
from croupier.dashboards.data import LakeUnreadableError
from croupier.dashboards.layout import show_unreadable, warn_of_spill

__all__ = ("main",)


def main() -> None:
    """Show the page that the address asks for."""
    st.set_page_config(page_title="Croupier", layout="wide")
    page = st.navigation(
        [
            st.Page(generations.show, title="Generations", url_path="generations", default=True),
            st.Page(delays.show, title="Delays", url_path="delays"),
            st.Page(pairs.show, title="Judge pairs", url_path="judge-pairs"),
        ]
    )
    warn_of_spill()
    try:
        page.run()
    except LakeUnreadableError as error:
        show_unreadable(error)


if __name__ == "__main__":
    main()
