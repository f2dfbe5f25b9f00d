"""Some interactions of the latest days, without features: what a page replays a policy on.

Of every day those rows are taken whose ids have the smallest hashes, so that parts of a day can be
looked at one by one, and the same rows are found again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from croupier.offline.interactions import current_frames
from croupier.offline.summaries.tables import SUMMARY_SCHEMAS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from croupier.offline.lake import Lake
    from croupier.offline.lake_files import DataFile

__all__ = ("DAYS", "ROWS", "sample_of", "sampled_days")

DAYS: Final = 14
"""Latest days with interactions that are sampled."""

ROWS: Final = 20_000
"""Rows of all of them together, about."""

_SEED: Final = 20_261_127
_READ: Final = (
    *("decision_id", "slot", "date", "generation", "action_ids", "excluded", "pmf", "scores"),
    *("chosen", "propensity", "baseline", "keep_prob", "reward"),
)


def sampled_days(rows: Mapping[date, int]) -> dict[date, int]:
    """How many rows are taken of which days.

    Parameters
    ----------
    rows
        Interactions by day.
    """
    latest = sorted(day for day, count in rows.items() if count)[-DAYS:]
    total = sum(rows[day] for day in latest)
    if total <= ROWS:
        return {day: rows[day] for day in latest}
    return {day: ROWS // len(latest) for day in latest}


def sample_of(lake: Lake, files: Sequence[DataFile], most: int, *, held: int) -> pl.DataFrame:
    """Some rows of a day, each with the probability with which it is here.

    Parameters
    ----------
    lake
        To read.
    files
        All files that the day has in `interactions`.
    most
        Rows to be taken, if there are as many.
    held
        Rows held at once, about.
    """
    taken: list[pl.DataFrame] = []
    seen = 0
    for frame in current_frames(lake, files, held=held, columns=_READ):
        # Of what has no pmf or scores, no other policy can be made.
        usable = frame.filter(
            pl.col("pmf").is_not_null(), pl.col("pmf").list.len() == pl.col("action_ids").list.len()
        )
        seen += len(usable)
        key = pl.concat_str("decision_id", pl.col("slot").fill_null(""), separator="\n")
        placed = usable.with_columns(place=key.hash(_SEED)).sort("place").head(most)
        taken = [pl.concat([*taken, placed]).sort("place").head(most)]
    schema = SUMMARY_SCHEMAS["sample"]
    if not seen:
        return schema.to_frame()
    (rows,) = taken
    share = len(rows) / seen
    excluded = pl.col("excluded").fill_null([])
    eligible = (
        rows.with_row_index("row")
        .select("row", "action_ids", excluded=excluded)
        .explode("action_ids")
        .with_columns(eligible=~pl.col("action_ids").is_in(pl.col("excluded")))
        .group_by("row", maintain_order=True)
        .agg("eligible")
    )
    return (
        rows.with_columns(eligible["eligible"], keep_prob=pl.col("keep_prob") * share)
        .select(schema.names())
        .match_to_schema(schema)
    )
