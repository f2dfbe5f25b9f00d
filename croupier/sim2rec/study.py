"""How much a constant policy leaves on the table in the Long-Term-Satisfaction environment.

The yardsticks for every learned policy: what one fixed document earns, what the best fixed document
of each user earns, and what could be earned at all. The last is found by dynamic programming over
the user's net positive exposure, with m, h and mu_c known; a learned policy has to infer them.

The optimum is that of a deterministic exposure, so the study asks for ``innovation_sd = 0`` and
``kale_noise = 0``, the test environment's values. Engagement noise changes no policy's mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import polars as pl

from croupier.policy.errors import InvalidInputError
from croupier.sim2rec.lts import (
    FloatArray,
    IntArray,
    LTSConfig,
    LTSEnvironment,
    UserPopulation,
    clickbait_scores,
    engagement_mean,
    next_exposure,
    satisfaction,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = (
    "STUDY_SCHEMA",
    "Progress",
    "constant_policy_study",
    "constant_returns",
    "episode_returns",
    "optimal_documents",
)

STUDY_SCHEMA: Final = pl.Schema(
    {
        "policy": pl.String,
        "clickbait": pl.Float64,
        "mean_return": pl.Float64,
        "standard_error": pl.Float64,
        "users": pl.Int64,
    }
)
"""Columns of :func:`constant_policy_study`; one row per policy, none is ever missing."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of users that are done and the number of all users."""

_GRID_POINTS: Final = 201
"""With it, the policy found earns within 0.01 of the optimum on average over drawn users."""


def constant_policy_study(
    config: LTSConfig,
    users: UserPopulation,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Measure the constant policies and the optimum on a population.

    Parameters
    ----------
    config
        The group, with ``innovation_sd = 0`` and ``kale_noise = 0``.
    users
        The n users, the same for every policy.
    rng
        Source of the episodes' randomness.
    progress
        Told of every user whose optimum is found, which is nearly all of the work.

    Returns
    -------
    polars.DataFrame
        Of schema :data:`STUDY_SCHEMA`, with the rows

        - ``kale``: document 0;
        - ``balanced``: the document whose clickbait score is closest to 0.5;
        - ``myopic``: the document with the largest immediate engagement;
        - ``best constant``: the document that earns most over all users;
        - ``best constant per user``: each user's own best document;
        - ``optimum``: each user's best sequence of documents.

        `clickbait` is the constant score shown, null in the last two rows; `mean_return` is the
        engagement summed over the horizon, averaged over users; `standard_error` is its standard
        error over users, null for a single user.

    Raises
    ------
    InvalidInputError
        If the config has noise for which the optimum is not defined here.
    """
    _require_deterministic_exposure(config)
    # The best documents are picked in one set of episodes and measured in another: the largest of
    # several noisy returns is too large.
    pilot = constant_returns(config, users, rng)
    measured = constant_returns(config, users, rng)
    scores = clickbait_scores(config.documents)
    constants = {
        "kale": 0,
        "balanced": int(np.argmin(np.abs(scores - 0.5))),
        "myopic": int(np.argmax(scores * config.mu_c + (1.0 - scores) * config.mu_k)),
        "best constant": int(np.argmax(pilot.mean(axis=1))),
    }
    rows = [_row(name, scores[k], measured[k]) for name, k in constants.items()]
    own_best = np.argmax(pilot, axis=0)
    rows.append(_row("best constant per user", None, measured[own_best, np.arange(len(users))]))
    plan = optimal_documents(config, users, progress=progress)
    rows.append(_row("optimum", None, episode_returns(config, users, plan, rng)))
    return pl.DataFrame(rows, schema=STUDY_SCHEMA, orient="row")


def constant_returns(
    config: LTSConfig, users: UserPopulation, rng: np.random.Generator
) -> FloatArray:
    """Play one episode of every constant policy.

    Parameters
    ----------
    config
        The group.
    users
        The n users.
    rng
        Source of the episodes' randomness.

    Returns
    -------
    FloatArray
        Return of every document for every user, shape (D, n).
    """
    return np.stack([episode_returns(config, users, k, rng) for k in range(config.documents)])


def episode_returns(
    config: LTSConfig, users: UserPopulation, plan: ArrayLike, rng: np.random.Generator
) -> FloatArray:
    """Play one episode of documents that are fixed in advance.

    Parameters
    ----------
    config
        The group.
    users
        The n users.
    plan
        Document indices of every step and user; broadcast to shape (horizon, n).
    rng
        Source of the episode's randomness.

    Returns
    -------
    FloatArray
        Engagement summed over the horizon, not discounted, shape (n,).
    """
    shape = (config.horizon, len(users))
    try:
        documents = np.broadcast_to(np.asarray(plan), shape)
    except ValueError as error:
        raise InvalidInputError("plan", f"expected shape {shape}, {error}") from error
    environment = LTSEnvironment(config, users)
    environment.reset(rng)
    total = np.zeros(len(users))
    for shown in documents:
        total += environment.show(shown).reward
    return total


def optimal_documents(
    config: LTSConfig,
    users: UserPopulation,
    *,
    grid_points: int = _GRID_POINTS,
    progress: Progress | None = None,
) -> IntArray:
    """Find every user's best sequence of documents by dynamic programming.

    ``V_t(x) = max_c (c mu_c + (1 - c) mu_k) sigmoid(h x) + V_{t+1}(m x - 2 (c - 0.5))``, backwards
    from ``V_horizon = 0`` on a grid of exposures x, linear in between; then forwards from NPE_0
    with the exact exposure and one look ahead. What the sequence earns can be measured exactly, so
    the grid can make it worse than the optimum but never flatter it.

    Parameters
    ----------
    config
        The group, with ``innovation_sd = 0`` and ``kale_noise = 0``.
    users
        The n users.
    grid_points
        Number of exposures in the grid, at least 2. They cover what a user of memory m can reach,
        about ``2 / (1 - m)``, so the nearer m is to 1, the more of them are needed.
    progress
        Told of every user that is done.

    Returns
    -------
    IntArray
        Document indices, shape (horizon, n).
    """
    _require_deterministic_exposure(config)
    if grid_points < 2:
        raise InvalidInputError("grid_points", f"expected at least 2, got {grid_points}")
    plan = np.empty((config.horizon, len(users)), dtype=np.int64)
    for index in range(len(users)):
        user = users.take([index])
        grid = _reachable_exposures(config, user, grid_points)
        values = _values_on_grid(config, user, grid)
        plan[:, index] = _greedy_sequence(config, user, grid, values)
        if progress is not None:
            progress(index + 1, len(users))
    return plan


def _reachable_exposures(config: LTSConfig, user: UserPopulation, points: int) -> FloatArray:
    # The fixed points of always the most clickbait and of always kale. No document leads out of
    # this interval, and it holds NPE_0, which is half of its upper end.
    lowest = 1.0 - 2.0 * clickbait_scores(config.documents)[-1]
    span = 1.0 / (1.0 - float(user.memory[0]))
    return np.linspace(lowest * span, span, points)


def _values_on_grid(config: LTSConfig, user: UserPopulation, grid: FloatArray) -> FloatArray:
    """V_t of one user on the grid for every t, shape (horizon + 1, points)."""
    clickbait = clickbait_scores(config.documents)[:, None]
    sat = satisfaction(grid, user.sensitivity)
    reward = engagement_mean(clickbait, sat, config.mu_c, config.mu_k)
    # Where each document leads does not depend on t, so neither do the interpolation's places.
    place = (next_exposure(grid, clickbait, user.memory) - grid[0]) / (grid[1] - grid[0])
    left = np.clip(place.astype(np.int64), 0, grid.size - 2)
    weight = place - left
    values = np.zeros((config.horizon + 1, grid.size))
    for t in range(config.horizon - 1, -1, -1):
        following = values[t + 1]
        future = following[left] + weight * np.diff(following)[left]
        values[t] = (reward + future).max(axis=0)
    return values


def _greedy_sequence(
    config: LTSConfig, user: UserPopulation, grid: FloatArray, values: FloatArray
) -> IntArray:
    """Documents that one user is shown if each is the best for the values, shape (horizon,)."""
    clickbait = clickbait_scores(config.documents)
    sequence = np.empty(config.horizon, dtype=np.int64)
    exposure = user.initial_exposure
    for t in range(config.horizon):
        sat = satisfaction(exposure, user.sensitivity)
        reward = engagement_mean(clickbait, sat, config.mu_c, config.mu_k)
        after = next_exposure(exposure, clickbait, user.memory)
        best = int(np.argmax(reward + np.interp(after, grid, values[t + 1])))
        sequence[t] = best
        exposure = after[best : best + 1]
    return sequence


def _row(
    name: str, clickbait: float | None, returns: FloatArray
) -> tuple[str, float | None, float, float | None, int]:
    n = returns.size
    error = float(returns.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return name, clickbait, float(returns.mean()), error, n


def _require_deterministic_exposure(config: LTSConfig) -> None:
    for field in ("innovation_sd", "kale_noise"):
        value = getattr(config, field)
        if value != 0.0:
            raise InvalidInputError(
                f"config.{field}", f"expected 0, for which the optimum is defined, got {value}"
            )
