"""What docker/compose.yaml runs, as plain processes on this machine.

Kafka, PostgreSQL under an MLflow server, two scorers behind HAProxy, sinks, nights, the watcher and
the dashboard; each with the command of its image, but for addresses and folders.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from croupier.offline.lake import Lake
from croupier.offline.summaries.tables import SCORERS, summaries_of
from tests.faults.deployment import LOOP, Deployment
from tests.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from croupier.eventlog.kafka.broker import Runtime

HAPROXY = Path(__file__).parents[2] / "docker" / "haproxy.cfg"
_PATIENCE_S = 240.0
_DATABASE_USER = "mlflow"


class Program:
    """A process that can be killed and started again, and is waited for until it answers."""

    def __init__(self, command: Sequence[str], log: Path, ready: Callable[[], bool]) -> None:
        self._command = list(command)
        self._log = log
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _PATIENCE_S
        while not self._ready():
            said = self._log.read_bytes()[-2000:].decode(errors="replace")
            assert self._process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)

    def kill(self) -> None:
        """End it and what it has started, as a power failure would."""
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(_PATIENCE_S)


class Topology:
    """All of it, stopped.

    Parameters
    ----------
    folder
        For everything.
    runtime
        To start brokers with.
    """

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        # Not below pytest's folders, which are for their owner alone: it runs as somebody else.
        self._elsewhere = tempfile.mkdtemp(prefix="croupier-postgres-")
        self.database = _database(Path(self._elsewhere))
        address, self.mlflow = _mlflow(folder, self.database.port)
        self.deployment = Deployment(
            folder / "croupier",
            runtime,
            scorers=2,
            sinks=2,
            attribution_window="10 s",
            settings=f"""
[registry]
tracking_uri = "{address}"

[nightly.gate]
margin = -1.0
min_ess = 10.0
""",
        )
        self.port, self.balancer = _balancer(folder, self.deployment.ports)
        self.dashboard_port, self.dashboard = _dashboard(folder, self.deployment.sink_config)
        self.watcher = _watcher(folder, self.deployment)
        self.nights: list[int] = []
        self._stopping = threading.Event()

    @contextmanager
    def running(self) -> Iterator[Topology]:
        """Run all of it until the block ends."""
        parts = (self.database.program, self.mlflow)
        try:
            for each in parts:
                each.start()
            with self.deployment.running():
                self.balancer.start()
                self.watcher.start()
                self.dashboard.start()
                yield self
        finally:
            for each in (self.dashboard, self.watcher, self.balancer, *reversed(parts)):
                each.kill()
            shutil.rmtree(self._elsewhere)

    def night(self) -> int:
        """``croupier nightly``; gives its exit code."""
        log = (self._folder / "nights.txt").open("ab")
        with log:
            done = subprocess.run(
                [*_CROUPIER, "nightly", "--wait", "2min", "--config", self._config],
                stdout=log,
                stderr=log,
                check=False,
                timeout=_PATIENCE_S,
            )
        self.nights.append(done.returncode)
        return done.returncode

    @contextmanager
    def nightly(self, pause_s: float) -> Iterator[None]:
        """A night after the other, whatever becomes of the rest."""

        def work() -> None:
            while not self._stopping.wait(pause_s):
                self.night()

        thread = threading.Thread(target=work, name="nights")
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()

    def generations(self) -> list[int | None]:
        """Which generation each scorer serves."""
        return [each.readiness()["loops"][LOOP]["generation"] for each in self.deployment.scorers]

    def audit(self) -> dict[str, object]:
        """``croupier audit``: whether logged propensities are those of the draws."""
        done = subprocess.run(
            [*_CROUPIER, "audit", "--json", "--config", self._config],
            capture_output=True,
            check=False,
            timeout=_PATIENCE_S,
        )
        return {"code": done.returncode, "said": (done.stdout + done.stderr)[-3000:].decode()}

    def alerts(self) -> set[str]:
        """Rules of the scorers that have an alert open."""
        rows = summaries_of(Lake(self.deployment.paths.lake)).read(SCORERS, "alerts")
        return set(rows.filter(pl.col("closed").is_null())["rule"])

    @property
    def _config(self) -> str:
        return str(self.deployment.sink_config)


class Database:
    """A PostgreSQL of its own, with one database."""

    def __init__(self, port: int, program: Program) -> None:
        self.port = port
        self.program = program


_CROUPIER = (sys.executable, "-m", "croupier")


def _database(folder: Path) -> Database:
    user = _unprivileged(folder)
    data, port = folder / "data", free_port()
    initdb, postgres, isready = (_postgres_tool(n) for n in ("initdb", "postgres", "pg_isready"))
    subprocess.run(
        [*user, initdb, "--auth=trust", f"--username={_DATABASE_USER}", f"--pgdata={data}"],
        check=True,
        capture_output=True,
        cwd=folder,
    )
    command = [*user, postgres, "-D", str(data), "-p", str(port), "-k", str(folder)]
    ready = [isready, "-h", "127.0.0.1", "-p", str(port)]
    return Database(
        port,
        Program(
            command,
            folder / "log.txt",
            lambda: subprocess.run(ready, check=False, capture_output=True).returncode == 0,
        ),
    )


def _mlflow(folder: Path, database: int) -> tuple[str, Program]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--artifacts-destination", str(folder / "artifacts")]
    command += [
        "--backend-store-uri",
        f"postgresql://{_DATABASE_USER}@127.0.0.1:{database}/postgres",
    ]
    address = f"http://127.0.0.1:{port}"
    return address, Program(command, folder / "mlflow.txt", lambda: _answers(f"{address}/health"))


def _balancer(folder: Path, scorers: Sequence[int]) -> tuple[int, Program]:
    """HAProxy with the configuration of the images, but for addresses."""
    port = free_port()
    text = HAPROXY.read_text().replace("bind :8080", f"bind 127.0.0.1:{port}")
    for number, scorer in enumerate(scorers, start=1):
        text = text.replace(f"scorer-{number}:8080", f"127.0.0.1:{scorer}")
    file = folder / "haproxy.cfg"
    file.write_text(text)
    command = [_required("haproxy"), "-f", str(file)]
    return port, Program(
        command, folder / "haproxy.txt", lambda: _answers(f"http://127.0.0.1:{port}/readyz")
    )


def _dashboard(folder: Path, config: Path) -> tuple[int, Program]:
    port = free_port()
    command = [*_CROUPIER, "dashboard", "--port", str(port), "--config", str(config)]
    health = f"http://127.0.0.1:{port}/_stcore/health"
    return port, Program(command, folder / "dashboard.txt", lambda: _answers(health))


def _watcher(folder: Path, deployment: Deployment) -> Program:
    """Ready when it has looked, and found all scorers there."""
    scorers = [f"http://127.0.0.1:{port}" for port in deployment.ports]
    command = ["env", f"CROUPIER_ALERTS__SCORERS={json.dumps(scorers)}", *_CROUPIER]
    command += ["watch", "--every", "2s", "--config", str(deployment.sink_config)]
    seen = deployment.paths.watch
    return Program(
        command,
        folder / "watcher.txt",
        lambda: seen.exists() and json.loads(seen.read_text())["away"] == {},
    )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _unprivileged(folder: Path) -> list[str]:
    """What to run PostgreSQL with, which refuses to be root."""
    if os.getuid() != 0:
        return []
    shutil.chown(folder, "nobody")
    return [_required("setpriv"), "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


def _postgres_tool(name: str) -> str:
    """A program of PostgreSQL; Debian keeps them off the path."""
    found = shutil.which(name) or next(
        (str(each) for each in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None
    )
    return found or _required(name)


def _required(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        _missing(name)
    assert found is not None
    return found


def _missing(name: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"expected {name} to be installed")
    pytest.skip(f"{name} is not installed")
