"""A real ``croupier serve`` process, and what the tests ask of it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlparse

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.policy.events import Decision, decode_event
from croupier.policy.traffic import Split
from croupier.service.server import read_address
from croupier.service.serving import ServingDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from croupier.policy.events import Event
    from croupier.policy.generation import Generation

PATIENCE_S = 120.0


class Answer(NamedTuple):
    """One HTTP answer; ``json`` checks that it is one in JSON."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error's body, after a check that it is the envelope and nothing else."""
        assert self.status >= 400, self
        assert set(self.json) == {"error"}, self
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"code", "message", "target"}, self
        assert isinstance(error["code"], str), self
        assert isinstance(error["message"], str), self
        assert error["target"] is None or isinstance(error["target"], str), self
        return error


class Caller:
    """One keep-alive connection, opened when it is first needed."""

    def __init__(self, port: int, key: str | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        self._headers = {} if key is None else {"x-api-key": key}

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def send(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        sent = self._headers if headers is None else headers
        self._connection.request(method, path, body or None, sent)
        response = self._connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read())

    def get(self, path: str) -> Answer:
        return self.send("GET", path)

    def post(self, path: str, value: Any) -> Answer:
        """Post to a loop's route, such as ``digits/decide``; bytes go as they are."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.send("POST", f"/v1/loops/{path}", body)


class Server:
    """A scorer with a configuration and a data directory of its own, that can be started again.

    Parameters
    ----------
    directory, config, key
        Where it lives, how it is configured, and the key that callers show.
    arguments
        Of ``croupier serve``, besides the configuration.
    prefix
        What its command line begins with, for one that runs under another program.
    """

    def __init__(
        self,
        directory: Path,
        config: str,
        key: str | None = None,
        *,
        arguments: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        self._arguments = tuple(arguments)
        self._prefix = tuple(prefix)
        self.data_dir = directory / "data"
        self.serving = ServingDirectory(self.data_dir / "serving")
        self.key = key
        self._config = directory / "croupier.toml"
        self._stderr = directory / "stderr.txt"
        self.configure(config)

    def configure(self, config: str) -> None:
        """Exchange the configuration, for the next start."""
        self._config.write_text(f'data_dir = "data"\n{config}')

    def start(self) -> Server:
        """Start it, and wait until it says that it can decide and log."""
        with self._stderr.open("ab") as stderr:
            self.process = subprocess.Popen(
                [*self._prefix, *self._command("serve", *self._arguments)],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        try:
            wait_until(self._announced)
            assert self.get("/readyz").status == 200
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> int:
        """Ask it to end as an orchestrator does; gives the exit status."""
        self.process.terminate()
        return self.process.wait(timeout=PATIENCE_S)

    def kill(self) -> None:
        """End it and its workers as a power failure would, as far as processes go."""
        for pid in (*self.workers(), self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=PATIENCE_S)

    def workers(self) -> list[int]:
        """Process ids of its workers, if it has several."""
        return self.children("croupier.service.worker")

    def children(self, module: str) -> list[int]:
        """Process ids of those of its children that run a module."""
        files = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for file in files for pid in file.read_text().split()]
        return [pid for pid in pids if module in _command_line(pid)]

    def run(
        self, command: str, *arguments: str, patience_s: float = PATIENCE_S, code: int = 0
    ) -> Any:
        """Run another command on its data, which has to end with a code, and give its JSON."""
        done = subprocess.run(
            self._command(command, "--json", *arguments),
            capture_output=True,
            text=True,
            check=False,
            timeout=patience_s,
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def resident_bytes(self) -> int:
        """Memory that its processes hold."""
        pids = [self.process.pid, *self.workers()]
        status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        return sum(1024 * int(re.findall(r"VmRSS:\s+(\d+) kB", each)[0]) for each in status)

    def _command(self, name: str, *arguments: str) -> list[str]:
        config = ("--config", str(self._config))
        return [sys.executable, "-m", "croupier", name, *config, *arguments]

    @property
    def url(self) -> str:
        address = read_address(self.data_dir / "service.json")
        assert address is not None
        return address.url

    @property
    def port(self) -> int:
        port = urlparse(self.url).port
        assert port is not None
        return port

    def caller(self) -> Caller:
        return Caller(self.port, self.key)

    def get(self, path: str) -> Answer:
        with self.caller() as caller:
            return caller.get(path)

    def post(self, path: str, value: Any) -> Answer:
        with self.caller() as caller:
            return caller.post(path, value)

    def readiness(self) -> Any:
        return self.get("/readyz").json

    def serve(self, generation: Generation) -> None:
        """Put a generation into the serving directory, as the mirror would."""
        generation.save(self.serving.generation_path(generation.loop, generation.number))
        self.name(generation.loop, generation.number)

    def name(self, loop: str, number: int, **others: Any) -> None:
        """Name the generations to serve, as the mirror would."""
        self.serving.write_split(loop, Split(generation=number, **others))

    def events(self) -> list[Event]:
        """Everything that the log holds."""
        with SqliteEventLog(self.data_dir / "log") as log:
            return [decode_event(entry.payload) for entry in log.read(1, limit=10**9)]

    def decision(self, decision_id: str) -> Decision:
        """The first decision of that id in the log."""
        return next(
            event
            for event in self.events()
            if isinstance(event, Decision) and event.decision_id == decision_id
        )

    def stderr(self) -> str:
        return self._stderr.read_text()

    def _announced(self) -> bool:
        assert self.process.poll() is None, self.stderr()
        address = read_address(self.data_dir / "service.json")
        # The file of a server that was killed is still there.
        return address is not None and address.pid == self.process.pid


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Start a server, and always end it; it must not have tripped over anything meanwhile."""
    server.start()
    try:
        yield server
    finally:
        server.kill()
    assert "Traceback" not in server.stderr(), server.stderr()


def unique() -> str:
    """An id that nobody else has used."""
    return uuid.uuid4().hex


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process is about to do."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def _command_line(pid: int) -> list[str]:
    """A process's arguments; none if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
