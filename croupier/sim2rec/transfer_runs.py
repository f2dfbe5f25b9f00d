"""Every arm, level and seed of the transfer study, in processes, kept in a Delta table."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from croupier.offline.study.run_table import RunTable, stop_if_orphaned
from croupier.sim2rec.jax_extra import prepare_jax, require_jax
from croupier.sim2rec.lts import TRANSFER_LEVELS, UserPopulation, evaluation_config
from croupier.sim2rec.recommender import myopic_returns
from croupier.sim2rec.transfer_config import ARMS, UPPER_BOUND, TransferConfig, training_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ("RECOMMENDER", "RUNS_SCHEMA", "run_transfer", "test_population")

RECOMMENDER: Final = "supervised"
"""Name of the arm that is no policy optimisation."""

RUNS_SCHEMA: Final = pl.Schema(
    {
        "digest": pl.String,
        "level": pl.Int64,
        "arm": pl.String,
        "seed": pl.Int64,
        "iteration": pl.Int64,
        "training_return": pl.Float64,
        "test_return": pl.Float64,
        "entropy": pl.Float64,
        "explained": pl.Float64,
        "seconds": pl.Float64,
    }
)
"""A row for each point of each learning curve; `digest` is of the configuration and test users.

The supervised recommender has one row, with iteration 0 and nulls. The upper bound, which is the
same at every level, has level 0.
"""

_EVERY_LEVEL = 0


def test_population(config: TransferConfig, users: int, seed: int) -> UserPopulation:
    """Draw the users whom policies are tested on."""
    rng = np.random.default_rng(seed)
    return UserPopulation.draw(users, rng, log_sample=config.environment.log_sample)


def run_transfer(
    config: TransferConfig,
    levels: Sequence[int],
    seeds: Sequence[int],
    *,
    users: int,
    user_seed: int,
    directory: Path,
    jobs: int,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Run every arm at every level with every seed, but for those that the table has already.

    Parameters
    ----------
    config
        Of all of them.
    levels, seeds
        What is run.
    users, user_seed
        How many test users are drawn, and of what seed.
    directory
        Where the Delta table ``runs`` and the folder ``policies`` are; made if they aren't there.
        A run's rows are written as soon as it is finished, and its training is kept on the way, so
        that what was stopped goes on from there.
    jobs
        How many processes work, at least 1.
    progress
        Called with the numbers of runs that are finished and that there are.

    Returns
    -------
    runs
        Of these levels and seeds, of :data:`RUNS_SCHEMA`.

    Raises
    ------
    ConfigError
        If JAX isn't installed.
    """
    require_jax("level")
    digest = _digest(config, users, user_seed)
    population = test_population(config, users, user_seed)
    # Seed by seed, so that what is there when it is stopped can be compared.
    wanted = [
        (_EVERY_LEVEL if arm == UPPER_BOUND else level, arm, seed)
        for seed in seeds
        for level in levels
        for arm in (RECOMMENDER, *(each.name for each in ARMS))
        if arm != UPPER_BOUND or level == levels[0]
    ]
    table = RunTable(directory / "runs", RUNS_SCHEMA, ("level", "arm", "seed"))
    found = table.finished(pl.col("digest") == digest)
    fresh = table.run(
        _run,
        [
            (_Task(config, level, arm, seed, population, digest, directory),)
            for level, arm, seed in table.missing(wanted, found)
        ],
        wanted=len(wanted),
        jobs=jobs,
        progress=progress,
    )
    return table.of(wanted, [found, *fresh])


def _digest(config: TransferConfig, users: int, user_seed: int) -> str:
    text = msgspec.json.encode([config, users, user_seed], order="deterministic")
    return hashlib.sha256(text).hexdigest()[:16]


class _Task(NamedTuple):
    config: TransferConfig
    level: int
    arm: str
    seed: int
    population: UserPopulation
    digest: str
    directory: Path


def _run(task: _Task) -> pl.DataFrame:
    with threadpool_limits(limits=1):
        rows = [_supervised(task)] if task.arm == RECOMMENDER else _trained(task)
    named = {"digest": task.digest, "level": task.level, "arm": task.arm, "seed": task.seed}
    return pl.DataFrame([named | row for row in rows], schema=RUNS_SCHEMA, orient="row")


def _supervised(task: _Task) -> dict[str, float | None]:
    everywhere = next(arm for arm in ARMS if arm.trains_in == "all")
    earned = myopic_returns(
        training_groups(task.config, everywhere, task.level),
        evaluation_config(task.config.environment),
        task.population,
        np.random.default_rng(task.seed),
    )
    nothing = dict.fromkeys(("training_return", "entropy", "explained", "seconds"))
    return {"iteration": 0, "test_return": float(earned.mean())} | nothing


def _trained(task: _Task) -> list[dict[str, float | None]]:
    prepare_jax(task.directory)
    from croupier.sim2rec.transfer import train_arm  # noqa: PLC0415 - imports JAX, an extra

    name = f"{task.arm}-{task.level}-{task.seed}-{task.digest}".replace(" ", "-").lower()
    trained = train_arm(
        task.config,
        next(arm for arm in ARMS if arm.name == task.arm),
        # The truth is the same at every level.
        task.level or TRANSFER_LEVELS[-1],
        task.seed,
        task.population,
        checkpoint=task.directory / "policies" / name,
        progress=lambda _done, _total: stop_if_orphaned(),
    )
    return [msgspec.structs.asdict(point) for point in trained.curve]
