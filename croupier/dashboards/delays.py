"""The page "Delays": how late outcomes come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.data import INTERVAL_LEVEL
from croupier.dashboards.delay_chart import delay_chart
from croupier.dashboards.formatting import count, duration, share
from croupier.dashboards.layout import choose_loop, draw, show_empty, small

if TYPE_CHECKING:
    from croupier.offline.delays import DelayCurve

__all__ = ("show",)

_DRAWN: Final = 200
_LISTED: Final = 20
_CARDS: Final = (
    ("Half have come by", 0.5),
    ("90 % have come by", 0.9),
    ("99 % have come by", 0.99),
)


def show() -> None:
    """Draw the page."""
    st.title("Delays")
    version = data.interactions_version()
    loops = data.loops_with_interactions(version)
    if not loops:
        show_empty("Delays")
        return
    curve = data.delays(version, choose_loop(loops))
    if not curve.outcomes:
        st.info("No outcome of this loop has been joined yet.")
    else:
        _headline(curve)
        st.subheader("Which share of the outcomes has come by a delay?")
        st.markdown(
            "Of recent decisions only fast outcomes can be known; the curve allows for it. What "
            "comes later than the oldest decision is old, nobody can know."
        )
        draw(
            delay_chart(curve.thinned(_DRAWN)),
            "The share of the outcomes that have come by a delay, with an interval. The table "
            "below has the same figures at fewer delays.",
            _figures(curve),
            "delays",
        )
        _table(curve.thinned(_LISTED))
    small(
        [
            f"The interval is a pointwise {INTERVAL_LEVEL} interval.",
            "A delay is that of a decision's first outcome; decisions of the last 180 days count.",
            f"Read from version {version} of the lake's table `interactions`.",
        ]
    )


def _headline(curve: DelayCurve) -> None:
    cards = [
        *((label, duration(curve.delay_of(part))) for label, part in _CARDS),
        ("Decisions with an outcome", count(curve.outcomes)),
    ]
    for column, (label, value) in zip(st.columns(len(cards)), cards, strict=True):
        with column.container(border=True, height="stretch", gap="xsmall"):
            st.metric(label, value)


def _figures(curve: DelayCurve) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "delay_s": curve.delays_s,
            "share": curve.share,
            "lower": curve.lower,
            "upper": curve.upper,
        }
    )


def _table(curve: DelayCurve) -> None:
    table = pl.DataFrame(
        {
            "Delay": [duration(each) for each in curve.delays_s],
            "Delay in s": curve.delays_s,
            "Share": [share(each) for each in curve.share],
            "Share, interval": [
                f"{share(lower)} to {share(upper)}"
                for lower, upper in zip(curve.lower, curve.upper, strict=True)
            ],
        }
    )
    st.dataframe(table, hide_index=True)
