"""What decisions and their outcomes come to: the one definition of an interaction's reward."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from croupier.offline.guardrails import column_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from croupier.policy.loop import Aggregation, LoopConfig

__all__ = ("FOLDS", "KEY", "SKEW_US", "Counts", "Resolved", "fold_of", "resolve")

FOLDS = 1000
"""Number of folds that decisions are divided into, by a hash of their ids."""

KEY = ("decision_id", "slot")
"""What a decision is known by. One without slots has null for its slot, as if that were a name."""

SKEW_US = 86_400_000_000
"""How far the clocks of two scorers may differ, in microseconds: a day."""

_IN_ORDER = ("ts", "partition", "offset")
_BY_TIME: frozenset[Aggregation] = frozenset({"earliest", "latest", "last"})
_AGGREGATIONS: dict[Aggregation, Callable[[pl.Expr], pl.Expr]] = {
    "earliest": pl.Expr.first,
    "latest": pl.Expr.last,
    "last": pl.Expr.last,
    "sum": lambda rewards: rewards,
    "mean": lambda rewards: rewards,
    "median": pl.Expr.median,
    "min": pl.Expr.min,
    "max": pl.Expr.max,
}
# The last bit of polars' own sums depends on how it splits its work, and a lake that is built anew
# is to be the same to the last bit.
_EXACT: dict[Aggregation, Callable[[pl.Series], float]] = {
    "sum": math.fsum,
    "mean": lambda rewards: math.fsum(rewards) / len(rewards),
}
_HELD = ("reward_source", "outcomes", "delay_s")


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of decisions and new outcomes.

    Attributes
    ----------
    open
        Decisions whose window has not closed yet.
    late, orphans
        New outcomes that are stamped after their decision's window, and those that have no decision
        to count for.
    """

    open: int
    late: int
    orphans: int


@dataclass(frozen=True, slots=True)
class Resolved:
    """Interactions to write, without what the decision itself holds, and counts."""

    rows: pl.DataFrame
    counts: Counts


def resolve(
    config: LoopConfig,
    as_of_us: int,
    decisions: pl.DataFrame,
    outcomes: pl.DataFrame,
    present: pl.DataFrame,
) -> Resolved:
    """Find out which interactions are to be written of some decisions, and what they hold.

    Parameters
    ----------
    config
        How outcomes count.
    as_of_us
        Decisions whose window closed before are joined, in microseconds since the epoch.
    decisions
        ``decision_id``, ``slot``, ``ts``, ``deferred``; other columns are kept.
    outcomes
        Everything that came for these decisions, of both kinds; those for others, and those that
        are ``new`` since the last join, are counted. Every guardrail of the loop has a column, see
        :func:`~croupier.offline.guardrails.told`.
    present
        Interactions that there are already: the key, ``revision``, and what they hold, with a
        column for every guardrail.
    """
    window = pl.duration(microseconds=config.attribution_window_us)
    as_of = pl.lit(as_of_us).cast(pl.Datetime("us", "UTC"))
    closed = pl.col("ts") + window < as_of
    known = decisions.select(*KEY, decided="ts")
    within = pl.col("ts").is_between(
        pl.col("decided") - pl.duration(microseconds=SKEW_US),
        pl.col("decided") + pl.duration(microseconds=config.late_horizon_us),
    )
    sent = outcomes.filter(pl.col("kind") == "outcome")
    counted = sent.join(known, on=KEY, nulls_equal=True).filter(within)
    activated = (
        outcomes.filter(pl.col("kind") == "activation")
        .drop("slot")
        .join(known, on="decision_id")
        .filter(within)
        .select(KEY)
        .unique()
    )
    candidates = decisions.filter(closed)
    candidates = pl.concat(
        [
            candidates.filter(~pl.col("deferred")),
            candidates.filter("deferred").join(activated, on=KEY, how="semi", nulls_equal=True),
        ]
    )
    rules = _rules(config)
    rewards = _rewards(counted, config, rules)
    held = candidates.join(rewards, on=KEY, how="left", nulls_equal=True).with_columns(
        *(pl.col(column).fill_null(default) for column, (_, default) in rules.items()),
        pl.col("reward_source").fill_null("default"),
        pl.col("outcomes").fill_null(0),
        pl.col("told").fill_null(value=False),
    )
    rows = _changed(held, present, (*rules, *_HELD))
    folds = pl.Series("fold", [fold_of(each) for each in rows["decision_id"]], dtype=pl.Int64)
    late = pl.col("new") & (pl.col("ts") > pl.col("decided") + window)
    counts = Counts(
        open=decisions.select((~closed).sum()).item(),
        late=counted.select(late.sum()).item(),
        orphans=int(sent["new"].sum()) - int(counted["new"].sum()),
    )
    return Resolved(rows.with_columns(folds), counts)


def fold_of(decision_id: str) -> int:
    """Fold of a decision, in [0, 1000): for ever the same, and even over any kind of ids."""
    digest = hashlib.blake2b(decision_id.encode(), digest_size=8, person=b"croupier-fold-1")
    return int.from_bytes(digest.digest(), "big") % FOLDS


def _rules(config: LoopConfig) -> dict[str, tuple[Aggregation, float]]:
    """By column of the outcomes, how several rewards become one, and what there is without any."""
    rules = {"reward": (config.aggregation, config.default_reward)}
    for name, guardrail in sorted(config.guardrails.items()):
        how = guardrail.aggregation or config.aggregation
        rules[column_of(name)] = how, guardrail.default_reward
    return rules


def _rewards(
    outcomes: pl.DataFrame, config: LoopConfig, rules: Mapping[str, tuple[Aggregation, float]]
) -> pl.DataFrame:
    """The rewards of every slot or decision that has outcomes, and whether any of them is new.

    A guardrail's is null where none of the outcomes tells of it.
    """
    window = pl.duration(microseconds=config.attribution_window_us)
    in_time = pl.col("ts") <= pl.col("decided") + window
    delay = (pl.col("ts").min() - pl.col("decided").first()).dt.total_microseconds() / 1e6
    source = (
        pl.when(in_time.all())
        .then(pl.lit("observed"))
        .when(in_time.any())
        .then(pl.lit("revised"))
        .otherwise(pl.lit("late"))
    )
    rewards = outcomes.group_by(KEY).agg(
        *(_aggregated(column, how) for column, (how, _) in rules.items()),
        reward_source=source,
        outcomes=pl.len().cast(pl.Int64),
        # Rounded to what a clock tells, since polars may multiply by 1e-6 instead of dividing.
        delay_s=delay.clip(lower_bound=0.0).round(6),
        told=pl.col("new").any(),
    )
    for column, (how, _) in rules.items():
        if how in _EXACT:
            rewards = _exact(rewards, column, _EXACT[how])
    return rewards


def _aggregated(column: str, how: Aggregation) -> pl.Expr:
    rewards = pl.col(column)
    if how in _BY_TIME:
        rewards = rewards.sort_by(_IN_ORDER)
    # Every outcome has a reward, but may not tell of a guardrail.
    return _AGGREGATIONS[how](rewards if column == "reward" else rewards.drop_nulls())


def _exact(
    rewards: pl.DataFrame, column: str, aggregate: Callable[[pl.Series], float]
) -> pl.DataFrame:
    """One number of every list in a column; null of an empty one."""
    # A single one needs no sum, and most are single.
    several = pl.col(column).list.len() > 1
    summed = pl.col(column).map_elements(aggregate, return_dtype=pl.Float64)
    return pl.concat(
        [
            rewards.filter(~several).with_columns(pl.col(column).list.first()),
            rewards.filter(several).with_columns(summed),
        ]
    )


def _changed(held: pl.DataFrame, present: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """What there is no interaction of yet, and what is to be revised, with its revision.

    Only a new outcome revises: a loop that has got other settings since then keeps the rewards that
    it has. A crash can have made an outcome new twice, so it is looked whether it changes anything.
    """
    before = present.sort("revision").unique(KEY, keep="last", maintain_order=True)
    before = before.select(*KEY, "revision", *(pl.col(name).alias(f"{name}_0") for name in columns))
    both = held.join(before, on=KEY, how="left", nulls_equal=True)
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_0")) for name in columns)
    wanted = pl.col("revision").is_null() | (pl.col("told") & differs)
    return both.filter(wanted).with_columns(pl.col("revision").fill_null(-1) + 1)
