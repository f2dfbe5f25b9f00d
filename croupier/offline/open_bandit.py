"""Importing the Open Bandit Dataset (Saito, Aihara, Matsutani and Narita, 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from croupier.offline.join import fold_of
from croupier.offline.lake import SCHEMAS, Lake
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ("ImportReport", "import_open_bandit", "read_open_bandit")

_ITEM_FEATURES = ("item_feature_0", "item_feature_1", "item_feature_2", "item_feature_3")
_USER_FEATURES = ("user_feature_0", "user_feature_1", "user_feature_2", "user_feature_3")
_LOG_COLUMNS = ("timestamp", "item_id", "position", "click", "propensity_score", *_USER_FEATURES)


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an import did.

    Attributes
    ----------
    loop
        Where the rows went.
    added, present
        Rows that were new, and rows that the lake had already.
    positive
        Rows in the file with a click.
    """

    loop: str
    added: int
    present: int
    positive: int


def import_open_bandit(
    path: Path,
    lake: Lake,
    *,
    loop: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[ImportReport]:
    """Import one log, or all logs in a directory, each as a loop of its own.

    Parameters
    ----------
    path
        A log such as ``random_men.parquet``, with ``item_context_men.parquet`` beside it, or a
        directory of them.
    lake
        To write to; hold its lock.
    loop
        Name of the loop; ``open-bandit-`` and the file's name if None. Only for a single log.
    progress
        Called with rows done and in all.

    Raises
    ------
    InvalidInputError
        If a file is missing or lacks a column.
    """
    files = _logs(path)
    if loop is not None and len(files) > 1:
        raise InvalidInputError("loop", f"expected a single log to name, got {len(files)}")
    reports = []
    for file in files:
        name = loop or f"open-bandit-{file.stem.replace('_', '-')}"
        rows = read_open_bandit(file, name, progress)
        ids = rows.lazy().select("decision_id")
        known = lake.scan("interactions", name).select("decision_id")
        present = known.join(ids, on="decision_id", how="semi").collect()
        fresh = rows.join(present, on="decision_id", how="anti", maintain_order="left")
        if len(fresh):
            lake.append("interactions", fresh)
        reports.append(
            ImportReport(
                loop=name,
                added=len(fresh),
                present=len(present),
                positive=int((rows["reward"] > 0).sum()),
            )
        )
    return reports


def read_open_bandit(
    file: Path, loop: str, progress: Callable[[int, int], None] | None = None
) -> pl.DataFrame:
    """Read a log as interactions.

    The position on the page and the user's features are the context; an action is an item with
    its features and the user's affinity to it. Of the logging policy's pmf only the chosen item's
    propensity is in the data, so `pmf` is null.

    Raises
    ------
    InvalidInputError
        If a file can't be read or lacks a column.
    """
    items = _read_items(file)
    log = _read(file, _LOG_COLUMNS)
    ids = [str(item["item_id"]) for item in items]
    affinities = [f"user-item_affinity_{item}" for item in ids]
    _require(log, affinities, file)
    rows = []
    for offset, row in enumerate(log.iter_rows(named=True)):
        rows.append(_interaction(row, offset, file.stem, items, affinities))
        if progress is not None and (offset % 500 == 499 or offset + 1 == len(log)):
            progress(offset + 1, len(log))
    moments = _moments(log["timestamp"], file)
    return (
        pl.DataFrame(rows)
        .with_columns(
            loop=pl.lit(loop),
            ts=moments,
            date=moments.dt.date(),
            generation=pl.lit(None),
            learning_mode=pl.lit("online"),
            action_ids=pl.lit(ids, dtype=pl.List(pl.String)),
            excluded=pl.lit([], dtype=pl.List(pl.String)),
            pmf=pl.lit(None),
            baseline=pl.lit(0),
            scores=pl.lit(None),
            mix=pl.lit([{"source": "imported", "weight": 1.0}]),
            keep_prob=pl.lit(1.0),
            draw_key=pl.lit(""),
            deferred=pl.lit(value=False),
            slot=pl.lit(None),
            audit=pl.lit("{}"),
            slate_size=pl.lit(None),
            shadow=pl.lit(None),
            partition=pl.lit(None),
            reward_source=pl.lit("observed"),
            outcomes=pl.lit(1),
            delay_s=pl.lit(None),
            revision=pl.lit(0),
            guardrails=pl.lit(None),
            session=pl.lit(None),
        )
        .select(pl.col(name).cast(kind) for name, kind in SCHEMAS["interactions"].items())
    )


def _interaction(
    row: dict[str, Any],
    offset: int,
    source: str,
    items: list[dict[str, Any]],
    affinities: list[str],
) -> dict[str, Any]:
    context = {name: row[name] for name in _USER_FEATURES} | {"position": str(row["position"])}
    actions = [
        {
            "id": str(item["item_id"]),
            "features": {name: item[name] for name in _ITEM_FEATURES} | {"affinity": row[affinity]},
        }
        for item, affinity in zip(items, affinities, strict=True)
    ]
    chosen = next(
        (place for place, item in enumerate(items) if item["item_id"] == row["item_id"]), None
    )
    propensity, click = row["propensity_score"], row["click"]
    where = f"{source} row {offset}"
    if chosen is None:
        raise InvalidInputError(f"{where} item_id", f"expected a known item, got {row['item_id']}")
    if propensity is None or not 0.0 < propensity <= 1.0:
        raise InvalidInputError(f"{where} propensity_score", f"expected (0, 1], got {propensity}")
    if click not in {0, 1}:
        raise InvalidInputError(f"{where} click", f"expected 0 or 1, got {click}")
    decision_id = f"{source}:{offset}"
    return {
        "offset": offset,
        "decision_id": decision_id,
        "context": msgspec.json.encode(context).decode(),
        "actions": msgspec.json.encode(actions).decode(),
        "chosen": chosen,
        "action_id": str(row["item_id"]),
        "propensity": propensity,
        "reward": float(click),
        "fold": fold_of(decision_id),
    }


def _moments(timestamps: pl.Series, file: Path) -> pl.Series:
    """Moments out of text, or out of a column of moments; UTC where no time zone is said."""
    try:
        if timestamps.dtype == pl.String:
            moments = timestamps.str.to_datetime(time_unit="us", time_zone="UTC")
        else:
            moments = timestamps.cast(pl.Datetime("us", "UTC"))
    except pl.exceptions.PolarsError as error:
        raise InvalidInputError(f"{file.stem} timestamp", "expected moments") from error
    if moments.null_count():
        raise InvalidInputError(f"{file.stem} timestamp", "expected a moment in every row")
    return moments


def _logs(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [file for file in sorted(path.glob("*.parquet")) if not _is_items(file)]
    if not files:
        raise InvalidInputError("path", f"expected Open Bandit logs (*.parquet) at {path}")
    return files


def _is_items(file: Path) -> bool:
    return file.name.startswith("item_context_")


def _read_items(file: Path) -> list[dict[str, Any]]:
    """Items of the log's campaign (``men`` in ``random_men.parquet``), by ascending id."""
    campaign = file.stem.rpartition("_")[2]
    items = _read(file.with_name(f"item_context_{campaign}.parquet"), ("item_id", *_ITEM_FEATURES))
    return items.sort("item_id").to_dicts()


def _read(file: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InvalidInputError("path", f"expected a Parquet file at {file}: {error}") from error
    _require(frame, columns, file)
    return frame


def _require(frame: pl.DataFrame, columns: list[str] | tuple[str, ...], file: Path) -> None:
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise InvalidInputError(str(file), f"expected columns {', '.join(missing)}")
