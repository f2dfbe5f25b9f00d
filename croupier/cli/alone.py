"""Keeping a second process from doing the same on a data directory."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from croupier.offline.lake import LakeLockedError
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ("alone",)


@contextmanager
def alone(lock: Path, does: str) -> Iterator[None]:
    """Be the only process that does something, until the block ends.

    Parameters
    ----------
    lock
        File in the data directory, which is made.
    does
        What another process is said to do already.

    Raises
    ------
    LakeLockedError
        If another one does it.
    InvalidInputError
        If the file can't be written.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a+")
    except OSError as error:
        raise InvalidInputError(
            "data_dir", f"expected a directory to write to at {lock.parent}: {error.strerror}"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LakeLockedError(f"another process {does} already, see {lock}") from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()}\n")
        handle.flush()
        yield
