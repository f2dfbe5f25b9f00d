"""Durations as configurations write them, such as ``10 min``."""

from __future__ import annotations

import re
from typing import Final

__all__ = ("DAY_US", "duration_text", "parse_duration")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h|d)", re.ASCII)
_MICROSECONDS = {
    "ms": 1_000,
    "s": 1_000_000,
    "min": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}
DAY_US: Final = _MICROSECONDS["d"]
"""Microseconds of a day."""

# Sums of a timestamp and a duration must fit into 64 bits.
_LONGEST = 365_000 * DAY_US


def duration_text(microseconds: int) -> str:
    """A duration as :func:`parse_duration` reads it, in the largest unit that gives whole numbers.

    Parameters
    ----------
    microseconds
        At least 0; whole milliseconds.
    """
    units = reversed(_MICROSECONDS.items())
    unit, size = next(
        ((unit, size) for unit, size in units if microseconds % size == 0), ("ms", 1000)
    )
    return f"{microseconds // size} {unit}"


def parse_duration(text: str) -> int:
    """Microseconds in a duration such as ``10 min``.

    Raises
    ------
    ValueError
        If the text is not a number and a unit, or longer than a thousand years.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        units = ", ".join(_MICROSECONDS)
        raise ValueError(f"a duration is a number and one of {units}, got {text!r}")
    duration = float(match[1]) * _MICROSECONDS[match[2]]
    if duration > _LONGEST:
        raise ValueError(f"a duration is at most {_LONGEST / _MICROSECONDS['d']:g} d, got {text!r}")
    return round(duration)
