"""Running the dashboard: Streamlit as a child process that ends with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from croupier.dashboards.settings import (
    DATA_DIR_VARIABLE,
    PASSWORD_VARIABLE,
    SETTINGS_VARIABLE,
    DashboardSettings,
    passwords,
)
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from types import FrameType

__all__ = ("run_dashboard",)

_APP: Final = Path(__file__).with_name("app.py")
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_WILDCARDS: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - recognised, not bound

_POLL_S: Final = 0.2
_GRACE_S: Final = 5.0
"""How long Streamlit has to end after it was asked; then it is killed."""


def run_dashboard(
    data_dir: Path, *, host: str, port: int, settings: DashboardSettings | None = None
) -> int:
    """Serve the dashboard until it is stopped by ctrl-C or SIGTERM.

    Call it from the main thread: it handles SIGINT and SIGTERM while it runs.

    Parameters
    ----------
    data_dir
        The data directory; the lake is in ``lake`` below it. Need not exist yet.
    host, port
        Where to listen.
    settings
        What pages can't read from the lake; those without need none.

    Returns
    -------
    int
        0 after it was asked to stop, else Streamlit's exit code (1 if the port is taken).

    Raises
    ------
    InvalidInputError
        If others could reach it, and nothing says who may see it.
    """
    _require_access(host, settings or DashboardSettings())
    asked: list[int] = []

    # A handler that only takes note can't miss a signal that comes while the child is started.
    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        told = msgspec.json.encode(settings or DashboardSettings()).decode()
        environment = os.environ | {
            DATA_DIR_VARIABLE: str(data_dir.absolute()),
            SETTINGS_VARIABLE: told,
        }
        with subprocess.Popen(_command(host, port), env=environment) as child:  # noqa: S603
            while not asked:
                try:
                    return child.wait(timeout=_POLL_S)
                except subprocess.TimeoutExpired:
                    continue
            _end(child)
            return 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _require_access(host: str, told: DashboardSettings) -> None:
    if host in _LOOPBACK or told.trusted_header is not None or passwords().asked:
        return
    raise InvalidInputError(
        "host",
        f"expected 127.0.0.1, unless {PASSWORD_VARIABLE} or dashboard.trusted_header says who may "
        f"see the dashboard, got {host!r}",
    )


def _command(host: str, port: int) -> list[str]:
    # A known address also keeps Streamlit from asking a public service for this machine's.
    address = "localhost" if host in _WILDCARDS else host
    options = {
        "server.address": host,
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.runOnSave": "false",
        "browser.serverAddress": address,
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "runner.magicEnabled": "false",
        "logger.level": "warning",
    }
    flags = [f"--{name}={value}" for name, value in options.items() if value]
    return [sys.executable, "-m", "streamlit", "run", str(_APP), *flags]


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
