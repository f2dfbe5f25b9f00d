"""Tables that are too large to be held at once, in pieces that are not."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from croupier.offline.lake import Lake, TableName
    from croupier.offline.lake_files import DataFile

__all__ = ("Buckets", "Stretch", "stretches")

_MOST_FILES = 500


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some rows of a table: those from `start` on of its files one after another."""

    files: tuple[DataFile, ...]
    start: int
    rows: int

    def read(self, lake: Lake, table: TableName) -> pl.LazyFrame:
        """The rows, and the place of each one in the files as ``row``."""
        found = lake.read(table, [each.path for each in self.files], row_index="row")
        whole = self.rows == sum(each.rows for each in self.files)
        return found if whole else found.slice(self.start, self.rows)


def stretches(files: Iterable[DataFile], most: int) -> Iterator[Stretch]:
    """Divide files into stretches of one day, of not many more rows than `most`."""
    held: list[DataFile] = []
    for file in files:
        rows = sum(each.rows for each in held)
        full = rows + file.rows > most or len(held) == _MOST_FILES
        if held and (full or held[0].date != file.date):
            yield Stretch(tuple(held), 0, rows)
            held = []
        if file.rows > most:
            for start in range(0, file.rows, most):
                yield Stretch((file,), start, min(most, file.rows - start))
        elif file.rows:
            held.append(file)
    if held:
        yield Stretch(tuple(held), 0, sum(each.rows for each in held))


class Buckets:
    """Rows divided into buckets that are read one by one; on disk if there are several.

    Parameters
    ----------
    schema
        Of the rows.
    folder
        Where they are put aside.
    count
        Of the buckets.
    bucket
        Which one a row belongs to, from 0.
    """

    def __init__(self, schema: pl.Schema, folder: Path, count: int, bucket: pl.Expr) -> None:
        self.count = count
        self._folder = folder
        self._bucket = bucket
        self._held = [pl.DataFrame(schema=schema)]

    def add(self, rows: pl.DataFrame, name: str) -> None:
        """Put rows into their buckets.

        Where there are several, any process may add rows, and everybody sees what all have added.
        Rows that are added again under the same name take the place of those that were added under
        it before.
        """
        if self.count == 1:
            self._held.append(rows)
            return
        parts = rows.with_columns(self._bucket.alias("bucket")).partition_by(
            "bucket", as_dict=True, include_key=False
        )
        for (bucket,), part in parts.items():
            folder = self._folder / str(bucket)
            folder.mkdir(parents=True, exist_ok=True)
            # By a rename, as whoever writes may die, and begin again elsewhere.
            staged = folder / f"{name}.{secrets.token_hex(4)}"
            part.write_parquet(staged, compression="lz4")
            staged.rename(folder / f"{name}.parquet")

    def __getitem__(self, bucket: int) -> pl.DataFrame:
        files = sorted((self._folder / str(bucket)).glob("*.parquet"))
        return pl.concat([*self._held, *map(pl.read_parquet, files)])
