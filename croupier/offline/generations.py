"""The generations table: one row per generation, with what was promised and what then happened."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from croupier.offline.lake import SCHEMAS
from croupier.offline.realised import realised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from croupier.offline.lake import Lake

__all__ = ("record_generation", "record_promotion", "refresh_realised")


def record_generation(lake: Lake, row: Mapping[str, Any]) -> None:
    """Add a generation, or put other values into the row it has.

    Parameters
    ----------
    lake
        To write to; hold its lock.
    row
        Values by column; `loop` and `generation` name the row, columns left out stay as they are.
    """
    _put(lake, [row])


def record_promotion(
    lake: Lake, loop: str, number: int, *, now_us: int, override_reason: str | None = None
) -> None:
    """Note a new champion, and that the one before has retired.

    An override that was recorded of this generation earlier stays on record.
    """
    champions = lake.scan("generations", loop).filter(pl.col("status") == "champion").collect()
    promoted: dict[str, Any] = {
        "loop": loop,
        "generation": number,
        "status": "champion",
        "promoted": datetime.fromtimestamp(now_us / 1e6, tz=UTC),
    }
    if override_reason is not None:
        promoted["override_reason"] = override_reason
    retired = [
        {"loop": loop, "generation": former, "status": "retired"}
        for former in champions["generation"]
        if former != number
    ]
    _put(lake, [*retired, promoted])


def refresh_realised(lake: Lake, loop: str, *, confidence: float = 0.95) -> None:
    """Put what really happened beside what was promised, for every generation that was served.

    Realised values are means over all decisions that a generation made, estimated from those that
    were kept in the log (each counts ``1 / keep_prob`` times), with a normal interval; the
    propensity test says whether its draws happened with the probabilities that were logged. Only
    what has come since the last time is read, see :func:`~croupier.offline.realised.realised`.
    """
    rows = []
    for number, found in realised(lake, loop).items():
        lower, upper = found.interval(confidence)
        rows.append(
            {
                "loop": loop,
                "generation": number,
                "decisions": found.moments.rows,
                "decisions_made": found.moments.weight,
                "realised_mean": found.moments.mean,
                "realised_lower": lower,
                "realised_upper": upper,
                "propensity_p_value": found.propensity_p_value,
            }
        )
    _put(lake, rows)


def _put(lake: Lake, rows: Sequence[Mapping[str, Any]]) -> None:
    """Merge rows into the table, in one commit: readers see all of them or none."""
    if not rows:
        return
    table = lake.scan("generations").collect()
    merged = {(row["loop"], row["generation"]): row for row in table.iter_rows(named=True)}
    empty = dict.fromkeys(SCHEMAS["generations"].names())
    for row in rows:
        name = row["loop"], row["generation"]
        merged[name] = merged.get(name, empty) | dict(row)
    if list(merged.values()) == table.to_dicts():
        return
    fresh = pl.DataFrame(list(merged.values()), schema=SCHEMAS["generations"])
    lake.replace("generations", fresh.sort("loop", "generation"))
