"""API keys: who may use which loop."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from croupier.service.personalizer import KEY_HEADER
from croupier.service.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from croupier.service.config import KeyConfig, KeyScope

__all__ = ("Admission", "KeyRing")

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
    local
        Whether only this machine can ask. If others can, the control plane is not open without a
        key, whatever else is.
    """

    def __init__(self, keys: Mapping[str, KeyConfig], *, local: bool = True) -> None:
        self._anonymous = _EVERYTHING if local else _EVERYTHING_BUT_ADMIN
        self._grants = [
            _Grant(
                name,
                _digest_of(key),
                frozenset(key.loops),
                frozenset(key.scopes),
                key.personalizer_loop,
            )
            for name, key in keys.items()
        ]

    def admit(self, headers: Iterable[tuple[bytes, bytes]], loop: str, scope: KeyScope) -> None:
        """Let a request use a loop, or not.

        Raises
        ------
        Refusal
            401 without a known key; 403 with one that doesn't open the loop, or not for this.
        """
        grant = self._grant(_presented_key(headers))
        if grant is None:
            raise Refusal(401, "expected a known API key as a bearer token or in X-Api-Key")
        if not grant.opens(loop):
            raise Refusal(403, f"this API key is not for loop {loop!r}", target="loop")
        grant.require(scope)

    def admit_personalizer(
        self, headers: Iterable[tuple[bytes, bytes]], loops: Iterable[str], scope: KeyScope
    ) -> Admission:
        """Let a request to Personalizer's API use the loop that its key stands for, or not.

        It is the one that the key's configuration names, or else the only one that it opens.

        Parameters
        ----------
        headers
            Of the request.
        loops
            Names of all loops that there are.
        scope
            What it is about to do.

        Raises
        ------
        Refusal
            401 without a known key; 403 if it could be several loops, or none, or if the key is
            not for this.
        """
        grant = self._grant(_subscription_key(headers))
        if grant is None:
            raise Refusal(401, f"expected a known API key in {KEY_HEADER}")
        grant.require(scope)
        if grant.personalizer_loop is not None:
            return Admission(grant.personalizer_loop, grant.name)
        opened = [loop for loop in loops if grant.opens(loop)]
        if len(opened) != 1:
            raise Refusal(
                403,
                "expected a key that stands for a single loop: one that opens no other, or whose "
                "configuration names it as personalizer_loop",
                target="loop",
            )
        return Admission(opened[0], grant.name)

    def _grant(self, key: bytes) -> _Grant | None:
        if not self._grants:
            return self._anonymous
        presented = hashlib.sha256(key).hexdigest()
        found = None
        # Every key is compared, so that the time taken says nothing about which one was near.
        for grant in self._grants:
            if hmac.compare_digest(grant.digest, presented):
                found = grant
        return found


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that was let in: to which loop, and by the key of which name."""

    loop: str
    key: str


@dataclass(frozen=True, slots=True)
class _Grant:
    """What a key opens and for what, and the loop that it stands for where a request names none."""

    name: str
    digest: str
    loops: frozenset[str]
    scopes: frozenset[KeyScope]
    personalizer_loop: str | None = None

    def opens(self, loop: str) -> bool:
        return loop in self.loops or "*" in self.loops

    def require(self, scope: KeyScope) -> None:
        if scope not in self.scopes:
            raise Refusal(
                403,
                f"this API key lacks the scope {scope!r}, which is needed here",
                target="scopes",
            )


_EVERYTHING = _Grant(
    "anonymous", "", frozenset({"*"}), frozenset({"decide", "reward", "judge", "admin"})
)
_EVERYTHING_BUT_ADMIN = replace(_EVERYTHING, scopes=frozenset({"decide", "reward", "judge"}))


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
