"""Many series of the fairness study: every world, arm and seed, kept in a Delta table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
from threadpoolctl import threadpool_limits

from croupier.offline.study.fair_learners import FAIR_ARMS
from croupier.offline.study.fair_series import FAIR_SERIES_SCHEMA, run_fair_series
from croupier.offline.study.fair_world import WORLDS
from croupier.offline.study.run_table import RunTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ("FAIR_RUNS_SCHEMA", "run_fair_arms")

_OWN = {
    "world": pl.String(),
    "seed": pl.Int64(),
    "horizon": pl.Int64(),
    "instances": pl.Int64(),
}
FAIR_RUNS_SCHEMA = pl.Schema(_OWN | dict(FAIR_SERIES_SCHEMA))
"""A row for each checkpoint of each series; `horizon` is T of the series, `instances` is k."""


def run_fair_arms(
    worlds: Sequence[str],
    arms: Sequence[str],
    seeds: Sequence[int],
    *,
    rounds: int,
    instances: int,
    directory: Path,
    jobs: int,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Run every arm in every world with every seed, but for those that the table has already.

    Parameters
    ----------
    worlds, arms, seeds
        Names of :data:`~croupier.offline.study.fair_world.WORLDS` and of
        :data:`~croupier.offline.study.fair_learners.FAIR_ARMS`, and what is run of them.
    rounds, instances
        T and k.
    directory
        Where the Delta table ``series`` is; made if it isn't there. The arms of a seed are written
        together as soon as all of them are finished.
    jobs
        How many processes work, at least 1.
    progress
        Called with the numbers of series that are finished and that there are.

    Returns
    -------
    runs
        Of these worlds, arms, seeds, T and k, of :data:`FAIR_RUNS_SCHEMA`.

    Raises
    ------
    InvalidInputError
        If a world can't be made.
    """
    for world in worlds:
        WORLDS[world](seeds[0])
    table = RunTable(directory / "series", FAIR_RUNS_SCHEMA, ("arm", *_OWN))
    wanted = [
        (arm, world, seed, rounds, instances) for world in worlds for arm in arms for seed in seeds
    ]
    found = table.finished()
    missing: dict[tuple[str, int, int, int], list[str]] = {}
    for arm, *where in table.missing(wanted, found):
        missing.setdefault(tuple(where), []).append(arm)
    fresh = table.run(
        _run,
        [(*where, names) for where, names in missing.items()],
        wanted=len(worlds) * len(seeds),
        jobs=jobs,
        progress=progress,
    )
    return table.of(wanted, [pl.concat([found, *fresh]).sort(*table.key, "rounds")])


def _run(world: str, seed: int, rounds: int, instances: int, arms: list[str]) -> pl.DataFrame:
    chosen = [each for each in FAIR_ARMS if each.name in arms]
    # Every process is one of several that share the machine.
    with threadpool_limits(limits=1):
        series = run_fair_series(
            WORLDS[world](seed), chosen, rounds=rounds, instances=instances, seed=seed
        )
    named = [
        pl.lit(value, dtype=kind).alias(name)
        for (name, kind), value in zip(_OWN.items(), (world, seed, rounds, instances), strict=True)
    ]
    return series.with_columns(named).select(FAIR_RUNS_SCHEMA.names())
