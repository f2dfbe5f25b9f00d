"""The serving directory: what the registry mirror writes and the scorers of a machine read.

``<root>/registry.json`` says when the registry last answered; ``<root>/<loop>/champion.json``
names the generation to serve, and ``<root>/<loop>/<number>/`` holds it. Files are replaced in one
step, so that a reader never sees half of one, and stay when the registry goes away: they are the
last good generation.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("Champion", "RegistryState", "ServingDirectory")

_T = TypeVar("_T")


class Champion(msgspec.Struct, frozen=True, kw_only=True):
    """Which generation to serve; 0 is the cold start, which needs no files."""

    generation: int


class RegistryState(msgspec.Struct, frozen=True, kw_only=True):
    """When the registry last answered, and what went wrong since if anything did.

    Attributes
    ----------
    answered_us
        In microseconds since the Unix epoch; None if it never did.
    error
        None while all is well.
    """

    answered_us: int | None
    error: str | None


class ServingDirectory:
    """Paths, reading and atomic writing below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def start_cold(self, loop: str) -> None:
        """Serve the cold start until the registry says otherwise, unless it already has."""
        if not (self.root / loop / "champion.json").exists():
            self.write_champion(loop, Champion(generation=0))

    def generation_path(self, loop: str, number: int) -> Path:
        """Directory of one generation's files."""
        return self.root / loop / str(number)

    def champion(self, loop: str) -> Champion | None:
        """The generation to serve; None if the registry was never heard of.

        Raises
        ------
        msgspec.DecodeError
            If the file is damaged.
        """
        return self._read(self.root / loop / "champion.json", Champion)

    def write_champion(self, loop: str, champion: Champion) -> None:
        """Name the generation to serve."""
        _replace(self.root / loop / "champion.json", msgspec.json.encode(champion))

    def state(self) -> RegistryState | None:
        """The registry's state as last seen."""
        return self._read(self.root / "registry.json", RegistryState)

    def write_state(self, state: RegistryState) -> None:
        """Note the registry's state."""
        _replace(self.root / "registry.json", msgspec.json.encode(state))

    @staticmethod
    def _read(path: Path, kind: type[_T]) -> _T | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except FileNotFoundError:
            return None


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_bytes(content)
    staging.replace(path)
