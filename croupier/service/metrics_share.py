"""Metrics of several processes as one: whichever of them is asked answers for all.

Every worker keeps a file with its own metrics. Counts of workers that have ended go on to count, so
that a total never falls; what they measured last doesn't.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from croupier.service.metrics import Metrics

__all__ = ("MetricsShare", "clear_shared_metrics")

_log = logging.getLogger(__name__)

_WRITE_EVERY_S = 1.0
_ENDED_AFTER_S = 5.0
_ADDED_UP = {"counter", "histogram"}
_ADDED_UP_GAUGES = {"croupier_log_queue_depth", "croupier_sessions", "croupier_stream_lag"}


class MetricsShare:
    """Shares a worker's metrics with the others, and theirs with whoever asks it.

    Parameters
    ----------
    metrics
        The worker's own.
    directory
        Of all workers' files.
    """

    def __init__(self, metrics: Metrics, directory: Path) -> None:
        self._metrics = metrics
        self._file = directory / f"{os.getpid()}.prom"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-share", daemon=True)

    def start(self) -> None:
        """Go on writing the worker's file in the background."""
        self._write()
        self._thread.start()

    def stop(self) -> None:
        """Write it a last time."""
        self._stop.set()
        self._thread.join()
        self._write()

    def render(self) -> bytes:
        """The metrics of all workers in Prometheus's text format."""
        own = _Families()
        own.add(self._metrics.render().decode(), running=True)
        for file in sorted(self._file.parent.glob("*.prom")):
            if file != self._file:
                running = time.time() - file.stat().st_mtime < _ENDED_AFTER_S
                own.add(file.read_text(), running=running)
        return generate_latest(own)

    def _run(self) -> None:
        while not self._stop.wait(_WRITE_EVERY_S):
            try:
                self._write()
            except OSError as error:
                # A full disk is the log's to tell; the next second is another try.
                _log.debug("the metrics can't be shared: %s", error)

    def _write(self) -> None:
        staging = self._file.with_suffix(".tmp")
        staging.write_bytes(self._metrics.render())
        staging.replace(self._file)


def clear_shared_metrics(directory: Path) -> None:
    """Make the directory, and forget what an earlier service has counted there."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in directory.glob("*.prom"):
        file.unlink()


class _Families(Collector):
    """Metrics that are added up, or of which the largest counts."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def add(self, text: str, *, running: bool) -> None:
        for family in text_string_to_metric_families(text):
            adds_up = family.type in _ADDED_UP or family.name in _ADDED_UP_GAUGES
            if not running and family.type not in _ADDED_UP:
                continue
            self._families.setdefault(family.name, family)
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                before = self._values.get(key)
                if before is None:
                    self._values[key] = sample.value
                elif adds_up:
                    self._values[key] = before + sample.value
                else:
                    self._values[key] = max(before, sample.value)

    def collect(self) -> Iterable[Metric]:
        for name, family in self._families.items():
            merged = Metric(name, family.documentation, family.type)
            for sample_name, labels, value in self._of(family):
                merged.add_sample(sample_name, dict(labels), value)
            yield merged

    def _of(self, family: Metric) -> Iterator[tuple[str, tuple[tuple[str, str], ...], float]]:
        """The family's values, those of one combination of labels next to each other."""
        suffixes = ("", "_total", "_bucket", "_count", "_sum")
        names = {family.name + suffix for suffix in suffixes}
        found = [(*key, value) for key, value in self._values.items() if key[0] in names]
        return iter(found)
