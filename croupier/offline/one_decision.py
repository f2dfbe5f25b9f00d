"""One decision by its id: what the lake has of it, read from the few files that can hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from croupier.offline.folds import is_judged
from croupier.offline.pending import that_may_hold
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from croupier.offline.lake import Lake, TableName

__all__ = ("FoundDecision", "decision_by_id")

_LONGEST = 256


class FoundDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What the lake has of a decision.

    Attributes
    ----------
    loop, decision_id
        Which one.
    decisions
        Its rows of the decisions table: one, or one for each slot or place.
    outcomes
        What was reported, in the order of its time.
    interactions
        What it was joined to, the latest revision of each slot last.
    """

    loop: str
    decision_id: str
    decisions: list[dict[str, Any]]
    outcomes: list[dict[str, Any]]
    interactions: list[dict[str, Any]]

    def judges(self, judge_share: float) -> bool | None:
        """Whether it is for judging generations instead of training them; None if not joined."""
        if not self.interactions:
            return None
        row = pl.DataFrame({"fold": [self.interactions[-1]["fold"]]}, schema={"fold": pl.Int64})
        return bool(row.select(is_judged(judge_share)).item())


def decision_by_id(lake: Lake, loop: str, decision_id: str) -> FoundDecision | None:
    """Look a decision up; None if the lake doesn't have it.

    Files are left out whose bounds of ids rule it out, and of the others those groups of rows that
    Parquet's statistics do.

    Parameters
    ----------
    lake
        To read.
    loop, decision_id
        Which one.

    Raises
    ------
    InvalidInputError
        If it is no id.
    """
    if not 1 <= len(decision_id) <= _LONGEST:
        raise InvalidInputError("decision_id", "expected 1 to 256 characters")
    found = _rows(lake, "decisions", loop, decision_id).sort("offset")
    if found.is_empty():
        return None
    return FoundDecision(
        loop=loop,
        decision_id=decision_id,
        decisions=found.to_dicts(),
        outcomes=_rows(lake, "outcomes", loop, decision_id).sort("ts", "offset").to_dicts(),
        interactions=_rows(lake, "interactions", loop, decision_id)
        .sort(pl.col("revision").fill_null(0))
        .to_dicts(),
    )


def _rows(lake: Lake, table: TableName, loop: str, decision_id: str) -> pl.DataFrame:
    ids = pl.Series([decision_id])
    files = that_may_hold(ids, lake.snapshot(table, loop).files)
    rows = lake.read(table, [each.path for each in files])
    return rows.filter(pl.col("decision_id") == decision_id).collect()
