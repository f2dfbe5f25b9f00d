"""What a night has found, in Prometheus's text format: for its node exporter's textfile collector.

A batch job is gone when it would be scraped, so it leaves a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import polars as pl
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from croupier.offline.alerts import NightRule
from croupier.offline.generations import generation_rows
from croupier.offline.latest_signals import latest_told
from croupier.offline.summaries.tables import summaries_of
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from croupier.offline.lake import Lake
    from croupier.offline.night import NightlyReport

__all__ = ("write_batch_metrics",)

# Columns of the generations table, of which the latest that tells anything is shown.
_SIGNALS = {
    "oscillates": "1 if the realised values of the latest generations oscillate.",
    "spread_p_value": "Of their varying by chance alone.",
    "alternation_p_value": "Of their going up and down by chance alone.",
    "disparity_rises": "1 if a disparity between groups has risen.",
    "violations_rise": "1 if pairs that are alike are treated differently more often.",
    "simulators_err": "1 if simulators of the users are off by more than is allowed.",
    "simulator_gap": "Return of a session in simulators less what was really earned.",
}


def write_batch_metrics(path: Path, lake: Lake, report: NightlyReport, *, now_us: int) -> None:
    """Write a night's metrics, all of them or none.

    Parameters
    ----------
    path
        The file, by convention ``*.prom``; what it held is replaced.
    lake
        Whose generations the night has brought up to date.
    report
        Of the night.
    now_us
        When it ended, in microseconds since the epoch.

    Raises
    ------
    InvalidInputError
        If it can't be written there.
    """
    registry = CollectorRegistry()
    alerts = Gauge(
        "croupier_alert_open",
        "1 while a rule of the night has an alert open.",
        ["loop", "rule"],
        registry=registry,
    )
    ended = Gauge(
        "croupier_nightly_ended_timestamp_seconds", "When the last night ended.", registry=registry
    )
    ended.set(now_us / 1e6)
    shown = _by_loop(registry)
    for night in report.loops:
        loop, failed = night.loop, bool(night.failed)
        shown("nightly_failed", "1 if training or judging broke off.", loop, failed)
        shown("nightly_champion", "The champion after the night.", loop, night.champion)
        open_ = summaries_of(lake).read(loop, "alerts").filter(pl.col("closed").is_null())
        for rule in get_args(NightRule):
            alerts.labels(loop, rule).set(rule in open_["rule"])
        rows = generation_rows(lake, loop)
        for column, says in _SIGNALS.items():
            told = latest_told(rows, column)
            if told is not None:
                shown(column, says, loop, rows[told][column])
    try:
        write_to_textfile(str(path), registry)
    except OSError as error:
        raise InvalidInputError(
            "metrics", f"expected a file that can be written at {path}: {error.strerror}"
        ) from error


def _by_loop(registry: CollectorRegistry) -> Callable[[str, str, str, float], None]:
    """Shows a value of a loop: in a gauge of that name, made when first there is one."""
    gauges: dict[str, Gauge] = {}

    def shown(name: str, says: str, loop: str, value: float) -> None:
        if name not in gauges:
            gauges[name] = Gauge(f"croupier_{name}", says, ["loop"], registry=registry)
        gauges[name].labels(loop).set(value)

    return shown
