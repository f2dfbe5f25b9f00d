"""Which keys a table has, so that a batch finds its repeats without reading the table.

A hash of every key that can be repeated is kept in memory: 12 bytes a row, with the day it stands
under. A hash says that a key is new, or that it may be known. The latter is looked up in the table,
on those days alone, so what is dropped is a repeat for certain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.offline.lake import Lake, TableName

__all__ = ("KnownKeys",)

# Sorting everything anew with every batch would take longer with every batch.
_LEAST_TAIL = 65_536
_TAIL_SHARE = 8


class KnownKeys:
    """The keys of a table that one partition of the log can repeat.

    It is right for as long as nobody else adds rows that `where` is true of.

    Parameters
    ----------
    lake, table
        Where the rows are. They are read when something is asked first.
    key
        The columns that make it up.
    where
        Which rows matter.
    """

    def __init__(self, lake: Lake, table: TableName, key: Sequence[str], where: pl.Expr) -> None:
        self._lake = lake
        self._table: TableName = table
        self._key = list(key)
        self._where = where
        self._runs: list[_Run] = []
        self._loaded = False

    def new(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows whose key the table doesn't have, each key's first, in their order."""
        if rows.is_empty():
            return rows
        self._load()
        rows = rows.unique(self._key, keep="first", maintain_order=True)
        hashes = self._hashes(rows)
        maybe = np.zeros(len(rows), dtype=bool)
        days: list[NDArray[np.int32]] = []
        for run in self._runs:
            found, under = run.look_up(hashes)
            maybe |= found
            days.append(under)
        if not maybe.any():
            return rows
        known = self._known(rows.filter(pl.Series(maybe)), np.unique(np.concatenate(days)))
        return rows.join(known, on=self._key, how="anti", nulls_equal=True, maintain_order="left")

    def add(self, rows: pl.DataFrame) -> None:
        """Take note of rows that the table has now."""
        if rows.is_empty():
            return
        self._load()
        self._runs.append(_Run.of(self._hashes(rows), rows["date"].to_physical().to_numpy()))
        # One large run, and small ones that are put into it once they are many.
        base, *tail = self._runs
        size = sum(map(len, tail))
        if size > max(_LEAST_TAIL, len(base) // _TAIL_SHARE):
            self._runs = [_Run.merged(self._runs)]
        elif len(tail) > 1:
            self._runs = [base, _Run.merged(tail)]

    def _load(self) -> None:
        if self._loaded:
            return
        rows = self._lake.scan(self._table).filter(self._where)
        keys = rows.select("date", hash=pl.struct(self._key).hash()).collect()
        self._runs = [_Run.of(keys["hash"].to_numpy(), keys["date"].to_physical().to_numpy())]
        self._loaded = True

    def _hashes(self, rows: pl.DataFrame) -> NDArray[np.uint64]:
        return rows.select(pl.struct(self._key).hash()).to_series().to_numpy()

    def _known(self, rows: pl.DataFrame, days: NDArray[np.int32]) -> pl.DataFrame:
        """Keys of the rows that the table has on certain days."""
        dates = pl.Series(days).cast(pl.Date)
        return (
            self._lake.scan(self._table)
            .filter(pl.col("date").is_in(dates.implode()) & self._where)
            .select(self._key)
            .join(rows.lazy().select(self._key), on=self._key, how="semi", nulls_equal=True)
            .collect()
        )


class _Run:
    """Hashes in ascending order, and the days of the rows they are of."""

    def __init__(self, hashes: NDArray[np.uint64], days: NDArray[np.int32]) -> None:
        self.hashes = hashes
        self.days = days

    @classmethod
    def of(cls, hashes: NDArray[np.uint64], days: NDArray[np.int32]) -> _Run:
        order = np.argsort(hashes)
        return cls(hashes[order], days[order])

    @classmethod
    def merged(cls, runs: Sequence[_Run]) -> _Run:
        return cls.of(
            np.concatenate([run.hashes for run in runs]),
            np.concatenate([run.days for run in runs]),
        )

    def __len__(self) -> int:
        return len(self.hashes)

    def look_up(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
        """Which of some hashes are here, and on which days."""
        first = np.searchsorted(self.hashes, hashes, side="left")
        beyond = np.searchsorted(self.hashes, hashes, side="right")
        found = beyond > first
        # Nearly all stand here once.
        places = [np.arange(*each) for each in zip(first[found], beyond[found], strict=True)]
        days = self.days[np.concatenate(places)] if places else self.days[:0]
        return found, days
