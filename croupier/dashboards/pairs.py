"""The page "Judge pairs": a person says how differently two decisions may be treated."""

from __future__ import annotations

import secrets
import uuid
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.access import require_features
from croupier.dashboards.formatting import MISSING
from croupier.dashboards.judgements import NotRecordedError, Verdict, send_verdict
from croupier.dashboards.layout import choose_loop, small
from croupier.dashboards.settings import settings
from croupier.offline.fairness.pair_audit import rows_beside
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.fairness.config import LearnedDistance, Person
from croupier.policy.fairness.judging import ALIKE, NOT_ALIKE

if TYPE_CHECKING:
    from croupier.offline.fairness.pair_audit import AuditedPair
    from croupier.policy.fairness.config import IndividualFairness

__all__ = ("show",)

# Kept as long as the browser's tab is.
_SEED: Final = "pairs_seed"
_PLACE: Final = "pairs_place"
_DONE: Final = "pairs_done"
_SAID: Final = "pairs_said"
_WRONG: Final = "pairs_wrong"
_AUDITOR: Final = "pairs_auditor"
_DISTANCE: Final = "pairs_distance"


def show() -> None:
    """Draw the page."""
    st.title("Judge pairs")
    if not require_features():
        return
    told = settings()
    if not told.judged:
        _show_unconfigured()
        return
    loop = choose_loop(sorted(told.judged))
    config = told.judged[loop]
    st.markdown(
        "You are shown two decisions that the policy treats differently, chosen so that your "
        "answer tells most. **How differently may these two be treated?** At 0 they are alike and "
        "have to be treated alike; at 1 nothing speaks against any difference."
    )
    name, _ = st.columns([1, 2])
    name.text_input("Your name", key=_AUDITOR, max_chars=256, help="Judgements are logged with it.")
    _remind(config)
    pair = _next_pair(loop, config)
    if pair is None:
        return
    _show_pair(pair)
    _ask(loop, pair)
    _tell_standing(loop)


def _next_pair(loop: str, config: IndividualFairness) -> AuditedPair | None:
    """The first of the proposed pairs that hasn't been dealt with in this tab."""
    state = st.session_state
    state.setdefault(_SEED, secrets.randbits(31))
    state.setdefault(_PLACE, 0)
    done: set[tuple[str, ...]] = state.setdefault(_DONE, set())
    try:
        for _ in range(2):
            pairs = data.proposed(loop, config, state[_SEED] + state[_PLACE])
            left = [pair for pair in pairs if _key(loop, pair) not in done]
            if left:
                return left[0]
            # All of these are dealt with: others come from another sample of the decisions.
            state[_PLACE] += 1
    except (NotEnoughDataError, InvalidInputError) as error:
        st.info(f"There are no pairs to judge yet: {error}.")
        return None
    st.success("No other pair is treated differently enough to be judged.")
    _tell_standing(loop)
    return None


def _show_pair(pair: AuditedPair) -> None:
    rows = [
        {
            "": name,
            "First": _shown(one),
            "Second": _shown(two),
            "Differs": "≠" if one != two else "",
        }
        for name, one, two in rows_beside(pair.first, pair.second)
    ]
    # What differs is what there is to judge.
    rows.sort(key=lambda row: row["Differs"] == "")
    st.table(pl.DataFrame(rows))
    first, second = pair.first.decision_id, pair.second.decision_id
    gap = f"their treatment differs by {pair.gap:.3f}"
    small([f"First is decision `{first}`, second `{second}`; {gap}."])


def _ask(loop: str, pair: AuditedPair) -> None:
    state = st.session_state
    if state.get(_WRONG):
        st.error(f"**Not recorded:** {state[_WRONG]}. Your answer is still here; try again.")
    elif state.get(_SAID):
        st.success(state[_SAID])
    alike, not_alike, skip = st.columns(3)
    unnamed = not state.get(_AUDITOR, "").strip()
    alike.button(
        "They are alike (0)",
        on_click=_record,
        args=(loop, pair, ALIKE),
        disabled=unnamed,
        width="stretch",
    )
    not_alike.button(
        "They are not alike (1)",
        on_click=_record,
        args=(loop, pair, NOT_ALIKE),
        disabled=unnamed,
        width="stretch",
    )
    skip.button("Skip this pair", on_click=_skip, args=(loop, pair), width="stretch")
    st.slider("Or something between", 0.0, 1.0, 0.3, 0.05, key=_DISTANCE)
    st.button(
        f"They may differ by {state[_DISTANCE]:.2f}",
        on_click=_record,
        args=(loop, pair, None),
        disabled=unnamed,
    )
    if unnamed:
        small(["Give your name to judge."])


def _record(loop: str, pair: AuditedPair, distance: float | None) -> None:
    state = st.session_state
    said = float(state[_DISTANCE]) if distance is None else distance
    auditor = state[_AUDITOR].strip()
    # To give the same answer again, when it may not have been recorded, can't count twice.
    answer = repr((state[_SEED], _key(loop, pair), auditor, said))
    verdict = Verdict(
        decision_id=pair.first.decision_id,
        other_decision_id=pair.second.decision_id,
        auditor=auditor,
        distance=said,
        judgement_id=str(uuid.uuid5(uuid.NAMESPACE_OID, answer)),
    )
    try:
        send_verdict(settings(), loop, verdict)
    except NotRecordedError as error:
        state[_WRONG] = str(error)
        return
    state[_SAID] = (
        f"Recorded for `{verdict.decision_id}` and `{verdict.other_decision_id}`: they may be "
        f"treated differently by {said:g} (judgement {verdict.judgement_id})."
    )
    _leave(loop, pair)


def _skip(loop: str, pair: AuditedPair) -> None:
    st.session_state[_SAID] = "Skipped."
    _leave(loop, pair)


def _leave(loop: str, pair: AuditedPair) -> None:
    state = st.session_state
    state[_DONE] = state[_DONE] | {_key(loop, pair)}
    state[_WRONG] = None


def _key(loop: str, pair: AuditedPair) -> tuple[str, ...]:
    return (loop, *sorted((pair.first.decision_id, pair.second.decision_id)))


def _remind(config: IndividualFairness) -> None:
    """Tell whose judgements an auditor of the panel makes use of."""
    named: set[str] = set()
    for auditor in config.auditors.values():
        match auditor:
            case LearnedDistance():
                people = auditor.people
            case Person():
                people = () if auditor.name is None else (auditor.name,)
            case _:
                continue
        if not people:
            return
        named |= set(people)
    if not named:
        small(["No auditor of this loop learns from people; judgements are kept all the same."])
        return
    small([f"The panel listens to {', '.join(sorted(named))}."])


def _tell_standing(loop: str) -> None:
    counts = data.judgements(loop)
    if counts.is_empty():
        small(["No judgement of this loop is in the lake yet; they come with the next sink."])
        return
    st.subheader("Who has judged how many pairs?")
    st.table(counts)
    small(["As of the last sink. The nightly audit and the gate use them from then on."])


def _shown(value: Any) -> str:
    if value is None:
        return MISSING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _show_unconfigured() -> None:
    st.info("**No loop of this dashboard has auditors.**")
    st.markdown("Say in the configuration who judges, and start the dashboard with it:")
    st.code(
        "[loops.loans.individual_fairness]\n"
        'action = "approve"\n\n'
        "[loops.loans.individual_fairness.auditors.board]\n"
        'type = "learned"\n'
        'features = ["income", "city"]',
        language=None,
    )
    st.code("croupier dashboard --config croupier.toml", language=None)
