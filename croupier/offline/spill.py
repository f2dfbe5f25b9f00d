"""What those who only read may know of records that are not in the log yet."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from croupier.eventlog.spilling import spilling_since

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("missing_since",)


def missing_since(data_dir: Path) -> datetime | None:
    """Since when a data directory's scorers have kept what they log to themselves, in UTC.

    Parameters
    ----------
    data_dir
        Of scorers, which need not be the one that the lake is in.

    Returns
    -------
    datetime or None
        None if the log has everything.
    """
    since = spilling_since(data_dir / "spill")
    return None if since is None else datetime.fromtimestamp(since, tz=UTC)
