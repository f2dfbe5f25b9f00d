"""Requests over Kafka beside the HTTP route, asked of one scorer process.

Run with ``make bench-stream`` or ``python -m benchmarks.stream`` (``--json`` for programs,
``--quick`` for a first look). Needs Java, and Maven once: it starts a Kafka of one node. The node,
the scorer and those who ask share the machine's cores, and all but the node are Python. So figures
are good for comparing the two ways within a run, and no more. They take turns, round by round; what
is reported is the median round.

Both ways log to Kafka under ``durability = "commit"``. ``capacity`` asks as fast as it gets
answers: over HTTP from a number of connections, each with one request at a time; over Kafka all
requests are there from the start. ``latency`` asks at a steady rate, and is timed from when a
request was due to having its answer.
"""

from __future__ import annotations

import argparse
import http.client
import json
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args
from urllib.parse import urlparse

import msgspec
from kafka import KafkaConsumer, KafkaProducer

from benchmarks.serving_workloads import SMALL, bodies, trained_generation, training_rows
from croupier.cli.output import Output
from croupier.eventlog.kafka.broker import KAFKA_VERSION, Cluster
from croupier.eventlog.kafka.config import KafkaConfig
from croupier.eventlog.kafka.connection import client_settings, ensure_topics
from croupier.eventlog.kafka.topics import LOGGED, REPLIES, REQUESTS, topic
from croupier.policy.traffic import Split
from croupier.service.server import read_address
from croupier.service.serving import ServingDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ("FULL", "QUICK", "WAYS", "Report", "Size", "measure")

Way: TypeAlias = Literal["http", "stream"]
WAYS: tuple[Way, ...] = get_args(Way)

_LOOP = "bench"
_PATIENCE_S = 180.0
_CONNECTIONS = 32
_TRAINING_ROWS = 2000


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured.

    Attributes
    ----------
    rounds
        Of which the median is reported.
    requests
        To a round of capacity.
    rates
        Requests a second, in a round of latency.
    seconds
        Length of such a round.
    """

    rounds: int = 5
    requests: int = 10_000
    rates: tuple[int, ...] = (20, 100)
    seconds: float = 5.0


FULL = Size()
QUICK = Size(rounds=1, requests=300, rates=(20,), seconds=1.0)


class CapacityRow(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that were answered in a second, and how far rounds are apart, relative to it."""

    way: Way
    requests_per_s: float
    spread: float


class LatencyRow(msgspec.Struct, frozen=True, kw_only=True):
    """How long answers took at a rate, in milliseconds."""

    way: Way
    rate: int
    p50_ms: float
    p99_ms: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and on what."""

    machine: str
    python: str
    kafka: str
    capacity: list[CapacityRow]
    latency: list[LatencyRow]


def measure(size: Size = FULL, progress: Callable[[int, int], None] | None = None) -> Report:
    """Start a node and a scorer, and ask both ways in turns.

    Parameters
    ----------
    size
        How much to measure.
    progress
        Called with rounds done and in all.
    """
    rates: dict[Way, list[float]] = {way: [] for way in WAYS}
    took: dict[tuple[Way, int], list[tuple[float, float]]] = {
        (way, rate): [] for rate in size.rates for way in WAYS
    }
    total = size.rounds * len(WAYS) * (1 + len(size.rates))
    done = 0
    with tempfile.TemporaryDirectory() as folder, _bench(Path(folder)) as ways:
        for _ in range(size.rounds):
            for way in WAYS:
                rates[way].append(ways[way].capacity(size.requests))
                for rate in size.rates:
                    times = sorted(ways[way].latencies(rate, size.seconds))
                    took[way, rate].append((_quantile(times, 0.5), _quantile(times, 0.99)))
                done += 1 + len(size.rates)
                if progress is not None:
                    progress(done, total)
    return Report(
        machine=f"{platform.machine()}, {platform.system()}",
        python=platform.python_version(),
        kafka=KAFKA_VERSION,
        capacity=[
            CapacityRow(
                way=way,
                requests_per_s=statistics.median(found),
                spread=(max(found) - min(found)) / statistics.median(found),
            )
            for way, found in rates.items()
        ],
        latency=[
            LatencyRow(
                way=way,
                rate=rate,
                p50_ms=1e3 * statistics.median(p50 for p50, _ in found),
                p99_ms=1e3 * statistics.median(p99 for _, p99 in found),
            )
            for (way, rate), found in took.items()
        ],
    )


class _Http:
    """Asks over HTTP, on connections that are kept."""

    def __init__(self, url: str, requests: Sequence[bytes]) -> None:
        self._address = urlparse(url).netloc
        self._requests = requests

    def capacity(self, count: int) -> float:
        each = -(-count // _CONNECTIONS)
        threads = [
            threading.Thread(target=self._ask_in_turn, args=(each,)) for _ in range(_CONNECTIONS)
        ]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return each * _CONNECTIONS / (time.perf_counter() - started)

    def latencies(self, rate: int, seconds: float) -> list[float]:
        found: list[float] = []
        connection = http.client.HTTPConnection(self._address, timeout=_PATIENCE_S)
        for number, sent in _steadily(rate, seconds):
            self._ask(connection, number)
            # From when it was due: who waits for an answer sends the next one late.
            found.append(time.perf_counter() - sent)
        connection.close()
        return found

    def _ask_in_turn(self, count: int) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=_PATIENCE_S)
        for number in range(count):
            self._ask(connection, number)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, number: int) -> None:
        body = self._requests[number % len(self._requests)]
        connection.request("POST", f"/v1/loops/{_LOOP}/decide", body)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"expected an answer, got {response.status}: {answer[:200]!r}")


class _Stream:
    """Asks over Kafka."""

    def __init__(self, kafka: KafkaConfig, requests: Sequence[bytes]) -> None:
        self._topic = topic(kafka.topic_prefix, _LOOP, REQUESTS)
        self._requests = requests
        self._producer = KafkaProducer(**client_settings(kafka), batch_size=262_144)
        self._consumer = KafkaConsumer(
            topic(kafka.topic_prefix, _LOOP, REPLIES),
            **client_settings(kafka),
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )

    def capacity(self, count: int) -> float:
        keys = {uuid.uuid4().hex.encode() for _ in range(count)}
        started = time.perf_counter()
        for number, key in enumerate(keys):
            self._send(number, key)
        self._producer.flush()
        for _ in self._answers(keys):
            pass
        return count / (time.perf_counter() - started)

    def latencies(self, rate: int, seconds: float) -> list[float]:
        sent = {uuid.uuid4().hex.encode(): 0.0 for _ in range(int(rate * seconds))}
        keys = list(sent)

        def ask() -> None:
            for number, due in _steadily(rate, seconds):
                sent[keys[number]] = due
                self._send(number, keys[number])

        asking = threading.Thread(target=ask)
        asking.start()
        found = [time.perf_counter() - sent[key] for key in self._answers(set(keys))]
        asking.join()
        return found

    def close(self) -> None:
        self._producer.close()
        self._consumer.close()

    def _send(self, number: int, key: bytes) -> None:
        self._producer.send(self._topic, self._requests[number % len(self._requests)], key)

    def _answers(self, keys: set[bytes]) -> Iterator[bytes]:
        """The keys in the order of their answers."""
        deadline = time.monotonic() + _PATIENCE_S
        while keys:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(keys)} requests were not answered")
            for replies in self._consumer.poll(1000).values():
                for reply in replies:
                    if dict(reply.headers)["status"] != b"200":
                        raise RuntimeError(f"expected an answer, got {reply.value[:200]!r}")
                    keys.discard(reply.key)
                    yield reply.key


@contextmanager
def _bench(folder: Path) -> Iterator[dict[Way, _Http | _Stream]]:
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster.create(folder / "kafka").running())
        kafka = KafkaConfig(bootstrap_servers=cluster.bootstrap_servers, partitions=2)
        ensure_topics(kafka, [_LOOP], (*LOGGED, REQUESTS, REPLIES))
        url = stack.enter_context(_scorer(folder, kafka))
        requests = [msgspec.json.encode(body) for body in bodies(SMALL, 200)]
        asker = _Stream(kafka, requests)
        stack.callback(asker.close)
        ways: dict[Way, _Http | _Stream] = {"http": _Http(url, requests), "stream": asker}
        for way in ways.values():
            way.capacity(100)
        yield ways


@contextmanager
def _scorer(folder: Path, kafka: KafkaConfig) -> Iterator[str]:
    """A scorer over both ways; gives its URL."""
    config = folder / "croupier.toml"
    config.write_text(
        f"""
data_dir = "data"
[service]
port = 0
[log]
backend = "kafka"
[log.kafka]
bootstrap_servers = {json.dumps(list(kafka.bootstrap_servers))}
partitions = {kafka.partitions}
[loops.{_LOOP}]
"""
    )
    serving = ServingDirectory(folder / "data" / "serving")
    rows = training_rows(SMALL, _TRAINING_ROWS)
    trained_generation(_LOOP, 1, rows).save(serving.generation_path(_LOOP, 1))
    serving.write_split(_LOOP, Split(generation=1))
    with (folder / "stderr.txt").open("wb") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "croupier", "serve", "--stream", "-c", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while (address := read_address(folder / "data" / "service.json")) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "stderr.txt").read_text())
            time.sleep(0.05)
        yield address.url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_PATIENCE_S)


def _steadily(rate: int, seconds: float) -> Iterator[tuple[int, float]]:
    """Numbers, each when it is due, and when that was."""
    started = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = started + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        yield number, due


def _quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]


def _show(report: Report, output: Output) -> None:
    output.table(
        f"One scorer, 10 actions of 5 features; Kafka {report.kafka} of one node, {report.machine}",
        ["way", "answers/s", "spread"],
        [[each.way, round(each.requests_per_s), round(each.spread, 2)] for each in report.capacity],
    )
    output.table(
        "From a request to its answer",
        ["way", "requests/s", "p50 ms", "p99 ms"],
        [
            [each.way, each.rate, round(each.p50_ms, 1), round(each.p99_ms, 1)]
            for each in report.latency
        ],
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a first look")
    arguments = parser.parse_args()
    output = Output(json=arguments.json)
    with output.progress("rounds") as progress:
        report = measure(QUICK if arguments.quick else FULL, progress)
    output.result(report, lambda: _show(report, output))


if __name__ == "__main__":
    main()
