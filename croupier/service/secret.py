"""The secret of the draws: made once, kept in a file, and the same on every scorer of a loop."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import tempfile
from pathlib import Path

from croupier.policy.errors import ConfigError

__all__ = ("kept_secret", "parse_secret")

_BYTES = 32
_SHORTEST, _LONGEST = 16, 64
_HEX = re.compile(r"([0-9a-fA-F]{2})+")


def parse_secret(text: str) -> bytes:
    """Read a secret in hexadecimal or, where it isn't that, in base64.

    Parameters
    ----------
    text
        Of 16 to 64 bytes; base64 may be the usual or the URL-safe one, without padding too.

    Raises
    ------
    ValueError
        If it is neither, or of another length. The secret is not repeated.
    """
    text = text.strip()
    if _HEX.fullmatch(text):
        secret = bytes.fromhex(text)
    else:
        padded = text.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            secret = base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True)
        except ValueError:
            raise ValueError(
                f"expected {_SHORTEST} to {_LONGEST} bytes in hexadecimal or base64"
            ) from None
    if not _SHORTEST <= len(secret) <= _LONGEST:
        raise ValueError(
            f"expected {_SHORTEST} to {_LONGEST} bytes in hexadecimal or base64, "
            f"got {len(secret)} bytes"
        )
    return secret


def kept_secret(file: Path) -> bytes:
    """Read a secret from its file, which is made with 32 random bytes if it isn't there.

    Processes that start at once all get the same one: each makes a file aside, that its owner alone
    can read, and the first to link it into place has made the secret.

    Raises
    ------
    ConfigError
        If the file can't be made or read, or holds no secret.
    """
    try:
        if not file.exists():
            _make(file)
        return parse_secret(file.read_text())
    except OSError as error:
        raise ConfigError(
            "service.draw_secret", f"expected a file to keep it in at {file}: {error.strerror}"
        ) from error
    except ValueError as error:
        raise ConfigError("service.draw_secret", f"{file}: {error}") from error


def _make(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Of mode 0600 from the start.
    handle, staging = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with os.fdopen(handle, "w") as opened:
            opened.write(os.urandom(_BYTES).hex() + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        # If another process was a moment earlier, its secret counts.
        with contextlib.suppress(FileExistsError):
            os.link(staging, file)
    finally:
        Path(staging).unlink()
