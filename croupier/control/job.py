"""What a control plane's process is told when it is started."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import msgspec

from croupier.eventlog.log import LogConfig
from croupier.offline.nightly import NightlyConfig
from croupier.policy.loop import LoopConfig
from croupier.service.config import LogFormat

__all__ = ("ControlJob",)


class ControlJob(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything is, and how it is configured.

    Attributes
    ----------
    loops
        As configured, without what was set over the API.
    nightly, log, log_format
        Configuration.
    tracking_uri, artifacts
        Of the registry.
    lake_dir, log_dir, spill_dir, settings_dir
        Where these are kept.
    control_dir
        Where the control plane keeps what is its own: its socket and the evaluations.
    """

    MODULE: ClassVar[str] = "croupier.control.process"

    loops: dict[str, LoopConfig]
    nightly: NightlyConfig
    log: LogConfig
    log_format: LogFormat
    tracking_uri: str
    artifacts: str
    lake_dir: str
    log_dir: str
    spill_dir: str
    settings_dir: str
    control_dir: str

    @property
    def socket(self) -> Path:
        """Where the process listens."""
        return Path(self.control_dir) / "control.sock"
