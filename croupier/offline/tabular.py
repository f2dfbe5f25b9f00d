"""Importing logs from Parquet and CSV files, one decision a row, by a map of their columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from croupier.offline.lake import SCHEMAS
from croupier.offline.open_bandit import ImportReport
from croupier.offline.rewards import fold_of
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.offline.lake import Lake

__all__ = ("ColumnMap", "import_table", "read_column_map")


class ColumnMap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which column of a file holds what.

    Attributes
    ----------
    timestamp, action, propensity, reward
        When a decision was made (UTC where no time zone is said), the id of what was chosen, with
        which probability, and what came of it.
    decision_id
        What a decision is known by; the file's name and the row's number if None.
    context
        Columns that are features of the context.
    actions
        Features of every action that could be chosen, by its id; without any, the actions are those
        that occur in the file, without features.
    """

    timestamp: str
    action: str
    propensity: str
    reward: str
    decision_id: str | None = None
    context: tuple[str, ...] = ()
    actions: dict[str, dict[str, Any]] = {}

    def columns(self) -> list[str]:
        """All columns that are read."""
        named = [self.timestamp, self.action, self.propensity, self.reward, *self.context]
        return named if self.decision_id is None else [*named, self.decision_id]


def read_column_map(path: Path) -> ColumnMap:
    """Read a map from a TOML file.

    Raises
    ------
    InvalidInputError
        If it isn't one.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=ColumnMap)
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise InvalidInputError(
            "columns", f"expected a map of columns at {path}: {error}"
        ) from error


def import_table(path: Path, lake: Lake, loop: str, columns: ColumnMap) -> ImportReport:
    """Import a file as a loop's interactions; what is there already counts once.

    Of the pmf only the chosen action's probability is known, so `pmf` is null.

    Parameters
    ----------
    path
        A file that ends in ``.csv`` or ``.parquet``.
    lake
        To write to; hold its lock.
    loop
        Whose interactions they become.
    columns
        What is where.

    Raises
    ------
    InvalidInputError
        If the file can't be read, lacks a column, or has a row that can't be.
    """
    rows = _interactions(_read(path, columns), path.name, loop, columns)
    known = lake.scan("interactions", loop).select("decision_id")
    present = known.join(rows.lazy().select("decision_id"), on="decision_id", how="semi").collect()
    fresh = rows.join(present, on="decision_id", how="anti", maintain_order="left")
    if len(fresh):
        lake.append("interactions", fresh)
    return ImportReport(
        loop=loop,
        added=len(fresh),
        present=len(present),
        positive=int((rows["reward"] > 0).sum()),
    )


def _read(path: Path, columns: ColumnMap) -> pl.DataFrame:
    try:
        rows = pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InvalidInputError(
            "path", f"expected a CSV or Parquet file at {path}: {error}"
        ) from error
    missing = [name for name in columns.columns() if name not in rows.columns]
    if missing:
        raise InvalidInputError(str(path), f"expected columns {', '.join(missing)}")
    return rows


def _interactions(rows: pl.DataFrame, source: str, loop: str, columns: ColumnMap) -> pl.DataFrame:
    action, moments = rows[columns.action].cast(pl.String), _moments(rows, columns.timestamp)
    ids = list(columns.actions) or action.drop_nulls().unique().sort().to_list()
    actions = [{"id": each, "features": columns.actions.get(each, {})} for each in ids]
    places = pl.DataFrame({"action": ids, "place": range(len(ids))})
    chosen = pl.DataFrame({"action": action}).join(
        places, on="action", how="left", maintain_order="left"
    )["place"]
    propensity = _numbers(rows, columns.propensity)
    reward = _numbers(rows, columns.reward)
    _require(chosen.is_not_null(), columns.action, "an action of the map")
    _require((propensity > 0) & (propensity <= 1), columns.propensity, "a probability in (0, 1]")
    _require(reward.is_finite(), columns.reward, "a finite number")
    known = (
        pl.Series([f"{source}:{number}" for number in range(len(rows))])
        if columns.decision_id is None
        else rows[columns.decision_id].cast(pl.String)
    )
    _require(known.is_not_null() & known.is_first_distinct(), "decision_id", "an id of its own")
    values: dict[str, Any] = {
        "loop": pl.lit(loop),
        "date": moments.dt.date(),
        "offset": pl.int_range(len(rows)),
        "decision_id": known,
        "ts": moments,
        "learning_mode": pl.lit("online"),
        "context": pl.struct(columns.context).struct.json_encode()
        if columns.context
        else pl.lit("{}"),
        "actions": pl.lit(msgspec.json.encode(actions).decode()),
        "action_ids": pl.lit(ids, dtype=pl.List(pl.String)),
        "excluded": pl.lit([], dtype=pl.List(pl.String)),
        "chosen": chosen,
        "action_id": action,
        "propensity": propensity,
        "baseline": pl.lit(0),
        "mix": pl.lit([{"source": "imported", "weight": 1.0}]),
        "keep_prob": pl.lit(1.0),
        "draw_key": pl.lit(""),
        "deferred": pl.lit(value=False),
        "audit": pl.lit("{}"),
        "reward": reward,
        "reward_source": pl.lit("observed"),
        "outcomes": pl.lit(1),
        "fold": pl.Series([fold_of(each) for each in known], dtype=pl.Int64),
        "revision": pl.lit(0),
    }
    schema = SCHEMAS["interactions"]
    return rows.with_columns(rows=pl.lit(0)).select(
        values.get(name, pl.lit(None)).cast(kind).alias(name) for name, kind in schema.items()
    )


def _numbers(rows: pl.DataFrame, name: str) -> pl.Series:
    numbers = rows[name].cast(pl.Float64, strict=False)
    _require(numbers.is_not_null(), name, "a number")
    return numbers


def _moments(rows: pl.DataFrame, name: str) -> pl.Series:
    times = rows[name]
    try:
        if times.dtype == pl.String:
            times = times.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
        moments = times.cast(pl.Datetime("us", "UTC"))
    except pl.exceptions.PolarsError as error:
        raise InvalidInputError(name, f"expected moments: {error}") from error
    _require(moments.is_not_null(), name, "a moment")
    return moments


def _require(good: pl.Series, name: str, expected: str) -> None:
    bad = (~good.fill_null(value=False)).arg_true()
    if len(bad):
        raise InvalidInputError(f"row {bad[0] + 1} {name}", f"expected {expected}")
