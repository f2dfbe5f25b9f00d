"""The serving directory: what the registry mirror writes and the scorers of a machine read.

``<root>/registry.json`` says when the registry last answered; ``<root>/<loop>/champion.json``
names the champion and, since they came later, the canary, the shadow and the registry's kill
switch; ``<root>/<loop>/<number>/`` holds a generation. ``<root>/<loop>/killed.json`` is this
machine's own kill switch, which needs no registry. Files are replaced in one step, so that a reader
never sees half of one, and stay when the registry goes away: they are the last good plan.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import msgspec

from croupier.policy.traffic import Split

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("KillSwitch", "RegistryState", "ServingDirectory", "replace_file")

_T = TypeVar("_T")


class KillSwitch(msgspec.Struct, frozen=True, kw_only=True):
    """A machine's own kill switch, turned on.

    Attributes
    ----------
    reason, by
        Why, and who did it.
    since_us
        When, in microseconds since the Unix epoch.
    """

    reason: str
    by: str
    since_us: int


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
            self.write_split(loop, Split(generation=0))

    def generation_path(self, loop: str, number: int) -> Path:
        """Directory of one generation's files."""
        return self.root / loop / str(number)

    def split(self, loop: str) -> Split | None:
        """The generations to serve; None if the registry was never heard of.

        Raises
        ------
        msgspec.DecodeError
            If the file is damaged.
        """
        return self._read(self.root / loop / "champion.json", Split)

    def write_split(self, loop: str, split: Split) -> None:
        """Name the generations to serve."""
        replace_file(self.root / loop / "champion.json", msgspec.json.encode(split))

    def kill_switch(self, loop: str) -> KillSwitch | None:
        """The machine's own kill switch; None unless it is on.

        Raises
        ------
        msgspec.DecodeError
            If the file is damaged.
        """
        return self._read(self.root / loop / "killed.json", KillSwitch)

    def kill(self, loop: str, switch: KillSwitch) -> None:
        """Turn this machine's kill switch on."""
        replace_file(self.root / loop / "killed.json", msgspec.json.encode(switch))

    def resume(self, loop: str) -> None:
        """Turn this machine's kill switch off."""
        (self.root / loop / "killed.json").unlink(missing_ok=True)

    def killed(self, loop: str) -> str | None:
        """Why this machine plays only the baseline; None if it doesn't.

        Whoever put a file there that can't be read wanted the switch on.
        """
        try:
            switch = self.kill_switch(loop)
        except (OSError, msgspec.DecodeError) as error:
            return f"killed.json can't be read: {error}"
        return None if switch is None else switch.reason

    def state(self) -> RegistryState | None:
        """The registry's state as last seen."""
        return self._read(self.root / "registry.json", RegistryState)

    def write_state(self, state: RegistryState) -> None:
        """Note the registry's state."""
        replace_file(self.root / "registry.json", msgspec.json.encode(state))

    @staticmethod
    def _read(path: Path, kind: type[_T]) -> _T | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except FileNotFoundError:
            return None


def replace_file(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a file in one step: a reader sees all of it or what was there before.

    Parameters
    ----------
    path, content
        What to write where.
    durable
        Whether it must survive a power failure from when this returns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    with staging.open("wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    staging.replace(path)
    if durable:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
