"""Many series at once: every arm with every seed, in processes, kept in a Delta table."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl
from threadpoolctl import threadpool_limits

from croupier.offline.retrain import config_digest
from croupier.offline.study.run_table import RunTable, end_if_orphaned, stop_if_orphaned
from croupier.offline.study.series import SERIES_SCHEMA, Arm, run_series
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from croupier.offline.study.environment import StudyEnvironment

__all__ = ("RUNS_SCHEMA", "EnvironmentChoice", "run_arms")

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
    table = RunTable(directory / "series", RUNS_SCHEMA, ("arm", "digest", "seed"))
    runs = {
        (arm.name, config_digest(arm.config), seed): (choice, arm, seed, generations)
        for arm in arms
        for seed in seeds
    }
    # A longer series begins as a shorter one does.
    rows = table.finished(pl.col("environment") == str(choice), pl.col("generation") < generations)
    found = rows.filter(pl.col("generation").max().over(table.key) == generations - 1)
    fresh = table.run(
        _run,
        [runs[each] for each in table.missing(list(runs), found)],
        wanted=len(runs),
        jobs=jobs,
        progress=progress,
    )
    return table.of(list(runs), [found.sort(*table.key, "generation"), *fresh])


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
        end_if_orphaned()
    named = {"environment": str(choice), "arm": arm.name, "digest": config_digest(arm.config)}
    return series.with_columns(
        *(pl.lit(value).alias(name) for name, value in named.items()),
        seed=pl.lit(seed, dtype=pl.Int64),
    ).select(RUNS_SCHEMA.names())
