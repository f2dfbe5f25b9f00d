"""What scorers' metrics say: read from their endpoints, and what came between two readings."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import msgspec
import urllib3
from prometheus_client.parser import text_string_to_metric_families

from croupier.policy.errors import CroupierError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = (
    "Live",
    "Readiness",
    "Scrape",
    "ScrapeFailedError",
    "live",
    "parse_metrics",
    "quantile",
    "refusals_between",
    "requests_between",
    "scrape",
)

_TIMEOUT_S: Final = 3.0
_DECIDING: Final = frozenset({"decide", "rank", "slots", "slate", "multislot"})
_LOG_REFUSES: Final = "LogUnavailable"


class ScrapeFailedError(CroupierError):
    """The scorer doesn't answer, or not with what it is to answer."""


class LoopServed(msgspec.Struct, frozen=True):
    """What ``/readyz`` says of one loop."""

    generation: int | None = None
    canary: int | None = None
    canary_share: float = 0.0
    killed: str | None = None
    error: str | None = None


class Readiness(msgspec.Struct, frozen=True):
    """What ``/readyz`` says, as much as is shown."""

    status: str = "unavailable"
    log: str = "?"
    registry: str = "?"
    loops: dict[str, LoopServed] = {}
    stream: str | None = None


class Scrape(msgspec.Struct, frozen=True, kw_only=True):
    """One reading.

    Attributes
    ----------
    at
        When, in seconds of any clock.
    readiness
        What the scorer says of itself.
    decisions, outcomes, baseline
        Counts by loop since the scorer began.
    refused
        Requests since then that the log couldn't take.
    latency
        By route, cumulative counts of requests by upper end in seconds.
    gauges
        Values without labels, by name.
    """

    at: float
    readiness: Readiness
    decisions: dict[str, float]
    outcomes: dict[str, float]
    baseline: dict[str, float]
    refused: float
    latency: dict[str, dict[float, float]]
    gauges: dict[str, float]


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """What goes on now.

    Attributes
    ----------
    seconds
        Between the two readings; None of a single one, which gives no rates.
    decisions_per_minute, outcomes_per_minute
        By loop.
    baseline_share
        Of the decisions in between, by loop: those that fell back to the baseline.
    p50_s, p99_s
        Latency of deciding, in seconds: of requests in between, or since the scorer began.
    requests
        That these are of.
    """

    seconds: float | None
    decisions_per_minute: dict[str, float]
    outcomes_per_minute: dict[str, float]
    baseline_share: dict[str, float]
    p50_s: float | None
    p99_s: float | None
    requests: float


def scrape(address: str, *, key: str | None, at: float) -> Scrape:
    """Read ``/readyz`` and ``/metrics`` of a scorer.

    Parameters
    ----------
    address
        Its base.
    key
        An API key; None if it asks for none.
    at
        The time, in seconds.

    Raises
    ------
    ScrapeFailedError
        If it doesn't answer.
    """
    headers = {} if key is None else {"x-api-key": key}
    bodies = []
    for path in ("/readyz", "/metrics"):
        try:
            answer = urllib3.request(
                "GET",
                f"{address.rstrip('/')}{path}",
                headers=headers,
                timeout=_TIMEOUT_S,
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise ScrapeFailedError(f"the scorer at {address} doesn't answer") from error
        if answer.status not in {200, 503}:
            raise ScrapeFailedError(f"the scorer at {address} says {answer.status} to {path}")
        bodies.append(answer.data)
    try:
        readiness = msgspec.json.decode(bodies[0], type=Readiness)
        return parse_metrics(bodies[1].decode(), readiness, at=at)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ScrapeFailedError(f"what answers at {address} is no scorer") from error


def parse_metrics(text: str, readiness: Readiness, *, at: float) -> Scrape:
    """Read Prometheus's text format.

    Parameters
    ----------
    text
        As ``/metrics`` has it.
    readiness
        Read beside it.
    at
        The time, in seconds.
    """
    counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    latency: dict[str, dict[float, float]] = defaultdict(dict)
    gauges: dict[str, float] = {}
    refused = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "croupier_request_seconds_bucket":
                latency[sample.labels["route"]][float(sample.labels["le"])] = sample.value
            elif sample.name == "croupier_errors_total":
                refused += sample.value if sample.labels["code"] == _LOG_REFUSES else 0.0
            elif "loop" in sample.labels:
                counts[sample.name][sample.labels["loop"]] += sample.value
            elif not sample.labels:
                gauges[sample.name] = sample.value
    return Scrape(
        at=at,
        readiness=readiness,
        decisions=dict(counts["croupier_decisions_total"]),
        outcomes=dict(counts["croupier_outcomes_total"]),
        baseline=dict(counts["croupier_baseline_decisions_total"]),
        refused=refused,
        latency=dict(latency),
        gauges=gauges,
    )


def live(scrapes: Sequence[Scrape]) -> Live:
    """What went on between the first and the last of some readings of one scorer.

    Parameters
    ----------
    scrapes
        At least one, by time.
    """
    first, last = scrapes[0], scrapes[-1]
    if _begun_anew(first, last):
        first = last
    seconds = last.at - first.at
    if seconds <= 0.0:
        latency = _deciding(last.latency)
        return Live(
            seconds=None,
            decisions_per_minute={},
            outcomes_per_minute={},
            baseline_share=_shares(last.baseline, last.decisions),
            p50_s=quantile(latency, 0.5),
            p99_s=quantile(latency, 0.99),
            requests=latency.get(math.inf, 0.0),
        )
    decided = _less(last.decisions, first.decisions)
    latency = _deciding(requests_between([first, last]))
    return Live(
        seconds=seconds,
        decisions_per_minute={loop: 60.0 * n / seconds for loop, n in decided.items()},
        outcomes_per_minute={
            loop: 60.0 * n / seconds for loop, n in _less(last.outcomes, first.outcomes).items()
        },
        baseline_share=_shares(_less(last.baseline, first.baseline), decided),
        p50_s=quantile(latency, 0.5),
        p99_s=quantile(latency, 0.99),
        requests=latency.get(math.inf, 0.0),
    )


def requests_between(scrapes: Sequence[Scrape]) -> dict[str, dict[float, float]]:
    """By route, cumulative counts of the requests between the first and the last of some readings.

    All that a scorer counts after it was started anew is new; what came between the reading before
    and its end, nobody knows.

    Parameters
    ----------
    scrapes
        Of one scorer, by time.
    """
    found: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for before, after in pairwise(scrapes):
        known = {} if _begun_anew(before, after) else before.latency
        for route, counts in after.latency.items():
            earlier = known.get(route, {})
            for end, n in counts.items():
                found[route][end] += n - earlier.get(end, 0.0)
    return {route: dict(counts) for route, counts in found.items()}


def refusals_between(scrapes: Sequence[Scrape]) -> float:
    """Requests that the log couldn't take, between the first and the last of some readings.

    Parameters
    ----------
    scrapes
        Of one scorer, by time.
    """
    return sum(
        after.refused - (0.0 if _begun_anew(before, after) else before.refused)
        for before, after in pairwise(scrapes)
    )


def quantile(cumulative: Mapping[float, float], q: float) -> float | None:
    """The quantile of a histogram, between a bucket's ends in proportion; None of nothing.

    As Prometheus's ``histogram_quantile`` has it: what lies above the last bound counts as it.

    Parameters
    ----------
    cumulative
        Counts by upper end; the last one is infinite.
    q
        Which one, in [0, 1].
    """
    total = cumulative.get(math.inf, 0.0)
    if total <= 0.0:
        return None
    rank, below, low = q * total, 0.0, 0.0
    for end, n in sorted(cumulative.items()):
        if n >= rank:
            if math.isinf(end):
                return low
            return low + (end - low) * ((rank - below) / (n - below) if n > below else 1.0)
        below, low = n, end
    return low


def _begun_anew(before: Scrape, after: Scrape) -> bool:
    """Whether the scorer was started anew between two readings: something that it counts fell."""
    earlier, later = _totals(before), _totals(after)
    return any(later.get(name, 0.0) < n for name, n in earlier.items())


def _totals(read: Scrape) -> dict[tuple[str, str], float]:
    counted = {"decisions": read.decisions, "outcomes": read.outcomes, "baseline": read.baseline}
    counted["refused"] = {"": read.refused}
    counted["requests"] = {
        route: counts.get(math.inf, 0.0) for route, counts in read.latency.items()
    }
    return {(what, name): n for what, each in counted.items() for name, n in each.items()}


def _deciding(latency: Mapping[str, Mapping[float, float]]) -> dict[float, float]:
    """Counts of all routes that decide, as one."""
    found: dict[float, float] = defaultdict(float)
    for route in _DECIDING.intersection(latency):
        for end, n in latency[route].items():
            found[end] += n
    return dict(found)


def _less(last: Mapping[str, float], first: Mapping[str, float]) -> dict[str, float]:
    return {loop: n - first.get(loop, 0.0) for loop, n in last.items()}


def _shares(part: Mapping[str, float], whole: Mapping[str, float]) -> dict[str, float]:
    return {loop: part.get(loop, 0.0) / n for loop, n in whole.items() if n > 0}
