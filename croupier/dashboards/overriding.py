"""Of the generations page: who may asks for another champion in spite of the gate, with a reason.

What is asked for goes to the scorer, which logs it as it logs all events. The batch side acts on
it; no page changes a champion.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final

import msgspec
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.access import may_override, viewer_name
from croupier.dashboards.formatting import moment
from croupier.dashboards.judgements import NotRecordedError, send
from croupier.dashboards.settings import settings
from croupier.offline.champions import earlier_champions
from croupier.offline.overrides import state_of
from croupier.policy.events import MAX_REASON_LENGTH, OverrideAction

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

    from croupier.offline.overrides import AskedOverride, OverrideState

__all__ = ("asked_happenings", "show_overriding")

_PROMOTE, _ROLL_BACK = "Promote a generation", "Roll back to an earlier champion"
_WORDS: Final[dict[OverrideState, str]] = {
    "waits": "it waits for the next night",
    "done": "it was done",
    "void": "nothing comes of it: the champion has changed, or somebody has asked for another one",
}
_REVIEWED: Final = "override_reviewed"
_SAID: Final = "override_said"
_WRONG: Final = "override_wrong"
_REASON: Final = "override_reason"
_WHAT: Final = "override_what"
_ID: Final = "override_id"
_WHICH: Final = "override_which"


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the scorer is told."""

    action: OverrideAction
    generation: int
    champion: int
    reason: str
    by: str
    override_id: str


def asked_happenings(asked: list[AskedOverride]) -> list[dict[str, Any]]:
    """What people have asked for, as the timeline tells it.

    Parameters
    ----------
    asked
        By time.
    """
    return [
        {"ts": each.ts, "what": f"Asked for: {_told(each)}", "by": each.by, "why": each.reason}
        for each in asked
    ]


def show_overriding(loop: str, rows: pl.DataFrame, champion: int | None) -> None:
    """Draw what was asked for last, and the form for whoever may ask.

    Parameters
    ----------
    loop
        Whose champion.
    rows
        Its rows of the generations table.
    champion
        Its number; None if nothing was promoted yet.
    """
    asked = data.overrides(loop)
    allowed = may_override()
    if not asked and not allowed:
        return
    st.subheader("Should another generation decide?")
    by_number = {row["generation"]: row for row in rows.to_dicts()}
    present = champion or 0
    if asked:
        last = asked[-1]
        state = state_of(last, by_number, present, last=True)
        st.markdown(
            f"{last.by} asked, {moment(last.ts)}: {_told(last)}; {_WORDS[state]}. "
            "Reason below, in the timeline."
        )
    if allowed:
        _form(loop, by_number, present)


def _told(each: AskedOverride) -> str:
    word = "promote" if each.action == "promote" else "roll back to"
    return f"{word} generation {each.generation} in the place of {each.champion}"


def _form(loop: str, rows: Mapping[int, Mapping[str, Any]], champion: int) -> None:
    state = st.session_state
    if state.get(_WRONG):
        st.error(f"**Not recorded:** {state[_WRONG]}.")
    elif state.get(_SAID):
        st.success(state[_SAID])
    promotable = sorted((each for each in rows if each not in {0, champion}), reverse=True)
    earlier = earlier_champions(rows, champion)
    ways = {_PROMOTE: promotable, _ROLL_BACK: earlier}
    open_ways = [way for way, numbers in ways.items() if numbers]
    if not open_ways:
        st.info("There is no other generation.")
        return
    what, which = st.columns(2)
    chosen = what.selectbox("What", open_ways, key=_WHAT, on_change=_forget)
    number = which.selectbox("Generation", ways[chosen], key=_WHICH, on_change=_forget)
    reason = st.text_input(
        "Why", key=_REASON, max_chars=MAX_REASON_LENGTH, help="It is logged with your name."
    ).strip()
    asked = _Asked(
        action="promote" if chosen == _PROMOTE else "rollback",
        generation=number,
        champion=champion,
        reason=reason,
        by=viewer_name() or "",
        override_id=str(state.get(_ID) or ""),
    )
    if not state.get(_REVIEWED):
        st.button("Review", on_click=_review, disabled=not reason, key="override_review")
        if not reason:
            st.markdown(":small[Say why to go on.]")
        return
    st.warning(_consequence(asked, rows.get(number, {})))
    yes, no, _ = st.columns([1, 1, 2])
    yes.button(
        "Record the override",
        on_click=_record,
        args=(loop, asked),
        type="primary",
        key="override_record",
        width="stretch",
    )
    no.button("Cancel", on_click=_forget, key="override_cancel", width="stretch")


def _consequence(asked: _Asked, row: Mapping[str, Any]) -> str:
    verdict = row.get("verdict")
    held = f" Of it the gate said: {verdict}." if asked.action == "promote" and verdict else ""
    word = "becomes champion" if asked.action == "promote" else "becomes champion again"
    return (
        f"**Generation {asked.generation} {word} in the place of {asked.champion}**, recorded as "
        f"an override by {asked.by}: {asked.reason}.{held}\n\n"
        "It takes effect with the next night, or once somebody runs `croupier sink` and `croupier "
        "overrides --act`; scorers then pick it up within their polling interval. Nothing comes of "
        "it if another generation is promoted before that."
    )


def _review() -> None:
    state = st.session_state
    state[_REVIEWED], state[_SAID], state[_WRONG] = True, None, None
    # What is sent again, because nobody knows whether it came, has the same id.
    state[_ID] = str(uuid.uuid4())


def _forget() -> None:
    st.session_state[_REVIEWED] = False


def _record(loop: str, asked: _Asked) -> None:
    state = st.session_state
    # The button may have been drawn before the right was taken away.
    if not may_override() or viewer_name() != asked.by:
        state[_WRONG] = "you may not override the gate"
        return
    try:
        send(settings(), loop, "override", msgspec.json.encode(asked), scope="override")
    except NotRecordedError as error:
        state[_WRONG] = str(error)
        return
    state[_REVIEWED], state[_WRONG] = False, None
    state[_SAID] = "The override is recorded; the next sink brings it here, the next night acts."
    state[_REASON] = ""
