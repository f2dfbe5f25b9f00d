"""The join: decisions meet their outcomes and become interactions, each exactly once."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from croupier.offline.lake import SCHEMAS

if TYPE_CHECKING:
    from collections.abc import Callable

    from croupier.offline.lake import Lake
    from croupier.policy.loop import Aggregation, LoopConfig

__all__ = ("FOLDS", "JoinReport", "fold_of", "join")

FOLDS = 1000
"""Number of folds that decisions are divided into, by a hash of their ids."""

# A decision without slots has null for its slot, and is joined as if that were a name.
_KEY = ("decision_id", "slot")

_AGGREGATIONS: dict[Aggregation, pl.Expr] = {
    "earliest": pl.col("reward").sort_by("ts", "offset").first(),
    "latest": pl.col("reward").sort_by("ts", "offset").last(),
    "sum": pl.col("reward"),
    "mean": pl.col("reward"),
    "min": pl.col("reward").min(),
    "max": pl.col("reward").max(),
}
# The last bit of polars' own sums depends on how it splits its work, and a lake that is built anew
# is to be the same to the last bit.
_EXACT: dict[Aggregation, Callable[[pl.Series], float]] = {
    "sum": math.fsum,
    "mean": lambda rewards: math.fsum(rewards) / len(rewards),
}


@dataclass(frozen=True, slots=True)
class JoinReport:
    """What one run of the join did for a loop.

    Attributes
    ----------
    joined
        Interactions added.
    observed, defaulted
        How many of them had an outcome in time, and how many took the default reward.
    open
        Decisions whose window has not closed yet.
    late, orphans
        Outcomes in the lake that came after their decision's window had closed, and outcomes
        without a decision.
    """

    joined: int
    observed: int
    defaulted: int
    open: int
    late: int
    orphans: int


def join(lake: Lake, loop: str, config: LoopConfig, as_of_us: int) -> JoinReport:
    """Add an interaction for every decision whose attribution window closed before `as_of_us`.

    A decision is known by its id and its slot: an outcome counts for the slot that it names, and is
    an orphan if the decision has none of that name, or has slots and the outcome names none. An
    activation is one of all slots.

    A deferred decision counts once it was activated in time, and not at all if it never was.
    What an interaction holds depends on the log and the loop's configuration alone, not on when
    or how often the join runs.

    An outcome or activation that is stamped before its decision is in time, with a delay of 0:
    nobody can answer a decision that was not made yet, so the clocks of two scorers differ.
    Dropping it would trade a real reward for the default one, and only on the scorers whose clocks
    are behind.

    Parameters
    ----------
    lake
        To read and write; hold its lock.
    loop, config
        Whose decisions, and how outcomes count.
    as_of_us
        In microseconds since the epoch: everything received before is in the lake.
    """
    window = pl.duration(microseconds=config.attribution_window_us)
    as_of = pl.lit(as_of_us).cast(pl.Datetime("us", "UTC"))
    decisions = lake.scan("decisions", loop)
    known = decisions.select(*_KEY, decided=pl.col("ts"))
    sent = lake.scan("outcomes", loop)
    rewarding = sent.filter(pl.col("kind") == "outcome").join(
        known, on=_KEY, how="left", nulls_equal=True
    )
    activating = (
        sent.filter(pl.col("kind") == "activation").drop("slot").join(known, on="decision_id")
    )
    in_time = pl.col("ts") <= pl.col("decided") + window

    closed = decisions.filter(pl.col("ts") + window < as_of)
    fresh = closed.join(lake.scan("interactions", loop), on=_KEY, how="anti", nulls_equal=True)
    activated = activating.filter(in_time).select(_KEY).unique()
    counted = pl.concat(
        [
            fresh.filter(~pl.col("deferred")),
            fresh.filter(pl.col("deferred")).join(activated, on=_KEY, how="semi", nulls_equal=True),
        ]
    )
    rewards = _rewards(rewarding.filter(in_time), config.aggregation)
    rows = (
        counted.join(rewards, on=_KEY, how="left", nulls_equal=True)
        .with_columns(
            reward=pl.col("reward").fill_null(config.default_reward),
            reward_source=pl.when(pl.col("reward").is_null())
            .then(pl.lit("default"))
            .otherwise(pl.lit("observed")),
            outcomes=pl.col("outcomes").fill_null(0),
        )
        .sort("partition", "offset")
        .collect()
    )
    folds = pl.Series("fold", [fold_of(each) for each in rows["decision_id"]], dtype=pl.Int64)
    rows = rows.with_columns(folds).select(SCHEMAS["interactions"].names())
    if len(rows):
        lake.append("interactions", rows)
    counts = pl.collect_all(
        [
            decisions.filter(pl.col("ts") + window >= as_of).select(pl.len()),
            rewarding.filter(pl.col("ts") > pl.col("decided") + window).select(pl.len()),
            rewarding.filter(pl.col("decided").is_null()).select(pl.len()),
        ]
    )
    open_, late, orphans = (count.item() for count in counts)
    observed = int((rows["reward_source"] == "observed").sum())
    return JoinReport(len(rows), observed, len(rows) - observed, open_, late, orphans)


def _rewards(outcomes: pl.LazyFrame, aggregation: Aggregation) -> pl.LazyFrame:
    """One reward for every slot or decision that has outcomes in time."""
    delay = (pl.col("ts").min() - pl.col("decided").first()).dt.total_microseconds() / 1e6
    rewards = outcomes.group_by(_KEY).agg(
        reward=_AGGREGATIONS[aggregation],
        outcomes=pl.len().cast(pl.Int64),
        # Rounded to what a clock tells, since polars may multiply by 1e-6 instead of dividing.
        delay_s=delay.clip(lower_bound=0.0).round(6),
    )
    if aggregation not in _EXACT:
        return rewards
    exact = pl.col("reward").map_elements(_EXACT[aggregation], return_dtype=pl.Float64)
    return rewards.with_columns(reward=exact)


def fold_of(decision_id: str) -> int:
    """Fold of a decision, in [0, 1000): for ever the same, and even over any kind of ids."""
    digest = hashlib.blake2b(decision_id.encode(), digest_size=8, person=b"croupier-fold-1")
    return int.from_bytes(digest.digest(), "big") % FOLDS
