"""Alerts: what rules find that somebody should look at, and how long it has been so.

The rules of a night look at what it has left in the small tables and the generations table; those
of the scorers are in :mod:`croupier.offline.scorer_alerts`. An alert is open while its rule says
so, and has one id from when it opens to when it closes.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec
import polars as pl

from croupier.offline.latest_signals import latest_signals
from croupier.offline.summaries.tables import SUMMARY_SCHEMAS

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

__all__ = (
    "Alert",
    "AlertRules",
    "NightRule",
    "ScorerRule",
    "Severity",
    "found_alerts",
    "with_alerts",
)

NightRule: TypeAlias = Literal[
    "oscillation",
    "disparity",
    "violations",
    "simulators",
    "support",
    "join_completeness",
    "orphans",
    "propensities",
    "night",
]
ScorerRule: TypeAlias = Literal["latency", "refusals", "unreachable"]
Severity: TypeAlias = Literal["critical", "warning"]

_RECENT: Final = 7
_ENOUGH: Final = 100
_SUSPICIOUS_P: Final = 0.001
_KEPT: Final = 1000


class AlertRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a night raises an alert.

    Attributes
    ----------
    oscillation, disparity, violations, simulators
        Whether the signals of these names are alerts.
    least_effective
        Effective sample size of the latest judgement's challenger below which the log can't tell;
        0 never.
    least_joined
        Share of the decisions, of the latest week but for its last day, that has to be joined, in
        [0, 1]; 0 never. Days of fewer than 100 decisions in all don't count.
    most_orphans
        Share of the outcomes of that week, in [0, 1], that may have no decision; 1 never.
    """

    oscillation: bool = True
    disparity: bool = True
    violations: bool = True
    simulators: bool = True
    least_effective: float = 100.0
    least_joined: float = 0.95
    most_orphans: float = 0.05

    def __post_init__(self) -> None:
        if self.least_effective < 0.0:
            raise ValueError(f"least_effective must be at least 0, got {self.least_effective}")
        for field in ("least_joined", "most_orphans"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise ValueError(f"{field} must be in [0, 1], got {getattr(self, field)}")


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule says.

    Attributes
    ----------
    rule, severity
        Which one, and how bad it is.
    title, told
        In a few words, and in a sentence with its figures.
    page
        Address of the page that shows more.
    """

    rule: NightRule | ScorerRule
    severity: Severity
    title: str
    told: str
    page: str


def found_alerts(
    rules: AlertRules,
    generations: Mapping[int, Mapping[str, Any]],
    days: pl.DataFrame,
    nights: pl.DataFrame,
) -> list[Alert]:
    """What the rules say of a loop now.

    Parameters
    ----------
    rules
        When there is an alert.
    generations
        One loop's rows of the generations table, by number.
    days, nights
        Its small tables.
    """
    return [
        *_of_nights(nights),
        *_of_signals(rules, generations),
        *_of_propensities(generations, days),
        *_of_support(rules, generations),
        *_of_days(rules, days),
    ]


def with_alerts(
    before: pl.DataFrame,
    found: list[Alert],
    *,
    loop: str,
    now_us: int,
    undecided: Container[str] = (),
) -> pl.DataFrame:
    """The table of alerts with what is found now: what is new opens, what is gone closes.

    Parameters
    ----------
    before
        The small table ``alerts``.
    found
        What the rules say now, of each rule once at most.
    loop
        Whose.
    now_us
        In microseconds since the epoch.
    undecided
        Rules that can't say anything now: their alerts stay as they are.
    """
    now = datetime.fromtimestamp(now_us / 1e6, tz=UTC)
    by_rule = {each.rule: each for each in found}
    rows = before.sort("first").to_dicts()
    for row in rows:
        if row["closed"] is None and row["rule"] not in undecided:
            alert = by_rule.pop(row["rule"], None)
            row.update({"closed": now} if alert is None else {"last": now} | _said(alert))
    for alert in by_rule.values():
        text = f"{loop}\n{alert.rule}\n{now_us}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        opened = {"alert_id": digest, "rule": alert.rule, "first": now, "last": now}
        rows.append(opened | {"closed": None, "delivered": None} | _said(alert))
    return pl.DataFrame(rows, schema=SUMMARY_SCHEMAS["alerts"]).sort("first").tail(_KEPT)


def _said(alert: Alert) -> dict[str, Any]:
    return {
        "severity": alert.severity,
        "title": alert.title,
        "told": alert.told,
        "page": alert.page,
    }


def _of_nights(nights: pl.DataFrame) -> Iterator[Alert]:
    if nights.is_empty():
        return
    failed = nights.sort("started").row(-1, named=True)["failed"]
    if failed:
        yield Alert(
            rule="night",
            severity="critical",
            title="The last night broke off",
            told=str(failed),
            page="data-quality",
        )


def _of_signals(rules: AlertRules, generations: Mapping[int, Mapping[str, Any]]) -> Iterator[Alert]:
    wanted: dict[str, tuple[bool, NightRule, str, str]] = {
        "oscillates": (rules.oscillation, "oscillation", "Generations oscillate", "generations"),
        "disparity_rises": (rules.disparity, "disparity", "A disparity rises", "fairness"),
        "violations_rise": (rules.violations, "violations", "Violations rise", "fairness"),
        "simulators_err": (rules.simulators, "simulators", "Simulators are off", "simulators"),
    }
    for signal in latest_signals(generations):
        on, rule, title, page = wanted[signal.name]
        if on and signal.raised:
            p = "" if signal.p_value is None else f" (p = {signal.p_value:.2g})"
            yield Alert(
                rule=rule,
                severity="warning",
                title=title,
                told=f"Up to generation {signal.generation}, {signal.says}{p}.",
                page=page,
            )


def _of_propensities(
    generations: Mapping[int, Mapping[str, Any]], days: pl.DataFrame
) -> Iterator[Alert]:
    wrong = [
        number
        for number, row in generations.items()
        if row["propensity_p_value"] is not None and row["propensity_p_value"] < _SUSPICIOUS_P
    ]
    said = []
    if wrong:
        said.append(f"draws of generation {max(wrong)} do not fit their logged probabilities")
    contradictions = int(_latest(days)["contradictions"].sum())
    if contradictions:
        said.append(f"{contradictions:,} decisions of the latest week contradict themselves")
    if said:
        text = " and ".join(said)
        yield Alert(
            rule="propensities",
            severity="critical",
            title="Propensities can't be believed",
            told=f"{text[0].upper()}{text[1:]}: estimates from them may be wrong.",
            page="data-quality",
        )


def _of_support(rules: AlertRules, generations: Mapping[int, Mapping[str, Any]]) -> Iterator[Alert]:
    judged = [number for number, row in generations.items() if row["ess"] is not None]
    if not judged:
        return
    row = generations[max(judged)]
    if row["ess"] < rules.least_effective:
        yield Alert(
            rule="support",
            severity="warning",
            title="The log says little about challengers",
            told=f"The effective sample size of generation {max(judged)} is {row['ess']:,.0f} of "
            f"{row['judged_rows']:,} judged decisions, below {rules.least_effective:,g}.",
            page="evaluation",
        )


def _of_days(rules: AlertRules, days: pl.DataFrame) -> Iterator[Alert]:
    # Of the last day windows may still be open.
    week = _latest(days)[:-1]
    decided, joined = int(week["decisions"].sum()), int(week["joined"].sum())
    if decided >= _ENOUGH and joined < rules.least_joined * decided:
        yield Alert(
            rule="join_completeness",
            severity="warning",
            title="The join is not complete",
            told=f"{joined:,} of {decided:,} decisions of the latest week are joined, "
            f"{100 * joined / decided:.1f} %; {100 * rules.least_joined:g} % are expected.",
            page="data-quality",
        )
    outcomes, orphans = int(week["outcomes"].sum()), int(week["orphans"].sum())
    if outcomes >= _ENOUGH and orphans > rules.most_orphans * outcomes:
        yield Alert(
            rule="orphans",
            severity="warning",
            title="Outcomes find no decision",
            told=f"{orphans:,} of {outcomes:,} outcomes of the latest week, "
            f"{100 * orphans / outcomes:.1f} %; at most {100 * rules.most_orphans:g} % may.",
            page="data-quality",
        )


def _latest(days: pl.DataFrame) -> pl.DataFrame:
    return days.drop_nulls("date").sort("date").tail(_RECENT + 1)
