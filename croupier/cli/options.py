"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from croupier.cli.config import CroupierConfig, DataPaths, load_config, with_settings
from croupier.cli.output import Output
from croupier.eventlog.opening import open_log, open_writer
from croupier.offline.data_format import check_format
from croupier.offline.engine import LOCAL, Engine, EngineName, open_engine
from croupier.offline.lake import Lake
from croupier.offline.nightly import Nightly
from croupier.offline.registry import Registry
from croupier.policy.errors import ConfigError, InvalidInputError
from croupier.service.server import read_address
from croupier.sim2rec.jax_extra import has_jax

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from croupier.eventlog.log import EventLog, LogWriter
    from croupier.offline.sessions import LoggedSessions
    from croupier.offline.simulator_gap import Simulation
    from croupier.policy.generation import Generation
    from croupier.policy.simulators import SimulatorsSection

__all__ = (
    "SMTP_PASSWORD",
    "ConfigOption",
    "DataDirOption",
    "EngineOption",
    "JsonOption",
    "LoopOption",
    "RayAddressOption",
    "Session",
    "user_name",
)

SMTP_PASSWORD = "CROUPIER_SMTP_PASSWORD"  # noqa: S105 - where it is
"""Environment variable with the password of whoever sends alerts by mail."""

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="TOML file; croupier.toml here unless given."),
]
DataDirOption = Annotated[
    str | None, typer.Option("--data-dir", help="Data directory, instead of the file's.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
EngineOption = Annotated[
    EngineName,
    typer.Option("--engine", help="local: in this process; ray: by the workers of a Ray cluster."),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option("--ray-address", help="Of a Ray cluster; one on this machine unless given."),
]
LoopOption = Annotated[str | None, typer.Option("--loop", help="One loop instead of all of them.")]


@dataclass(frozen=True)
class Session:
    """What a command works with: configuration, paths and output, and what hangs on them.

    Attributes
    ----------
    config
        As configured, with the settings of the data directory put over it.
    configured
        The same without them.
    paths
        Of the data directory.
    output
        Where results go.
    engine
        Does the work of the batch side. A Ray cluster that was started for it ends with the
        process.
    """

    config: CroupierConfig
    configured: CroupierConfig
    paths: DataPaths
    output: Output
    engine: Engine = LOCAL

    @classmethod
    def open(
        cls,
        config: Path | None,
        data_dir: str | None,
        *,
        json: bool,
        flags: Mapping[str, Any] | None = None,
        settings: bool = True,
        engine: EngineName = "local",
        ray_address: str | None = None,
    ) -> Session:
        """Load the configuration; raises ConfigError as :func:`load_config` does.

        It is raised also where the engine can't be had, and where the data directory is of another
        format. Without `settings`, those of the data
        directory are left to whoever follows them.
        """
        loaded, paths = load_config(config, flags={"data_dir": data_dir, **(flags or {})})
        check_format(paths.root)
        over = with_settings(loaded, paths) if settings else loaded
        opened = open_engine(engine, address=ray_address)
        return cls(over, loaded, paths, Output(json=json), opened)

    @cached_property
    def lake(self) -> Lake:
        """The lake."""
        return Lake(self.paths.lake)

    @cached_property
    def registry(self) -> Registry:
        """The registry."""
        return Registry(self.paths.tracking_uri(self.config.registry), self.paths.artifacts)

    @cached_property
    def nightly(self) -> Nightly:
        """The batch side."""
        config = self.config
        return Nightly(
            self.lake,
            self.registry,
            config.loops,
            config.nightly,
            engine=self.engine,
            simulate=_simulate if has_jax() else None,
        )

    @property
    def scorer_address(self) -> str:
        """Where the data directory's scorer listens now, or would by the configuration."""
        found, configured = read_address(self.paths.address), self.config.service
        return found.url if found is not None else f"http://{configured.host}:{configured.port}"

    @property
    def scorers(self) -> tuple[str, ...]:
        """Addresses of the scorers that are watched."""
        return self.config.alerts.scorers or (self.scorer_address,)

    def cautions(self) -> dict[str, str]:
        """What the users of a loop should be warned of, by loop."""
        found = {name: loop.exploration.caution for name, loop in self.config.loops.items()}
        return {name: caution for name, caution in found.items() if caution is not None}

    def warn(self) -> None:
        """Print a line on stderr for every caution."""
        for name, caution in self.cautions().items():
            kind = self.config.loops[name].exploration.__struct_config__.tag
            self.output.warn(f"loop {name}: {kind}: {caution}")

    def log(self) -> EventLog:
        """Open the event log; the caller closes it."""
        return open_log(self.config.log, log_dir=self.paths.log, loops=self.config.loops)

    def writer(self) -> LogWriter:
        """Open the event log to append to it; the caller closes it."""
        return open_writer(
            self.config.log,
            log_dir=self.paths.log,
            spill_dir=self.paths.spill,
            loops=self.config.loops,
        )

    def loops(self, only: str | None) -> list[str]:
        """Names of the configured loops, or the one that was asked for.

        Raises
        ------
        ConfigError
            If there is no such loop, or none at all.
        """
        if only is not None:
            self.config.loop(only)
            return [only]
        if not self.config.loops:
            raise ConfigError("loops", "expected at least one [loops.<name>] section")
        return list(self.config.loops)

    def one_loop(self, only: str | None) -> str:
        """The loop that was asked for, or the only one.

        Raises
        ------
        ConfigError
            If there is no such loop.
        InvalidInputError
            If none was named, and there are several.
        """
        names = self.loops(only)
        if len(names) > 1:
            raise InvalidInputError("loop", f"expected --loop with one of {', '.join(names)}")
        return names[0]


def _simulate(
    sessions: LoggedSessions,
    answered: Mapping[int, NDArray[np.bool_]],
    generation: Callable[[int], Generation],
    section: SimulatorsSection,
    *,
    state: Sequence[str],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Simulation:
    """:func:`~croupier.sim2rec.simulated_sessions.simulate_sessions`, imported when it is used."""
    from croupier.sim2rec.simulated_sessions import simulate_sessions  # noqa: PLC0415

    return simulate_sessions(
        sessions, answered, generation, section, state=state, seed=seed, progress=progress
    )


def user_name() -> str:
    """Whoever runs this; a container may have no name for them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
