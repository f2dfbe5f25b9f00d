"""Telling people of alerts: a webhook and e-mail, each alert once it has opened.

What could not be delivered is tried again by the next night. If one of two ways fails, the other
one is used again as well: an alert may come twice, and doesn't get lost.
"""

from __future__ import annotations

import re
import smtplib
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any, Final

import msgspec
import polars as pl
import urllib3

from croupier.offline.summaries.tables import SUMMARY_SCHEMAS, summaries_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from croupier.offline.lake import Lake

__all__ = ("DeliveryConfig", "EmailConfig", "deliver_alerts")

_TIMEOUT_S: Final = 10.0
_ADDRESS: Final = re.compile(r"[^@\s<>]+@[^@\s<>]+")


class EmailConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How e-mail is sent.

    Attributes
    ----------
    host, port
        Of the server.
    sender, recipients
        Addresses.
    starttls
        Whether the connection is encrypted, before anybody logs in.
    user
        Who logs in, with the password in CROUPIER_SMTP_PASSWORD; nobody if None.
    """

    host: str
    port: int = 25
    sender: str
    recipients: tuple[str, ...]
    starttls: bool = False
    user: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port must be in [1, 65535], got {self.port}")
        if not self.recipients:
            raise ValueError("recipients must name at least one address")
        for address in (self.sender, *self.recipients):
            if not _ADDRESS.fullmatch(address):
                raise ValueError(f"an address is of the form name@domain, got {address!r}")
        if self.user is not None and not self.starttls:
            raise ValueError("starttls must be on where somebody logs in")


class DeliveryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where alerts are delivered; nowhere unless said.

    Attributes
    ----------
    webhook
        Address that they are posted to as JSON, with a `text` as chat systems show it.
    email
        How they are mailed.
    dashboard
        Address of the dashboard, for links.
    """

    webhook: str | None = None
    email: EmailConfig | None = None
    dashboard: str | None = None

    def __post_init__(self) -> None:
        for name in ("webhook", "dashboard"):
            address = getattr(self, name)
            if address is not None and not address.startswith(("http://", "https://")):
                raise ValueError(f"{name} must be an address with http://, got {address!r}")


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a webhook is sent."""

    source: str = "croupier"
    loop: str
    text: str
    alerts: list[dict[str, Any]]


def deliver_alerts(
    lake: Lake,
    loops: Iterable[str],
    config: DeliveryConfig,
    *,
    now_us: int,
    password: str | None = None,
) -> list[str]:
    """Deliver all open alerts that weren't yet, and note that they were.

    Parameters
    ----------
    lake
        With the small tables; hold its lock.
    loops
        Whose alerts.
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
        | ({} if base is None else {"link": f"{base}/{row['page']}?loop={loop}"})
        for row in rows
    ]
    lines = [f"{loop}: {each['title']}. {each['told']} {each.get('link', '')}" for each in alerts]
    return _Told(loop=loop, text="\n".join(line.rstrip() for line in lines), alerts=alerts)


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
        return [f"{told.loop}: the webhook can't be reached ({type(error).__name__})"]
    if answer.status // 100 != 2:
        return [f"{told.loop}: the webhook answers {answer.status}"]
    return []


def _mail(config: EmailConfig, told: _Told, password: str | None) -> list[str]:
    message = EmailMessage()
    first = told.alerts[0]["title"]
    more = len(told.alerts) - 1
    message["Subject"] = f"[croupier] {told.loop}: {first}" + (f" and {more} more" if more else "")
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
        return [f"{told.loop}: mail to {config.host} failed ({type(error).__name__}: {error})"]
    return []
