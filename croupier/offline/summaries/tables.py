"""The small tables by their schemas, and where they are kept: Arrow files, one set a loop.

A set is written to a folder of its own and becomes the current one by one rename, so that readers
see all tables of a night or none.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec
import polars as pl

from croupier.policy.errors import InvalidInputError
from croupier.policy.loop import valid_loop_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from croupier.offline.lake import Lake

__all__ = (
    "PROPENSITY_BOUNDS",
    "SCORERS",
    "SUMMARY_SCHEMAS",
    "Summaries",
    "SummaryName",
    "SummaryState",
    "summaries_of",
)

SummaryName: TypeAlias = Literal[
    "hours",
    "actions",
    "propensities",
    "calibration",
    "days",
    "sample",
    "estimates",
    "changes",
    "nights",
    "frontier",
    "drift",
    "alerts",
    "swings",
    "segments",
    "influences",
    "responses",
]

SCORERS: Final = "*"
"""Stands for all loops: the set of this name has the alerts of the scorers, which know no loop."""

PROPENSITY_BOUNDS: Final = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 1.0)
"""Upper ends, inclusive, of the bins of `propensities`; those of the service's own metric."""

_TIME = pl.Datetime("us", "UTC")
_Columns: TypeAlias = dict[str, pl.DataType | type[pl.DataType]]


def _schema(columns: _Columns) -> pl.Schema:
    return pl.Schema(columns)


_TRAFFIC: _Columns = {
    "decisions": pl.Int64,
    "made": pl.Float64,
    "baseline": pl.Int64,
    "propensity_sum": pl.Float64,
    "least_propensity": pl.Float64,
}
_REWARDS: _Columns = {
    "joined": pl.Int64,
    "kept_weight": pl.Float64,
    "reward_sum": pl.Float64,
    "reward_squares": pl.Float64,
    "positive": pl.Int64,
    "observed": pl.Int64,
    "defaulted": pl.Int64,
    "late": pl.Int64,
    "revised": pl.Int64,
}

SUMMARY_SCHEMAS: Final[dict[SummaryName, pl.Schema]] = {
    "hours": _schema(
        {
            "hour": _TIME,
            "date": pl.Date,
            "generation": pl.Int64,
            **_TRAFFIC,
            "entropy_sum": pl.Float64,
            "entropy_rows": pl.Int64,
            "least_possible": pl.Float64,
            "scored": pl.Int64,
            "greedy_sum": pl.Float64,
            "expected_sum": pl.Float64,
            **_REWARDS,
            "delay_sum": pl.Float64,
        }
    ),
    "actions": _schema(
        {
            "date": pl.Date,
            "generation": pl.Int64,
            "by": pl.String,
            "segment": pl.String,
            "action": pl.String,
            **_TRAFFIC,
            "offered": pl.Int64,
            "mass": pl.Float64,
            **_REWARDS,
            "weight_sum": pl.Float64,
            "weight_squares": pl.Float64,
            "weighted_reward": pl.Float64,
            "weighted_squares": pl.Float64,
            "weighted_cross": pl.Float64,
        }
    ),
    "propensities": _schema(
        {"date": pl.Date, "generation": pl.Int64, "bin": pl.Int64, "decisions": pl.Int64}
    ),
    "calibration": _schema(
        {
            "date": pl.Date,
            "generation": pl.Int64,
            "bin": pl.Int64,
            "rows": pl.Int64,
            "predicted_sum": pl.Float64,
            "reward_sum": pl.Float64,
            "reward_squares": pl.Float64,
        }
    ),
    "days": _schema(
        {
            "date": pl.Date,
            "decisions": pl.Int64,
            "without_pmf": pl.Int64,
            "contradictions": pl.Int64,
            "joined": pl.Int64,
            "observed": pl.Int64,
            "defaulted": pl.Int64,
            "late": pl.Int64,
            "revised": pl.Int64,
            "repeated": pl.Int64,
            "outcomes": pl.Int64,
            "activations": pl.Int64,
            "orphans": pl.Int64,
        }
    ),
    "sample": _schema(
        {
            "date": pl.Date,
            "generation": pl.Int64,
            "action_ids": pl.List(pl.String),
            "eligible": pl.List(pl.Boolean),
            "pmf": pl.List(pl.Float64),
            "scores": pl.List(pl.Float64),
            "chosen": pl.Int64,
            "propensity": pl.Float64,
            "baseline": pl.Int64,
            "keep_prob": pl.Float64,
            "reward": pl.Float64,
            "place": pl.UInt64,
        }
    ),
    "estimates": _schema(
        {
            "generation": pl.Int64,
            "judged": _TIME,
            "against": pl.Int64,
            "policy": pl.String,
            "estimator": pl.String,
            "value": pl.Float64,
            "lower": pl.Float64,
            "upper": pl.Float64,
            "confidence": pl.Float64,
            "rows": pl.Int64,
            "nonzero_rewards": pl.Int64,
            "ess": pl.Float64,
            "mean_weight": pl.Float64,
            "max_weight": pl.Float64,
            "deficient": pl.Float64,
            "weight_bins": pl.List(pl.Float64),
            "weight_counts": pl.List(pl.Float64),
        }
    ),
    "changes": _schema({"ts": _TIME, "what": pl.String, "by": pl.String, "reason": pl.String}),
    "nights": _schema(
        {
            "started": _TIME,
            "sunk_decisions": pl.Int64,
            "sunk_outcomes": pl.Int64,
            "duplicates": pl.Int64,
            "set_aside": pl.Int64,
            "missed": pl.Int64,
            "joined": pl.Int64,
            "observed": pl.Int64,
            "defaulted": pl.Int64,
            "open": pl.Int64,
            "late": pl.Int64,
            "orphans": pl.Int64,
            "revised": pl.Int64,
            "champion": pl.Int64,
            "challenger": pl.Int64,
            "promoted": pl.Boolean,
            "skipped": pl.String,
            "failed": pl.String,
            "overridden": pl.String,
        }
    ),
    "frontier": _schema(
        {
            "policy": pl.String,
            "alpha": pl.Float64,
            "gamma": pl.Float64,
            "rate": pl.Float64,
            "rate_lower": pl.Float64,
            "rate_upper": pl.Float64,
            "value": pl.Float64,
            "value_lower": pl.Float64,
            "value_upper": pl.Float64,
            "efficient": pl.Boolean,
            "rows": pl.Int64,
        }
    ),
    "drift": _schema(
        {
            "before": pl.Int64,
            "after": pl.Int64,
            "what": pl.String,
            "kind": pl.String,
            "distance": pl.Float64,
            "p_value": pl.Float64,
            "significant": pl.Boolean,
        }
    ),
    "alerts": _schema(
        {
            "alert_id": pl.String,
            "rule": pl.String,
            "severity": pl.String,
            "title": pl.String,
            "told": pl.String,
            "page": pl.String,
            "first": _TIME,
            "last": _TIME,
            "closed": _TIME,
            "delivered": _TIME,
        }
    ),
    "swings": _schema(
        {
            "generation": pl.Int64,
            "statistic": pl.String,
            "generations": pl.Int64,
            "seen": pl.Float64,
            "expected": pl.Float64,
            "lower": pl.Float64,
            "upper": pl.Float64,
            "p_value": pl.Float64,
            "level": pl.Float64,
            "oscillates": pl.Boolean,
        }
    ),
    "segments": _schema(
        {
            "generation": pl.Int64,
            "by": pl.String,
            "segment": pl.String,
            "estimator": pl.String,
            "rows": pl.Int64,
            "value": pl.Float64,
            "lower": pl.Float64,
            "upper": pl.Float64,
            "confidence": pl.Float64,
            "ess": pl.Float64,
        }
    ),
    "influences": _schema(
        {
            "generation": pl.Int64,
            "feature": pl.String,
            "requests": pl.Int64,
            "total_variation": pl.Float64,
            "error": pl.Float64,
            "score_shift": pl.Float64,
        }
    ),
    "responses": _schema(
        {
            "generation": pl.Int64,
            "feature": pl.String,
            "value": pl.String,
            "place": pl.Int64,
            "requests": pl.Int64,
            "action": pl.String,
            "mass": pl.Float64,
            "score": pl.Float64,
        }
    ),
}
"""Columns of every table, all of one loop.

`hours` are by hour and generation, `actions` by day, generation, segment and action: `by` is null
for all decisions, else the attribute that `segment` is of; `action` is null for all beyond the most
frequent ones of a day. `made` is ``Σ 1 / keep_prob``, and of joined decisions `kept_weight` is; all
other sums count a logged decision once. `baseline` counts choices that are the baseline's.
`greedy_sum` and `expected_sum` are of the `scored` decisions: the largest score of an action that
could be drawn, and ``Σ pmf · score``. `least_propensity` is of the actions that were drawn,
`least_possible` of those that could have been. `offered` and `mass` of an action count decisions
where it could be drawn, and the probability it had. The `weight…` columns are sums over the joined
of ``w = 1 / propensity``: w, w², ``w r``, ``w² r²`` and ``w² r``. `observed`, `defaulted`, `late`
and `revised` count joined decisions by their `reward_source`.

In `propensities`, `bin` is the place among :data:`PROPENSITY_BOUNDS`; in `calibration` the tenth of
the reward's range that the score of the chosen action lies in.

In `days`, decisions and what they came to stand under the decision's day, `outcomes`, `activations`
and `orphans` (outcomes without a decision in the lake) under their own; `repeated` are outcomes
beyond a decision's first. `sample` has some decisions of the latest days, drawn evenly within each
day; its `keep_prob` counts both the log's and this one's; `place` orders it.

`estimates` are of the last judgement of every generation, by policy and estimator; the policy
``difference`` is the challenger less the champion. The first of `weight_counts` counts weights of
0, the others those up to each of `weight_bins`, and above. `nights` tell what each night brought;
what was sunk is of all loops. An alert is open while `closed` is null.

`swings` are the statistics of :class:`~croupier.offline.oscillation.Swings` of what generations
earned, up to each of the latest: what was `seen` in that many `generations`, and what noise alone
would show, its mean and the band from `lower` to `upper` (quantiles at `level` and 1 - `level`).

`segments` are what the latest generations would earn, by segment (`by` null: everywhere), estimated
on the same interactions that none has learned from. `influences` and `responses` are of a panel of
their requests, see :mod:`croupier.offline.feature_influence`.
"""

_STATE: Final = "state.json"
_CURRENT: Final = "current"


class SummaryState(msgspec.Struct, frozen=True, kw_only=True):
    """What a loop's tables were made of.

    Attributes
    ----------
    format
        Of the tables: others are made anew.
    made
        When, in microseconds since the epoch.
    joined_until
        Windows that had closed by then were joined, in microseconds since the epoch; None if none.
    asked
        What they depend on of the configuration, in JSON.
    by_decisions, by_outcomes
        For every day, a digest of the files that its rows were made of.
    left_out
        Segments that decisions could not be told apart by, and why.
    """

    format: int
    made: int
    joined_until: int | None = None
    asked: str = ""
    by_decisions: dict[date, str] = {}
    by_outcomes: dict[date, str] = {}
    left_out: dict[str, str] = {}


class Summaries:
    """The tables below one directory: of every loop a set, and one of :data:`SCORERS`.

    A set has one writer at a time: of a loop's, whoever holds the lake's lock, and of the other
    one, whoever holds :meth:`locked_scorers`, so that alerts of scorers don't wait for a night.

    Parameters
    ----------
    root
        Directory of the summaries; made on the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def loops(self) -> list[str]:
        """Names of all loops that have tables, in order."""
        if not self.root.is_dir():
            return []
        return sorted(
            each.name
            for each in self.root.iterdir()
            if valid_loop_name(each.name) and (each / _CURRENT).exists()
        )

    def version(self, loop: str) -> str:
        """Name of a loop's current set, a key for what is cached; empty if there is none."""
        try:
            return (self._folder(loop) / _CURRENT).read_text()
        except FileNotFoundError:
            return ""

    def state(self, loop: str) -> SummaryState | None:
        """What a loop's tables were made of; None if there are none that can be read."""
        version = self.version(loop)
        if not version:
            return None
        try:
            text = (self._folder(loop) / version / _STATE).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return msgspec.json.decode(text, type=SummaryState)
        except msgspec.MsgspecError:
            # Of another release: they are made anew.
            return None

    def read(self, loop: str, name: SummaryName) -> pl.DataFrame:
        """A table of a loop, of its schema; empty if it has none."""
        schema = SUMMARY_SCHEMAS[name]
        for _ in range(3):
            version = self.version(loop)
            if not version:
                return schema.to_frame()
            try:
                frame = pl.read_ipc(self._folder(loop) / version / f"{name}.arrow")
            except FileNotFoundError:
                if self.version(loop) == version:
                    return schema.to_frame()
                continue
            missing = [
                pl.lit(None, dtype).alias(column)
                for column, dtype in schema.items()
                if column not in frame.columns
            ]
            return frame.with_columns(missing).select(schema.names())
        return schema.to_frame()

    def write(
        self, loop: str, tables: Mapping[SummaryName, pl.DataFrame], state: SummaryState
    ) -> None:
        """Make some tables current, together with those of the present set that are not given.

        Parameters
        ----------
        loop
            Whose.
        tables
            Each of its schema.
        state
            What all of them were made of.
        """
        folder = self._folder(loop)
        folder.mkdir(parents=True, exist_ok=True)
        before, name = self.version(loop), secrets.token_hex(6)
        made = folder / name
        made.mkdir()
        for table, schema in SUMMARY_SCHEMAS.items():
            kept = folder / before / f"{table}.arrow"
            if table in tables:
                rows = tables[table].select(schema.names()).match_to_schema(schema)
                rows.write_ipc(made / f"{table}.arrow", compression="zstd")
            elif before and kept.exists():
                os.link(kept, made / kept.name)
        (made / _STATE).write_bytes(msgspec.json.encode(state))
        pointer = folder / f".{name}"
        pointer.write_text(name)
        pointer.replace(folder / _CURRENT)
        for other in folder.iterdir():
            # The one before may still be being read.
            if other.is_dir() and other.name not in {name, before}:
                shutil.rmtree(other, ignore_errors=True)

    @contextmanager
    def locked_scorers(self) -> Iterator[None]:
        """Hold the set of the scorers for writing, or keep others from it; waits for them."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".scorers.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _folder(self, loop: str) -> Path:
        # No loop's name begins so.
        return self.root / ("_scorers" if loop == SCORERS else _valid(loop))


def summaries_of(lake: Lake) -> Summaries:
    """Where the summaries of a lake are."""
    return Summaries(lake.root / "summaries")


def _valid(loop: str) -> str:
    if not valid_loop_name(loop):
        raise InvalidInputError("loop", f"expected the name of a loop, got {loop!r}")
    return loop
