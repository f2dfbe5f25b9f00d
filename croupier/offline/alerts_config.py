"""Whom alerts are told to, and when scorers raise one: the section ``[alerts]``."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from croupier.policy.durations import parse_duration

__all__ = (
    "RESOLVED",
    "AlertsConfig",
    "EmailConfig",
    "LatencyRule",
    "RefusalRule",
    "UnreachableRule",
)

RESOLVED: Final = "dns+"
"""Before an address: every machine that its name resolves to is a scorer."""

_ADDRESS: Final = re.compile(r"[^@\s<>]+@[^@\s<>]+")
_SCORER: Final = re.compile(r"(dns\+)?https?://[^\s/?#@]+(/[^\s?#]*)?")
_SECOND_US: Final = 1_000_000


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


class LatencyRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When scorers are slow.

    Attributes
    ----------
    on
        Whether the rule is looked at.
    p99
        What the 99th percentile of a route's requests, of all scorers together, may take: a
        duration below 1 s, beyond which scorers tell no times apart.
    window
        Requests of so long a time back count: a duration.
    lasting
        For how long it has to be slower, at every look, before there is an alert: a duration.
    least_requests
        Of the window, of a route; of fewer nothing is said.
    """

    on: bool = True
    p99: str = "50 ms"
    window: str = "5 min"
    lasting: str = "10 min"
    least_requests: int = 100

    def __post_init__(self) -> None:
        if not 0 < parse_duration(self.p99) < _SECOND_US:
            raise ValueError(f"p99 must be above 0 and below 1 s, got {self.p99!r}")
        if parse_duration(self.window) == 0:
            raise ValueError(f"window must be longer than 0 s, got {self.window!r}")
        parse_duration(self.lasting)
        if self.least_requests < 1:
            raise ValueError(f"least_requests must be at least 1, got {self.least_requests}")

    @property
    def p99_s(self) -> float:
        """What the 99th percentile may be, in seconds."""
        return parse_duration(self.p99) / 1e6


class RefusalRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the log refuses what scorers are asked for, or says that it can't be written.

    Attributes
    ----------
    on
        Whether the rule is looked at.
    window
        Refusals of so long a time back count: a duration.
    lasting
        For how long there have to be some, at every look, before there is an alert: a duration.
    """

    on: bool = True
    window: str = "5 min"
    lasting: str = "1 min"

    def __post_init__(self) -> None:
        if parse_duration(self.window) == 0:
            raise ValueError(f"window must be longer than 0 s, got {self.window!r}")
        parse_duration(self.lasting)


class UnreachableRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a scorer doesn't answer.

    Attributes
    ----------
    on
        Whether the rule is looked at.
    lasting
        For how long, at every look, before there is an alert: a duration.
    """

    on: bool = True
    lasting: str = "1 min"

    def __post_init__(self) -> None:
        parse_duration(self.lasting)


class AlertsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where alerts are delivered, nowhere unless said; and those that ``croupier watch`` raises.

    Attributes
    ----------
    webhook
        Address that they are posted to as JSON, with a `text` as chat systems show it.
    email
        How they are mailed.
    dashboard
        Address of the dashboard, for links.
    scorers
        Addresses of the scorers that are watched, each its own and not a balancer's; with
        ``dns+http://`` all that a name resolves to. The data directory's own unless given.
    latency, refusals, unreachable
        When they raise an alert.
    """

    webhook: str | None = None
    email: EmailConfig | None = None
    dashboard: str | None = None
    scorers: tuple[str, ...] = ()
    latency: LatencyRule = LatencyRule()
    refusals: RefusalRule = RefusalRule()
    unreachable: UnreachableRule = UnreachableRule()

    def __post_init__(self) -> None:
        for name in ("webhook", "dashboard"):
            address = getattr(self, name)
            if address is not None and not address.startswith(("http://", "https://")):
                raise ValueError(f"{name} must be an address with http://, got {address!r}")
        for scorer in self.scorers:
            if not _SCORER.fullmatch(scorer):
                raise ValueError(f"scorers must be addresses with http://, got {scorer!r}")
            if scorer.startswith(f"{RESOLVED}https"):
                raise ValueError(
                    f"scorers are found by name with dns+http:// alone, got {scorer!r}"
                )
        if len(set(self.scorers)) < len(self.scorers):
            raise ValueError(f"scorers must be different, got {', '.join(self.scorers)}")
