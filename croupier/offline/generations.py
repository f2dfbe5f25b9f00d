"""The generations table: one row per generation, with what was promised and what then happened."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from scipy import stats

from croupier.offline.audit import draws_test
from croupier.offline.lake import SCHEMAS

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    table = lake.scan("generations").collect()
    same = (pl.col("loop") == row["loop"]) & (pl.col("generation") == row["generation"])
    known = table.filter(same).to_dicts()
    merged = (known[0] if known else dict.fromkeys(SCHEMAS["generations"].names())) | dict(row)
    fresh = pl.DataFrame([merged], schema=SCHEMAS["generations"])
    rows = pl.concat([table.filter(~same), fresh]).sort("loop", "generation")
    lake.replace("generations", rows)


def record_promotion(
    lake: Lake, loop: str, number: int, *, now_us: int, override_reason: str | None = None
) -> None:
    """Note a new champion, and that the one before has retired."""
    champions = lake.scan("generations", loop).filter(pl.col("status") == "champion").collect()
    for row in champions.iter_rows(named=True):
        if row["generation"] != number:
            record_generation(lake, row | {"status": "retired"})
    record_generation(
        lake,
        {
            "loop": loop,
            "generation": number,
            "status": "champion",
            "promoted": datetime.fromtimestamp(now_us / 1e6, tz=UTC),
            "override_reason": override_reason,
        },
    )


def refresh_realised(lake: Lake, loop: str, *, confidence: float = 0.95) -> None:
    """Put what really happened beside what was promised, for every generation that was served.

    Realised values are means over all of a generation's interactions, with a normal interval; the
    propensity test says whether its draws happened with the probabilities that were logged.
    """
    served = lake.scan("interactions", loop).filter(pl.col("generation").is_not_null())
    for row in _realised(served, confidence):
        record_generation(lake, {"loop": loop} | row)


def _realised(interactions: pl.LazyFrame, confidence: float) -> list[dict[str, Any]]:
    columns = ("generation", "reward", "action_ids", "pmf", "chosen")
    z = float(stats.norm.isf((1.0 - confidence) / 2.0))
    rows = []
    for (number,), served in interactions.select(columns).collect().group_by("generation"):
        rewards = served["reward"].to_numpy()
        n = len(rewards)
        half = z * float(np.std(rewards, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        mean = float(rewards.mean())
        rows.append(
            {
                "generation": number,
                "decisions": n,
                "realised_mean": mean,
                "realised_lower": mean - half,
                "realised_upper": mean + half,
                "propensity_p_value": draws_test(served).p_value,
            }
        )
    return rows
