"""Entry point of the dashboard, run by Streamlit: the pages and what they share.

Streamlit puts this folder on the module path, so no module in it may be named like one of the
standard library's.
"""

from __future__ import annotations

import streamlit as st

from croupier.dashboards import (
    actions,
    alerts,
    decision,
    delays,
    evaluation,
    fairness,
    generations,
    now,
    pairs,
    quality,
    simulators,
)
from croupier.dashboards.access import ask_for_admission, is_admitted
from croupier.dashboards.data import LakeUnreadableError
from croupier.dashboards.layout import show_unreadable, warn_of_spill

__all__ = ("main",)

# Streamlit marks what the keyboard has reached by a faint change of its background, or not at all.
_FOCUS = """<style>
:is(a, button, main, canvas, summary, [tabindex="0"]):focus-visible {
    outline: 2px solid #0072B2 !important; outline-offset: 2px;
}
main:focus-visible, canvas:focus-visible { outline-offset: -2px; }
</style>"""


def main() -> None:
    """Show the page that the address asks for, to people who may see it."""
    st.set_page_config(page_title="Croupier", layout="wide")
    st.html(_FOCUS)
    # First, as without it the address would be forgotten while a password is asked for.
    page = st.navigation(
        [
            st.Page(now.show, title="Now", url_path="now", default=True),
            st.Page(alerts.show, title="Alerts", url_path="alerts"),
            st.Page(generations.show, title="Generations", url_path="generations"),
            st.Page(evaluation.show, title="Off-policy evaluation", url_path="evaluation"),
            st.Page(actions.show, title="Actions and contexts", url_path="actions"),
            st.Page(fairness.show, title="Fairness audit", url_path="fairness"),
            st.Page(pairs.show, title="Judge pairs", url_path="judge-pairs"),
            st.Page(quality.show, title="Data quality", url_path="data-quality"),
            st.Page(delays.show, title="Delays", url_path="delays"),
            st.Page(decision.show, title="One decision", url_path="decision"),
            st.Page(simulators.show, title="Simulators", url_path="simulators"),
        ],
        position="sidebar" if is_admitted() else "hidden",
    )
    if not is_admitted():
        ask_for_admission()
        return
    warn_of_spill()
    try:
        page.run()
    except LakeUnreadableError as error:
        show_unreadable(error)


if __name__ == "__main__":
    main()
