"""The configuration file, and what environment and flags put over it."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from croupier.dashboards.settings import DashboardConfig
from croupier.eventlog.log import LogConfig
from croupier.offline.alerts_config import AlertsConfig
from croupier.offline.data_format import check_format
from croupier.offline.nightly import NightlyConfig
from croupier.policy.errors import ConfigError
from croupier.policy.loop import LoopConfig, valid_loop_name
from croupier.service.config import ServiceConfig
from croupier.service.settings import SettingsDirectory
from croupier.service.setup import ServiceSetup

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = (
    "CONFIG_FILE",
    "CroupierConfig",
    "DataPaths",
    "RegistryConfig",
    "load_config",
    "load_setup",
    "service_setup",
    "with_settings",
)

CONFIG_FILE = "croupier.toml"
_ENV_PREFIX = "CROUPIER_"


class RegistryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where generations are registered.

    Attributes
    ----------
    tracking_uri
        Of MLflow; None keeps it in SQLite in the data directory.
    """

    tracking_uri: str | None = None


class CroupierConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be configured, one section a concern.

    Attributes
    ----------
    data_dir
        Where everything is kept; relative to the configuration file.
    service, log, registry, nightly, alerts, dashboard, loops
        The sections; `loops` by name.
    """

    data_dir: str = "croupier-data"
    service: ServiceConfig = ServiceConfig()
    log: LogConfig = LogConfig()
    registry: RegistryConfig = RegistryConfig()
    nightly: NightlyConfig = NightlyConfig()
    alerts: AlertsConfig = AlertsConfig()
    dashboard: DashboardConfig = DashboardConfig()
    loops: dict[str, LoopConfig] = {}

    def __post_init__(self) -> None:
        for name in self.loops:
            if not valid_loop_name(name):
                raise ValueError(
                    f"a loop's name is 1 to 63 lower-case letters, digits, hyphens and "
                    f"underscores, got {name!r}"
                )
        for key in self.service.keys.values():
            opened = {*key.loops, key.personalizer_loop or "*"}
            for name in sorted(opened.difference(self.loops, {"*"})):
                raise ValueError(f"a key opens the loop {name!r}, which is not configured")
        if not self.data_dir or "\0" in self.data_dir:
            raise ValueError(f"data_dir must be the name of a directory, got {self.data_dir!r}")

    def loop(self, name: str) -> LoopConfig:
        """Configuration of a loop.

        Raises
        ------
        ConfigError
            If there is none of that name.
        """
        try:
            return self.loops[name]
        except KeyError:
            known = ", ".join(sorted(self.loops)) or "none"
            raise ConfigError(
                "loop", f"expected one of the loops ({known}), got {name!r}"
            ) from None


class DataPaths:
    """Where things are within the data directory.

    Parameters
    ----------
    root
        The data directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "log"
        self.spill = root / "spill"
        self.lake = root / "lake"
        self.serving = root / "serving"
        self.artifacts = root / "mlartifacts"
        self.address = root / "service.json"
        self.secret = root / "draw-secret"
        self.settings = root / "settings"
        self.control = root / "control"
        self.watch = root / "watch.json"

    def tracking_uri(self, registry: RegistryConfig) -> str:
        """MLflow's address: the configured one, or a database in the data directory."""
        return registry.tracking_uri or f"sqlite:///{self.root / 'mlflow.db'}"


def load_config(
    file: Path | None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> tuple[CroupierConfig, DataPaths]:
    """Read the file, then put environment variables over it, then flags.

    ``CROUPIER_DATA_DIR`` and ``CROUPIER_SERVICE__PORT`` set `data_dir` and `service.port`: two
    underscores stand for the dot. A value is read as TOML if it can be, else as text. Wherever one
    is expected, ``{ file = "path" }`` stands for the text of that file, as secrets are handed to
    containers; the path is relative to the configuration file.

    Parameters
    ----------
    file
        A TOML file; ``croupier.toml`` in the working directory if None, which may be missing.
    environment
        Environment variables; the process's own if None.
    flags
        Values by dotted name; those that are None don't count.

    Raises
    ------
    ConfigError
        Naming the field and what was expected there.
    """
    base, values = _read(file)
    # A directory named by a flag or variable is relative to where it was typed.
    typed = False
    for name, text in (os.environ if environment is None else environment).items():
        path = name.removeprefix(_ENV_PREFIX).lower().split("__")
        if name.startswith(_ENV_PREFIX) and path[0] in CroupierConfig.__struct_fields__:
            _set(values, path, _toml_value(text))
            typed |= path == ["data_dir"]
    for name, value in (flags or {}).items():
        if value is not None:
            _set(values, name.split("."), value)
            typed |= name == "data_dir"
    values = _with_files(values, base, [])
    try:
        config = msgspec.convert(values, CroupierConfig)
    except msgspec.ValidationError as error:
        raise _config_error(values, str(error)) from error
    return config, DataPaths(_root(config.data_dir, Path() if typed else base))


def with_settings(config: CroupierConfig, paths: DataPaths) -> CroupierConfig:
    """The configuration with what was set over Personalizer's API put over its loops.

    Raises
    ------
    ConfigError
        If a loop's settings can't be read or don't go with its configuration.
    """
    settings = SettingsDirectory(paths.settings)
    loops = {name: settings.over(name, loop) for name, loop in config.loops.items()}
    return msgspec.structs.replace(config, loops=loops)


def service_setup(config: CroupierConfig, paths: DataPaths) -> ServiceSetup:
    """What the scorer needs of a configuration."""
    return ServiceSetup(
        service=config.service,
        log=config.log,
        loops=config.loops,
        log_dir=paths.log,
        spill_dir=paths.spill,
        serving_dir=paths.serving,
        address_file=paths.address,
        secret_file=paths.secret,
        settings_dir=paths.settings,
        tracking_uri=paths.tracking_uri(config.registry),
    )


def load_setup(file: str | Path | None = None) -> ServiceSetup:
    """Read what the scorer needs, for one in the application's own process.

    Parameters
    ----------
    file
        As in :func:`load_config`, which also says what environment variables set.

    Raises
    ------
    ConfigError
        Naming the field and what was expected there; also if the data directory is of another
        format.
    """
    config, paths = load_config(None if file is None else Path(file))
    check_format(paths.root)
    return service_setup(config, paths)


def _root(data_dir: str, base: Path) -> Path:
    try:
        return (base / Path(data_dir).expanduser()).absolute()
    except RuntimeError as error:
        raise ConfigError("data_dir", f"{error}: {data_dir!r}") from error


def _read(file: Path | None) -> tuple[Path, dict[str, Any]]:
    """Directory that the file's paths are relative to, and its values."""
    path = Path(CONFIG_FILE) if file is None else file
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if file is None:
            return Path(), {}
        raise ConfigError("config", f"expected a file at {file}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("config", f"expected a TOML file at {path}: {error}") from error
    return path.parent, values


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        below = values.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(".".join(path), f"{key} is not a section, but {below!r}")
        values = below
    values[path[-1]] = value


def _with_files(values: Any, base: Path, path: list[str]) -> Any:
    """The values, each ``{ file = "path" }`` being the text of that file without its last break."""
    if not isinstance(values, dict):
        return values
    match values:
        case {"file": str(name)} if len(values) == 1:
            try:
                return (base / name).read_text(encoding="utf-8").removesuffix("\n")
            except (OSError, ValueError) as error:
                raise ConfigError(
                    ".".join(path), f"expected a readable file at {name}: {error}"
                ) from error
    return {key: _with_files(value, base, [*path, key]) for key, value in values.items()}


def _toml_value(text: str) -> Any:
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    # With a line break in it, it could be taken for several values.
    return read["value"] if len(read) == 1 else text


def _config_error(values: dict[str, Any], text: str) -> ConfigError:
    """Name the field that a message of msgspec's is about.

    The messages end in a path, ``- at `$.loops[...].exploration` ``, which stands for every loop
    and says nothing of the field when a section checks itself. So the rest of the way is found by
    trying: the entry that gives the same message alone, then the fields without which it goes.
    """
    placed = re.fullmatch(r"(?s)(.*) - at `\$\.?(.*)`", text)
    message, place = placed.groups() if placed else (text, "")
    path: list[str] = []
    node: Any = values
    for step in re.findall(r"\[\.\.\.\]|\[\d+\]|[^.\[]+", place):
        key = _only_entry(values, path, node, text) if step == "[...]" else step
        if key is None:
            break
        path.append(key)
        node = _below(node, key)
    while (key := _cause(values, path, node, text)) is not None:
        path.append(key)
        node = _below(node, key)
    return ConfigError(".".join(path).replace(".[", "[") or "config", message)


def _only_entry(values: dict[str, Any], path: list[str], node: Any, text: str) -> str | None:
    """The entry of a section that gives the same message if all the others are left out."""
    if not isinstance(node, dict):
        return None
    return next((k for k in node if _error(_replaced(values, path, {k: node[k]})) == text), None)


def _cause(values: dict[str, Any], path: list[str], node: Any, text: str) -> str | None:
    """The field of a section without which the message goes away."""
    if not isinstance(node, dict):
        return None
    others = {k: {o: node[o] for o in node if o != k} for k in node}
    errors = {k: _error(_replaced(values, path, rest)) for k, rest in others.items()}
    # Best if nothing else is wrong then; a complaint that the field is missing proves nothing.
    return next(
        (k for k, error in errors.items() if error is None),
        next(
            (k for k, e in errors.items() if e != text and "missing required" not in str(e)), None
        ),
    )


def _error(values: dict[str, Any]) -> str | None:
    try:
        msgspec.convert(values, CroupierConfig)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _replaced(values: dict[str, Any], path: list[str], section: dict[str, Any]) -> dict[str, Any]:
    """The values with one section exchanged."""
    if not path:
        return section
    return values | {path[0]: _replaced(values[path[0]], path[1:], section)}


def _below(node: Any, key: str) -> Any:
    return node.get(key) if isinstance(node, dict) else None
