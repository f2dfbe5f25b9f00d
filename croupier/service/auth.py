"""API keys: who may use which loop."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from croupier.service.config import KeyConfig

__all__ = ("KeyRing",)

_API_KEY = b"x-api-key"
_AUTHORIZATION = b"authorization"
_BEARER = b"bearer "


class KeyRing:
    """Checks the key of a request. Only digests are kept.

    Parameters
    ----------
    keys
        As configured; with none, everything is open.
    """

    def __init__(self, keys: Mapping[str, KeyConfig]) -> None:
        self._scopes = [(_digest_of(key), frozenset(key.loops)) for key in keys.values()]

    def status(self, headers: Iterable[tuple[bytes, bytes]], loop: str) -> int:
        """200 if the request may use the loop, 401 without a known key, 403 with another's."""
        if not self._scopes:
            return 200
        presented = hashlib.sha256(_presented_key(headers)).hexdigest()
        scope: frozenset[str] | None = None
        # Every key is compared, so that the time taken says nothing about which one was near.
        for digest, loops in self._scopes:
            if hmac.compare_digest(digest, presented):
                scope = loops
        if scope is None:
            return 401
        return 200 if loop in scope or "*" in scope else 403


def _presented_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == _API_KEY:
            return value
        if name == _AUTHORIZATION and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
    return b""


def _digest_of(key: KeyConfig) -> str:
    if key.key_sha256 is not None:
        return key.key_sha256.lower()
    assert key.key is not None
    return hashlib.sha256(key.key.encode()).hexdigest()
