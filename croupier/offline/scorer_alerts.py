"""Alerts of the scorers: routes that are slow, a log that refuses, a scorer that doesn't answer.

A look at all scorers gives a reading of each. What requests took in between is told from how far
the counts of all of them have moved, as Prometheus does it. A rule has an alert once it has spoken
at every look for as long as it is configured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from croupier.offline.alerts import Alert, ScorerRule
from croupier.offline.scrapes import Scrape, quantile, refusals_between, requests_between
from croupier.policy.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from croupier.offline.alerts_config import AlertsConfig, LatencyRule, RefusalRule
    from croupier.offline.scrapes import ScrapeFailedError

__all__ = ("FORGOTTEN_US", "Judged", "Watched", "judge_scorers")

FORGOTTEN_US: Final = 600_000_000
"""After so long without a look, in microseconds, nobody knows what has lasted since the last."""

_Q: Final = 0.99
_TOLD: Final = 3


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """What looks have seen: kept from one to the next, and beyond the end of a process.

    Attributes
    ----------
    looked_us
        When the last one was, in microseconds since the epoch.
    scrapes
        By address of a scorer, its readings by time.
    away
        By address, since when a scorer doesn't answer, in microseconds since the epoch.
    since
        Since when rules have spoken, likewise.
    """

    looked_us: int = 0
    scrapes: dict[str, tuple[Scrape, ...]] = {}
    away: dict[str, int] = {}
    since: dict[ScorerRule, int] = {}


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What a look has found.

    Attributes
    ----------
    watched
        To be given to the next one.
    alerts
        Of rules that have spoken for long enough.
    undecided
        Rules that have spoken, and not for long enough; and those that can't say anything. What is
        open of them stays so.
    """

    watched: Watched
    alerts: list[Alert]
    undecided: frozenset[ScorerRule]


def judge_scorers(
    before: Watched,
    answers: Mapping[str, Scrape | ScrapeFailedError],
    config: AlertsConfig,
    *,
    now_us: int,
) -> Judged:
    """What the rules say after another look.

    Parameters
    ----------
    before
        What the looks before it have seen.
    answers
        By address, what every scorer has answered, or why it hasn't.
    config
        The rules.
    now_us
        When the look was, in microseconds since the epoch; readings have their time in seconds
        since then.
    """
    if not 0 <= now_us - before.looked_us <= FORGOTTEN_US:
        before = msgspec.structs.replace(before, away={}, since={})
    away = {
        address: before.away.get(address, now_us)
        for address, answer in answers.items()
        if not isinstance(answer, Scrape)
    }
    scrapes = _readings(before, answers, config, now_us)
    seen = [each for address, each in scrapes.items() if address not in away]
    spoken, undecided = _spoken(seen, config, now_us)
    since = {rule: before.since.get(rule, now_us) for rule in spoken}
    since |= {rule: us for rule, us in before.since.items() if rule in undecided}
    lasting: dict[ScorerRule, str] = {
        "latency": config.latency.lasting,
        "refusals": config.refusals.lasting,
    }
    alerts = []
    for rule, alert in spoken.items():
        if now_us - since[rule] >= parse_duration(lasting[rule]):
            alerts.append(alert)
        else:
            undecided.add(rule)
    if config.unreachable.on and away:
        until = now_us - parse_duration(config.unreachable.lasting)
        gone = {address: us for address, us in away.items() if us <= until}
        if gone:
            alerts.append(_unreachable(gone, len(answers)))
        else:
            undecided.add("unreachable")
    watched = Watched(looked_us=now_us, scrapes=scrapes, away=away, since=since)
    return Judged(watched=watched, alerts=alerts, undecided=frozenset(undecided))


def _readings(
    before: Watched,
    answers: Mapping[str, Scrape | ScrapeFailedError],
    config: AlertsConfig,
    now_us: int,
) -> dict[str, tuple[Scrape, ...]]:
    """Readings of every scorer up to now, as far back as a window wants them."""
    window_us = max(parse_duration(each.window) for each in (config.latency, config.refusals))
    oldest = (now_us - window_us - FORGOTTEN_US) / 1e6
    found = {}
    for address, answer in answers.items():
        known = [
            each for each in before.scrapes.get(address, ()) if oldest <= each.at < now_us / 1e6
        ]
        # No rule asks for gauges, and JSON has no infinite ones.
        latest = [_without_gauges(answer)] if isinstance(answer, Scrape) else []
        found[address] = tuple(_within([*known, *latest], window_us, now_us))
    return found


def _without_gauges(read: Scrape) -> Scrape:
    return msgspec.structs.replace(read, gauges={})


def _within(scrapes: Sequence[Scrape], window_us: int, now_us: int) -> Sequence[Scrape]:
    """The readings of a window, and the last one before it, that the first is compared with."""
    start = (now_us - window_us) / 1e6
    earlier = sum(each.at <= start for each in scrapes)
    return scrapes[max(earlier - 1, 0) :]


def _spoken(
    seen: Sequence[Sequence[Scrape]], config: AlertsConfig, now_us: int
) -> tuple[dict[ScorerRule, Alert], set[ScorerRule]]:
    """What rules say of the scorers that have answered; and which can't say anything."""
    spoken: dict[ScorerRule, Alert] = {}
    undecided: set[ScorerRule] = set()
    if config.latency.on:
        window_us = parse_duration(config.latency.window)
        within = [_within(each, window_us, now_us) for each in seen]
        slow = _slow(config.latency, within)
        if slow is not None:
            spoken["latency"] = slow
        elif not any(len(each) > 1 for each in within):
            undecided.add("latency")
    if config.refusals.on:
        window_us = parse_duration(config.refusals.window)
        refused = _refused(config.refusals, [_within(each, window_us, now_us) for each in seen])
        if refused is not None:
            spoken["refusals"] = refused
        elif not seen:
            undecided.add("refusals")
    return spoken, undecided


def _slow(rule: LatencyRule, seen: Sequence[Sequence[Scrape]]) -> Alert | None:
    counts: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for scrapes in seen:
        for route, between in requests_between(scrapes).items():
            for end, n in between.items():
                counts[route][end] += n
    slow = []
    for route, each in counts.items():
        requests, taken_s = each.get(math.inf, 0.0), quantile(each, _Q)
        if requests >= rule.least_requests and taken_s is not None and taken_s > rule.p99_s:
            slow.append((taken_s, route, requests))
    if not slow:
        return None
    slow.sort(reverse=True)
    told = ", ".join(
        f"{1e3 * taken_s:.3g} ms at {route} (of {requests:,.0f} requests)"
        for taken_s, route, requests in slow[:_TOLD]
    )
    return Alert(
        rule="latency",
        severity="warning",
        title="Requests are slow",
        told=f"In the last {rule.window}, the 99th percentile was {told}; {rule.p99} are allowed.",
        page="",
    )


def _refused(rule: RefusalRule, seen: Sequence[Sequence[Scrape]]) -> Alert | None:
    requests = sum(map(refusals_between, seen))
    logs = sorted({each[-1].readiness.log for each in seen} - {"ok"})
    if requests == 0.0 and not logs:
        return None
    said = [f"{requests:,.0f} requests were refused in the last {rule.window}"] if requests else []
    said += [f"a scorer says of it: {log}" for log in logs[:_TOLD]]
    return Alert(
        rule="refusals",
        severity="critical",
        title="The log can't be written",
        told=_sentence("; ".join(said)),
        page="",
    )


def _unreachable(gone: Mapping[str, int], scorers: int) -> Alert:
    by_time = sorted(gone.items(), key=lambda each: each[1])
    told = ", ".join(f"{address} since {_moment(us)}" for address, us in by_time[:_TOLD])
    more = f" and {len(gone) - _TOLD} more" if len(gone) > _TOLD else ""
    return Alert(
        rule="unreachable",
        severity="critical",
        title="A scorer doesn't answer" if len(gone) == 1 else "Scorers don't answer",
        told=f"{len(gone)} of {scorers}: {told}{more}.",
        page="",
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def _moment(us: int) -> str:
    return f"{datetime.fromtimestamp(us / 1e6, tz=UTC):%H:%M} UTC"
