"""The event log on SQLite beside the one in Kafka, with either client, and the sink behind both.

Run with ``make bench-eventlog`` or ``python -m benchmarks.eventlog`` (``--json`` for programs,
``--quick`` for a first look). Needs Java, and Maven once: it starts a Kafka of one node, which
shares the machine's cores and disk with everything else. So figures are good for comparing columns
of one run, and no more. Logs take turns, round by round; what is reported is the median round.

Appends go through the appender, as a scorer's do. ``commit`` keeps a number of records under way
and counts those that were acknowledged; what is timed is from handing one over to its
acknowledgement. ``buffered`` hands over as fast as it is let and counts until all is written; what
is timed is the handing over. An SQLite append is synced to disk. A Kafka node acknowledges what it
holds in memory, and leaves the disk to the operating system: there it is copies on several nodes
that make a record durable, and here there is one.

``visible`` is one event after the other: appended, sunk, and found in the lake's table. ``sink``
is the rate at which ``croupier sink`` brings over what is there already.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, get_args

import msgspec
import polars as pl

from croupier.cli.output import Output
from croupier.eventlog.appender import Appender
from croupier.eventlog.kafka.broker import KAFKA_VERSION, Cluster
from croupier.eventlog.kafka.config import Compression, KafkaConfig
from croupier.eventlog.kafka.reading import KafkaLog
from croupier.eventlog.kafka.writer import KafkaWriter
from croupier.eventlog.log import Durability, Record
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.lake import Lake
from croupier.offline.sink import sink
from croupier.policy.errors import ConfigError, LogUnavailableError
from croupier.policy.events import encode_event
from croupier.policy.loop import LoopConfig
from croupier.policy.requests import DecisionRequest
from croupier.service.scorer import Scorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from croupier.eventlog.log import EventLog, LogWriter
    from croupier.policy.events import Decision

__all__ = ("FULL", "LOGS", "QUICK", "Report", "Size", "measure")

LogName: TypeAlias = Literal["sqlite", "kafka-python", "confluent-kafka"]
LOGS: tuple[LogName, ...] = get_args(LogName)

_Key = TypeVar("_Key")

_LOOP = "bench"
_MAX_BATCH = 512
_MAX_PENDING = 8192
_UNDER_WAY = 512
_PATIENCE_S = 300.0
_FULL_PAUSE_S = 0.001
_LOOK_EVERY_S = 0.05
_SINK_ROWS = 5000


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured.

    Attributes
    ----------
    event_bytes
        Sizes of an event.
    rounds
        Of which the median is reported.
    seconds
        Length of a round, about.
    settings
        Ways to put records together, to try with either client.
    visible
        Events that are followed into the lake one by one.
    sunk
        Events that the sink brings over; none leaves that out.
    """

    event_bytes: tuple[int, ...] = (500, 5000)
    rounds: int = 5
    seconds: float = 2.0
    settings: tuple[tuple[Compression, int, int], ...] = (
        ("none", 0, 16_384),
        ("none", 0, 262_144),
        ("none", 5, 262_144),
        ("lz4", 0, 262_144),
        ("zstd", 0, 262_144),
        ("gzip", 0, 262_144),
    )
    visible: int = 20
    sunk: int = 60_000


FULL = Size()
QUICK = Size(
    event_bytes=(500,),
    rounds=1,
    seconds=0.3,
    settings=(("none", 0, 262_144),),
    visible=2,
    sunk=2000,
)


class AppendRow(msgspec.Struct, frozen=True, kw_only=True):
    """Appends of one kind to one log.

    Attributes
    ----------
    log, event_bytes, durability
        What was measured.
    per_second
        Events written, in the median round.
    p50_ms, p99_ms
        Time to the acknowledgement, in the same round.
    cpu
        Share of a core that this process took.
    spread
        Between the fastest and the slowest round, as a share of the median.
    """

    log: LogName
    event_bytes: int
    durability: Durability
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu: float
    spread: float


class SettingRow(msgspec.Struct, frozen=True, kw_only=True):
    """Committed appends of events with one way to put them together."""

    log: LogName
    event_bytes: int
    compression: Compression
    linger_ms: int
    batch_bytes: int
    per_second: float
    p99_ms: float
    spread: float


class VisibleRow(msgspec.Struct, frozen=True, kw_only=True):
    """From an append to where the lake's readers see it, at best, in milliseconds."""

    log: LogName
    append_ms: float
    visible_ms: float


class SinkRow(msgspec.Struct, frozen=True, kw_only=True):
    """Rows per second that sinks bring into the lake together; None if they came all at once."""

    log: LogName
    partitions: int
    processes: int
    per_second: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of a run, and where and with what it was."""

    appends: list[AppendRow]
    settings: list[SettingRow]
    visible: list[VisibleRow]
    sinks: list[SinkRow]
    cores: int
    versions: dict[str, str]


def measure(size: Size = FULL, progress: Callable[[int, int], None] | None = None) -> Report:
    """Measure all logs.

    Parameters
    ----------
    size
        How much to measure.
    progress
        Called with the measurements that are done, and their number.

    Raises
    ------
    ConfigError
        If Kafka can't be run here.
    LogUnavailableError
        If a log fails.
    """
    with tempfile.TemporaryDirectory(prefix="croupier-bench-") as folder, ExitStack() as stack:
        cluster = Cluster.create(Path(folder) / "kafka")
        stack.callback(cluster.kill)
        cluster.start()
        bench = _Bench(Path(folder), cluster, size, progress or (lambda _done, _total: None))
        return Report(
            appends=bench.appends(),
            settings=bench.settings(),
            visible=bench.visible(),
            sinks=bench.sinks(),
            cores=len(os.sched_getaffinity(0)),
            versions={"Python": platform.python_version(), "Kafka": KAFKA_VERSION}
            | {name: version(name) for name in ("kafka-python", "confluent-kafka", "deltalake")},
        )


class _Round(msgspec.Struct, frozen=True):
    """What was seen in a round."""

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu: float


class _Bench:
    """Does the measuring, in a folder and with a cluster that are its own."""

    def __init__(
        self, folder: Path, cluster: Cluster, size: Size, progress: Callable[[int, int], None]
    ) -> None:
        self._folder = folder
        self._cluster = cluster
        self._size = size
        self._progress = progress
        self._done = 0
        kinds = len(size.event_bytes)
        self._total = 6 * kinds * size.rounds + 2 * kinds * size.rounds * len(size.settings) + 7

    def appends(self) -> list[AppendRow]:
        """Every log with every size and durability, the logs taking turns."""
        rows = []
        for event_bytes in self._size.event_bytes:
            payload = _Payload(event_bytes)
            for durability in get_args(Durability):
                with ExitStack() as stack:
                    logs = {name: stack.enter_context(self._log(name)) for name in LOGS}
                    rounds = self._rounds(logs, payload, durability)
                rows += [
                    AppendRow(
                        log=name,
                        event_bytes=event_bytes,
                        durability=durability,
                        spread=_spread(rounds[name]),
                        **msgspec.structs.asdict(_median(rounds[name])),
                    )
                    for name in LOGS
                ]
        return rows

    def settings(self) -> list[SettingRow]:
        """Either client with every way to put records together, all of them taking turns."""
        rows = []
        for event_bytes in self._size.event_bytes:
            payload = _Payload(event_bytes)
            tried = [
                (name, *setting)
                for setting in self._size.settings
                for name in LOGS
                if name != "sqlite"
            ]
            with ExitStack() as stack:
                logs = {
                    each: stack.enter_context(self._kafka(each[0], 1, *each[1:])) for each in tried
                }
                rounds = self._rounds(logs, payload, "commit")
            for each in tried:
                name, compression, linger_ms, batch_bytes = each
                median = _median(rounds[each])
                rows.append(
                    SettingRow(
                        log=name,
                        event_bytes=event_bytes,
                        compression=compression,
                        linger_ms=linger_ms,
                        batch_bytes=batch_bytes,
                        per_second=median.per_second,
                        p99_ms=median.p99_ms,
                        spread=_spread(rounds[each]),
                    )
                )
        return rows

    def visible(self) -> list[VisibleRow]:
        """Events that are appended and sunk one by one."""
        rows = []
        for name in LOGS:
            lake = Lake(self._folder / f"lake-{name}")
            payload = _Payload(self._size.event_bytes[0])
            with self._log(name) as writer, self._reader(name, writer) as reader:
                seen = [
                    self._seen(writer, reader, lake, payload) for _ in range(self._size.visible + 1)
                ][1:]
            rows.append(
                VisibleRow(
                    log=name,
                    append_ms=statistics.median(each[0] for each in seen),
                    visible_ms=statistics.median(each[1] for each in seen),
                )
            )
            self._tick()
        return rows

    def sinks(self) -> list[SinkRow]:
        """One sink over one partition, over three, and three over three."""
        if not self._size.sunk:
            return []
        rows = [SinkRow(log="sqlite", partitions=1, processes=1, per_second=self._sink_here())]
        self._tick()
        for partitions, processes in ((1, 1), (3, 1), (3, 3)):
            rate = self._sink_in_group(partitions, processes)
            rows.append(
                SinkRow(
                    log="confluent-kafka",
                    partitions=partitions,
                    processes=processes,
                    per_second=rate,
                )
            )
            self._tick()
        return rows

    def _rounds(
        self, logs: Mapping[_Key, LogWriter], payload: _Payload, durability: Durability
    ) -> dict[_Key, list[_Round]]:
        """Rounds of every log, in turns, after one that isn't counted."""
        found: dict[_Key, list[_Round]] = {key: [] for key in logs}
        for number in range(self._size.rounds + 1):
            for key, log in logs.items():
                seconds = self._size.seconds if number else self._size.seconds / 4
                seen = _append_for(seconds, log, payload, durability)
                if number:
                    found[key].append(seen)
                    self._tick()
        return found

    @contextmanager
    def _log(self, name: LogName) -> Iterator[LogWriter]:
        """A new log."""
        if name != "sqlite":
            with self._kafka(name) as log:
                yield log
            return
        with SqliteEventLog(self._folder / f"log-{uuid.uuid4().hex}") as log:
            yield log

    @contextmanager
    def _kafka(
        self,
        name: LogName,
        partitions: int = 1,
        compression: Compression | None = None,
        linger_ms: int | None = None,
        batch_bytes: int | None = None,
    ) -> Iterator[KafkaWriter]:
        """Topics of their own, and a writer to them."""
        given = {"compression": compression, "linger_ms": linger_ms, "batch_bytes": batch_bytes}
        config = msgspec.convert(
            {
                "bootstrap_servers": self._cluster.bootstrap_servers,
                "topic_prefix": f"bench-{uuid.uuid4().hex[:12]}",
                "partitions": partitions,
                "client": name,
                "delivery_timeout_s": 30.0,
                **{key: value for key, value in given.items() if value is not None},
            },
            type=KafkaConfig,
        )
        with KafkaWriter(config, [_LOOP]) as writer:
            writer.connect()
            yield writer

    @contextmanager
    def _reader(self, name: LogName, writer: LogWriter) -> Iterator[EventLog]:
        if isinstance(writer, SqliteEventLog):
            yield writer
            return
        assert isinstance(writer, KafkaWriter), name
        with KafkaLog(writer.config, [_LOOP]) as log:
            yield log

    def _seen(
        self, writer: LogWriter, reader: EventLog, lake: Lake, payload: _Payload
    ) -> tuple[float, float]:
        """How long one event took to be appended, and to be seen in the lake, in milliseconds."""
        record = payload.record()
        began = time.perf_counter()
        writer.append([record])
        appended = time.perf_counter()
        with lake.lock():
            sink(reader, lake)
        found = lake.scan("decisions").filter(pl.col("decision_id") == record.key)
        assert found.select(pl.len()).collect().item() == 1
        return 1e3 * (appended - began), 1e3 * (time.perf_counter() - began)

    def _sink_here(self) -> float:
        lake = Lake(self._folder / f"lake-{uuid.uuid4().hex}")
        with SqliteEventLog(self._folder / f"log-{uuid.uuid4().hex}") as log:
            _fill(log, self._size)
            began = time.perf_counter()
            with lake.lock():
                sink(log, lake, batch=_SINK_ROWS)
            return self._size.sunk / (time.perf_counter() - began)

    def _sink_in_group(self, partitions: int, processes: int) -> float | None:
        """From the first rows in the lake to the last, so that nobody's start counts."""
        folder = self._folder / f"group-{uuid.uuid4().hex}"
        folder.mkdir()
        with self._kafka("confluent-kafka", partitions) as writer:
            _fill(writer, self._size)
            file = folder / "croupier.toml"
            file.write_text(_sink_config(writer.config))
        lake = Lake(folder / "data" / "lake")
        command = [
            *(sys.executable, "-m", "croupier", "sink", "--group", "--config", str(file)),
            *("--batch-rows", str(_SINK_ROWS), "--batch-seconds", "0"),
        ]
        said = folder / "stderr.txt"
        with said.open("wb") as stderr:
            running = [
                subprocess.Popen(  # noqa: S603
                    command, stdout=subprocess.DEVNULL, stderr=stderr
                )
                for _ in range(processes)
            ]
        try:
            rate = _rate(lake, self._size.sunk)
            if any(process.poll() is not None for process in running):
                raise LogUnavailableError(f"a sink has ended: {said.read_text()}")
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
        return rate

    def _tick(self) -> None:
        self._done += 1
        self._progress(self._done, self._total)


class _Payload:
    """Decisions of about one size, each with an id of its own."""

    def __init__(self, event_bytes: int) -> None:
        self._bytes = event_bytes
        self._numbers = count()
        scorer = Scorer({_LOOP: LoopConfig()}, secret=bytes(32))
        self._decision = self._padded(scorer)

    def record(self) -> Record:
        """Another one, encoded."""
        decision_id = f"{next(self._numbers):08d}-{uuid.UUID(int=self._bytes)}"
        decision = msgspec.structs.replace(self._decision, decision_id=decision_id)
        return Record(_LOOP, "decision", decision_id, encode_event(decision))

    def records(self, number: int) -> list[Record]:
        """Several."""
        return [self.record() for _ in range(number)]

    def _padded(self, scorer: Scorer) -> Decision:
        """A decision with a context that makes it as long as it has to be."""
        padding = ""
        while True:
            request = msgspec.convert(
                {"actions": [{"id": "a"}, {"id": "b"}], "context": {"text": padding}},
                type=DecisionRequest,
            )
            decision = scorer.decide(_LOOP, request)
            missing = self._bytes - len(encode_event(decision))
            if missing <= 0 or padding:
                return decision
            # Random, since a compressor would make nothing of a letter that is repeated.
            padding = os.urandom(missing).hex()[:missing]


def _append_for(
    seconds: float, log: LogWriter, payload: _Payload, durability: Durability
) -> _Round:
    """Append for some time, and see how many events came through and how long each took."""
    records = payload.records(_UNDER_WAY)
    taken: list[float] = []
    began, computed = time.perf_counter(), time.process_time()
    appender = Appender(log, max_batch=_MAX_BATCH, max_pending=_MAX_PENDING, durability=durability)
    submit = _committed if durability == "commit" else _buffered
    submit(appender, records, taken, began + seconds)
    appender.close(_PATIENCE_S)
    elapsed = time.perf_counter() - began
    taken.sort()
    return _Round(
        per_second=len(taken) / elapsed,
        p50_ms=1e3 * _quantile(taken, 0.5),
        p99_ms=1e3 * _quantile(taken, 0.99),
        cpu=(time.process_time() - computed) / elapsed,
    )


def _committed(
    appender: Appender, records: Sequence[Record], taken: list[float], end: float
) -> None:
    """Keep as many under way as there are records."""
    waiting: deque[Future[None]] = deque()
    for number in count():
        now = time.perf_counter()
        if now >= end:
            break
        future = appender.submit(records[number % len(records)])
        future.add_done_callback(partial(_taken, taken, now))
        waiting.append(future)
        if len(waiting) >= _UNDER_WAY:
            waiting.popleft().result(_PATIENCE_S)


def _taken(taken: list[float], began: float, future: Future[None]) -> None:
    future.result()
    taken.append(time.perf_counter() - began)


def _buffered(
    appender: Appender, records: Sequence[Record], taken: list[float], end: float
) -> None:
    """Hand over as fast as there is room."""
    for number in count():
        began = time.perf_counter()
        if began >= end:
            break
        while appender.depth >= _MAX_PENDING:
            time.sleep(_FULL_PAUSE_S)
        began = time.perf_counter()
        appender.submit(records[number % len(records)])
        taken.append(time.perf_counter() - began)


def _fill(log: LogWriter, size: Size) -> None:
    payload = _Payload(size.event_bytes[0])
    for first in range(0, size.sunk, _MAX_BATCH):
        log.append(payload.records(min(_MAX_BATCH, size.sunk - first)))


def _sink_config(kafka: KafkaConfig) -> str:
    servers = ", ".join(f'"{each}"' for each in kafka.bootstrap_servers)
    return f"""
data_dir = "data"

[log]
backend = "kafka"

[log.kafka]
bootstrap_servers = [{servers}]
topic_prefix = "{kafka.topic_prefix}"
partitions = {kafka.partitions}

[loops.{_LOOP}]
"""


def _rate(lake: Lake, rows: int) -> float | None:
    """Rows per second between the first that are seen and the last."""
    deadline = time.monotonic() + _PATIENCE_S
    first: tuple[float, int] | None = None
    while time.monotonic() < deadline:
        seen = lake.scan("decisions").select(pl.len()).collect().item()
        now = time.perf_counter()
        if first is None and seen:
            first = (now, seen)
        if seen >= rows:
            assert first is not None
            return (rows - first[1]) / (now - first[0]) if now > first[0] else None
        time.sleep(_LOOK_EVERY_S)
    raise LogUnavailableError(f"the sink didn't get {rows} rows in {_PATIENCE_S} s")


def _median(rounds: Sequence[_Round]) -> _Round:
    return sorted(rounds, key=lambda each: each.per_second)[len(rounds) // 2]


def _spread(rounds: Sequence[_Round]) -> float:
    rates = [each.per_second for each in rounds]
    return (max(rates) - min(rates)) / statistics.median(rates)


def _quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]


def _show(report: Report, size: Size, output: Output) -> None:
    rates = {(row.log, row.event_bytes, row.durability): row.per_second for row in report.appends}
    output.table(
        f"Appends, median of {size.rounds} rounds of {size.seconds:g} s",
        [
            "bytes",
            "durability",
            "log",
            "per second",
            "× sqlite",
            "p50 ms",
            "p99 ms",
            "cpu",
            "spread %",
        ],
        [
            [
                row.event_bytes,
                row.durability,
                row.log,
                round(row.per_second),
                round(row.per_second / rates["sqlite", row.event_bytes, row.durability], 2),
                round(row.p50_ms, 3),
                round(row.p99_ms, 3),
                round(row.cpu, 2),
                round(100 * row.spread),
            ]
            for row in report.appends
        ],
    )
    output.table(
        "How records are put together, under commit",
        [
            "bytes",
            "client",
            "compression",
            "linger ms",
            "batch bytes",
            "per second",
            "p99 ms",
            "spread %",
        ],
        [
            [
                row.event_bytes,
                row.log,
                row.compression,
                row.linger_ms,
                row.batch_bytes,
                round(row.per_second),
                round(row.p99_ms, 1),
                round(100 * row.spread),
            ]
            for row in report.settings
        ],
    )
    output.table(
        "One event from the append to the lake, median, in milliseconds",
        ["log", "appended", "visible"],
        [[row.log, round(row.append_ms, 2), round(row.visible_ms, 1)] for row in report.visible],
    )
    output.table(
        f"Sinks, over {size.sunk:,} events of {size.event_bytes[0]} bytes",
        ["log", "partitions", "processes", "rows per second"],
        [
            [
                row.log,
                row.partitions,
                row.processes,
                None if row.per_second is None else round(row.per_second),
            ]
            for row in report.sinks
        ],
    )
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    output.remark(f"{report.cores} cores, shared with the broker. {versions}.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one size, one short round")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    output = Output(json=given.json)
    size = QUICK if given.quick else FULL
    try:
        with output.progress("Measuring") as progress:
            report = measure(size, progress)
    except (ConfigError, LogUnavailableError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    output.result(report, lambda: _show(report, size, output))


if __name__ == "__main__":
    main()
