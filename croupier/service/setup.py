"""What a scorer is set up from, and the parts that are running while it decides.

The HTTP service and the in-process scorer are made of the same ones.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from croupier.eventlog.appender import Appender
from croupier.eventlog.log import LogConfig
from croupier.eventlog.opening import open_writer
from croupier.eventlog.spilling import SpillingWriter, SpillState
from croupier.policy.loop import LoopConfig
from croupier.service.config import ServiceConfig
from croupier.service.control import ControlSetup
from croupier.service.follower import Follower
from croupier.service.limits import FeatureLimits
from croupier.service.metrics import Metrics
from croupier.service.mirror import MirrorJob, mirror_process, registry_is_new
from croupier.service.scorer import Scorer
from croupier.service.secret import kept_secret, parse_secret
from croupier.service.serving import ServingDirectory
from croupier.service.session_store import SessionEvent
from croupier.service.settings import SettingsDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from croupier.eventlog.log import LogWriter
    from croupier.service.api import Readiness

__all__ = ("DRAIN_S", "ServiceParts", "ServiceSetup", "running_mirror", "running_parts")

DRAIN_S = 10
"""How long what is in flight may take at the end, in seconds."""


class ServiceSetup(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a service is made of.

    Attributes
    ----------
    service, log, loops
        Configuration.
    log_dir, spill_dir, serving_dir, address_file, secret_file
        Where the event log, what it can't take while it is away, the mirrored generations, the
        service's address and the secret of its draws are kept.
    settings_dir
        Where what was set over Personalizer's API is kept.
    tracking_uri
        Of MLflow.
    control
        How the control plane is run; None runs none.
    stream
        Whether requests that come by Kafka are answered too.
    """

    service: ServiceConfig
    log: LogConfig
    loops: dict[str, LoopConfig]
    log_dir: Path
    spill_dir: Path
    serving_dir: Path
    address_file: Path
    secret_file: Path
    settings_dir: Path
    tracking_uri: str
    control: ControlSetup | None = None
    stream: bool = False

    @property
    def stream_dir(self) -> Path:
        """Where the processes that answer requests from Kafka keep their ids."""
        return self.address_file.with_name("stream")

    @property
    def metrics_dir(self) -> Path:
        """Where the workers of a service share what they count."""
        return self.address_file.with_name("metrics")

    def encoded(self) -> bytes:
        """All of it as JSON, for another process of the service."""
        return msgspec.json.encode(self, enc_hook=str)

    @classmethod
    def decoded(cls, text: bytes) -> ServiceSetup:
        """What :meth:`encoded` gave."""
        return msgspec.json.decode(text, type=cls, dec_hook=_path)

    def draw_secret(self) -> bytes:
        """The configured secret of the draws, or the one that is kept in the file.

        Raises
        ------
        ConfigError
            If it can't be kept there.
        """
        given = self.service.draw_secret
        return kept_secret(self.secret_file) if given is None else parse_secret(given)


def _path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind)


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """What decides, what logs, what counts, what follows the registry, what features may hold."""

    scorer: Scorer
    log: LogWriter
    appender: Appender
    metrics: Metrics
    follower: Follower
    features: FeatureLimits

    def readiness(self) -> Readiness:
        """Whether decisions can be made and logged."""
        return self.follower.report().readiness(self.appender.last_error, self.spill())

    def spill(self) -> SpillState:
        """Whether records go to this machine's disk, the log being away."""
        return self.log.state if isinstance(self.log, SpillingWriter) else SpillState()


@contextmanager
def running_parts(setup: ServiceSetup, *, mirror: bool = True) -> Iterator[ServiceParts]:
    """Have the parts of a scorer run until the block ends, then write out what waits for the log.

    Parameters
    ----------
    setup
        What to run.
    mirror
        Keep the serving directory up to date from a process of its own. Without it somebody else
        has to, such as a ``croupier serve`` over the same data directory.

    Raises
    ------
    LogUnavailableError
        If the log can't be opened, or at the end not be written.
    ConfigError
        If the secret of the draws can't be kept, or if a cluster's topics don't fit the
        configuration.
    """
    with ExitStack() as stack:
        log = stack.enter_context(
            open_writer(
                setup.log, log_dir=setup.log_dir, spill_dir=setup.spill_dir, loops=setup.loops
            )
        )
        metrics = Metrics()
        appender = Appender.open(log, setup.log, observe=metrics.append_seconds.observe)
        stack.callback(appender.close, timeout=DRAIN_S)
        scorer = Scorer(
            setup.loops,
            on_fallback=lambda loop, reason: metrics.baseline.labels(loop, reason).inc(),
            secret=setup.draw_secret(),
            remembered_sessions=setup.service.remembered_sessions,
            on_session=lambda loop, event: metrics.session_events.labels(loop, event).inc(),
        )
        metrics.sessions.set_function(lambda: scorer.sessions)
        for loop, event in product(setup.loops, get_args(SessionEvent)):
            if setup.loops[loop].sessions is not None:
                # From 0 on, so that a rate counts the first one.
                metrics.session_events.labels(loop, event)
        serving = ServingDirectory(setup.serving_dir)
        if registry_is_new(setup.tracking_uri):
            # Nothing can be registered yet, so there is nothing to wait for.
            for loop in setup.loops:
                serving.start_cold(loop)
        if mirror:
            stack.enter_context(running_mirror(setup))
        settings = SettingsDirectory(setup.settings_dir)
        poll_s = setup.service.registry_poll_s
        follower = Follower(serving, scorer, metrics, settings, poll_s=poll_s)
        follower.start()
        stack.callback(follower.stop)
        metrics.log_depth.set_function(lambda: appender.depth)
        metrics.registry_age.set_function(lambda: _age(follower))
        features = FeatureLimits(setup.service.max_features, setup.service.max_object_features)
        parts = ServiceParts(scorer, log, appender, metrics, follower, features)
        metrics.log_spilling.set_function(lambda: parts.spill().spilling)
        metrics.log_spilled.set_function(lambda: parts.spill().records)
        yield parts


@contextmanager
def running_mirror(setup: ServiceSetup) -> Iterator[None]:
    """Have the registry's mirror run beside the block."""
    mirror = mirror_process(
        MirrorJob(
            tracking_uri=setup.tracking_uri,
            loops=list(setup.loops),
            root=str(setup.serving_dir),
            poll_s=setup.service.registry_poll_s,
            log_format=setup.service.log_format,
        )
    )
    mirror.start()
    try:
        yield
    finally:
        mirror.stop()


def _age(follower: Follower) -> float:
    age_s = follower.report().registry_age_s
    return math.nan if age_s is None else age_s
