"""Tokens that say how far a session has come, for callers to keep and bring back."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final, NoReturn

import msgspec

from croupier.policy.errors import InvalidInputError
from croupier.policy.sessions import SessionState

__all__ = ("FIELD", "SessionTokens")

FIELD: Final = "session"
"""Of requests and answers, where a token stands."""

_VERSION: Final = b"\x01"
_TAG_BYTES: Final = 16
_PERSON: Final = b"croupier-sess-1"

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SessionState)


class SessionTokens:
    """Makes and reads tokens.

    A token is ``base64url(version | state | tag)`` without padding. The tag is a keyed hash
    (BLAKE2b) of state, loop and user: nobody else can make a token, nor use that of one user for
    another. Without a secret it is a checksum, which finds mistakes and no forgeries.

    Parameters
    ----------
    secret
        At most 64 bytes, the same on every scorer of a loop; empty for none.
    """

    def __init__(self, secret: bytes = b"") -> None:
        self._secret = secret

    def issue(self, loop: str, user: str, state: SessionState) -> str:
        """The token of a user's session."""
        body = _VERSION + _encoder.encode(state)
        token = base64.urlsafe_b64encode(body + self._tag(loop, user, body))
        return token.rstrip(b"=").decode()

    def read(self, loop: str, user: str, token: str) -> SessionState | None:
        """How far a user's session has come; None if the token is empty, as with a first request.

        Raises
        ------
        InvalidInputError
            If it is not one that was issued for this loop and user.
        """
        if not token:
            return None
        if not token.isascii():
            _refuse()
        try:
            whole = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except binascii.Error:
            _refuse()
        body, tag = whole[:-_TAG_BYTES], whole[-_TAG_BYTES:]
        # Several texts decode to the same bytes, and only one of them was issued.
        issued = base64.urlsafe_b64encode(whole).rstrip(b"=").decode() == token
        intact = hmac.compare_digest(tag, self._tag(loop, user, body))
        if not (issued and intact and body.startswith(_VERSION)):
            _refuse()
        try:
            return _decoder.decode(body[len(_VERSION) :])
        except (msgspec.MsgspecError, ValueError):
            _refuse()

    def _tag(self, loop: str, user: str, body: bytes) -> bytes:
        digest = hashlib.blake2b(digest_size=_TAG_BYTES, key=self._secret, person=_PERSON)
        for part in (loop.encode(), user.encode(errors="surrogatepass"), body):
            digest.update(len(part).to_bytes(4, "big"))
            digest.update(part)
        return digest.digest()


def _refuse() -> NoReturn:
    raise InvalidInputError(
        FIELD, "expected what an answer to this user's last request gave, or an empty text"
    )
