"""Figures as people read them: as many decimals as an interval justifies, and never a NaN."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    import polars as pl

__all__ = ("MISSING", "Rewards", "count", "moment")

MISSING: Final = "–"
"""Stands where the lake holds nothing."""

_MOST_DECIMALS: Final = 8
_DEFAULT_DECIMALS: Final = 3


@dataclass(frozen=True, slots=True)
class Rewards:
    """Formats rewards of one loop, all to the same number of decimals.

    Attributes
    ----------
    decimals
        Behind the point.
    """

    decimals: int

    @classmethod
    def for_widths(cls, widths: pl.Series) -> Rewards:
        """Show two digits of an interval of the usual width: 0.0280 asks for three decimals."""
        width = widths.filter(widths > 0).median()
        if not isinstance(width, float):
            return cls(_DEFAULT_DECIMALS)
        return cls(min(max(1 - math.floor(math.log10(width)), 0), _MOST_DECIMALS))

    def value(self, value: float | None) -> str:
        """A reward, or a mean of them."""
        return MISSING if value is None else f"{value:,.{self.decimals}f}"

    def interval(self, lower: float | None, upper: float | None) -> str:
        """Both ends of an interval."""
        if lower is None or upper is None:
            return MISSING
        return f"{self.value(lower)} to {self.value(upper)}"


def count(value: float | None) -> str:
    """A number of things, with thousands set apart."""
    return MISSING if value is None else f"{value:,.0f}"


def moment(value: datetime | None) -> str:
    """A time, to the minute."""
    return MISSING if value is None else f"{value:%Y-%m-%d %H:%M} UTC"
