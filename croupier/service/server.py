"""Running the service: listen, follow the registry, drain on the way out."""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
import socket
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import msgspec
import uvicorn

from croupier.policy.errors import ConfigError
from croupier.service.app import Application
from croupier.service.auth import KeyRing
from croupier.service.child import ChildProcess, stop_all
from croupier.service.connections import ConnectionGuard, ConnectionLimits, raise_open_files
from croupier.service.control import ControlPlane
from croupier.service.limits import BodyRoom
from croupier.service.logs import AccessLog, RequestLog
from croupier.service.metrics_share import clear_shared_metrics
from croupier.service.protocol import guarded_protocol
from croupier.service.setup import DRAIN_S, running_mirror, running_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import FrameType

    from croupier.service.config import ServiceConfig
    from croupier.service.metrics_share import MetricsShare
    from croupier.service.refusals import Refusal
    from croupier.service.setup import ServiceParts, ServiceSetup

__all__ = (
    "ServiceAddress",
    "WorkerJob",
    "read_address",
    "run_service",
    "serve_on",
    "terminated_in_order",
)

_log = logging.getLogger(__name__)

_BACKLOG = 2048
_COLLECTED_AFTER = 50_000


class ServiceAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a running service can be reached; kept in ``service.json`` in the data directory."""

    url: str
    pid: int


class WorkerJob(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker process is to do.

    Attributes
    ----------
    listener
        Number of the open socket that it takes connections from.
    setup
        What to serve, encoded.
    """

    listener: int
    setup: msgspec.Raw


def run_service(setup: ServiceSetup, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is in flight and write out the log.

    Parameters
    ----------
    setup
        What to serve.
    announce
        Called once with the service's URL when it accepts requests.

    Raises
    ------
    ConfigError
        If the address is taken or can't be listened on.
    """
    with terminated_in_order(), ExitStack() as stack:
        listeners = _listen(setup.service)
        for listener in listeners:
            stack.callback(listener.close)
        url = _url(setup.service.host, listeners[0])

        def ready() -> None:
            _write_address(setup.address_file, url)
            stack.callback(_remove_address, setup.address_file, url)
            stack.callback(_log.info, "answered everything", extra={"event": "drained"})
            announce(url)
            _log.info("listening at %s", url, extra={"event": "started"})

        if len(listeners) == 1:
            with running_parts(setup) as parts:
                serve_on(listeners[0], setup, parts, ready=ready)
        else:
            _supervise(listeners, setup, ready)


def serve_on(
    listener: socket.socket,
    setup: ServiceSetup,
    parts: ServiceParts,
    *,
    ready: Callable[[], None] = lambda: None,
    shared: MetricsShare | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is in flight.

    Parameters
    ----------
    listener
        Takes connections.
    setup, parts
        What to serve.
    ready
        Called when requests can be answered.
    shared
        Metrics of all workers, where there are several.
    """
    service, requests = setup.service, RequestLog(setup.loops)
    keys = KeyRing(service.keys, local=service.is_local)

    def refused(refusal: Refusal) -> None:
        parts.metrics.errors.labels(str(refusal.status), refusal.code).inc()
        requests.refused(refusal)

    control = None
    if setup.control is not None:
        control = ControlPlane(
            setup.control,
            keys,
            parts.scorer,
            refused,
            max_body_bytes=service.max_control_body_bytes,
        )
    application = Application(
        parts.scorer,
        parts.appender,
        keys,
        parts.metrics,
        parts.readiness,
        max_body_bytes=service.max_body_bytes,
        remembered_decisions=service.remembered_decisions,
        features=parts.features,
        room=BodyRoom(service.max_inflight_bytes),
        requests=requests,
        shared=shared,
        control=control,
    )
    guard = ConnectionGuard(_connection_limits(service), refused)
    server = uvicorn.Server(
        uvicorn.Config(
            AccessLog(application, requests) if service.access_log else application,
            loop="uvloop",
            http=guarded_protocol(guard),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=DRAIN_S,
        )
    )
    _calm_garbage_collection()
    with ExitStack() as stack:
        if control is not None:
            stack.callback(control.stop)
        if setup.stream:
            # Who has no use for Kafka's client isn't to carry it.
            from croupier.service.stream import running_stream  # noqa: PLC0415

            application.stream = stack.enter_context(running_stream(setup, parts, requests))
        ready()
        server.run(sockets=[listener])


def _calm_garbage_collection() -> None:
    """Have the cyclic garbage collector look less often, and not at what was there from the start.

    A decision makes some dozens of containers and not one cycle. By default that would have the
    collector walk through everything that is alive several times a second, while requests wait.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_AFTER, 20, 20)


def _supervise(
    listeners: Sequence[socket.socket], setup: ServiceSetup, ready: Callable[[], None]
) -> None:
    """Have a worker process for every listener, and one mirror for them all, until told to stop."""
    # Made here once, and not by whichever worker is first.
    setup.draw_secret()
    clear_shared_metrics(setup.metrics_dir)
    workers = [
        ChildProcess(
            f"worker {number}",
            "croupier.service.worker",
            msgspec.json.encode(
                WorkerJob(listener=listener.fileno(), setup=msgspec.Raw(setup.encoded()))
            ),
            descriptors=[listener.fileno()],
            # Beyond what it takes to drain, it writes out the log.
            grace_s=2 * DRAIN_S + 1.0,
            # Meanwhile its connections wait.
            longest_pause_s=2.0,
        )
        for number, listener in enumerate(listeners, 1)
    ]
    with running_mirror(setup):
        try:
            for worker in workers:
                worker.start()
            ready()
            threading.Event().wait()
        except KeyboardInterrupt:
            # As uvicorn does by itself: an interrupted service has ended in order.
            pass
        finally:
            # Who connects from now on is to be refused, by all of them at the same time: one that
            # reaches a worker just before that one's end would never get an answer.
            for listener in listeners:
                listener.shutdown(socket.SHUT_RDWR)
            stop_all(workers)


def read_address(address_file: Path) -> ServiceAddress | None:
    """Where the service of a data directory listens; None if none has said so."""
    try:
        return msgspec.json.decode(address_file.read_bytes(), type=ServiceAddress)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _connection_limits(service: ServiceConfig) -> ConnectionLimits:
    return ConnectionLimits(
        max_connections=raise_open_files(service.max_connections),
        request_timeout_s=service.request_timeout_s,
        idle_timeout_s=service.idle_timeout_s,
    )


def _listen(config: ServiceConfig) -> list[socket.socket]:
    """A listener for every worker; the system shares connections out among them."""
    first = _listener(config, config.port, shared=False)
    if config.workers == 1:
        return [first]
    # Shared ones could be bound beside those of another service without a word. This one wasn't.
    port: int = first.getsockname()[1]
    first.close()
    return [_listener(config, port, shared=True) for _ in range(config.workers)]


def _listener(config: ServiceConfig, port: int, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((config.host, port))
        # From here on the port is surely ours, and whoever reads our address can connect.
        listener.listen(_BACKLOG)
    except (OSError, ValueError, TypeError) as error:
        listener.close()
        raise _address_error(config, error) from error
    return listener


def _address_error(config: ServiceConfig, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, OSError) and error.errno in {errno.EADDRINUSE, errno.EACCES}:
        return ConfigError(
            "service.port",
            f"expected a free port, but {config.host}:{config.port} can't be listened on: {reason}",
        )
    return ConfigError(
        "service.host", f"expected an address of this machine, got {config.host!r}: {reason}"
    )


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _write_address(path: Path, url: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_bytes(msgspec.json.encode(ServiceAddress(url=url, pid=os.getpid())))
    staging.replace(path)


def _remove_address(path: Path, url: str) -> None:
    """Take the address back, unless another service of the data directory has put its own there."""
    if read_address(path) == ServiceAddress(url=url, pid=os.getpid()):
        path.unlink(missing_ok=True)


@contextmanager
def terminated_in_order() -> Iterator[None]:
    """Have SIGTERM unwind the stack, once; by default it would end the process on the spot.

    While uvicorn runs it has handlers of its own, and raises the signal again when it has drained.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def unwind(_number: int, _frame: FrameType | None) -> None:
        # A second one must not interrupt what the first one has begun.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
