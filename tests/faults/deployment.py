"""All of a deployment as real processes: brokers, scorers and sinks, each of which may die."""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import msgspec

from croupier.cli.config import CroupierConfig, DataPaths, load_config
from croupier.eventlog.kafka.broker import Cluster
from croupier.eventlog.kafka.connection import admin
from tests.service.running import Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from croupier.eventlog.kafka.broker import Node, Runtime

LOOP = "shop"
PARTITIONS = 6

# Below what Linux takes for outgoing connections: a scorer that is away keeps its port.
_PORTS = range(18_000, 20_000)
# All of it is started at the same time, on however few cores.
_PATIENCE_S = 180.0


class Sink:
    """One ``croupier sink --group``, which is started again should it end, as a service is."""

    def __init__(self, config: Path, log: Path, group: str = "croupier-sink") -> None:
        self._config = config
        self._log = log
        self._group = group
        self._process: subprocess.Popen[bytes] | None = None
        self._said_before = 0

    def start(self) -> None:
        options = ["--group", "--batch-seconds", "1", "--config", str(self._config)]
        command = [sys.executable, "-m", "croupier", "sink", self._group, *options]
        with self._log.open("ab") as log:
            self._said_before = log.tell()
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def await_ready(self) -> None:
        """Wait until it takes part."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self._is_ready():
            assert time.monotonic() < deadline, self._said()
            time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(_PATIENCE_S)

    def stop(self) -> None:
        """Ask it to end, which it has to do properly."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(_PATIENCE_S) == 0, self._said()

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            # A broker that is away at this very moment keeps it from looking after topics.
            print(f"a sink ended with {self._process.returncode}, and is started again")
            self.start()
        return "sinking in group" in self._said()

    def _said(self) -> str:
        return self._log.read_bytes()[self._said_before :].decode()


class Deployment:
    """Scorers that have a data directory each, and sinks that share one lake.

    Parameters
    ----------
    folder
        For everything.
    runtime
        To start brokers with.
    scorers, sinks
        How many of each to begin with.
    attribution_window
        Of the loop.
    settings
        TOML of what else is configured, before the loop's section.
    """

    def __init__(
        self,
        folder: Path,
        runtime: Runtime,
        *,
        scorers: int = 3,
        sinks: int = 3,
        attribution_window: str = "1 h",
        settings: str = "",
    ) -> None:
        self.cluster = Cluster.create(folder / "kafka", nodes=3, heap_mb=320, runtime=runtime)
        self._folder = folder
        self._attribution_window = attribution_window
        self._settings = settings
        self._secret = secrets.token_hex(32)
        ports = _free_ports(scorers)
        self.scorers = [
            Server(_made(folder / f"scorer-{number}"), self._toml(port))
            for number, port in enumerate(ports)
        ]
        self.ports = ports
        self.sink_config = _made(folder / "sinks") / "croupier.toml"
        self.sink_config.write_text(f'data_dir = "data"\n{self._toml(0)}')
        self.sinks = [self._new_sink(number) for number in range(sinks)]
        self._made_sinks = sinks

    @contextmanager
    def running(self) -> Iterator[Deployment]:
        """Run all of it until the block ends."""
        try:
            self.cluster.start()
            for sink in self.sinks:
                sink.start()
            for each in self.scorers:
                each.start()
            for sink in self.sinks:
                sink.await_ready()
            yield self
        finally:
            for sink in self.sinks:
                sink.kill()
            for each in self.scorers:
                each.kill()
            self.cluster.kill()

    @property
    def config(self) -> CroupierConfig:
        """What the sinks are configured with."""
        return load_config(self.sink_config)[0]

    @property
    def paths(self) -> DataPaths:
        """Where the sinks' lake is."""
        return load_config(self.sink_config)[1]

    def leader(self, partition: int = 0) -> Node:
        """The node that leads a partition of the decisions."""
        with closing(admin(self.config.log.kafka)) as client:
            (found,) = client.describe_topics([f"faults.{LOOP}.decisions"])
        (number,) = (
            each["leader_id"]
            for each in found["partitions"]
            if each["partition_index"] == partition
        )
        return next(node for node in self.cluster.nodes if node.number == number)

    def add_sink(self) -> None:
        """Start one sink more, and wait until it takes part."""
        sink = self._new_sink(self._made_sinks)
        self._made_sinks += 1
        self.sinks.append(sink)
        sink.start()
        sink.await_ready()

    def remove_sink(self) -> None:
        """Ask the oldest sink to end."""
        self.sinks[0].stop()
        self.sinks.pop(0)

    def spills(self) -> list[Any]:
        """What the scorers that answer say of their spills; None of those that don't spill."""
        found = []
        for each in self.scorers:
            try:
                found.append(each.readiness().get("spill"))
            except (OSError, AssertionError):
                # It is being started again.
                found.append(None)
        return found

    def _new_sink(self, number: int) -> Sink:
        return Sink(self.sink_config, self._folder / f"sink-{number}.txt")

    def _toml(self, port: int) -> str:
        servers = msgspec.json.encode(self.cluster.bootstrap_servers).decode()
        return f"""
[service]
port = {port}
draw_secret = "{self._secret}"

[log]
backend = "kafka"
durability = "commit"

[log.kafka]
bootstrap_servers = {servers}
topic_prefix = "faults"
partitions = {PARTITIONS}
replication = 3
min_insync = 2

{self._settings}
[loops.{LOOP}]
attribution_window = "{self._attribution_window}"
"""


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    for port in secrets.SystemRandom().sample(_PORTS, 200):
        with socket.socket() as probe:
            if len(found) < count and probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    assert len(found) == count
    return found
