"""Ids and times of events, made alike by service and clients."""

from __future__ import annotations

import os
import time
from random import Random

__all__ = ("now_us", "uuid7")

# Asking the system for every id would let go of the interpreter's lock with every decision. Two
# processes must not go on from the same state.
_random = Random()  # noqa: S311 - ids are no secrets; draws are keyed with one
os.register_at_fork(after_in_child=_random.seed)

_48_BITS = (1 << 48) - 1
# The variant is the two highest bits of a digit, the other two are random.
_VARIANT = {f"{digit:x}": "89ab"[digit & 3] for digit in range(16)}


def now_us() -> int:
    """Now, in microseconds since the Unix epoch, UTC."""
    return time.time_ns() // 1000


def uuid7(ts_us: int) -> str:
    """Make a UUID of version 7 (RFC 9562): milliseconds since the epoch, then 74 random bits."""
    time_ = f"{ts_us // 1000 & _48_BITS:012x}"
    random = f"{_random.getrandbits(76):019x}"
    variant = _VARIANT[random[3]]
    return f"{time_[:8]}-{time_[8:]}-7{random[:3]}-{variant}{random[4:7]}-{random[7:]}"
