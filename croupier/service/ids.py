"""Ids and times of events, made alike by service and clients."""

from __future__ import annotations

import os
import time

__all__ = ("now_us", "uuid7")


def now_us() -> int:
    """Now, in microseconds since the Unix epoch, UTC."""
    return time.time_ns() // 1000


def uuid7(ts_us: int) -> str:
    """Make a UUID of version 7 (RFC 9562): milliseconds since the epoch, then 74 random bits."""
    random = int.from_bytes(os.urandom(10), "big")
    value = (ts_us // 1000 & (1 << 48) - 1) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
