"""Sums over decisions and interactions, day by day: by hour, action, segment and propensity.

Sums, counts, minima and bins of parts of a log add up to those of the whole, so a day is read in
pieces of bounded size and the pieces are put together here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from croupier.offline.audit import contradictions
from croupier.offline.fairness.groups import code_rows, label
from croupier.offline.interactions import current_frames
from croupier.offline.stretches import stretches
from croupier.offline.summaries.tables import PROPENSITY_BOUNDS, SUMMARY_SCHEMAS
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from croupier.offline.lake import Lake
    from croupier.offline.lake_files import DataFile
    from croupier.offline.summaries.tables import SummaryName

__all__ = ("CALIBRATION_BINS", "MOST_ACTIONS", "DayOfTraffic", "added", "day_of_traffic")

CALIBRATION_BINS: Final = 10
"""Of the same width each, over the range of the reward."""

MOST_ACTIONS: Final = 200
"""Actions of a day that are told apart, the most frequent ones; the rest is taken together."""

_SEEN: Final = (
    "ts",
    "date",
    "generation",
    "pmf",
    "action_ids",
    "chosen",
    "action_id",
    "propensity",
    "baseline",
    "scores",
    "keep_prob",
)
_EARNED: Final = (
    *("ts", "date", "generation", "action_id", "chosen", "propensity", "scores", "keep_prob"),
    *("reward", "reward_source", "outcomes", "delay_s"),
)
_KEYS: Final[dict[SummaryName, tuple[str, ...]]] = {
    "hours": ("hour", "date", "generation"),
    "actions": ("date", "generation", "by", "segment", "action"),
    "propensities": ("date", "generation", "bin"),
    "calibration": ("date", "generation", "bin"),
}
_LEAST: Final = frozenset({"least_propensity", "least_possible"})


class DayOfTraffic:
    """What a day came to.

    Attributes
    ----------
    tables
        ``hours``, ``actions``, ``propensities`` and ``calibration``, of their schemas.
    decisions, without_pmf, contradictions
        Logged decisions, those without a pmf, and those whose pmf, choice and propensity
        contradict each other.
    repeated
        Outcomes beyond a decision's first.
    left_out
        Segments that decisions could not be told apart by, and why.
    """

    def __init__(self) -> None:
        self.tables: dict[SummaryName, pl.DataFrame] = {}
        self.decisions = 0
        self.without_pmf = 0
        self.contradictions = 0
        self.repeated = 0
        self.left_out: dict[str, str] = {}


def day_of_traffic(
    lake: Lake,
    decisions: Sequence[DataFile],
    interactions: Sequence[DataFile],
    *,
    segments: Sequence[str],
    reward_range: tuple[float, float],
    held: int,
) -> DayOfTraffic:
    """Sum up a day of a loop.

    Parameters
    ----------
    lake
        To read.
    decisions, interactions
        All files that the day has in either table.
    segments
        What decisions are told apart by, as in
        :class:`~croupier.policy.fairness.groups.FairnessConfig`.
    reward_range
        Smallest and largest reward.
    held
        Rows held at once.
    """
    day = DayOfTraffic()
    columns = _columns(segments)
    parts: dict[SummaryName, list[pl.DataFrame]] = {name: [] for name in _KEYS}
    for stretch in stretches(decisions, held):
        frame = stretch.read(lake, "decisions").select(*_SEEN, *columns).collect()
        day.decisions += len(frame)
        logged = frame.filter(pl.col("pmf").is_not_null())
        day.without_pmf += len(frame) - len(logged)
        day.contradictions += contradictions(logged).rows if len(logged) else 0
        for name, part in _seen(_with_hour(frame), segments, day.left_out):
            parts[name].append(part)
    wanted = [*_EARNED, *columns]
    for frame in current_frames(lake, interactions, held=held, columns=wanted):
        day.repeated += int((frame["outcomes"] - 1).clip(lower_bound=0).sum())
        for name, part in _earned(_with_hour(frame), segments, reward_range, day.left_out):
            parts[name].append(part)
    day.tables = {name: added(name, found) for name, found in parts.items()}
    day.tables["actions"] = _frequent(day.tables["actions"])
    return day


def added(name: SummaryName, parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Add up what parts of a log came to: counts and sums, and the least of what is a least.

    Parameters
    ----------
    name
        Of the table, one of those of :class:`DayOfTraffic`.
    parts
        With the table's key, and any of its other columns.
    """
    schema, key = SUMMARY_SCHEMAS[name], _KEYS[name]
    nothing = schema.to_frame()
    rows = pl.concat([nothing, *parts], how="diagonal_relaxed")
    together = rows.group_by(key).agg(
        pl.col(each).min() if each in _LEAST else pl.col(each).sum()
        for each in schema.names()
        if each not in key
    )
    return together.select(schema.names()).match_to_schema(schema).sort(key, nulls_last=True)


def _columns(segments: Sequence[str]) -> list[str]:
    needed = {"context" if "context." in each else "audit" for each in segments}
    needed |= {"audit" for each in segments if "context." in each and "*" in each}
    return sorted(needed)


def _with_hour(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(hour=pl.col("ts").dt.truncate("1h"))


def _seen(
    frame: pl.DataFrame, segments: Sequence[str], left_out: dict[str, str]
) -> Iterator[tuple[SummaryName, pl.DataFrame]]:
    """What decisions say by themselves."""
    element, pmf = pl.element(), pl.col("pmf")
    fits = pl.col("scores").list.len() == pmf.list.len()
    surprise = pl.when(element > 0.0).then(-element * element.log()).otherwise(0.0)
    rows = frame.with_columns(scores=pl.when(fits).then("scores")).with_columns(
        entropy=pmf.list.eval(surprise).list.sum(),
        least=pmf.list.eval(pl.when(element > 0.0).then(element)).list.min(),
        greedy=(
            pl.col("scores") * pmf.list.eval(pl.when(element > 0.0).then(pl.lit(1.0)))
        ).list.max(),
        expected=(pl.col("scores") * pmf).list.sum(),
    )
    traffic, scored = _traffic(), pl.col("greedy").is_finite().fill_null(value=False)
    yield (
        "hours",
        rows.group_by(_KEYS["hours"]).agg(
            **traffic,
            entropy_sum=pl.col("entropy").sum(),
            entropy_rows=pmf.is_not_null().sum().cast(pl.Int64),
            least_possible=pl.col("least").min(),
            scored=scored.sum().cast(pl.Int64),
            greedy_sum=pl.col("greedy").filter(scored).sum(),
            expected_sum=pl.col("expected").filter(scored).sum(),
        ),
    )
    bins = np.searchsorted(np.array(PROPENSITY_BOUNDS), frame["propensity"].to_numpy(), "left")
    binned = frame.select("date", "generation", bin=pl.Series(bins, dtype=pl.Int64))
    yield (
        "propensities",
        binned.group_by(_KEYS["propensities"]).agg(decisions=pl.len().cast(pl.Int64)),
    )
    for cut in _cuts(frame, segments, left_out):
        yield "actions", cut.group_by(_KEYS["actions"]).agg(**traffic)
    yield "actions", _offered(frame)


def _traffic() -> dict[str, pl.Expr]:
    return {
        "decisions": pl.len().cast(pl.Int64),
        "made": (1.0 / pl.col("keep_prob")).sum(),
        "baseline": (pl.col("chosen") == pl.col("baseline")).sum().cast(pl.Int64),
        "propensity_sum": pl.col("propensity").sum(),
        "least_propensity": pl.col("propensity").min(),
    }


def _offered(frame: pl.DataFrame) -> pl.DataFrame:
    """How often every action could have been drawn, and with what probability altogether."""
    each = (
        frame.filter(pl.col("pmf").is_not_null())
        .select("date", "generation", "action_ids", "pmf")
        .explode("action_ids", "pmf")
        .rename({"action_ids": "action"})
    )
    counted = each.group_by("date", "generation", "action").agg(
        offered=(pl.col("pmf") > 0.0).sum().cast(pl.Int64), mass=pl.col("pmf").sum()
    )
    nothing = pl.lit(None, pl.String)
    # What never could be drawn is no action of that day.
    return counted.filter(pl.col("offered") > 0).with_columns(by=nothing, segment=nothing)


def _earned(
    frame: pl.DataFrame,
    segments: Sequence[str],
    reward_range: tuple[float, float],
    left_out: dict[str, str],
) -> Iterator[tuple[SummaryName, pl.DataFrame]]:
    """What joined decisions came to."""
    rewards = _rewards()
    yield (
        "hours",
        frame.group_by(_KEYS["hours"]).agg(**rewards, delay_sum=pl.col("delay_s").sum()),
    )
    weight, reward = 1.0 / pl.col("propensity"), pl.col("reward")
    weighted = {
        "weight_sum": weight.sum(),
        "weight_squares": (weight**2).sum(),
        "weighted_reward": (weight * reward).sum(),
        "weighted_squares": (weight**2 * reward**2).sum(),
        "weighted_cross": (weight**2 * reward).sum(),
    }
    for cut in _cuts(frame, segments, left_out):
        yield "actions", cut.group_by(_KEYS["actions"]).agg(**rewards, **weighted)
    low, high = reward_range
    share = (pl.col("predicted") - low) / (high - low if high > low else 1.0)
    place = (share * CALIBRATION_BINS).floor().clip(0, CALIBRATION_BINS - 1).cast(pl.Int64)
    predicted = pl.col("scores").list.get(pl.col("chosen"), null_on_oob=True)
    known = frame.with_columns(predicted=predicted).filter(pl.col("predicted").is_finite())
    yield (
        "calibration",
        known.with_columns(bin=place)
        .group_by(_KEYS["calibration"])
        .agg(
            rows=pl.len().cast(pl.Int64),
            predicted_sum=pl.col("predicted").sum(),
            reward_sum=reward.sum(),
            reward_squares=(reward**2).sum(),
        ),
    )


def _rewards() -> dict[str, pl.Expr]:
    def source(name: str) -> pl.Expr:
        return (pl.col("reward_source") == name).sum().cast(pl.Int64)

    return {
        "joined": pl.len().cast(pl.Int64),
        "kept_weight": (1.0 / pl.col("keep_prob")).sum(),
        "reward_sum": pl.col("reward").sum(),
        "reward_squares": (pl.col("reward") ** 2).sum(),
        "positive": (pl.col("reward") > 0.0).sum().cast(pl.Int64),
        "observed": source("observed"),
        "defaulted": source("default"),
        "late": source("late"),
        "revised": source("revised"),
    }


def _cuts(
    frame: pl.DataFrame, segments: Sequence[str], left_out: dict[str, str]
) -> Iterator[pl.DataFrame]:
    """The rows with what they are counted under: for all of them, then by every segment."""
    rows = frame.rename({"action_id": "action"})
    nothing = pl.lit(None, pl.String)
    yield rows.with_columns(by=nothing, segment=nothing)
    for name in segments:
        if name in left_out:
            continue
        try:
            coded = code_rows(frame, name)
        except InvalidInputError as error:
            left_out[name] = str(error)
            continue
        labels = np.array([label(cell) for cell in coded.cells], dtype=object)
        values = pl.Series("segment", labels[coded.codes].tolist(), dtype=pl.String)
        yield rows.with_columns(values, by=pl.lit(name))


def _frequent(rows: pl.DataFrame) -> pl.DataFrame:
    """Take together what is beyond a day's most frequent actions."""
    totals = rows.filter(pl.col("by").is_null()).group_by("action").agg(n=pl.col("decisions").sum())
    if len(totals) <= MOST_ACTIONS:
        return rows
    kept = totals.sort("n", "action", descending=[True, False]).head(MOST_ACTIONS)["action"]
    known = pl.when(pl.col("action").is_in(kept.implode())).then("action")
    return added("actions", [rows.with_columns(action=known)])
