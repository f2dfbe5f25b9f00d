"""What the dashboard is told when it is started; light enough for the process that only does so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from croupier.policy.fairness.config import IndividualFairness

__all__ = (
    "DATA_DIR_VARIABLE",
    "JUDGE_KEY_VARIABLE",
    "SETTINGS_VARIABLE",
    "DashboardSettings",
    "data_dir",
    "judge_key",
    "settings",
)

DATA_DIR_VARIABLE: Final = "CROUPIER_DATA_DIR"
"""Environment variable that names the data directory, as it does for every command."""

SETTINGS_VARIABLE: Final = "CROUPIER_DASHBOARD"
"""Environment variable that holds :class:`DashboardSettings`, as JSON."""

JUDGE_KEY_VARIABLE: Final = "CROUPIER_JUDGE_KEY"
"""Environment variable with the API key, of scope ``judge``, that judgements are sent with."""


class DashboardSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What pages can't read from the lake.

    Attributes
    ----------
    service
        Base address of the scorer that judgements go to; None if there is none.
    judged
        Individual fairness of the loops that have auditors, by loop.
    """

    service: str | None = None
    judged: dict[str, IndividualFairness] = {}


def data_dir() -> Path:
    """The data directory that the dashboard shows; ``croupier-data`` if nothing names another."""
    return Path(os.environ.get(DATA_DIR_VARIABLE) or "croupier-data").absolute()


def settings() -> DashboardSettings:
    """What the dashboard was started with."""
    return msgspec.json.decode(os.environ.get(SETTINGS_VARIABLE) or "{}", type=DashboardSettings)


def judge_key() -> str | None:
    """The key that judgements are sent with; None if the service asks for none."""
    return os.environ.get(JUDGE_KEY_VARIABLE) or None
