"""The page "Alerts": what the rules of nights and scorers have found, and who has seen it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.access import viewer_name
from croupier.dashboards.acknowledging import acknowledge
from croupier.dashboards.filters import loop_of_page, moment_of_us, remark_source
from croupier.dashboards.formatting import MISSING, moment, viewer_zone
from croupier.dashboards.judgements import NotRecordedError
from croupier.dashboards.layout import small
from croupier.dashboards.settings import settings
from croupier.offline.summaries.tables import SCORERS

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ("show",)

_NAME: Final = "alerts_name"
_SAID: Final = "alerts_said"
_WRONG: Final = "alerts_wrong"


def show() -> None:
    """Draw the page."""
    st.title("Alerts")
    loop = loop_of_page("Alerts of the nights")
    names = [SCORERS] if loop is None else [loop, SCORERS]
    rows = pl.concat([data.summary(each, "alerts") for each in names])
    rows = rows.sort("first", descending=True)
    seen = data.acknowledged()
    open_ = rows.filter(pl.col("closed").is_null())
    st.subheader("What is open?")
    _told()
    if open_.is_empty():
        st.success("No rule has anything to say.")
    elif loop is not None:
        _name()
    for row in open_.to_dicts():
        _alert(loop, row, seen.get(row["alert_id"]))
    _past(rows.filter(pl.col("closed").is_not_null()), seen)
    small([_looked()])
    if loop is not None:
        remark_source(
            loop,
            "Each night opens and closes its alerts by the rules of `[nightly.alerts]`.",
        )


def _looked() -> str:
    state = data.summary_state(SCORERS)
    rules = "Alerts of the scorers are of all loops, by the rules of `[alerts]`"
    if state is None:
        return f"{rules}. Nobody watches the scorers: `croupier watch` does."
    return f"{rules}; `croupier watch` has last looked {moment_of_us(state.made)}."


def _told() -> None:
    state = st.session_state
    if state.get(_WRONG):
        st.error(f"**Not recorded:** {state[_WRONG]}.")
    elif state.get(_SAID):
        st.success(state[_SAID])


def _name() -> None:
    """Who acknowledges: the proxy says so, or the person does."""
    known = viewer_name()
    if known is not None:
        st.session_state[_NAME] = known
        return
    field, _ = st.columns([1, 2])
    field.text_input("Your name", key=_NAME, max_chars=256, help="It is logged with what you do.")


def _alert(loop: str | None, row: dict[str, Any], seen: tuple[str, datetime] | None) -> None:
    with st.container(border=True):
        mark = ":material/error:" if row["severity"] == "critical" else ":material/warning:"
        st.markdown(f"{mark} **{row['title']}**  \n{row['told']} [Look]({row['page'] or '.'})")
        st.markdown(f":small[Open since {moment(row['first'])}.]")
        if seen is not None:
            st.markdown(f":material/check: Acknowledged by {seen[0]}, {moment(seen[1])}.")
            return
        if loop is None:
            # The service takes what people do of a loop, and this page knows of none yet.
            st.markdown(":small[It can be acknowledged here after the first night.]")
            return
        named = str(st.session_state.get(_NAME) or "").strip()
        st.button(
            "Acknowledge",
            key=f"acknowledge_{row['alert_id']}",
            on_click=_record,
            args=(loop, str(row["alert_id"]), str(row["title"])),
            disabled=not named,
        )
        if not named:
            st.markdown(":small[Give your name to acknowledge it.]")


def _record(loop: str, alert_id: str, title: str) -> None:
    state = st.session_state
    try:
        acknowledge(settings(), loop, alert_id, str(state[_NAME]).strip())
    except NotRecordedError as error:
        state[_WRONG] = str(error)
        return
    state[_WRONG], state[_SAID] = None, f"“{title}” is acknowledged; the next sink brings it here."


def _past(rows: pl.DataFrame, seen: dict[str, tuple[str, datetime]]) -> None:
    st.subheader("What was?")
    if rows.is_empty():
        st.info("No alert has been closed yet.")
        return
    zone = str(viewer_zone())
    table = rows.select(
        pl.col("title").alias("Alert"),
        pl.col("told").alias("Told"),
        *(
            pl.col(name).dt.convert_time_zone(zone).dt.replace_time_zone(None).alias(title)
            for name, title in (("first", "Opened"), ("closed", "Closed"))
        ),
        pl.Series(
            "Acknowledged by",
            [seen[each][0] if each in seen else MISSING for each in rows["alert_id"]],
            dtype=pl.String,
        ),
    )
    time = st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm")
    st.dataframe(
        table,
        hide_index=True,
        column_config={
            "Told": st.column_config.TextColumn(width="large"),
            "Opened": time,
            "Closed": time,
        },
    )
