"""The page "One decision": what was asked, what was drawn and why, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.access import may_see_features
from croupier.dashboards.formatting import MISSING, duration, moment, share
from croupier.dashboards.glossary import meaning
from croupier.dashboards.layout import choose_loop, show_empty, small
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from croupier.offline.one_decision import FoundDecision

__all__ = ("show",)

_ID: Final = "id"
_SOURCES: Final = {
    "observed": "its outcome came within the window",
    "late": "its outcome came after the window",
    "revised": "outcomes came within the window and after it",
    "default": "no outcome came: it got the default reward",
}


def show() -> None:
    """Draw the page."""
    st.title("One decision")
    version = data.interactions_version()
    loops = data.loops_with_decisions()
    if not loops:
        show_empty("Decisions")
        return
    loop = choose_loop(loops)
    asked = st.text_input(
        "Decision id",
        key=_ID,
        bind="query-params",
        max_chars=256,
        placeholder="as the application sent it, or got it",
    )
    if not asked:
        st.info("Enter the id of a decision to see all that the lake has of it.")
        small([f"Of loop {loop}; version {version} of the lake's table `interactions`."])
        return
    try:
        found = data.decision(loop, str(asked).strip())
    except InvalidInputError as error:
        st.warning(str(error))
        return
    if found is None:
        st.warning("The lake has no decision of that id in this loop.")
        small(
            [
                "It may be in another loop, not sunk yet, or forgotten by the loop's retention.",
                "Of a subsampled log, it may not have been kept.",
            ]
        )
        return
    _show_found(found)
    small([f"Read from version {version} of the lake's table `interactions`."])


def _show_found(found: FoundDecision) -> None:
    for row in found.decisions:
        slot = "" if row["slot"] is None else f" · slot {row['slot']}"
        if len(found.decisions) > 1:
            st.header(f"Drawn: {row['action_id']}{slot}")
        _headline(row)
        _actions(row)
    _request(found.decisions[0])
    _outcomes(found)
    _learning(found)


def _headline(row: dict[str, Any]) -> None:
    generation = "an imported log" if row["generation"] is None else str(row["generation"])
    baseline, made = row["chosen"] == row["baseline"], moment(row["ts"])
    cards = (
        ("Action", str(row["action_id"]), "the baseline's choice too" if baseline else ""),
        ("Propensity", f"{row['propensity']:.4g}", "its probability of being drawn"),
        ("Generation", generation, f"learning mode {row['learning_mode'] or MISSING}"),
        ("Made", made[:10], f"{made[11:]}, kept with probability {row['keep_prob']:g}"),
    )
    terms = ("action", "propensity", "generation", None)
    columns = st.columns(len(cards))
    for column, (label, value, note), term in zip(columns, cards, terms, strict=True):
        with column.container(border=True, height="stretch", gap="xsmall"):
            st.metric(label, value, help=None if term is None else meaning(term))
            small([note])


def _actions(row: dict[str, Any]) -> None:
    st.subheader("Which action was how likely?", help=meaning("pmf", "score"))
    excluded = set(row["excluded"] or ())
    scores, pmf = row["scores"] or [], row["pmf"] or []
    rows = []
    for place, name in enumerate(row["action_ids"] or []):
        notes = [
            word
            for word, there in (
                ("drawn", place == row["chosen"]),
                ("baseline", place == row["baseline"]),
                ("excluded", name in excluded),
            )
            if there
        ]
        rows.append(
            {
                "Action": name,
                "Score": scores[place] if place < len(scores) else None,
                "Probability": pmf[place] if place < len(pmf) else None,
                "": ", ".join(notes),
            }
        )
    table = pl.DataFrame(
        rows,
        schema={"Action": pl.String, "Score": pl.Float64, "Probability": pl.Float64, "": pl.String},
    ).sort("Probability", descending=True, nulls_last=True)
    st.dataframe(
        table,
        hide_index=True,
        placeholder=MISSING,
        column_config={
            "Score": st.column_config.NumberColumn(format="%.4f", help=meaning("score")),
            "Probability": st.column_config.NumberColumn(format="%.4f"),
        },
    )
    mix = ", ".join(f"{each['source']} {share(each['weight'])}" for each in row["mix"] or [])
    small(
        [
            f"Mixed of: {mix or MISSING}.",
            f"Draw key `{row['draw_key'] or MISSING}`: `croupier audit` makes the same draw again.",
        ]
    )


def _request(row: dict[str, Any]) -> None:
    st.subheader("What was asked?")
    if not may_see_features():
        st.info("You may not see features of single decisions.")
        return
    context, actions, audit = (
        None if row[name] is None else msgspec.json.decode(row[name])
        for name in ("context", "actions", "audit")
    )
    left, right = st.columns(2)
    with left:
        st.markdown("**Context**")
        st.json(context or {}, expanded=2)
        if audit:
            st.markdown("**Audit attributes**, which are never features")
            st.json(audit, expanded=2)
    with right:
        st.markdown("**Actions**")
        st.json(actions or [], expanded=1)


def _outcomes(found: FoundDecision) -> None:
    st.subheader("What became of it?", help=meaning("outcome", "interaction"))
    if found.outcomes:
        made = found.decisions[0]["ts"]
        st.dataframe(
            pl.DataFrame(
                [
                    {
                        "Kind": row["kind"],
                        "Reward": row["reward"],
                        "Slot": row["slot"],
                        "Came": moment(row["ts"]),
                        "After": _after(made, row["ts"]),
                        "Outcome id": row["outcome_id"],
                    }
                    for row in found.outcomes
                ],
                infer_schema_length=None,
            ),
            hide_index=True,
            placeholder=MISSING,
        )
    else:
        st.markdown("No outcome has come.")
    if not found.interactions:
        st.markdown("It is **not joined yet**: its window is open, or no join has run since.")
    for row in found.interactions:
        again = f" (revision {row['revision']})" if row["revision"] else ""
        slot = "" if row["slot"] is None else f" in slot {row['slot']}"
        source = _SOURCES.get(row["reward_source"], row["reward_source"])
        st.markdown(f"Its reward{slot} is **{row['reward']:g}**: {source}{again}.")


def _after(made: Any, came: Any) -> str:
    if made is None or came is None:
        return MISSING
    return duration(max((came - made).total_seconds(), 0.0))


def _learning(found: FoundDecision) -> None:
    st.subheader("How did it enter training?", help=meaning("oracle", "generation"))
    if not found.interactions:
        st.markdown("Only joined decisions are learned from.")
        return
    row = found.interactions[-1]
    version = data.generations_version()
    rows = data.generations(version, found.loop) if version >= 0 else pl.DataFrame()
    shares = [] if rows.is_empty() else rows.drop_nulls("judge_share")["judge_share"].to_list()
    if not shares:
        st.markdown("No generation has been trained yet.")
        return
    if found.judges(shares[-1]):
        st.markdown(
            f"It is on fold {row['fold']} of 1000, one of those that **judge** generations. None "
            "is trained on it."
        )
        return
    later = rows.filter(pl.col("created") > row["ts"], pl.col("training_rows") > 0)["generation"]
    numbers = ", ".join(map(str, later.to_list()[:10]))
    weight = f"It counts 1 / keep_prob = {1 / row['keep_prob']:g} decisions."
    if not len(later):
        st.markdown(f"It is on fold {row['fold']} of 1000, a **learner's**: the next one's.")
        return
    st.markdown(
        f"It is on fold {row['fold']} of 1000, a **learner's**. Generations trained after it: "
        f"{numbers}{' …' if len(later) > 10 else ''}, as far as their window reaches back. "
        f"{weight}"
    )
