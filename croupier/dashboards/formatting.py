"""Figures as people read them: as many decimals as an interval justifies, and never a NaN."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import polars as pl
import streamlit as st

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ("MISSING", "Rewards", "count", "duration", "moment", "share", "viewer_zone")

MISSING: Final = "–"
"""Stands where the lake holds nothing."""

_UNITS: Final = (("d", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
_MOST_DECIMALS: Final = 8
_DEFAULT_DECIMALS: Final = 3


@dataclass(frozen=True, slots=True)
class Rewards:
    """Formats rewards of one loop, all to the same number of decimals.

    Attributes
    ----------
    decimals
        Behind the point.
    signed
        Whether a plus stands before what is above 0, as in differences.
    """

    decimals: int
    signed: bool = False

    @classmethod
    def for_widths(cls, widths: pl.Series, *, signed: bool = False) -> Rewards:
        """Show two digits of an interval of the usual width: 0.0280 asks for three decimals."""
        width = widths.filter(widths > 0).median()
        if not isinstance(width, float):
            return cls(_DEFAULT_DECIMALS, signed)
        return cls(min(max(1 - math.floor(math.log10(width)), 0), _MOST_DECIMALS), signed)

    def value(self, value: float | None) -> str:
        """A reward, or a mean of them."""
        # The z keeps what rounds to nothing from being "-0.00".
        sign = "+z" if self.signed else "z"
        return MISSING if value is None else f"{value:{sign},.{self.decimals}f}"

    def interval(self, lower: float | None, upper: float | None) -> str:
        """Both ends of an interval."""
        if lower is None or upper is None:
            return MISSING
        return f"{self.value(lower)} to {self.value(upper)}"

    def intervals(self, lower: str, upper: str) -> pl.Expr:
        """Both ends of the intervals in two columns; null where one is missing."""
        both = pl.all_horizontal(pl.col(lower, upper).is_not_null())
        return pl.when(both).then(
            pl.struct(lower=lower, upper=upper).map_elements(
                lambda ends: self.interval(**ends), pl.String
            )
        )


def count(value: float | None) -> str:
    """A number of things, with thousands set apart."""
    return MISSING if value is None else f"{value:,.0f}"


def moment(value: datetime | None) -> str:
    """A time, to the minute, where the viewer is; in UTC if the browser doesn't tell."""
    if value is None:
        return MISSING
    zone = viewer_zone()
    return f"{value.astimezone(zone):%Y-%m-%d %H:%M %Z}"


def viewer_zone() -> ZoneInfo:
    """The viewer's time zone; UTC if the browser doesn't tell."""
    try:
        return ZoneInfo(st.context.timezone or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        return ZoneInfo("UTC")


def duration(seconds: float) -> str:
    """How long something takes, in the largest unit of which it is at least one."""
    unit, size = next((each for each in _UNITS if seconds >= each[1]), ("s", 1.0))
    return f"{seconds / size:.3g} {unit}"


def share(value: float) -> str:
    """A share, in per cent."""
    return f"{100 * value:.1f} %"
