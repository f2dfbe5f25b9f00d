"""Running the service: listen, follow the registry, drain on the way out."""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
import socket
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import uvicorn

from croupier.eventlog.appender import Appender
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.policy.errors import ConfigError
from croupier.service.app import Application
from croupier.service.auth import KeyRing
from croupier.service.connections import ConnectionGuard, ConnectionLimits, raise_open_files
from croupier.service.follower import Follower
from croupier.service.limits import BodyRoom, FeatureLimits
from croupier.service.logs import AccessLog, RequestLog
from croupier.service.metrics import Metrics
from croupier.service.mirror import MirrorJob, MirrorProcess, registry_is_new
from croupier.service.protocol import guarded_protocol
from croupier.service.scorer import Scorer
from croupier.service.secret import kept_secret, parse_secret
from croupier.service.serving import ServingDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import FrameType

    from croupier.eventlog.log import LogConfig
    from croupier.policy.loop import LoopConfig
    from croupier.service.config import ServiceConfig
    from croupier.service.refusals import Refusal

__all__ = ("ServiceAddress", "ServiceSetup", "read_address", "run_service")

_log = logging.getLogger(__name__)

_DRAIN_S = 10
_BACKLOG = 2048


class ServiceAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a running service can be reached; kept in ``service.json`` in the data directory."""

    url: str
    pid: int


@dataclass(frozen=True, slots=True)
class ServiceSetup:
    """Everything a service is made of.

    Attributes
    ----------
    service, log, loops
        Configuration.
    log_dir, serving_dir, address_file, secret_file
        Where the event log, the mirrored generations, the service's address and the secret of its
        draws are kept.
    tracking_uri
        Of MLflow.
    """

    service: ServiceConfig
    log: LogConfig
    loops: Mapping[str, LoopConfig]
    log_dir: Path
    serving_dir: Path
    address_file: Path
    secret_file: Path
    tracking_uri: str

    def draw_secret(self) -> bytes:
        """The configured secret of the draws, or the one that is kept in the file.

        Raises
        ------
        ConfigError
            If it can't be kept there.
        """
        given = self.service.draw_secret
        return kept_secret(self.secret_file) if given is None else parse_secret(given)


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
    with _terminated_in_order(), ExitStack() as stack:
        listener = _listen(setup.service)
        url = _url(setup.service.host, listener)
        stack.callback(listener.close)
        log = stack.enter_context(SqliteEventLog.open(setup.log_dir, setup.log))
        appender = Appender.open(log, setup.log)
        stack.callback(appender.close, timeout=_DRAIN_S)
        metrics, requests = Metrics(), RequestLog(setup.loops)
        application = stack.enter_context(_application(setup, appender, metrics, requests))

        def refused(refusal: Refusal) -> None:
            metrics.errors.labels(str(refusal.status), refusal.code).inc()
            requests.refused(refusal)

        guard = ConnectionGuard(_connection_limits(setup.service), refused)
        server = uvicorn.Server(
            uvicorn.Config(
                AccessLog(application, requests) if setup.service.access_log else application,
                loop="uvloop",
                http=guarded_protocol(guard),
                ws="none",
                lifespan="off",
                timeout_keep_alive=math.ceil(setup.service.idle_timeout_s),
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=_DRAIN_S,
            )
        )
        _write_address(setup.address_file, url)
        stack.callback(_remove_address, setup.address_file, url)
        stack.callback(_log.info, "answered everything", extra={"event": "drained"})
        announce(url)
        _log.info("listening at %s", url, extra={"event": "started"})
        server.run(sockets=[listener])


def read_address(address_file: Path) -> ServiceAddress | None:
    """Where the service of a data directory listens; None if none has said so."""
    try:
        return msgspec.json.decode(address_file.read_bytes(), type=ServiceAddress)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


@contextmanager
def _application(
    setup: ServiceSetup, appender: Appender, metrics: Metrics, requests: RequestLog
) -> Iterator[Application]:
    """The application with its follower and mirror running."""
    scorer = Scorer(
        setup.loops,
        on_fallback=lambda loop, reason: metrics.baseline.labels(loop, reason).inc(),
        secret=setup.draw_secret(),
    )
    serving = ServingDirectory(setup.serving_dir)
    if registry_is_new(setup.tracking_uri):
        # Nothing can be registered yet, so there is nothing to wait for.
        for loop in setup.loops:
            serving.start_cold(loop)
    poll_s = setup.service.registry_poll_s
    mirror = MirrorProcess(
        MirrorJob(
            tracking_uri=setup.tracking_uri,
            loops=list(setup.loops),
            root=str(setup.serving_dir),
            poll_s=poll_s,
            log_format=setup.service.log_format,
        )
    )
    mirror.start()
    follower = Follower(serving, scorer, metrics, poll_s=poll_s)
    follower.start()
    try:
        yield Application(
            scorer,
            appender,
            KeyRing(setup.service.keys),
            metrics,
            follower,
            max_body_bytes=setup.service.max_body_bytes,
            remembered_decisions=setup.service.remembered_decisions,
            features=FeatureLimits(setup.service.max_features, setup.service.max_object_features),
            room=BodyRoom(setup.service.max_inflight_bytes),
            requests=requests,
        )
    finally:
        follower.stop()
        mirror.stop()


def _connection_limits(service: ServiceConfig) -> ConnectionLimits:
    return ConnectionLimits(
        max_connections=raise_open_files(service.max_connections),
        request_timeout_s=service.request_timeout_s,
        idle_timeout_s=service.idle_timeout_s,
    )


def _listen(config: ServiceConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
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
def _terminated_in_order() -> Iterator[None]:
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
