"""Configuration of the scoring service."""

from __future__ import annotations

import ipaddress
from typing import Literal, TypeAlias

import msgspec

from croupier.policy.loop import parse_duration
from croupier.service.secret import parse_secret
from croupier.service.stream_config import StreamConfig

__all__ = ("KeyConfig", "KeyScope", "LogFormat", "ServiceConfig")

LogFormat: TypeAlias = Literal["auto", "json", "text"]

KeyScope: TypeAlias = Literal["decide", "reward", "judge", "override", "admin"]
"""``decide``: ask for decisions; ``reward``: report outcomes and activations; ``judge``: report
auditors' judgements of pairs of decisions; ``override``: ask for another champion in spite of the
gate; ``admin``: change settings, models and logs."""


class KeyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One API key and what it opens.

    Attributes
    ----------
    key
        The key itself. Give this or `key_sha256`.
    key_sha256
        SHA-256 of the key in hexadecimal, for configuration files that shouldn't hold secrets.
    loops
        Names of the loops that it opens; ``*`` is all of them.
    personalizer_loop
        The one of these that it stands for in Azure AI Personalizer's API, whose requests name no
        loop. A key that opens a single loop needs none.
    scopes
        What it may do with them: ``decide``, ``reward``, ``judge``, which an auditor of fairness
        needs, ``override``, which asks for another champion in spite of the gate and which nobody
        has without a key, and ``admin``, which is Personalizer's control plane (settings, model,
        logs, evaluations).
    """

    key: str | None = None
    key_sha256: str | None = None
    loops: tuple[str, ...] = ("*",)
    personalizer_loop: str | None = None
    scopes: tuple[KeyScope, ...] = ("decide", "reward")

    def __post_init__(self) -> None:
        if (self.key is None) == (self.key_sha256 is None):
            raise ValueError("expected either key or key_sha256")
        if not self.scopes:
            raise ValueError(
                "scopes must name at least one of decide, reward, judge, override and admin"
            )
        if self.key is not None and len(self.key) < 8:
            raise ValueError("key must have at least 8 characters")
        if self.key_sha256 is not None and not _is_sha256(self.key_sha256):
            raise ValueError("key_sha256 must be 64 hexadecimal digits")
        named = self.personalizer_loop
        if named is not None and (named in {"", "*"} or not {named, "*"} & set(self.loops)):
            raise ValueError(f"personalizer_loop must be one of the key's loops, got {named!r}")


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the service listens and what it lets in.

    Attributes
    ----------
    host, port
        Address to listen on; port 0 takes a free one.
    keys
        API keys by name. Without any, the service only listens on this machine.
    allow_anonymous
        Listen beyond this machine without keys all the same.
    max_body_bytes
        Largest request body.
    workers
        Processes that decide, each with a share of the connections; 1 to 256.
    max_control_body_bytes
        Largest body of a request to the control plane: a model, or logs to import.
    registry_poll
        How often the registry is asked for a new plan.
    draw_secret
        Key of the draws: 16 to 64 bytes in hexadecimal or base64, the same on every scorer of a
        loop. None makes one of 32 random bytes, once, and keeps it in the data directory.
    remembered_decisions
        How many of the latest answers to requests with an id of their own are kept, for when one
        is sent again; 0 to 10,000,000.
    remembered_sessions
        How many sessions a scorer follows at the same time for callers that don't keep them; 0 to
        10,000,000. Those that nobody has heard of for longest are forgotten first.
    max_features, max_object_features
        Most values in the features and audit attributes of a request, and in one object of them: a
        context, an action's or a slot's features. Nested ones count, and so does what nests them.
    max_inflight_bytes
        How much of large bodies (over 64 KiB) is read and answered at the same time.
    max_connections
        At the same time.
    request_timeout
        How long a request may take to arrive, and an answer to be fetched.
    idle_timeout
        How long a connection is kept without a request.
    log_format
        ``json``: a JSON object a line; ``text``: lines for people; ``auto``: for people on a
        terminal.
    access_log
        Log every request, and not only those that are refused.
    stream
        Requests from Kafka.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    keys: dict[str, KeyConfig] = {}
    allow_anonymous: bool = False
    max_body_bytes: int = 1_048_576
    workers: int = 1
    max_control_body_bytes: int = 67_108_864
    registry_poll: str = "1 s"
    draw_secret: str | None = None
    remembered_decisions: int = 10_000
    remembered_sessions: int = 10_000
    max_features: int = 100_000
    max_object_features: int = 20_000
    max_inflight_bytes: int = 67_108_864
    max_connections: int = 4096
    request_timeout: str = "10 s"
    # Longer than clients and balancers keep an idle connection as a rule: whoever closes first
    # must not be the one that can't know whether a request is on its way.
    idle_timeout: str = "75 s"
    log_format: LogFormat = "auto"
    access_log: bool = False
    stream: StreamConfig = StreamConfig()

    def __post_init__(self) -> None:
        _require_remembered("remembered_decisions", self.remembered_decisions)
        _require_remembered("remembered_sessions", self.remembered_sessions)
        # Without a pause two processes would do nothing else.
        _require_duration("registry_poll", self.registry_poll, 0.01, "10 ms")
        _require_duration("request_timeout", self.request_timeout, 0.1, "100 ms")
        _require_duration("idle_timeout", self.idle_timeout, 0.1, "100 ms")
        for name in ("max_features", "max_object_features", "max_connections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_object_features > self.max_features:
            raise ValueError(
                f"max_object_features must be at most max_features ({self.max_features}), "
                f"got {self.max_object_features}"
            )
        if self.max_inflight_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_inflight_bytes must be at least max_body_bytes ({self.max_body_bytes}), "
                f"got {self.max_inflight_bytes}"
            )
        if self.draw_secret is not None:
            _require_secret(self.draw_secret)
        if not 1 <= self.workers <= 256:
            raise ValueError(f"workers must be in [1, 256], got {self.workers}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be in [0, 65535], got {self.port}")
        if self.max_body_bytes < 1024:
            raise ValueError(f"max_body_bytes must be at least 1024, got {self.max_body_bytes}")
        if self.max_control_body_bytes < 1024:
            raise ValueError(
                f"max_control_body_bytes must be at least 1024, got {self.max_control_body_bytes}"
            )
        if not (self.keys or self.allow_anonymous or _is_loopback(self.host)):
            raise ValueError(
                f"expected at least one key under service.keys (or allow_anonymous = true) to "
                f"listen on {self.host}, which other machines can reach"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can ask."""
        return _is_loopback(self.host)

    @property
    def registry_poll_s(self) -> float:
        """The polling interval in seconds."""
        return parse_duration(self.registry_poll) / 1e6

    @property
    def request_timeout_s(self) -> float:
        """How long a request may take to arrive, in seconds."""
        return parse_duration(self.request_timeout) / 1e6

    @property
    def idle_timeout_s(self) -> float:
        """How long a connection is kept without a request, in seconds."""
        return parse_duration(self.idle_timeout) / 1e6


def _require_remembered(name: str, number: int) -> None:
    if not 0 <= number <= 10_000_000:
        raise ValueError(f"{name} must be in [0, 10000000], got {number}")


def _require_duration(name: str, text: str, shortest_s: float, shortest: str) -> None:
    try:
        seconds = parse_duration(text) / 1e6
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not shortest_s <= seconds <= 86_400:
        raise ValueError(f"{name} must be in [{shortest}, 1 d], got {text!r}")


def _require_secret(text: str) -> None:
    try:
        parse_secret(text)
    except ValueError as error:
        raise ValueError(f"draw_secret: {error}") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and all(digit in "0123456789abcdefABCDEF" for digit in text)
