"""Prometheus metrics of one service process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ("Metrics",)

_LATENCY_BUCKETS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 1.0)
_PROPENSITY_BUCKETS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 1.0)


class Metrics:
    """All counters of a service, in a registry of their own, so that tests can have several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.decisions = Counter(
            "croupier_decisions", "Decisions acknowledged", ["loop"], registry=self.registry
        )
        self.outcomes = Counter(
            "croupier_outcomes", "Outcomes acknowledged", ["loop"], registry=self.registry
        )
        self.activations = Counter(
            "croupier_activations", "Activations acknowledged", ["loop"], registry=self.registry
        )
        self.baseline = Counter(
            "croupier_baseline_decisions",
            "Decisions that fell back to the baseline",
            ["loop", "reason"],
            registry=self.registry,
        )
        self.errors = Counter(
            "croupier_errors", "Requests refused", ["status", "code"], registry=self.registry
        )
        self.propensity = Histogram(
            "croupier_propensity",
            "Propensity of the chosen action",
            ["loop"],
            buckets=_PROPENSITY_BUCKETS,
            registry=self.registry,
        )
        self.latency = Histogram(
            "croupier_request_seconds",
            "Time from the request's body to its answer",
            ["route"],
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
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
        self.log_depth = Gauge(
            "croupier_log_queue_depth", "Records waiting for the log", registry=self.registry
        )
        self.registry_age = Gauge(
            "croupier_registry_age_seconds",
            "Time since the registry last answered",
            registry=self.registry,
        )

    def render(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)
