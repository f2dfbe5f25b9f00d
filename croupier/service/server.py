"""Running the service: listen, follow the registry, drain on the way out."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
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
from croupier.service.follower import Follower
from croupier.service.metrics import Metrics
from croupier.service.mirror import mirror_registry, registry_is_new
from croupier.service.scorer import Scorer
from croupier.service.serving import ServingDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from croupier.eventlog.log import LogConfig
    from croupier.policy.loop import LoopConfig
    from croupier.service.config import ServiceConfig

__all__ = ("ServiceAddress", "ServiceSetup", "read_address", "run_service")

_log = logging.getLogger(__name__)
_DRAIN_S = 10


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
    log_dir, serving_dir, address_file
        Where the event log, the mirrored generations and the service's address are kept.
    tracking_uri
        Of MLflow.
    """

    service: ServiceConfig
    log: LogConfig
    loops: Mapping[str, LoopConfig]
    log_dir: Path
    serving_dir: Path
    address_file: Path
    tracking_uri: str


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
    listener = _listen(setup.service)
    url = _url(setup.service.host, listener)
    with ExitStack() as stack:
        stack.callback(listener.close)
        log = stack.enter_context(SqliteEventLog.open(setup.log_dir, setup.log))
        appender = Appender.open(log, setup.log)
        stack.callback(appender.close, timeout=_DRAIN_S)
        application = stack.enter_context(_application(setup, appender))
        server = uvicorn.Server(
            uvicorn.Config(
                application,
                loop="uvloop",
                http="httptools",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=_DRAIN_S,
            )
        )
        _write_address(setup.address_file, url)
        stack.callback(setup.address_file.unlink, missing_ok=True)
        announce(url)
        server.run(sockets=[listener])


def read_address(address_file: Path) -> ServiceAddress | None:
    """Where the service of a data directory listens; None if none has said so."""
    try:
        return msgspec.json.decode(address_file.read_bytes(), type=ServiceAddress)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


@contextmanager
def _application(setup: ServiceSetup, appender: Appender) -> Iterator[Application]:
    """The application with its follower and mirror running."""
    metrics = Metrics()
    scorer = Scorer(
        setup.loops,
        on_fallback=lambda loop, reason: metrics.baseline.labels(loop, reason).inc(),
    )
    serving = ServingDirectory(setup.serving_dir)
    if registry_is_new(setup.tracking_uri):
        # Nothing can be registered yet, so there is nothing to wait for.
        for loop in setup.loops:
            serving.start_cold(loop)
    poll_s = setup.service.registry_poll_s
    mirror = multiprocessing.get_context("spawn").Process(
        target=mirror_registry,
        args=(setup.tracking_uri, list(setup.loops), setup.serving_dir, poll_s, os.getpid()),
        name="registry-mirror",
        daemon=True,
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
        )
    finally:
        follower.stop()
        mirror.terminate()
        mirror.join()


def _listen(config: ServiceConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            "service.port",
            f"expected a free port, but {config.host}:{config.port} can't be listened on: "
            f"{error.strerror}",
        ) from error
    listener.set_inheritable(False)
    return listener


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _write_address(path: Path, url: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(ServiceAddress(url=url, pid=os.getpid())))
