"""Telling people of alerts: a webhook and e-mail, each alert once it has opened.

What could not be delivered is tried again by the next night, or the next look at the scorers. If
one of two ways fails, the other one is used again as well: an alert may come twice, and doesn't
get lost.
"""

from __future__ import annotations

import smtplib
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any, Final

import msgspec
import polars as pl
import urllib3

from croupier.offline.summaries.tables import SCORERS, SUMMARY_SCHEMAS, summaries_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from croupier.offline.alerts_config import AlertsConfig, EmailConfig
    from croupier.offline.lake import Lake

__all__ = ("deliver_alerts",)

_TIMEOUT_S: Final = 10.0


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a webhook is sent."""

    source: str = "croupier"
    loop: str
    text: str
    alerts: list[dict[str, Any]]

    @property
    def about(self) -> str:
        """Whose alerts these are, for people."""
        return _about(self.loop)


def deliver_alerts(
    lake: Lake,
    loops: Iterable[str],
    config: AlertsConfig,
    *,
    now_us: int,
    password: str | None = None,
) -> list[str]:
    """Deliver all open alerts that weren't yet, and note that they were.

    Parameters
    ----------
    lake
        With the small tables; hold its lock, or the watcher's for the scorers' alerts.
    loops
        Whose alerts: names of loops, or :data:`~croupier.offline.summaries.tables.SCORERS`.
    config
        Where to.
    now_us
        In microseconds since the epoch.
    password
        For e-mail.

    Returns
    -------
    list
        What failed, a sentence each.
    """
    ways = [way for way in (config.webhook, config.email) if way is not None]
    failed: list[str] = []
    for loop in loops if ways else ():
        summaries = summaries_of(lake)
        alerts, state = summaries.read(loop, "alerts"), summaries.state(loop)
        due = pl.col("closed").is_null() & pl.col("delivered").is_null()
        rows = alerts.filter(due)
        if rows.is_empty() or state is None:
            continue
        told = _told(loop, rows.to_dicts(), config.dashboard)
        wrong = []
        if config.webhook is not None:
            wrong += _post(config.webhook, told)
        if config.email is not None:
            wrong += _mail(config.email, told, password)
        failed += wrong
        if not wrong:
            now = datetime.fromtimestamp(now_us / 1e6, tz=UTC)
            type_ = SUMMARY_SCHEMAS["alerts"]["delivered"]
            noted = pl.when(due).then(pl.lit(now, type_)).otherwise("delivered")
            summaries.write(loop, {"alerts": alerts.with_columns(delivered=noted)}, state)
    return failed


def _told(loop: str, rows: list[dict[str, Any]], dashboard: str | None) -> _Told:
    base = None if dashboard is None else dashboard.rstrip("/")
    alerts = [
        {name: row[name] for name in ("alert_id", "rule", "severity", "title", "told")}
        | {"since": row["first"].isoformat()}
        | ({} if base is None else {"link": _link(base, loop, row["page"])})
        for row in rows
    ]
    about = _about(loop)
    lines = [f"{about}: {each['title']}. {each['told']} {each.get('link', '')}" for each in alerts]
    return _Told(loop=loop, text="\n".join(line.rstrip() for line in lines), alerts=alerts)


def _link(base: str, loop: str, page: str) -> str:
    return f"{base}/{page}" if loop == SCORERS else f"{base}/{page}?loop={loop}"


def _about(loop: str) -> str:
    return "scorers" if loop == SCORERS else loop


def _post(address: str, told: _Told) -> list[str]:
    try:
        answer = urllib3.request(
            "POST",
            address,
            body=msgspec.json.encode(told),
            headers={"content-type": "application/json"},
            timeout=_TIMEOUT_S,
            retries=False,
        )
    except urllib3.exceptions.HTTPError as error:
        # The address may hold a secret.
        return [f"{told.about}: the webhook can't be reached ({type(error).__name__})"]
    if answer.status // 100 != 2:
        return [f"{told.about}: the webhook answers {answer.status}"]
    return []


def _mail(config: EmailConfig, told: _Told, password: str | None) -> list[str]:
    message = EmailMessage()
    first = told.alerts[0]["title"]
    more = len(told.alerts) - 1
    message["Subject"] = f"[croupier] {told.about}: {first}" + (f" and {more} more" if more else "")
    message["From"] = config.sender
    message["To"] = ", ".join(config.recipients)
    message.set_content(told.text + "\n")
    try:
        with smtplib.SMTP(config.host, config.port, timeout=_TIMEOUT_S) as server:
            if config.starttls:
                server.starttls()
            if config.user is not None:
                server.login(config.user, password or "")
            server.send_message(message)
    except (OSError, smtplib.SMTPException) as error:
        return [f"{told.about}: mail to {config.host} failed ({type(error).__name__}: {error})"]
    return []
