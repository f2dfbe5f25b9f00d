"""Locks between processes, which the kernel drops with whoever held them, and durable names."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ("exclusive", "sync_directory")

_FIRST_PAUSE_S = 0.0001
_SHORT_WAIT_S = 0.02
_LONGEST_PAUSE_S = 0.002


@contextmanager
def exclusive(path: Path, deadline: float) -> Iterator[bool]:
    """Keep out everybody else who asks for the same file, in this and other processes.

    The file is opened anew each time: a child that is forked off meanwhile then shares the lock
    only for as long as this lasts, instead of keeping it alive after its parent's death.

    Parameters
    ----------
    path
        The file; made if it is missing.
    deadline
        How long to wait, by :func:`time.monotonic`.

    Yields
    ------
    bool
        Whether that worked.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield _lock(descriptor, deadline)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, deadline: float) -> bool:
    pause, started = _FIRST_PAUSE_S, time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            now = time.monotonic()
            if now >= deadline:
                return False
            # Much shorter than SQLite's own pauses of up to 100 ms, in which a writer would be
            # overtaken again and again by one that commits every other millisecond.
            time.sleep(pause)
            # Most hold it for a fraction of a millisecond.
            if now - started > _SHORT_WAIT_S:
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        else:
            return True
