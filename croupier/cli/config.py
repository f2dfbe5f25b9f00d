"""The configuration file, and what environment and flags put over it."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from croupier.eventlog.log import LogConfig
from croupier.offline.nightly import NightlyConfig
from croupier.policy.errors import ConfigError
from croupier.policy.loop import LoopConfig, valid_loop_name
from croupier.service.config import ServiceConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("CONFIG_FILE", "CroupierConfig", "DataPaths", "RegistryConfig", "load_config")

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
    service, log, registry, nightly, loops
        The sections; `loops` by name.
    """

    data_dir: str = "croupier-data"
    service: ServiceConfig = ServiceConfig()
    log: LogConfig = LogConfig()
    registry: RegistryConfig = RegistryConfig()
    nightly: NightlyConfig = NightlyConfig()
    loops: dict[str, LoopConfig] = {}

    def __post_init__(self) -> None:
        for name in self.loops:
            if not valid_loop_name(name):
                raise ValueError(
                    f"loops.{name}: a loop's name is 1 to 63 lower-case letters, digits, "
                    f"hyphens and underscores"
                )

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
        self.lake = root / "lake"
        self.serving = root / "serving"
        self.artifacts = root / "mlartifacts"
        self.address = root / "service.json"

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
    underscores stand for the dot. A value is read as TOML if it can be, else as text.

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
    for name, text in (os.environ if environment is None else environment).items():
        path = name.removeprefix(_ENV_PREFIX).lower().split("__")
        if name.startswith(_ENV_PREFIX) and path[0] in CroupierConfig.__struct_fields__:
            _set(values, path, _toml_value(text))
    for name, value in (flags or {}).items():
        if value is not None:
            _set(values, name.split("."), value)
    try:
        config = msgspec.convert(values, CroupierConfig)
    except msgspec.ValidationError as error:
        raise _config_error(str(error)) from error
    # A directory named by a flag or variable is relative to where it was typed.
    typed = "data_dir" in (flags or {}) and (flags or {})["data_dir"] is not None
    root = Path(config.data_dir) if typed else base / config.data_dir
    return config, DataPaths(root.expanduser().absolute())


def _read(file: Path | None) -> tuple[Path, dict[str, Any]]:
    """Directory that the file's paths are relative to, and its values."""
    path = Path(CONFIG_FILE) if file is None else file
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        if file is None:
            return Path(), {}
        raise ConfigError("config", f"expected a file at {file}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("config", f"expected a TOML file at {path}: {error}") from error
    return path.parent, values


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        below = values.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(".".join(path), f"{key} is not a section")
        values = below
    values[path[-1]] = value


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _config_error(message: str) -> ConfigError:
    """Name the field: msgspec's messages end in its path, ``- at `$.service.port` ``."""
    match = re.fullmatch(r"(?s)(.*?)(?: - at `\$\.?(.*)`)?", message)
    assert match is not None
    return ConfigError(match[2] or "config", match[1])
