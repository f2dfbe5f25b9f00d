"""What pages make of the small tables: means with intervals, shares, and what is new."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Final

import polars as pl

from croupier.offline.fairness.groups import suppressed

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = (
    "LEAST_CELL",
    "Z",
    "action_figures",
    "day_shares",
    "exploration_cost",
    "fates",
    "generation_figures",
    "in_period",
    "mean_columns",
    "new_and_vanished",
    "open_segments",
    "share_interval",
)

Z: Final = 1.959963984540054
"""Of 95 % intervals, by the normal approximation."""

LEAST_CELL: Final = 20
"""Fewest decisions of a segment that is shown."""

_SUMS: Final = (
    *("decisions", "made", "baseline", "propensity_sum", "joined", "reward_sum"),
    *("reward_squares", "positive", "observed", "defaulted", "late", "revised"),
)


def in_period(rows: pl.DataFrame, days: int | None) -> pl.DataFrame:
    """Rows of the latest days that a table has, all if None; a table with a column ``date``."""
    last = rows["date"].max()
    if days is None or last is None:
        return rows
    return rows.filter(pl.col("date") > pl.lit(last) - pl.duration(days=days))


def mean_columns(n: str = "joined") -> list[pl.Expr]:
    """``mean``, ``lower`` and ``upper`` of the rewards in a row's sums.

    The interval is ``mean ± z s / √n`` of independent rewards; null of fewer than two.
    """
    rows, mean = pl.col(n), pl.col("reward_sum") / pl.col(n)
    spread = (pl.col("reward_squares") / rows - mean**2).clip(lower_bound=0.0) * rows / (rows - 1)
    half = Z * (spread / rows).sqrt()
    enough = rows > 1
    return [
        pl.when(rows > 0).then(mean).alias("mean"),
        pl.when(enough).then(mean - half).alias("lower"),
        pl.when(enough).then(mean + half).alias("upper"),
    ]


def share_interval(part: pl.Expr, whole: pl.Expr) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """A share and the ends of its Wilson interval; null of nothing (Wilson 1927)."""
    p, n = part / whole, whole.cast(pl.Float64)
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * (p * (1 - p) / n + Z**2 / (4 * n**2)).sqrt()
    there = whole > 0
    return (
        pl.when(there).then(p),
        pl.when(there).then((centre - half).clip(0.0, 1.0)),
        pl.when(there).then((centre + half).clip(0.0, 1.0)),
    )


def generation_figures(hours: pl.DataFrame) -> pl.DataFrame:
    """What the log says of every generation: traffic, rewards, entropy, smallest probabilities."""
    sums = ("entropy_sum", "entropy_rows", "scored", "greedy_sum", "expected_sum")
    return (
        hours.group_by("generation")
        .agg(
            pl.col(*_SUMS, *sums).sum(),
            pl.col("least_propensity", "least_possible").min(),
            first=pl.col("hour").min(),
            last=pl.col("hour").max(),
        )
        .sort("generation", nulls_last=True)
        .with_columns(
            *mean_columns(),
            entropy=pl.col("entropy_sum") / pl.col("entropy_rows"),
            positive_rate=pl.when(pl.col("joined") > 0).then(pl.col("positive") / pl.col("joined")),
            baseline_share=pl.col("baseline") / pl.col("decisions"),
        )
    )


def action_figures(actions: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    r"""Traffic and rewards of actions.

    ``worth`` is what an action would earn if it were always taken, ``v = Σ w r / Σ w`` with
    ``w = 1 / propensity`` over the decisions that took it (SNIPS). Its variance is
    ``Σ w² (r - v)² / (Σ w)²``.

    Parameters
    ----------
    actions
        Rows of the table.
    keys
        What there is to be one row of each.
    """
    weights = ("weight_sum", "weight_squares", "weighted_reward", "weighted_squares")
    worth = pl.col("weighted_reward") / pl.col("weight_sum")
    variance = (
        pl.col("weighted_squares")
        - 2 * worth * pl.col("weighted_cross")
        + worth**2 * pl.col("weight_squares")
    ).clip(lower_bound=0.0) / pl.col("weight_sum") ** 2
    half = Z * variance.sqrt()
    total = pl.col("decisions").sum()
    over = [key for key in keys if key != "action"]
    known = pl.col("joined") > 1
    return (
        actions.group_by(keys)
        .agg(
            pl.col(*_SUMS, *weights, "weighted_cross", "offered", "mass").sum(),
            pl.col("least_propensity").min(),
            first=pl.col("date").min(),
            last=pl.col("date").max(),
        )
        .with_columns(
            *mean_columns(),
            share=pl.col("decisions") / (total.over(over) if over else total),
            chance=pl.when(pl.col("offered") > 0).then(pl.col("mass") / pl.col("offered")),
            worth=pl.when(known).then(worth),
            worth_lower=pl.when(known).then(worth - half),
            worth_upper=pl.when(known).then(worth + half),
        )
        .sort(
            *over,
            "decisions",
            "action",
            descending=[False] * len(over) + [True, False],
            nulls_last=True,
        )
    )


def open_segments(actions: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Rows of segments that are large enough to be shown in every generation, and how many aren't.

    Parameters
    ----------
    actions
        Rows of the table, of one ``by``.
    """
    counts = actions.group_by("generation", "segment").agg(pl.col("decisions").sum())
    hidden = {
        cell[0]
        for _, mine in counts.drop_nulls("segment").group_by("generation")
        for cell in suppressed(
            {(name,): decided for name, decided in mine.select("segment", "decisions").iter_rows()},
            LEAST_CELL,
        )
    }
    names = pl.Series(sorted(hidden), dtype=pl.String)
    small = pl.col("segment").is_in(names.implode()).fill_null(value=False)
    return actions.filter(~small), len(hidden)


def new_and_vanished(actions: pl.DataFrame) -> tuple[list[str], list[str], date | None]:
    """Actions that could be drawn on the latest day and never before, and those that no longer can.

    Parameters
    ----------
    actions
        Rows of the table, of all decisions.

    Returns
    -------
    tuple
        New ones, vanished ones, and that day.
    """
    offered = actions.filter(pl.col("by").is_null(), pl.col("offered") > 0).drop_nulls("action")
    last = offered["date"].max()
    if not isinstance(last, date):
        return [], [], None
    days = offered.group_by("action").agg(first=pl.col("date").min(), last=pl.col("date").max())
    if days["first"].min() == last:
        return [], [], last
    new = days.filter(pl.col("first") == last)["action"].sort().to_list()
    gone = days.filter(pl.col("last") < last)["action"].sort().to_list()
    return new, gone, last


def exploration_cost(hours: pl.DataFrame) -> pl.DataFrame:
    """By day, what exploration is expected to cost, in reward per decision."""
    return (
        hours.group_by("date")
        .agg(pl.col("scored", "greedy_sum", "expected_sum").sum())
        .filter(pl.col("scored") > 0)
        .sort("date")
        .with_columns(cost=(pl.col("greedy_sum") - pl.col("expected_sum")) / pl.col("scored"))
    )


def fates(days: pl.DataFrame) -> pl.DataFrame:
    """By day and fate, how many decisions: observed, revised, late, defaulted, or not joined."""
    waiting = (pl.col("decisions") - pl.col("joined")).clip(lower_bound=0)
    kinds = ("observed", "revised", "late", "defaulted", "not joined")
    return (
        days.drop_nulls("date")
        .with_columns(waiting.alias("not joined"))
        .unpivot(kinds, index=["date", "decisions"], variable_name="fate", value_name="count")
        .filter(pl.col("decisions") > 0)
        .with_columns(share=pl.col("count") / pl.col("decisions"))
    )


def day_shares(days: pl.DataFrame) -> pl.DataFrame:
    """By day, completeness of the join and the share of orphans, with Wilson intervals."""
    joined = share_interval(pl.col("joined"), pl.col("decisions"))
    orphans = share_interval(pl.col("orphans"), pl.col("outcomes"))
    names = ("complete", "complete_lower", "complete_upper")
    others = ("orphaned", "orphaned_lower", "orphaned_upper")
    return days.with_columns(
        **dict(zip(names, joined, strict=True)), **dict(zip(others, orphans, strict=True))
    )
