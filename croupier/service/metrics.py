"""Prometheus metrics of one service process."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client.metrics_core import Metric

__all__ = ("STAGES", "Distribution", "LoopCounts", "Metrics")

_LATENCY_BUCKETS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 1.0)
_APPEND_BUCKETS = (2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 1.0, 5.0)
_STAGE_BUCKETS = (2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 2e-2, 0.1)
_PROPENSITY_BUCKETS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 1.0)

STAGES = ("decode", "decide", "encode", "log", "respond")
"""What a decision goes through: its body is read, an action is drawn, the event is encoded, and
written; the answer is made."""

_T = TypeVar("_T")


class Distribution:
    """A histogram that costs the request path a third of a microsecond.

    Parameters
    ----------
    bounds
        Upper ends of its buckets, ascending; another one has no end.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def __add__(self, other: Distribution) -> Distribution:
        both = Distribution(self.bounds)
        both.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        both.total = self.total + other.total
        return both

    def cumulative(self) -> list[tuple[str, float]]:
        """Bounds and how many values are not above them, as Prometheus has it."""
        ends = [*map(floatToGoString, self.bounds), "+Inf"]
        return list(zip(ends, map(float, accumulate(self.counts)), strict=True))


class LoopCounts:
    """What happened in a loop. Only one thread counts here."""

    __slots__ = ("activations", "decisions", "judgements", "outcomes", "propensity")

    def __init__(self) -> None:
        self.decisions = 0
        self.outcomes = 0
        self.activations = 0
        self.judgements = 0
        self.propensity = Distribution(_PROPENSITY_BUCKETS)

    def __add__(self, other: LoopCounts) -> LoopCounts:
        both = LoopCounts()
        both.decisions = self.decisions + other.decisions
        both.outcomes = self.outcomes + other.outcomes
        both.activations = self.activations + other.activations
        both.judgements = self.judgements + other.judgements
        both.propensity = self.propensity + other.propensity
        return both


class Metrics:
    """All metrics of a service, in a registry of their own, so that tests can have several.

    What is counted with every request is kept in plain numbers and told to Prometheus's library
    when somebody looks.

    Attributes
    ----------
    loops, streamed
        What happened in each loop: as the event loop's thread counts it, and as that of the stream
        does. They are told as one.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.loops = _Kept(LoopCounts)
        self.streamed = _Kept(LoopCounts)
        self.latency = _Kept(lambda: Distribution(_LATENCY_BUCKETS))
        self.stages = _Kept(lambda: Distribution(_STAGE_BUCKETS))
        self.registry.register(_Counted(self))
        self.baseline = Counter(
            "croupier_baseline_decisions",
            "Decisions that fell back to the baseline",
            ["loop", "reason"],
            registry=self.registry,
        )
        self.errors = Counter(
            "croupier_errors", "Requests refused", ["status", "code"], registry=self.registry
        )
        self.generation = Gauge(
            "croupier_generation", "Generation being served", ["loop"], registry=self.registry
        )
        self.canary_share = Gauge(
            "croupier_canary_share",
            "Share of the traffic that the canary gets",
            ["loop"],
            registry=self.registry,
        )
        self.killed = Gauge(
            "croupier_killed",
            "1 while the kill switch is on and only the baseline is played",
            ["loop"],
            registry=self.registry,
        )
        self.sessions = Gauge(
            "croupier_sessions",
            "Sessions that are followed here, of callers that don't keep them",
            registry=self.registry,
        )
        self.session_events = Counter(
            "croupier_session_events",
            "Steps that have begun or continued such a session; those over, or forgotten too soon",
            ["loop", "event"],
            registry=self.registry,
        )
        self.log_depth = Gauge(
            "croupier_log_queue_depth", "Records waiting for the log", registry=self.registry
        )
        self.stream_lag = Gauge(
            "croupier_stream_lag", "Requests waiting in Kafka for an answer", registry=self.registry
        )
        self.append_seconds = Histogram(
            "croupier_log_append_seconds",
            "Time that the log takes for an append, of one record or of many",
            buckets=_APPEND_BUCKETS,
            registry=self.registry,
        )
        self.log_spilling = Gauge(
            "croupier_log_spilling",
            "1 while the log is away and records go to this machine's disk",
            registry=self.registry,
        )
        self.log_spilled = Gauge(
            "croupier_log_spilled_records",
            "Records on this machine's disk that the log doesn't have yet",
            registry=self.registry,
        )
        self.registry_age = Gauge(
            "croupier_registry_age_seconds",
            "Time since the registry last answered",
            registry=self.registry,
        )

    def render(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class _Kept(dict[str, _T], Generic[_T]):
    """A dictionary that makes what it lacks."""

    def __init__(self, make: Callable[[], _T]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: str) -> _T:
        made = self[key] = self._make()
        return made


class _Counted(Collector):
    """Tells Prometheus's library what was counted without it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        loops = dict(self._metrics.loops)
        for loop, counts in dict(self._metrics.streamed).items():
            loops[loop] = loops.get(loop, LoopCounts()) + counts
        for name, said in (
            ("decisions", "Decisions acknowledged"),
            ("outcomes", "Outcomes acknowledged"),
            ("activations", "Activations acknowledged"),
            ("judgements", "Judgements acknowledged"),
        ):
            counter = CounterMetricFamily(f"croupier_{name}", said, labels=["loop"])
            for loop, counts in loops.items():
                counter.add_metric([loop], getattr(counts, name))
            yield counter
        yield _histogram(
            "croupier_propensity",
            "Propensity of the chosen action",
            "loop",
            {loop: counts.propensity for loop, counts in loops.items()},
        )
        yield _histogram(
            "croupier_request_seconds",
            "Time from the request's body to its answer",
            "route",
            dict(self._metrics.latency),
        )
        yield _histogram(
            "croupier_stage_seconds",
            "Time that a decision spends in each stage, of one decision in 16",
            "stage",
            dict(self._metrics.stages),
        )


def _histogram(
    name: str, said: str, label: str, distributions: dict[str, Distribution]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, said, labels=[label])
    for value, distribution in distributions.items():
        family.add_metric([value], distribution.cumulative(), distribution.total)
    return family
