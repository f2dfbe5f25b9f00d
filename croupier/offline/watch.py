"""Watching the scorers: a look asks all of them, opens and closes alerts, and delivers them.

What looks have seen is kept in a file, so that it doesn't matter which process does the next one.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
import polars as pl

from croupier.offline.alerts import with_alerts
from croupier.offline.alerts_config import RESOLVED
from croupier.offline.delivery import deliver_alerts
from croupier.offline.scorer_alerts import Watched, judge_scorers
from croupier.offline.scrapes import Scrape, ScrapeFailedError, scrape
from croupier.offline.summaries.tables import SCORERS, SummaryState, summaries_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from croupier.offline.alerts_config import AlertsConfig
    from croupier.offline.lake import Lake

__all__ = ("Look", "look")

_AT_ONCE: Final = 16
_FORMAT: Final = 1


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What a look has brought.

    Attributes
    ----------
    scorers
        How many were asked.
    open, opened, closed
        Alerts that are open after it, and those of them that weren't before; those that were.
    failed
        What could not be delivered, a sentence each.
    """

    scorers: int
    open: list[dict[str, Any]]
    opened: list[dict[str, Any]]
    closed: list[dict[str, Any]]
    failed: list[str]


def look(
    lake: Lake,
    addresses: Sequence[str],
    config: AlertsConfig,
    *,
    seen: Path,
    now_us: int,
    password: str | None = None,
) -> Look:
    """Ask all scorers, bring their alerts up to date, and tell people of what has opened.

    Only one process may look at a time. A night may write to the lake meanwhile.

    Parameters
    ----------
    lake
        Where the alerts are kept.
    addresses
        Of the scorers, as :class:`~croupier.offline.alerts_config.AlertsConfig` has them.
    config
        The rules, and where to deliver.
    seen
        File of what the looks before this one have seen; need not exist.
    now_us
        In microseconds since the epoch.
    password
        For e-mail.
    """
    answers = _ask(_resolved(addresses), at=now_us / 1e6)
    judged = judge_scorers(_watched(seen), answers, config, now_us=now_us)
    summaries = summaries_of(lake)
    with summaries.locked_scorers():
        before = summaries.read(SCORERS, "alerts")
        after = with_alerts(
            before, judged.alerts, loop=SCORERS, now_us=now_us, undecided=judged.undecided
        )
        state = SummaryState(format=_FORMAT, made=now_us)
        summaries.write(SCORERS, {"alerts": after}, state)
        _keep(seen, judged.watched)
        failed = deliver_alerts(lake, [SCORERS], config, now_us=now_us, password=password)
    was, is_ = _open(before), _open(after)
    return Look(
        scorers=len(answers),
        open=list(is_.values()),
        opened=[row for name, row in is_.items() if name not in was],
        closed=[row for name, row in was.items() if name not in is_],
        failed=failed,
    )


def _open(alerts: pl.DataFrame) -> dict[str, dict[str, Any]]:
    rows = alerts.filter(pl.col("closed").is_null())
    return {row["alert_id"]: row for row in rows.to_dicts()}


def _resolved(addresses: Sequence[str]) -> dict[str, ScrapeFailedError | None]:
    """Addresses of single scorers; an error for a name that nothing is behind."""
    found: dict[str, ScrapeFailedError | None] = {}
    for address in addresses:
        if not address.startswith(RESOLVED):
            found[address] = None
            continue
        plain = urlsplit(address.removeprefix(RESOLVED))
        port = plain.port or 80
        try:
            entries = socket.getaddrinfo(plain.hostname, port, type=socket.SOCK_STREAM)
        except OSError as error:
            found[address] = ScrapeFailedError(f"{plain.hostname} resolves to nothing: {error}")
            continue
        for *_, place in entries:
            host = str(place[0])
            shown = f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
            found[f"http://{shown}:{port}{plain.path}"] = None
    return found


def _ask(
    scorers: dict[str, ScrapeFailedError | None], *, at: float
) -> dict[str, Scrape | ScrapeFailedError]:
    def ask(address: str) -> Scrape | ScrapeFailedError:
        try:
            return scorers[address] or scrape(address, key=None, at=at)
        except ScrapeFailedError as error:
            return error

    if not scorers:
        return {}
    with ThreadPoolExecutor(min(len(scorers), _AT_ONCE), "ask") as threads:
        return dict(zip(scorers, threads.map(ask, scorers), strict=True))


def _watched(seen: Path) -> Watched:
    try:
        return msgspec.json.decode(seen.read_bytes(), type=Watched)
    except (FileNotFoundError, msgspec.MsgspecError):
        # Of another release: what lasts is counted from now on.
        return Watched()


def _keep(seen: Path, watched: Watched) -> None:
    staging = seen.with_suffix(f".{os.getpid()}")
    staging.write_bytes(msgspec.json.encode(watched))
    staging.replace(seen)
