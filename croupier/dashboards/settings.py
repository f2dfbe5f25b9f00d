"""What the dashboard is told when it is started; light enough for the process that only does so."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import msgspec

from croupier.offline.alerts_config import LatencyRule
from croupier.policy.fairness.config import IndividualFairness

__all__ = (
    "DATA_DIR_VARIABLE",
    "FEATURES_PASSWORD_VARIABLE",
    "JUDGE_KEY_VARIABLE",
    "PASSWORD_VARIABLE",
    "SETTINGS_VARIABLE",
    "DashboardConfig",
    "DashboardSettings",
    "Passwords",
    "data_dir",
    "judge_key",
    "passwords",
    "settings",
)

DATA_DIR_VARIABLE: Final = "CROUPIER_DATA_DIR"
"""Environment variable that names the data directory, as it does for every command."""

SETTINGS_VARIABLE: Final = "CROUPIER_DASHBOARD_SETTINGS"
"""Environment variable that holds :class:`DashboardSettings`, as JSON."""

JUDGE_KEY_VARIABLE: Final = "CROUPIER_JUDGE_KEY"
"""Environment variable with the API key that judgements are sent with: of scope ``judge``, and of
scope ``override`` where people may ask for another champion."""


PASSWORD_VARIABLE: Final = "CROUPIER_DASHBOARD_PASSWORD"  # noqa: S105 - where it is
"""Environment variable with the password that opens all pages."""

FEATURES_PASSWORD_VARIABLE: Final = "CROUPIER_DASHBOARD_FEATURES_PASSWORD"  # noqa: S105 - as above
"""Environment variable with one that also shows features of single decisions."""

_HEADER: Final = re.compile(r"[A-Za-z0-9-]{1,64}")


class DashboardConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is configured of the dashboards; passwords are environment variables.

    Attributes
    ----------
    trusted_header
        Header in which a reverse proxy says who somebody is; None if there is none. The proxy has
        to take it off requests of others, and nobody else may reach the dashboard.
    features_for
        Of the people that it names, those who may see features of single decisions, and judge.
    overrides_for
        Of them, those who may ask for another champion in spite of the gate; nobody unless named.
    """

    trusted_header: str | None = None
    features_for: tuple[str, ...] = ()
    overrides_for: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.trusted_header is not None and not _HEADER.fullmatch(self.trusted_header):
            raise ValueError(
                f"trusted_header must be the name of a header, got {self.trusted_header!r}"
            )
        if self.overrides_for and self.trusted_header is None:
            raise ValueError("overrides_for needs a trusted_header, which says who somebody is")


class Passwords(msgspec.Struct, frozen=True):
    """Of the pages, and of the pages with features; None if there is none."""

    pages: str | None
    features: str | None

    @property
    def asked(self) -> bool:
        """Whether anybody is asked for one."""
        return self.pages is not None or self.features is not None


class DashboardSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What pages can't read from the lake.

    Attributes
    ----------
    service
        Base address of the scorer that judgements go to; None if there is none.
    judged
        Individual fairness of the loops that have auditors, by loop.
    trusted_header, features_for, overrides_for
        As in :class:`DashboardConfig`.
    slow_s
        99th percentile of requests, in seconds, above which scorers are slow.
    """

    service: str | None = None
    judged: dict[str, IndividualFairness] = {}
    trusted_header: str | None = None
    features_for: tuple[str, ...] = ()
    overrides_for: tuple[str, ...] = ()
    slow_s: float = LatencyRule().p99_s


def data_dir() -> Path:
    """The data directory that the dashboard shows; ``croupier-data`` if nothing names another."""
    return Path(os.environ.get(DATA_DIR_VARIABLE) or "croupier-data").absolute()


def settings() -> DashboardSettings:
    """What the dashboard was started with."""
    return msgspec.json.decode(os.environ.get(SETTINGS_VARIABLE) or "{}", type=DashboardSettings)


def judge_key() -> str | None:
    """The key that judgements are sent with; None if the service asks for none."""
    return os.environ.get(JUDGE_KEY_VARIABLE) or None


def passwords() -> Passwords:
    """The passwords that the dashboard was started with."""
    get = os.environ.get
    return Passwords(get(PASSWORD_VARIABLE) or None, get(FEATURES_PASSWORD_VARIABLE) or None)
