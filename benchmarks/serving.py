"""The HTTP scorer beside a server that does nothing and the service that one would write instead.

Run with ``make bench-serving`` or ``python -m benchmarks.serving`` (``--json`` for programs,
``--quick`` for a first look: one workload, no warm-up). Needs Linux and wrk. Every server is a
process of its own on one core, the load generator has another; servers take turns, round by round,
and each connection sends its next request when it has the answer to the one before. What is
reported is the round with the median rate. A refusal or a broken connection ends the measurement,
and so does a Croupier log that holds fewer decisions than were acknowledged. Differences between
servers mean nothing where rounds of the same one differ as much: see the columns ``spread`` and
``stolen``.

``noop``, ``noop-lane`` and ``fastapi-vw`` are in :mod:`benchmarks.serving_peers`.
``croupier-buffered`` and ``croupier-commit`` are ``croupier serve`` with its defaults but for
``log.durability`` and ``service.registry_poll``, since their mirrors share the core with every
server; they serve a trained Vowpal Wabbit generation from their serving directory, and log every
decision. ``croupier-plain`` is ``croupier-buffered`` without the compiled kernel.

Candidates come from a catalogue, as they do in most applications, and actions that were met before
are not read again; what new ones cost is in the figures without a server, under ``fresh``.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, get_args

import msgspec
import urllib3

from benchmarks.serving_peers import trained_model
from benchmarks.serving_workloads import (
    LARGE,
    SMALL,
    Workload,
    bodies,
    fresh_bodies,
    trained_generation,
    training_rows,
)
from benchmarks.wrk import BenchmarkError, Load, find_wrk, pinned, put_load_on, wrk_version
from croupier.cli.output import Output
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.policy.events import Decision, decode_event, encode_event
from croupier.policy.generation import Generation
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import EncodedOracle
from croupier.policy.traffic import Plan, Split
from croupier.service.api import DecideRequest, DecideResponse
from croupier.service.catalogue import Catalogue
from croupier.service.scorer import Scorer
from croupier.service.server import read_address
from croupier.service.serving import ServingDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from croupier.policy.decision import DecisionRequest

__all__ = ("FULL", "QUICK", "SERVERS", "Report", "Row", "Size", "measure")

ServerName: TypeAlias = Literal[
    "noop", "noop-lane", "fastapi-vw", "croupier-plain", "croupier-buffered", "croupier-commit"
]

SERVERS: tuple[ServerName, ...] = get_args(ServerName)
_T = TypeVar("_T")

_LOOP = "bench"
_NUMBER = 1
_WARM_UP_S = 1
_PATIENCE_S = 60.0
_BUSY = 0.9
_STEADY = 0.2
_PASSES = 5


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured.

    Attributes
    ----------
    workloads
        Sizes of the requests.
    connections
        Numbers of connections to try.
    rounds
        Of which the median is reported.
    seconds
        Length of a round.
    warm_up
        Whether a second of load that isn't measured comes before the rounds.
    requests
        Different bodies.
    training_rows
        Interactions that the models have learned from.
    """

    workloads: tuple[Workload, ...] = (SMALL, LARGE)
    connections: tuple[int, ...] = (8, 64)
    rounds: int = 5
    seconds: int = 3
    warm_up: bool = True
    requests: int = 300
    training_rows: int = 500


FULL = Size()
QUICK = Size(workloads=(SMALL,), connections=(8,), rounds=1, warm_up=False, training_rows=100)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One server under one load.

    Attributes
    ----------
    server, actions, connections
        What was measured.
    rps, p50_ms, p99_ms
        Answers per second and quantiles of the latency, of the round with the median rate.
    half_rps, half_p99_ms
        The same at about half that rate: connections pause between requests.
    spread
        Between the fastest and the slowest round, as a share of the median.
    stolen
        Share of the two cores' time that the hypervisor gave to other machines, at most over the
        rounds.
    generator_busy
        Share of the time in which the load generator computed, at most over the rounds.
    """

    server: ServerName
    actions: int
    connections: int
    rps: float
    p50_ms: float
    p99_ms: float
    half_rps: float
    half_p99_ms: float
    spread: float
    stolen: float
    generator_busy: float


class InProcess(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds per decision without any server, the best of several passes.

    Attributes
    ----------
    actions
        Of a request.
    decide_us, decide_plain_us
        ``Scorer.decide`` and ``encode_event``, with the compiled kernel and without.
    body_us, body_fresh_us
        Reading the body too; ``fresh`` with actions that were never met before.
    """

    actions: int
    decide_us: float
    decide_plain_us: float
    body_us: float
    body_fresh_us: float


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """``croupier-commit`` with several workers, which share all cores with the load generator."""

    workers: int
    rps: float
    p99_ms: float


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where and with what it was measured.

    Attributes
    ----------
    cpu, cores
        The processor's name, and how many of its cores may be used.
    server_core, load_core
        Which of them the servers and the load generator had.
    sync_us
        Median time of a synced write of 4 kB to where the logs were, in microseconds.
    versions
        Of Python, wrk and the packages.
    """

    cpu: str
    cores: int
    server_core: int
    load_core: int
    sync_us: float
    versions: dict[str, str]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of a run.

    Attributes
    ----------
    rows
        One for every server, workload and number of connections.
    in_process
        One for every workload.
    scaling
        Of the smallest workload at the largest number of connections.
    environment
        Where and with what.
    """

    rows: list[Row]
    in_process: list[InProcess]
    scaling: list[Scaling]
    environment: Environment


def measure(size: Size = FULL, progress: Callable[[int, int], None] | None = None) -> Report:
    """Measure every server under every load.

    Parameters
    ----------
    size
        How much to measure.
    progress
        Called with the runs of the load generator that are done, and their number.

    Raises
    ------
    BenchmarkError
        If anything but acknowledged decisions came of it.
    """
    find_wrk()
    cores = sorted(os.sched_getaffinity(0))
    meter = _Meter(size, cores[0], cores[-1], progress or (lambda _done, _total: None))
    rows: list[Row] = []
    in_process = []
    with tempfile.TemporaryDirectory(prefix="croupier-bench-") as folder:
        sync_us = _sync_us(Path(folder))
        for workload in size.workloads:
            files = _prepare(Path(folder) / str(workload.actions), workload, size)
            rows += meter.measure(workload, files)
            with pinned({meter.server_core}):
                in_process.append(_in_process(workload, files))
            if workload == size.workloads[0]:
                scaling = [meter.scaled(workers, files, set(cores)) for workers in (1, 2)]
    return Report(
        rows=rows,
        in_process=in_process,
        scaling=scaling,
        environment=_environment(cores, meter, sync_us),
    )


@dataclass(frozen=True, slots=True)
class _Files:
    """What the servers and the load generator of a workload read.

    Attributes
    ----------
    folder
        Where all of it is, and where the servers write.
    bodies
        Requests, one a line.
    answer
        What ``noop`` answers: a decision on as many actions.
    model
        Of ``fastapi-vw``.
    generation
        Of Croupier.
    """

    folder: Path
    bodies: Path
    answer: Path
    model: Path
    generation: Path


def _prepare(folder: Path, workload: Workload, size: Size) -> _Files:
    files = _Files(
        folder,
        folder / "bodies",
        folder / "answer.json",
        folder / "model.vw",
        folder / "generation",
    )
    folder.mkdir()
    requests = bodies(workload, size.requests)
    files.bodies.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in requests))
    rows = training_rows(workload, size.training_rows)
    files.model.write_bytes(trained_model(rows))
    generation = trained_generation(_LOOP, _NUMBER, rows)
    generation.save(files.generation)
    scorer = _scorer(generation)
    decision = scorer.decide(_LOOP, _decoded(files.bodies)[0])
    files.answer.write_bytes(msgspec.json.encode(DecideResponse.of(decision)))
    return files


def _scorer(generation: Generation) -> Scorer:
    scorer = Scorer({_LOOP: LoopConfig()}, secret=bytes(range(32)))
    scorer.swap(Plan(generation))
    return scorer


def _decoded(path: Path) -> list[DecideRequest]:
    decoder = msgspec.json.Decoder(DecideRequest)
    return [decoder.decode(line) for line in path.read_bytes().splitlines()]


def _in_process(workload: Workload, files: _Files) -> InProcess:
    generation = Generation.load(files.generation)
    plain = Generation.load(files.generation)
    assert isinstance(plain.oracle, EncodedOracle)
    plain.oracle.do_without_kernel()
    lines = files.bodies.read_bytes().splitlines()
    fresh = [msgspec.json.encode(each) for each in fresh_bodies(workload, len(lines))]
    catalogue = Catalogue()
    requests = [catalogue.read(line) for line in lines]
    scorers = {True: _scorer(generation), False: _scorer(plain)}

    def decide(request: DecisionRequest, *, compiled: bool = True) -> None:
        encode_event(scorers[compiled].decide(_LOOP, request))

    return InProcess(
        actions=workload.actions,
        decide_us=_best_us(decide, requests),
        decide_plain_us=_best_us(partial(decide, compiled=False), requests),
        body_us=_best_us(lambda line: decide(catalogue.read(line)), lines),
        body_fresh_us=_best_us(lambda line: decide(Catalogue().read(line)), fresh),
    )


def _best_us(work: Callable[[_T], object], items: Sequence[_T]) -> float:
    """Microseconds per item, of the best pass over all of them."""
    passes = []
    for _ in range(_PASSES):
        started = time.perf_counter()
        for item in items:
            work(item)
        passes.append(time.perf_counter() - started)
    return min(passes) / len(items) * 1e6


@dataclass(slots=True)
class _Meter:
    """Runs servers and loads, and counts the loads."""

    size: Size
    server_core: int
    load_core: int
    progress: Callable[[int, int], None]
    done: int = 0

    @property
    def loads(self) -> int:
        """How many there will have been in the end."""
        size = self.size
        lines = len(size.workloads) * len(SERVERS) * len(size.connections)
        return lines * (size.rounds + size.warm_up + 1) + 2 * (size.rounds + 1)

    def measure(self, workload: Workload, files: _Files) -> list[Row]:
        """Every server at every number of connections.

        All of them run from the start, and take turns: what the machine does meanwhile, it does to
        all alike.
        """
        rows = []
        acknowledged = dict.fromkeys(SERVERS, 1)
        with ExitStack() as stack:
            urls = {
                server: stack.enter_context(
                    _running(server, files, files.folder / server, {self.server_core})
                )
                for server in SERVERS
            }
            for url in urls.values():
                _require_answer(url, files)
            for connections in self.size.connections:
                rounds = self._rounds(urls, files, connections, acknowledged)
                for server, measured in rounds.items():
                    half = self._half_load(urls[server], files, connections, measured)
                    acknowledged[server] += half.load.answers
                    rows.append(_row(server, workload.actions, connections, measured, half))
        for server in SERVERS:
            if server.startswith("croupier"):
                directory = files.folder / server / "data" / "log"
                _require_logged(server, directory, acknowledged[server])
        return rows

    def _rounds(
        self,
        urls: Mapping[ServerName, str],
        files: _Files,
        connections: int,
        acknowledged: dict[ServerName, int],
    ) -> dict[ServerName, list[_Round]]:
        """The rounds of every server, in turn; counts what was acknowledged."""
        rounds: dict[ServerName, list[_Round]] = {server: [] for server in urls}
        for turn in range(self.size.warm_up + self.size.rounds):
            warm_up = turn < self.size.warm_up
            for server, url in urls.items():
                seconds = _WARM_UP_S if warm_up else self.size.seconds
                found = self._load(url, files, connections, seconds)
                acknowledged[server] += found.load.answers
                if not warm_up:
                    rounds[server].append(found)
        return rounds

    def scaled(self, workers: int, files: _Files, cores: set[int]) -> Scaling:
        """``croupier-commit`` with so many workers, everything on all cores."""
        connections = max(self.size.connections)
        data_dir = files.folder / f"{workers} workers"
        with _running("croupier-commit", files, data_dir, cores, workers=workers) as url:
            self._load(url, files, connections, _WARM_UP_S, cores=cores)
            loads = [
                self._load(url, files, connections, self.size.seconds, cores=cores).load
                for _ in range(self.size.rounds)
            ]
        median = _median(loads)
        return Scaling(workers=workers, rps=median.rps, p99_ms=median.p99_ms)

    def _half_load(
        self, url: str, files: _Files, connections: int, rounds: Sequence[_Round]
    ) -> _Round:
        """Half the median rate, or a little less, by pauses between requests."""
        median = _median([each.load for each in rounds])
        pause_ms = 2e3 * connections / median.rps - median.p50_ms / 2
        return self._load(
            url, files, connections, self.size.seconds, pause_ms=max(1, math.ceil(pause_ms))
        )

    def _load(
        self,
        url: str,
        files: _Files,
        connections: int,
        seconds: int,
        *,
        cores: set[int] | None = None,
        pause_ms: int = 0,
    ) -> _Round:
        used = {self.server_core, self.load_core}
        before = _stolen_s(used)
        started = time.monotonic()
        load = put_load_on(
            url,
            files.bodies,
            connections=connections,
            seconds=seconds,
            cores=cores or {self.load_core},
            pause_ms=pause_ms,
        )
        took = time.monotonic() - started
        stolen = (_stolen_s(used) - before) / (len(used) * took)
        self.done += 1
        self.progress(self.done, self.loads)
        return _Round(load, stolen)


@dataclass(frozen=True, slots=True)
class _Round:
    """What came of a load, and the share of two cores' time that was stolen meanwhile."""

    load: Load
    stolen: float


def _median(loads: Sequence[Load]) -> Load:
    """The one with the median rate; of an even number the slower one in the middle."""
    return sorted(loads, key=lambda load: load.rps)[(len(loads) - 1) // 2]


def _row(
    server: ServerName,
    actions: int,
    connections: int,
    rounds: Sequence[_Round],
    half: _Round,
) -> Row:
    median = _median([each.load for each in rounds])
    rates = [each.load.rps for each in rounds]
    return Row(
        server=server,
        actions=actions,
        connections=connections,
        rps=median.rps,
        p50_ms=median.p50_ms,
        p99_ms=median.p99_ms,
        half_rps=half.load.rps,
        half_p99_ms=half.load.p99_ms,
        spread=(max(rates) - min(rates)) / median.rps,
        stolen=max(each.stolen for each in rounds),
        generator_busy=max(each.load.generator_busy for each in rounds),
    )


@contextmanager
def _running(
    server: ServerName, files: _Files, data_dir: Path, cores: set[int], *, workers: int = 1
) -> Iterator[str]:
    """A server's process; gives the URL that decides. It must end when it is asked to."""
    data_dir.mkdir()
    if not server.startswith("croupier"):
        file = files.model if server == "fastapi-vw" else files.answer
        command = ["-m", "benchmarks.serving_peers", server, str(file)]
    else:
        config = _croupier(server, files, data_dir)
        command = ["-m", "croupier", "serve", "--config", str(config), "--workers", str(workers)]
    stderr = data_dir / "stderr.txt"
    # Nobody's own settings are to be measured.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CROUPIER_")}
    if server == "croupier-plain":
        environment["CROUPIER_KERNEL"] = "off"
    with stderr.open("wb") as errors, pinned(cores):
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=errors
        )
    try:
        yield _decide_url(server, process, data_dir)
        process.terminate()
        process.wait(_PATIENCE_S)
    except (BenchmarkError, subprocess.TimeoutExpired) as error:
        raise BenchmarkError(f"{server}: {error}{_last_line(stderr)}") from error
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _croupier(server: ServerName, files: _Files, directory: Path) -> Path:
    """Write a configuration, and the generation to where the registry's mirror would put it."""
    config = directory / "croupier.toml"
    durability = "commit" if server == "croupier-commit" else "buffered"
    config.write_text(
        f'data_dir = "data"\n\n[service]\nport = 0\nregistry_poll = "1 min"\n\n'
        f'[log]\ndurability = "{durability}"\n\n[loops.{_LOOP}]\n'
    )
    serving = ServingDirectory(directory / "data" / "serving")
    Generation.load(files.generation).save(serving.generation_path(_LOOP, _NUMBER))
    serving.write_split(_LOOP, Split(generation=_NUMBER))
    return config


def _decide_url(server: ServerName, process: subprocess.Popen[bytes], data_dir: Path) -> str:
    """Wait until the server can be asked."""
    assert process.stdout is not None
    line = process.stdout.readline().decode().strip()
    if not line:
        raise BenchmarkError("it did not start")
    if not server.startswith("croupier"):
        return line
    address = read_address(data_dir / "data" / "service.json")
    if address is None:
        raise BenchmarkError("it says nowhere where it listens")
    deadline = time.monotonic() + _PATIENCE_S
    # Once its mirror has looked at the registry, it is done with what takes long.
    looked = data_dir / "data" / "serving" / "registry.json"
    while (
        urllib3.request("GET", f"{address.url}/readyz").json()["status"] != "ready"
        or not looked.exists()
    ):
        if time.monotonic() > deadline:
            raise BenchmarkError(f"it is not ready after {_PATIENCE_S:g} s")
        time.sleep(0.05)
    return f"{address.url}/v1/loops/{_LOOP}/decide"


def _require_answer(url: str, files: _Files) -> None:
    """Ask once, and see that the answer is a decision on as many actions."""
    first = files.bodies.read_bytes().splitlines()[0]
    answer = urllib3.request(
        "POST", url, body=first, headers={"content-type": "application/json"}, retries=False
    )
    if answer.status != 200:
        raise BenchmarkError(f"expected a decision, got {answer.status}: {answer.data[:200]!r}")
    given = msgspec.json.decode(answer.data, type=_Answer)
    asked = msgspec.json.decode(first, type=DecideRequest).actions
    sound = given.action in {action.id for action in asked} and given.propensity in given.pmf
    if not sound or len(given.pmf) != len(asked) or abs(sum(given.pmf) - 1.0) > 1e-4:
        raise BenchmarkError(f"expected a decision on {len(asked)} actions, got {given}")


class _Answer(msgspec.Struct, frozen=True):
    """What every server says of a decision."""

    action: str
    propensity: float
    pmf: list[float]


def _require_logged(server: ServerName, directory: Path, acknowledged: int) -> None:
    """See that the log holds what was acknowledged, and that the generation decided it."""
    with SqliteEventLog(directory) as log:
        start, end = log.start(), log.end()
        # Nothing but decisions was asked for, so records are decisions.
        if end - start < acknowledged:
            raise BenchmarkError(
                f"{server}: the log holds {end - start} decisions, {acknowledged} were acknowledged"
            )
        for entry in [*log.read(start, limit=100), *log.read(max(start, end - 100), limit=100)]:
            event = decode_event(entry.payload)
            if (
                not isinstance(event, Decision)
                or event.generation != _NUMBER
                or event.scores is None
            ):
                raise BenchmarkError(f"{server}: generation {_NUMBER} did not decide {entry.key}")


def _last_line(stderr: Path) -> str:
    lines = stderr.read_text(errors="replace").strip().splitlines()
    return f" ({lines[-1].strip()})" if lines else ""


def _sync_us(folder: Path) -> float:
    """Median time of a synced write of 4 kB, in microseconds."""
    times = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(50):
            started = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def _stolen_s(cores: set[int]) -> float:
    """Time that some cores were ready to compute and the hypervisor didn't let them, in seconds."""
    names = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *times = line.split()
        if name in names:
            ticks += int(times[7])
    return ticks / os.sysconf("SC_CLK_TCK")


def _environment(cores: Sequence[int], meter: _Meter, sync_us: float) -> Environment:
    packages = ("uvicorn", "fastapi", "pydantic", "numpy", "vowpal-wabbit-next")
    return Environment(
        cpu=_cpu(),
        cores=len(cores),
        server_core=meter.server_core,
        load_core=meter.load_core,
        sync_us=sync_us,
        versions={"Python": platform.python_version()}
        | {name: version(name) for name in packages}
        | {"wrk": wrk_version()},
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _show(report: Report, size: Size, output: Output) -> None:
    rates = {(row.server, row.actions, row.connections): row.rps for row in report.rows}

    def against(server: ServerName, row: Row) -> float:
        return round(row.rps / rates[server, row.actions, row.connections], 2)

    where = report.environment
    versions = ", ".join(f"{name} {number}" for name, number in where.versions.items())
    shared = ""
    if where.server_core == where.load_core:
        shared = " There was only one core, for servers and load generator alike."
    output.table(
        f"Decisions per second on one core, median of {size.rounds} rounds of {size.seconds} s",
        [
            "actions",
            "connections",
            "server",
            "per second",
            "p50 ms",
            "p99 ms",
            "at half load",
            "p99 ms then",
            "× noop",
            "× fastapi-vw",
            "spread %",
            "stolen %",
        ],
        [
            [
                row.actions,
                row.connections,
                row.server,
                round(row.rps),
                round(row.p50_ms, 2),
                round(row.p99_ms, 2),
                round(row.half_rps),
                round(row.half_p99_ms, 2),
                against("noop", row),
                against("fastapi-vw", row),
                round(100 * row.spread, 1),
                round(100 * row.stolen, 1),
            ]
            for row in report.rows
        ],
        note=f"{where.cpu}, {where.cores} cores; a synced write takes {where.sync_us:,.0f} µs."
        f"{shared}\n{versions}.",
    )
    output.table(
        "In process, without a server: microseconds per decision",
        ["actions", "decide and encode", "without kernel", "and read the body", "fresh actions"],
        [
            [
                each.actions,
                round(each.decide_us, 1),
                round(each.decide_plain_us, 1),
                round(each.body_us, 1),
                round(each.body_fresh_us, 1),
            ]
            for each in report.in_process
        ],
    )
    output.table(
        "croupier-commit with several workers; they and the load generator share all cores",
        ["workers", "per second", "p99 ms"],
        [[each.workers, round(each.rps), round(each.p99_ms, 2)] for each in report.scaling],
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=_positive, help="length of a round")
    parser.add_argument("--quick", action="store_true", help="one workload, one round, no warm-up")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    output = Output(json=given.json)
    size = QUICK if given.quick else FULL
    if given.seconds is not None:
        size = msgspec.structs.replace(size, seconds=given.seconds)
    try:
        with output.progress("Measuring") as progress:
            report = measure(size, progress)
    except BenchmarkError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    busiest = max(report.rows, key=lambda row: row.generator_busy)
    if busiest.generator_busy > _BUSY:
        output.warn(
            f"the load generator was busy for {busiest.generator_busy:.0%} of the time against "
            f"{busiest.server}: more might have been served than is reported"
        )
    widest = max(report.rows, key=lambda row: row.spread)
    if widest.spread > _STEADY:
        output.warn(
            f"rounds of {widest.server} differ by up to {widest.spread:.0%}; differences between "
            f"servers that are not larger mean nothing"
        )
    output.result(report, lambda: _show(report, size, output))


if __name__ == "__main__":
    main()
