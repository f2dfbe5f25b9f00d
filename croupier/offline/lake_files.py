"""Which files a table of the lake is made of, and which of them are new."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec
import polars as pl

if TYPE_CHECKING:
    from pathlib import Path

    from deltalake import DeltaTable

__all__ = ("DataFile", "Snapshot", "data_files", "files_added")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a table that is partitioned by date.

    Attributes
    ----------
    path, date, rows
        Where it is, which day's rows it has, and how many. Rows without a time are of the first of
        all days.
    lowest, highest
        Bounds of its decision ids; None where Delta has none.
    first
        Bound of its rows' positions in the log, from below; None likewise.
    newest
        Bound of its rows' generations, from above; None likewise.
    """

    path: Path
    date: date
    rows: int
    lowest: str | None
    highest: str | None
    first: int | None = None
    newest: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version of a table, -1 before the first write, and files in it, by date."""

    version: int
    files: list[DataFile]


class _File(msgspec.Struct, rename="camel"):
    path: str
    data_change: bool = True


class _Action(msgspec.Struct):
    add: _File | None = None
    remove: _File | None = None


_actions = msgspec.json.Decoder(_Action)


def data_files(delta: DeltaTable, root: Path, loop: str | None) -> list[DataFile]:
    """One loop's files in a table, or all loops', by date.

    Parameters
    ----------
    delta, root
        The table, and where it is.
    loop
        Whose; all loops' if None.
    """
    adds = pl.DataFrame(delta.get_add_actions(flatten=True))
    if adds.is_empty():
        return []
    files = []
    if loop is not None:
        adds = adds.filter(pl.col("partition.loop") == loop)
    for each in adds.iter_rows(named=True):
        path = root / unquote(each["path"])
        files.append(
            DataFile(
                path=path,
                date=each["partition.date"] or date.min,
                rows=_count(path) if each["num_records"] is None else each["num_records"],
                lowest=each.get("min.decision_id"),
                highest=each.get("max.decision_id"),
                first=each.get("min.offset"),
                newest=each.get("max.generation"),
            )
        )
    return sorted(files, key=lambda file: (file.date, file.path))


def files_added(root: Path, after: int, version: int) -> set[Path] | None:
    """Files with rows that were added after one version of a table and up to another one.

    Compaction adds files too, but no rows: its files count if they have rows that do. None if it
    isn't known, because Delta has forgotten what was added (after 30 days, unless it is told not
    to).
    """
    added: set[Path] = set()
    for number in range(after + 1, version + 1):
        try:
            lines = (root / "_delta_log" / f"{number:020d}.json").read_bytes().splitlines()
        except FileNotFoundError:
            return None
        actions = [_actions.decode(line) for line in lines if line]
        adds = [each.add for each in actions if each.add is not None]
        removed = {each.remove.path for each in actions if each.remove is not None}
        moves = not added.isdisjoint(root / unquote(path) for path in removed)
        added |= {root / unquote(each.path) for each in adds if each.data_change or moves}
    return added


def _count(path: Path) -> int:
    rows: int = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
    return rows
