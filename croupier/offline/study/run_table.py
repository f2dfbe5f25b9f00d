"""The table of a study: what is finished is kept, and what is missing runs in processes."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
from deltalake import DeltaTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ("RunTable", "end_if_orphaned", "stop_if_orphaned")


class RunTable(NamedTuple):
    """A Delta table with the rows of each run.

    A run's rows are written together, as soon as it is finished, so that what was stopped goes on
    from there.

    Attributes
    ----------
    path
        Of the table; made with the first run.
    schema
        Of its rows.
    key
        The columns that tell runs apart, in the order of the tuples that stand for runs.
    """

    path: Path
    schema: pl.Schema
    key: tuple[str, ...]

    def finished(self, *of: pl.Expr) -> pl.DataFrame:
        """Read the rows of a study, as far as there are any.

        Parameters
        ----------
        of
            Which rows are the study's; the table may hold those of others too.
        """
        if not DeltaTable.is_deltatable(str(self.path)):
            return pl.DataFrame(schema=self.schema)
        return pl.read_delta(str(self.path)).filter(*of).select(self.schema.names())

    def missing(self, wanted: Sequence[tuple[Any, ...]], found: pl.DataFrame) -> list[Any]:
        """List the runs that have no rows yet, in the order in which they are wanted."""
        done = set(found.select(self.key).unique().iter_rows())
        return [each for each in wanted if each not in done]

    def run(
        self,
        run: Callable[..., pl.DataFrame],
        tasks: Sequence[tuple[Any, ...]],
        *,
        wanted: int,
        jobs: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[pl.DataFrame]:
        """Run tasks in processes, and keep the rows of each as soon as it is finished.

        Parameters
        ----------
        run
            Makes the rows of a task's arguments; a function that other processes find.
        tasks
            Arguments of what is not in the table yet.
        wanted
            How many tasks there are with those that are in the table.
        jobs
            How many processes work, at least 1.
        progress
            Called with the numbers of tasks that are finished and that there are.

        Returns
        -------
        rows
            Of the tasks, in the order in which they were finished.
        """
        fresh: list[pl.DataFrame] = []
        if progress is not None:
            progress(wanted - len(tasks), wanted)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            running = [pool.submit(run, *task) for task in tasks]
            try:
                for task in as_completed(running):
                    fresh.append(task.result())
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    fresh[-1].write_delta(str(self.path), mode="append")
                    if progress is not None:
                        progress(wanted - len(tasks) + len(fresh), wanted)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return fresh

    def of(self, wanted: Sequence[tuple[Any, ...]], rows: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """Put the rows of runs into the order in which they are wanted.

        Parameters
        ----------
        wanted
            The runs.
        rows
            Frames with all of their rows, those of a run in its own order.

        Returns
        -------
        runs
            Of :attr:`schema`.
        """
        schema = {name: self.schema[name] for name in self.key}
        keys = pl.DataFrame(wanted, schema=schema, orient="row")
        found = keys.join(pl.concat(rows), on=self.key, how="left", maintain_order="left_right")
        return found.select(self.schema.names())


def stop_if_orphaned() -> None:
    """Break a run off if whoever wanted it is gone, however it went."""
    if _is_orphan():
        raise SystemExit(1)


def end_if_orphaned() -> None:
    """End the process if whoever wanted its run is gone.

    A pool's process would go on and wait for work that nobody sends any more.
    """
    if _is_orphan():
        os._exit(1)


def _is_orphan() -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()
