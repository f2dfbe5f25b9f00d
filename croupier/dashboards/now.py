"""The page "Now": is everything well, and what needs attention first?"""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import streamlit as st

from croupier.dashboards import data
from croupier.dashboards.attention import Trouble, of_nights, of_scorer
from croupier.dashboards.charts import line_chart
from croupier.dashboards.data import INTERVAL_LEVEL
from croupier.dashboards.figures import mean_columns
from croupier.dashboards.filters import loop_of_page, moment_of_us, remark_source
from croupier.dashboards.formatting import MISSING, Rewards, count, duration, moment, share
from croupier.dashboards.glossary import meaning
from croupier.dashboards.layout import draw, small
from croupier.dashboards.settings import judge_key, settings
from croupier.offline.scrapes import Live, Scrape, ScrapeFailedError, live, scrape
from croupier.offline.summaries.tables import SCORERS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("show",)

_EVERY_S: Final = 10
_KEPT: Final = 31
"""Readings, so that rates are those of the last five minutes."""

_HOURS: Final = 72
_FEW: Final = 20


def show() -> None:
    """Draw the page."""
    st.title("Now")
    loop = loop_of_page("Decisions")
    if loop is None:
        return
    _now(loop)
    _served(loop)
    _hours(loop)
    remark_source(loop, f"All intervals are {INTERVAL_LEVEL} intervals.")


@st.fragment(run_every=_EVERY_S)
def _now(loop: str) -> None:
    readings, failure = _readings()
    found = [_unreachable(failure)] if failure is not None else []
    now: Live | None = None
    if readings:
        now = live(list(readings))
        found += of_scorer(loop, readings[-1], now, slow_s=settings().slow_s)
    nights = data.summary(loop, "nights").sort("started").to_dicts()
    found += of_nights(nights, datetime.now(tz=UTC))
    found += _alerts(loop)
    _attention(found)
    _cards(loop, readings[-1] if readings else None, now, nights)


def _readings() -> tuple[deque[Scrape], ScrapeFailedError | None]:
    """The latest readings of the scorer, one more than before, and why there is none."""
    address = settings().service
    if address is None:
        return deque(), ScrapeFailedError("this dashboard knows no scorer: start it with --service")
    history = _history(address)
    at = time.monotonic()
    if history and at - history[-1].at < _EVERY_S / 2:
        # Another viewer has just asked.
        return history, None
    try:
        history.append(scrape(address, key=judge_key(), at=at))
    except ScrapeFailedError as error:
        history.clear()
        return history, error
    return history, None


@st.cache_resource
def _history(address: str) -> deque[Scrape]:  # noqa: ARG001 - a key
    """All viewers share what was read of a scorer."""
    return deque(maxlen=_KEPT)


def _unreachable(error: ScrapeFailedError) -> Trouble:
    return Trouble(weight="critical", title="The scorer can't be asked", told=f"{error}.")


def _alerts(loop: str) -> list[Trouble]:
    rows = pl.concat([data.summary(each, "alerts") for each in (loop, SCORERS)])
    known = data.acknowledged()
    return [
        Trouble(
            weight=row["severity"],
            title=row["title"],
            told=f"{row['told']} Since {moment(row['first'])}.",
            page=("Alerts", "alerts"),
        )
        for row in rows.filter(pl.col("closed").is_null()).to_dicts()
        if row["alert_id"] not in known and row["rule"] != "night"
    ]


def _attention(found: Sequence[Trouble]) -> None:
    st.subheader("What needs attention first?")
    if not found:
        st.success("Nothing does.")
    for each in sorted(found, key=lambda trouble: trouble.weight):
        link = "" if each.page is None else f" [{each.page[0]}]({each.page[1]})"
        text = f"**{each.title}.** {each.told}{link}"
        (st.error if each.weight == "critical" else st.warning)(text)


def _cards(
    loop: str, last: Scrape | None, now: Live | None, nights: Sequence[dict[str, Any]]
) -> None:
    st.subheader("Is everything well?")
    served = None if last is None else last.readiness.loops.get(loop)
    gauges = {} if last is None else last.gauges
    span = None if now is None or now.seconds is None else duration(now.seconds)
    over = "rates come with the next look" if span is None else f"over the last {span}"
    first = (
        (
            "Scorer",
            MISSING if last is None else last.readiness.status,
            MISSING if last is None else f"registry: {last.readiness.registry}",
            None,
        ),
        (
            "Generation",
            MISSING if served is None else _generation(served.generation),
            _traffic(served),
            "generation",
        ),
        ("Decisions a minute", _rate(now, loop, "decisions"), over, "decision"),
        ("Outcomes a minute", _rate(now, loop, "outcomes"), over, "outcome"),
        (
            "99 % of requests in",
            MISSING if now is None or now.p99_s is None else duration_ms(now.p99_s),
            _median(now),
            None,
        ),
    )
    state = data.summary_state(loop)
    until = None if state is None else state.joined_until
    second = (
        (
            "Log",
            MISSING if last is None else last.readiness.log,
            f"{count(gauges.get('croupier_log_queue_depth'))} records wait",
            None,
        ),
        (
            "Broker lag",
            count(gauges.get("croupier_stream_lag")),
            "requests in Kafka without an answer",
            None,
        ),
        (
            "Played the baseline",
            MISSING
            if now is None or loop not in now.baseline_share
            else share(now.baseline_share[loop]),
            "of the decisions, as there was nothing better",
            "baseline",
        ),
        (
            "Sunk last night",
            count(nights[-1]["sunk_decisions"]) if nights else MISSING,
            f"decisions, {moment(nights[-1]['started'])}" if nights else "no night yet",
            None,
        ),
        (
            "Joined last night",
            count(nights[-1]["joined"]) if nights else MISSING,
            "no join yet" if until is None else f"windows up to {moment_of_us(until)}",
            "interaction",
        ),
    )
    for cards in (first, second):
        for column, (label, value, note, term) in zip(st.columns(len(cards)), cards, strict=True):
            with column.container(border=True, height="stretch", gap="xsmall"):
                st.metric(label, value, help=None if term is None else meaning(term))
                small([note])


def duration_ms(seconds: float) -> str:
    """A latency."""
    return f"{1e3 * seconds:,.3g} ms"


def _generation(number: int | None) -> str:
    return "none" if number is None else str(number)


def _traffic(served: Any) -> str:
    if served is None:
        return MISSING
    if served.killed is not None:
        return "the kill switch is on"
    if served.canary is not None:
        return f"canary {served.canary} gets {share(served.canary_share)}"
    return "all of the traffic"


def _median(now: Live | None) -> str:
    if now is None or now.p50_s is None:
        return "no decision was asked for yet"
    return f"median {duration_ms(now.p50_s)}, of {count(now.requests)} requests"


def _rate(now: Live | None, loop: str, what: str) -> str:
    if now is None or now.seconds is None:
        return MISSING
    rates = now.decisions_per_minute if what == "decisions" else now.outcomes_per_minute
    return f"{rates.get(loop, 0.0):,.4g}"


def _served(loop: str) -> None:
    days = data.summary(loop, "hours").drop_nulls("date")
    if days.is_empty():
        return
    last = days.filter(pl.col("date") == pl.col("date").max())
    decided, baseline = int(last["decisions"].sum()), int(last["baseline"].sum())
    st.markdown(
        f"On the latest day in the lake, {last['date'].to_list()[0]}, **{count(decided)}** "
        f"decisions were made, and **{share(baseline / decided) if decided else MISSING}** of them "
        "chose what the application would have."
    )


def _hours(loop: str) -> None:
    rows = (
        data.summary(loop, "hours")
        .drop_nulls("hour")
        .group_by("hour")
        .agg(pl.col("decisions", "joined", "reward_sum", "reward_squares").sum())
        .sort("hour")
        .tail(_HOURS)
        .with_columns(*mean_columns())
    )
    if rows.is_empty():
        return
    st.subheader("How many decisions are made?", help=meaning("decision"))
    drawn = rows.with_columns(
        value=pl.col("decisions") / 60.0,
        at=pl.Series(list(map(moment, rows["hour"])), dtype=pl.String),
        n=pl.col("decisions").map_elements(count, pl.String),
    )
    draw(
        line_chart(
            drawn.select("hour", "value", "at", "n"),
            "hour:T",
            "Decisions a minute",
            tooltips=[("at", "Hour from"), ("n", "Decisions")],
        ),
        "By hour, how many decisions a minute the lake has.",
        drawn.select("hour", "decisions"),
        "decisions_by_hour",
    )
    st.subheader("What do they earn?", help=meaning("interaction", "interval"))
    earned = rows.filter(pl.col("joined") >= _FEW)
    if earned.is_empty():
        st.info(f"No hour has {_FEW} decisions that are joined with their reward yet.")
        return
    rewards = Rewards.for_widths(earned["upper"] - earned["lower"])
    drawn = earned.with_columns(
        value=pl.col("mean"),
        at=pl.Series(list(map(moment, earned["hour"])), dtype=pl.String),
        shown=pl.col("mean").map_elements(rewards.value, pl.String),
        interval=rewards.intervals("lower", "upper").fill_null(MISSING),
        n=pl.col("joined").map_elements(count, pl.String),
    )
    draw(
        line_chart(
            drawn,
            "hour:T",
            "Reward per decision",
            tooltips=[
                ("at", "Hour from"),
                ("shown", "Mean"),
                ("interval", "Interval"),
                ("n", "n"),
            ],
        ),
        "By hour of the decision, the mean reward of those that are joined, with an interval.",
        drawn.select("hour", "joined", "value", "lower", "upper"),
        "rewards_by_hour",
    )
    if len(earned) < len(rows):
        small([f"Hours with fewer than {_FEW} joined decisions are left out."])
