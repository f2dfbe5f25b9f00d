"""API keys: who may use which loop."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from croupier.service.config import KeyConfig

__all__ = ("KeyRing",)

_API_KEY = b"x-api-key"
_AUTHORIZATION = b"authorization"
_BEARER = b"bearer "
_SUBSCRIPTION_KEY = b"ocp-apim-subscription-key"


class KeyRing:
    """Checks the key of a request. Only digests are kept.

    Parameters
    ----------
    keys
        As configured; with none, everything is open.
    """

    def __init__(self, keys: Mapping[str, KeyConfig]) -> None:
        self._grants = [
            _Grant(_digest_of(key), frozenset(key.loops), key.personalizer_loop)
            for key in keys.values()
        ]

    def status(self, headers: Iterable[tuple[bytes, bytes]], loop: str) -> int:
        """200 if the request may use the loop, 401 without a known key, 403 with another's."""
        grant = self._grant(_presented_key(headers))
        if grant is None:
            return 401
        return 200 if grant.opens(loop) else 403

    def personalizer_loop(
        self, headers: Iterable[tuple[bytes, bytes]], loops: Iterable[str]
    ) -> tuple[int, str]:
        """The loop that the key of a request to Personalizer's API stands for.

        It is the one that the key's configuration names, or else the only one that it opens.

        Parameters
        ----------
        headers
            Of the request.
        loops
            Names of all loops that there are.

        Returns
        -------
        tuple of int and str
            200 and the loop; 401 and nothing without a known key; 403 and nothing if it could be
            several loops, or none.
        """
        grant = self._grant(_subscription_key(headers))
        if grant is None:
            return 401, ""
        if grant.personalizer_loop is not None:
            return 200, grant.personalizer_loop
        opened = [loop for loop in loops if grant.opens(loop)]
        return (200, opened[0]) if len(opened) == 1 else (403, "")

    def _grant(self, key: bytes) -> _Grant | None:
        if not self._grants:
            return _EVERYTHING
        presented = hashlib.sha256(key).hexdigest()
        found = None
        # Every key is compared, so that the time taken says nothing about which one was near.
        for grant in self._grants:
            if hmac.compare_digest(grant.digest, presented):
                found = grant
        return found


@dataclass(frozen=True, slots=True)
class _Grant:
    """What a key opens, and the loop that it stands for where a request can't name one."""

    digest: str
    loops: frozenset[str]
    personalizer_loop: str | None = None

    def opens(self, loop: str) -> bool:
        return loop in self.loops or "*" in self.loops


_EVERYTHING = _Grant("", frozenset({"*"}))


def _presented_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == _API_KEY:
            return value
        if name == _AUTHORIZATION and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
    return b""


def _subscription_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return next((value for name, value in headers if name == _SUBSCRIPTION_KEY), b"")


def _digest_of(key: KeyConfig) -> str:
    if key.key_sha256 is not None:
        return key.key_sha256.lower()
    assert key.key is not None
    return hashlib.sha256(key.key.encode()).hexdigest()
