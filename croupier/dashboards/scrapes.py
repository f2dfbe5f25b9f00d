"""What the scorer's metrics say: read from its endpoint, and rates between two readings."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import msgspec
import urllib3
from prometheus_client.parser import text_string_to_metric_families

from croupier.policy.errors import CroupierError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ("Live", "Readiness", "Scrape", "ScrapeFailedError", "live", "parse_metrics", "scrape")

_TIMEOUT_S: Final = 3.0
_DECIDING: Final = frozenset({"decide", "rank", "slots", "slate", "multislot"})


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
        When, in seconds of any steady clock.
    readiness
        What the scorer says of itself.
    decisions, outcomes, baseline
        Counts by loop since the scorer began.
    latency
        Cumulative counts of deciding requests by upper end in seconds, of all such routes.
    gauges
        Values without labels, by name.
    """

    at: float
    readiness: Readiness
    decisions: dict[str, float]
    outcomes: dict[str, float]
    baseline: dict[str, float]
    latency: dict[float, float]
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
        The time on a steady clock.

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
    except msgspec.MsgspecError as error:
        raise ScrapeFailedError(f"what answers at {address} is no scorer") from error
    return parse_metrics(bodies[1].decode(), readiness, at=at)


def parse_metrics(text: str, readiness: Readiness, *, at: float) -> Scrape:
    """Read Prometheus's text format.

    Parameters
    ----------
    text
        As ``/metrics`` has it.
    readiness
        Read beside it.
    at
        The time on a steady clock.
    """
    counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    latency: dict[float, float] = defaultdict(float)
    gauges: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "croupier_request_seconds_bucket":
                if sample.labels["route"] in _DECIDING:
                    latency[float(sample.labels["le"])] += sample.value
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
        latency=dict(sorted(latency.items())),
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
    if any(last.decisions.get(loop, 0.0) < n for loop, n in first.decisions.items()):
        # It was started anew in between.
        first = last
    seconds = last.at - first.at
    if seconds <= 0.0:
        return Live(
            seconds=None,
            decisions_per_minute={},
            outcomes_per_minute={},
            baseline_share=_shares(last.baseline, last.decisions),
            p50_s=_quantile(last.latency, 0.5),
            p99_s=_quantile(last.latency, 0.99),
            requests=last.latency.get(math.inf, 0.0),
        )
    decided = _less(last.decisions, first.decisions)
    latency = {end: n - first.latency.get(end, 0.0) for end, n in last.latency.items()}
    return Live(
        seconds=seconds,
        decisions_per_minute={loop: 60.0 * n / seconds for loop, n in decided.items()},
        outcomes_per_minute={
            loop: 60.0 * n / seconds for loop, n in _less(last.outcomes, first.outcomes).items()
        },
        baseline_share=_shares(_less(last.baseline, first.baseline), decided),
        p50_s=_quantile(latency, 0.5),
        p99_s=_quantile(latency, 0.99),
        requests=latency.get(math.inf, 0.0),
    )


def _less(last: Mapping[str, float], first: Mapping[str, float]) -> dict[str, float]:
    return {loop: n - first.get(loop, 0.0) for loop, n in last.items()}


def _shares(part: Mapping[str, float], whole: Mapping[str, float]) -> dict[str, float]:
    return {loop: part.get(loop, 0.0) / n for loop, n in whole.items() if n > 0}


def _quantile(cumulative: Mapping[float, float], q: float) -> float | None:
    """The quantile of a histogram, between a bucket's ends in proportion; None of nothing.

    As Prometheus's ``histogram_quantile`` has it: what lies above the last bound counts as it.
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
