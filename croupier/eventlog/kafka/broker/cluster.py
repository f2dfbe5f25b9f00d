"""A cluster of one or three nodes on this machine, kept in a folder.

The folder holds ``cluster.json``, with the cluster's id and its ports, and a folder for each node:
``server.properties``, ``pid``, ``log.txt`` and ``data``. Whoever opens the folder can start, look
at and stop the nodes, whichever process started them.
"""

from __future__ import annotations

import base64
import fcntl
import os
import random
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from croupier.eventlog.kafka.broker.runtime import FILES, KAFKA_VERSION, Runtime
from croupier.eventlog.kafka.config import SecurityProtocol
from croupier.policy.errors import ConfigError, LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ("BrokerListener", "Cluster", "Node", "NodeState", "State")

State: TypeAlias = Literal["running", "suspended", "stopped", "died"]

# Below what Linux takes for outgoing connections: a client that keeps asking for a node that is
# away could otherwise be given the node's own port, and be connected with itself.
_PORTS = range(20_000, 32_768)
_HOST = "127.0.0.1"
_STARTED = "Kafka Server started"
_START_TIMEOUT_S = 120.0
_GRACE_S = 20.0
_LOOK_EVERY_S = 0.05


class BrokerListener(msgspec.Struct, frozen=True, kw_only=True):
    """How clients, and the other brokers, get in.

    Attributes
    ----------
    protocol
        As Kafka names it.
    users
        Passwords by name, of the users that SCRAM-SHA-512 knows from the start.
    broker_user
        The one that brokers are to each other, with a SASL protocol.
    properties
        Further settings of every node, such as where its certificate is.
    """

    protocol: SecurityProtocol = "PLAINTEXT"
    users: Mapping[str, str] = {}
    broker_user: str | None = None
    properties: Mapping[str, str] = {}

    def settings(self) -> dict[str, str]:
        """The settings of a node that make the listener what it is."""
        found = {
            "listener.security.protocol.map": f"CLIENTS:{self.protocol},CONTROLLER:PLAINTEXT",
            **self.properties,
        }
        if self.broker_user is not None:
            password = self.users[self.broker_user]
            found |= {
                "sasl.enabled.mechanisms": "SCRAM-SHA-512",
                "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
                "listener.name.clients.scram-sha-512.sasl.jaas.config": (
                    "org.apache.kafka.common.security.scram.ScramLoginModule required "
                    f'username="{self.broker_user}" password="{password}";'
                ),
            }
        return found


class NodeState(msgspec.Struct, frozen=True):
    """What can be seen of a node.

    Attributes
    ----------
    node, address
        Its number, and where it listens.
    state
        ``died``: it was started, nobody stopped it, and it is not there.
    pid
        Of its process, if there is one.
    """

    node: int
    address: str
    state: State
    pid: int | None


class _Ports(msgspec.Struct, frozen=True):
    clients: int
    controllers: int


class _Facts(msgspec.Struct, frozen=True):
    """What ``cluster.json`` holds."""

    cluster_id: str
    kafka: str
    heap_mb: int
    nodes: dict[int, _Ports]


class Node:
    """One broker and controller, in one process.

    A process holds a lock on the file ``pid`` from its start to its end, however that comes, so a
    number that was left behind is never taken for a process that has got it since.
    """

    def __init__(self, folder: Path, number: int, ports: _Ports, heap_mb: int) -> None:
        self.number = number
        self.folder = folder
        self._ports = ports
        self._heap_mb = heap_mb
        self._log = folder / "log.txt"
        self._pid = folder / "pid"
        self._process: subprocess.Popen[bytes] | None = None
        self._said_before = 0

    @property
    def address(self) -> str:
        """``host:port`` for clients."""
        return f"{_HOST}:{self._ports.clients}"

    @property
    def pid(self) -> int | None:
        """Of its process; None if there is none."""
        return self._written_pid() if self._is_locked() else None

    @property
    def state(self) -> NodeState:
        """What can be seen of it now."""
        state: State
        if self._is_locked():
            state, pid = "running", self._written_pid()
            if pid is not None and _is_suspended(pid):
                state = "suspended"
        else:
            state, pid = "stopped" if self._written_pid() is None else "died", None
        return NodeState(self.number, self.address, state, pid)

    def launch(self, runtime: Runtime) -> None:
        """Start it, and don't wait; see :meth:`await_ready`.

        Raises
        ------
        ConfigError
            If it is running already, or if one of its ports is taken.
        """
        self._forget()
        with self._pid.open("ab+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                pid = self._written_pid()
                raise ConfigError(
                    "dir",
                    f"node {self.number} in {self.folder.parent} is running, as process {pid}",
                ) from None
            self._require_free_ports()
            command = runtime.command(
                "kafka.Kafka",
                str(self.folder / "server.properties"),
                options=(f"-Xmx{self._heap_mb}M",),
            )
            lock.truncate(0)
            with self._log.open("ab") as log:
                self._said_before = log.tell()
                self._process = subprocess.Popen(  # noqa: S603
                    command,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock.fileno()],
                    # A terminal's Ctrl-C is not for it.
                    start_new_session=True,
                )
            lock.write(b"%d\n" % self._process.pid)

    def await_ready(self, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Wait until it takes part in the cluster.

        Raises
        ------
        LogUnavailableError
            If it ends instead, or takes longer.
        """
        deadline = time.monotonic() + timeout_s
        while _STARTED not in self._said():
            if not self._is_locked():
                raise LogUnavailableError(
                    f"node {self.number} ended while it started{self._complaint()}"
                )
            if time.monotonic() > deadline:
                raise LogUnavailableError(
                    f"node {self.number} isn't ready after {timeout_s:g} s{self._complaint()}"
                )
            time.sleep(_LOOK_EVERY_S)

    def ask_to_stop(self) -> None:
        """Ask it to end, and don't wait; see :meth:`stop`."""
        self._signal(signal.SIGTERM)
        # A suspended one couldn't hear it.
        self._signal(signal.SIGCONT)

    def stop(self, grace_s: float = _GRACE_S) -> None:
        """End it, by force if it doesn't end within a time."""
        self.ask_to_stop()
        if not self._await_end(grace_s):
            self.kill()
        self._pid.unlink(missing_ok=True)
        self._forget()

    def kill(self) -> None:
        """End it as a power failure would, as far as a process goes."""
        self._signal(signal.SIGKILL)
        if not self._await_end(_GRACE_S):
            raise LogUnavailableError(f"node {self.number} can't be killed")
        self._forget()

    def suspend(self) -> None:
        """Stall it: its connections stay open, and nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after :meth:`suspend`."""
        self._signal(signal.SIGCONT)

    def _require_free_ports(self) -> None:
        for port in (self._ports.clients, self._ports.controllers):
            if not _is_free(port):
                raise ConfigError(
                    "dir",
                    f"expected port {port} to be free for node {self.number} of "
                    f"{self.folder.parent}, but something listens on it",
                )

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _await_end(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self._is_locked():
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_EVERY_S)
        return True

    def _forget(self) -> None:
        """Reap a process that was ours and has ended."""
        if self._process is not None and not self._is_locked():
            self._process.wait()
            self._process = None

    def _is_locked(self) -> bool:
        try:
            lock = self._pid.open("rb")
        except FileNotFoundError:
            return False
        with closing(lock):
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def _written_pid(self) -> int | None:
        try:
            return int(self._pid.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _said(self) -> str:
        """What it has said since it was launched."""
        return self._log.read_bytes()[self._said_before :].decode(errors="replace")

    def _complaint(self) -> str:
        """The end of a sentence: its first complaint, and where there is more."""
        lines = [line.strip() for line in self._said().splitlines() if line.strip()]
        first = next((number for number, line in enumerate(lines) if " ERROR " in line), None)
        # The line below it names the exception.
        found = lines[-1:] if first is None else lines[first : first + 2]
        return f"; it says: {' '.join(found) or 'nothing'} (more in {self._log})"


class Cluster:
    """The nodes of a folder.

    Parameters
    ----------
    folder
        Where it is kept.
    runtime
        What to start nodes with; looked for when it is needed unless given.
    """

    def __init__(self, folder: Path, runtime: Runtime | None = None) -> None:
        self.folder = folder.absolute()
        self._runtime = runtime
        self._facts = _read_facts(self.folder)
        self.nodes: Sequence[Node] = tuple(
            Node(self.folder / f"node-{number}", number, ports, self._facts.heap_mb)
            for number, ports in self._facts.nodes.items()
        )

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        nodes: int = 1,
        heap_mb: int = 384,
        listener: BrokerListener = BrokerListener(),  # noqa: B008 - it is frozen
        runtime: Runtime | None = None,
    ) -> Cluster:
        """Make a cluster in a folder that is empty or not there yet.

        Parameters
        ----------
        folder
            Where to keep it.
        nodes
            How many: 1, or 3, of which one may be away.
        heap_mb
            Most heap of each node, in MiB.
        listener
            How clients get in.
        runtime
            Java and jars; looked for unless given.

        Raises
        ------
        ConfigError
            If the folder holds something, or if Java or the jars can't be had.
        """
        if nodes not in {1, 3}:
            raise ConfigError("nodes", f"expected 1 or 3, got {nodes}")
        folder = folder.absolute()
        runtime = runtime or Runtime.find()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            strangers = sorted(path.name for path in folder.iterdir())
        except OSError as error:
            raise ConfigError("dir", f"expected a folder at {folder}: {error.strerror}") from error
        if strangers:
            raise ConfigError(
                "dir",
                f"expected an empty folder or one of a cluster, but {folder} holds {strangers[0]}",
            )
        facts = _Facts(_new_id(), KAFKA_VERSION, heap_mb, _choose_ports(nodes))
        for number in facts.nodes:
            home = folder / f"node-{number}"
            home.mkdir()
            (home / "server.properties").write_text(_properties(home, number, facts, listener))
        _format(folder, facts, listener, runtime)
        # Last, so that what is half made is not taken for a cluster.
        (folder / "cluster.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts)))
        return cls(folder, runtime)

    @classmethod
    def exists(cls, folder: Path) -> bool:
        """Whether a folder holds one."""
        return (folder / "cluster.json").is_file()

    @property
    def bootstrap_servers(self) -> tuple[str, ...]:
        """``host:port`` of every node."""
        return tuple(node.address for node in self.nodes)

    @property
    def kafka_version(self) -> str:
        """Of the Kafka that it was made with."""
        return self._facts.kafka

    def start(self) -> list[int]:
        """Start the nodes that are not running, and wait until they are ready.

        Returns
        -------
        list of int
            Numbers of those that were started.

        Raises
        ------
        ConfigError
            If a port is taken, or if Java or the jars can't be had.
        LogUnavailableError
            If a node doesn't start. Those that this call started are stopped again.
        """
        away = [node for node in self.nodes if node.pid is None]
        try:
            for node in away:
                node.launch(self.runtime)
            for node in away:
                node.await_ready()
        except BaseException:
            _stop(away, grace_s=0.0)
            raise
        return [node.number for node in away]

    def stop(self) -> list[int]:
        """End all nodes; gives the numbers of those that were there."""
        return _stop(self.nodes, _GRACE_S)

    def kill(self) -> None:
        """End all nodes at once, as a power failure would, as far as processes go."""
        for node in self.nodes:
            node._signal(signal.SIGKILL)  # noqa: SLF001 - the two are one
        for node in self.nodes:
            node.kill()

    def states(self) -> list[NodeState]:
        """What can be seen of the nodes now."""
        return [node.state for node in self.nodes]

    @property
    def runtime(self) -> Runtime:
        """What nodes are started with.

        Raises
        ------
        ConfigError
            If Java or the jars can't be had.
        """
        if self._runtime is None:
            self._runtime = Runtime.find()
        return self._runtime

    @contextmanager
    def running(self) -> Iterator[Cluster]:
        """Run it until the block ends."""
        self.start()
        try:
            yield self
        finally:
            self.stop()


def _stop(nodes: Sequence[Node], grace_s: float) -> list[int]:
    there = [node.number for node in nodes if node.pid is not None]
    for node in nodes:
        node.ask_to_stop()
    # They share the time: the last of a cluster has nobody left to hand its partitions over to, and
    # would wait for minutes.
    deadline = time.monotonic() + grace_s
    for node in nodes:
        node.stop(max(deadline - time.monotonic(), 0.0))
    return there


def _read_facts(folder: Path) -> _Facts:
    try:
        return msgspec.json.decode((folder / "cluster.json").read_bytes(), type=_Facts)
    except FileNotFoundError:
        raise ConfigError("dir", f"expected a cluster's folder at {folder}, found none") from None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError("dir", f"{folder / 'cluster.json'} can't be read: {error}") from error


def _properties(home: Path, number: int, facts: _Facts, listener: BrokerListener) -> str:
    """Text of a node's ``server.properties``."""
    copies = len(facts.nodes)
    insync = "1" if copies == 1 else "2"
    own = facts.nodes[number]
    voters = (f"{each}@{_HOST}:{ports.controllers}" for each, ports in facts.nodes.items())
    settings = {
        "node.id": str(number),
        "controller.quorum.voters": ",".join(voters),
        "listeners": f"CLIENTS://{_HOST}:{own.clients},CONTROLLER://{_HOST}:{own.controllers}",
        "advertised.listeners": f"CLIENTS://{_HOST}:{own.clients}",
        "log.dirs": str(home / "data"),
        "default.replication.factor": str(copies),
        "min.insync.replicas": insync,
        "offsets.topic.replication.factor": str(copies),
        "transaction.state.log.replication.factor": str(copies),
        "transaction.state.log.min.isr": insync,
        "share.coordinator.state.topic.replication.factor": str(copies),
        "share.coordinator.state.topic.min.isr": insync,
        **listener.settings(),
    }
    lines = (f"{name}={value}" for name, value in settings.items())
    return "\n".join([(FILES / "server.properties").read_text(), *lines, ""])


def _format(folder: Path, facts: _Facts, listener: BrokerListener, runtime: Runtime) -> None:
    """Prepare the nodes' data folders; each takes a Java of its own a second or two."""
    users = [
        argument
        for name, password in listener.users.items()
        for argument in ("--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]")
    ]

    def prepare(number: int) -> subprocess.CompletedProcess[str]:
        file = str(folder / f"node-{number}" / "server.properties")
        command = runtime.command(
            "kafka.tools.StorageTool", "format", "-t", facts.cluster_id, "-c", file, *users
        )
        return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603

    with ThreadPoolExecutor() as pool:
        for number, done in zip(facts.nodes, pool.map(prepare, facts.nodes), strict=True):
            if done.returncode != 0:
                said = " ".join((done.stderr or done.stdout).split())
                raise ConfigError("dir", f"node {number} can't be formatted: {said[:500]}")


def _new_id() -> str:
    """As Kafka makes them: 16 random bytes, none of which may begin with a hyphen as text."""
    while True:
        found = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not found.startswith("-"):
            return found


def _choose_ports(nodes: int) -> dict[int, _Ports]:
    candidates = random.SystemRandom().sample(_PORTS, 200)
    free = (port for port in candidates if _is_free(port))
    try:
        return {number: _Ports(next(free), next(free)) for number in range(1, nodes + 1)}
    except StopIteration:
        raise ConfigError(
            "dir", f"expected free ports from {_PORTS.start} to {_PORTS.stop - 1}, found none"
        ) from None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the broker does it: connections that ended lately don't matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True


def _is_suspended(pid: int) -> bool:
    """Whether a process is stopped by a signal; unknown, and so False, where there is no /proc."""
    try:
        # Its name, in brackets, may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False
