"""What a night has found, in Prometheus's text format: for its node exporter's textfile collector.

A batch job is gone when it would be scraped, so it leaves a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from croupier.offline.generations import generation_rows
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from croupier.offline.lake import Lake
    from croupier.offline.night import NightlyReport

__all__ = ("write_batch_metrics",)


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
    ended = Gauge(
        "croupier_nightly_ended_timestamp_seconds", "When the last night ended.", registry=registry
    )
    ended.set(now_us / 1e6)
    shown = _by_loop(registry)
    for night in report.loops:
        shown("nightly_failed", "1 if training or judging broke off.")(
            night.loop, bool(night.failed)
        )
        shown("nightly_champion", "The champion after the night.")(night.loop, night.champion)
        rows = generation_rows(lake, night.loop)
        if rows:
            _show_oscillation(shown, night.loop, rows)
    try:
        write_to_textfile(str(path), registry)
    except OSError as error:
        raise InvalidInputError(
            "metrics", f"expected a file that can be written at {path}: {error.strerror}"
        ) from error


def _show_oscillation(
    shown: Callable[[str, str], Callable[[str, float], None]],
    loop: str,
    rows: dict[int, dict[str, Any]],
) -> None:
    """What is known of the latest generations that have been tested; nothing if none has."""
    tested = [number for number, row in rows.items() if row["oscillates"] is not None]
    if not tested:
        return
    last = rows[max(tested)]
    shown("oscillates", "1 if the realised values of the latest generations oscillate.")(
        loop, last["oscillates"]
    )
    shown("oscillation_spread_p_value", "Of their varying by chance alone.")(
        loop, last["spread_p_value"]
    )
    shown("oscillation_alternation_p_value", "Of their going up and down by chance alone.")(
        loop, last["alternation_p_value"]
    )


def _by_loop(registry: CollectorRegistry) -> Callable[[str, str], Callable[[str, float], None]]:
    """Gauges of every loop, made when first they are shown."""
    gauges: dict[str, Gauge] = {}

    def shown(name: str, says: str) -> Callable[[str, float], None]:
        if name not in gauges:
            gauges[name] = Gauge(f"croupier_{name}", says, ["loop"], registry=registry)
        return lambda loop, value: gauges[name].labels(loop).set(value)

    return shown
