"""Many series at once: every arm with every seed, in processes, kept in a Delta table."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl
from deltalake import DeltaTable
from threadpoolctl import threadpool_limits

from croupier.offline.retrain import config_digest
from croupier.offline.study.series import SERIES_SCHEMA, Arm, run_series
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from croupier.offline.study.environment import StudyEnvironment

__all__ = ("RUNS_SCHEMA", "EnvironmentChoice", "run_arms", "run_missing", "stop_if_orphaned")

RUNS_SCHEMA = pl.Schema(
    {"environment": pl.String(), "arm": pl.String(), "digest": pl.String(), "seed": pl.Int64()}
    | dict(SERIES_SCHEMA)
)
"""A row for each generation of each series; `digest` is of the loop's configuration."""


class EnvironmentChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which environment, as other processes find it.

    Attributes
    ----------
    path
        ``module:function``; the function is given the seed and the parameters, and makes the
        environment.
    parameters
        Arguments by name.
    """

    path: str
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)

    def make(self, seed: int) -> StudyEnvironment:
        """The environment of a seed.

        Raises
        ------
        InvalidInputError
            If there is none of that path, or it takes other parameters.
        """
        module, colon, name = self.path.partition(":")
        try:
            factory = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise InvalidInputError(
                "environment", f"expected the module:function of one, got {self.path!r}: {error}"
            ) from error
        if not colon or not callable(factory):
            raise InvalidInputError(
                "environment", f"expected the module:function of one, got {self.path!r}"
            )
        try:
            environment: StudyEnvironment = factory(seed, **self.parameters)
        except (TypeError, ValueError) as error:
            raise InvalidInputError("parameters", f"{self.path}: {error}") from error
        return environment

    def __str__(self) -> str:
        return msgspec.json.encode(self, order="deterministic").decode()


def run_arms(
    choice: EnvironmentChoice,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    *,
    generations: int,
    directory: Path,
    jobs: int,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Run every arm with every seed, but for those that the table has already.

    Parameters
    ----------
    choice
        Of the environment; arms of the same seed share it.
    arms, seeds
        What is run.
    generations
        Of each series.
    directory
        Where the Delta table ``series`` is; made if it isn't there. A series is written whole as
        soon as it is finished, so that what was stopped goes on from there.
    jobs
        How many processes work, at least 1.
    progress
        Called with the numbers of series that are finished and that there are.

    Returns
    -------
    runs
        Of these arms, seeds and generations, of :data:`RUNS_SCHEMA`.

    Raises
    ------
    InvalidInputError
        If there is no such environment.
    """
    choice.make(seeds[0])
    table = directory / "series"
    wanted = [(arm, seed) for arm in arms for seed in seeds]
    found = _finished(table, choice, generations)
    done = {(name, digest, seed) for name, digest, seed in found.select(_KEY).unique().iter_rows()}
    missing = [each for each in wanted if _key(*each) not in done]
    fresh = run_missing(
        _run,
        [(choice, arm, seed, generations) for arm, seed in missing],
        table=table,
        wanted=len(wanted),
        jobs=jobs,
        progress=progress,
    )
    found = pl.concat([found, *fresh])
    keys = pl.DataFrame(
        [_key(*each) for each in wanted],
        schema={"arm": pl.String, "digest": pl.String, "seed": pl.Int64},
        orient="row",
    )
    return keys.join(found, on=_KEY, how="left", maintain_order="left").select(RUNS_SCHEMA.names())


def run_missing(
    run: Callable[..., pl.DataFrame],
    tasks: Sequence[tuple[Any, ...]],
    *,
    table: Path,
    wanted: int,
    jobs: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[pl.DataFrame]:
    """Run series in processes, and append each to a Delta table as soon as it is finished.

    Parameters
    ----------
    run
        Makes a series of a task's arguments; a function that other processes find.
    tasks
        Arguments of what is not in the table yet.
    table
        Made if it isn't there.
    wanted
        How many series there are with those that are in the table.
    jobs
        How many processes work, at least 1.
    progress
        Called with the numbers of series that are finished and that there are.

    Returns
    -------
    series
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
                table.parent.mkdir(parents=True, exist_ok=True)
                fresh[-1].write_delta(str(table), mode="append")
                if progress is not None:
                    progress(wanted - len(tasks) + len(fresh), wanted)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return fresh


_KEY = ["arm", "digest", "seed"]


def _key(arm: Arm, seed: int) -> tuple[str, str, int]:
    return arm.name, config_digest(arm.config), seed


def _finished(table: Path, choice: EnvironmentChoice, generations: int) -> pl.DataFrame:
    if not DeltaTable.is_deltatable(str(table)):
        return pl.DataFrame(schema=RUNS_SCHEMA)
    rows = pl.read_delta(str(table)).filter(pl.col("environment") == str(choice))
    whole = pl.col("generation").max().over(_KEY) >= generations - 1
    return rows.filter(whole, pl.col("generation") < generations).sort(*_KEY, "generation")


def _run(choice: EnvironmentChoice, arm: Arm, seed: int, generations: int) -> pl.DataFrame:
    folder = Path(tempfile.mkdtemp(prefix="croupier-study-"))
    try:
        # Every process is one of several that share the machine.
        with threadpool_limits(limits=1):
            series = run_series(
                choice.make(seed),
                arm,
                generations=generations,
                seed=seed,
                directory=folder / "lake",
                progress=stop_if_orphaned,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if _is_orphan():
            # A pool's process would go on and wait for work that nobody sends any more.
            os._exit(1)
    named = {"environment": str(choice), "arm": arm.name, "digest": config_digest(arm.config)}
    return series.with_columns(
        *(pl.lit(value).alias(name) for name, value in named.items()),
        seed=pl.lit(seed, dtype=pl.Int64),
    ).select(RUNS_SCHEMA.names())


def stop_if_orphaned() -> None:
    """Break a series off if whoever wanted it is gone, however it went."""
    if _is_orphan():
        raise SystemExit(1)


def _is_orphan() -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()
