"""Which files a table of the lake is made of, and which of them are new."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec
import polars as pl
from deltalake.transaction import AddAction

if TYPE_CHECKING:
    from pathlib import Path

    from deltalake import DeltaTable

__all__ = ("DataFile", "Snapshot", "data_files", "files_added", "move_files")


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


class _AddedFile(msgspec.Struct, rename="camel"):
    """A file as a commit has it."""

    path: str
    size: int
    partition_values: dict[str, str | None]
    modification_time: int
    stats: str


class _Added(msgspec.Struct):
    add: _AddedFile | None = None


_actions = msgspec.json.Decoder(_Action)
_written = msgspec.json.Decoder(_Added)


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


def move_files(source: Path, target: Path) -> list[AddAction]:
    """Move the files of a new table to where another one is; gives what is to be committed there.

    Parameters
    ----------
    source
        A table with the same partitions, that was written once.
    target
        Where the other one is. Until it is committed, nobody takes the files for its own.
    """
    lines = (source / "_delta_log" / f"{0:020}.json").read_bytes().splitlines()
    found = [each.add for each in map(_written.decode, lines) if each.add is not None]
    for each in found:
        path = target / unquote(each.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        (source / unquote(each.path)).rename(path)
    return [
        AddAction(
            path=unquote(each.path),
            size=each.size,
            partition_values=each.partition_values,
            modification_time=each.modification_time,
            data_change=True,
            stats=each.stats,
        )
        for each in found
    ]


def _count(path: Path) -> int:
    rows: int = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
    return rows
