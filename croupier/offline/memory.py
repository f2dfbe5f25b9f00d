"""Adaptive memory: how fast to forget, measured by how estimates learned apart differ.

What is learned from successive blocks of a log differs for two reasons. The world has changed, and
each block is a small sample, drawn by a policy that its predecessor's estimates have set. Steps
that the world has taken stay; those of chance are taken back by the next block. So the lag-1
autocorrelation of the steps, the statistic by which oscillation shows, tells one from the other: it
is 0 if all of it is change, and -1/2 or less if none is.

With estimates ``f_b = θ_b + ε_b``, of which the truth moves by independent steps ``η_b`` (a local
level), the steps ``d_b = f_{b+1} - f_b`` have

    E[d_b d_b] = q + 2 s,    E[d_b d_{b+1}] = -s,    q = Var(η), s = Var(ε).

The sine transform makes B - 1 of them independent, with variances ``q + s μ_j``, where
``μ_j = 2 - 2 cos(π j / B)``, so that the likelihood of normal steps is a sum and q and s are where
it is largest. With ``κ = q / s`` the steady gain of Kalman's filter is
``K = (sqrt(κ² + 4κ) - κ) / 2``. Rows that are b blocks old then count ``(1 - K)^b``: everything
counts the same where nothing changes or estimates only swing, and the last block alone where they
walk.

Estimates of many things hang together, and say less than as many that don't. Components of steps
are uncorrelated, so that by how much they are correlated all the same says of how many independent
things there are, ``N = 1 / mean r²``. The gain is the smallest one whose deviance, N times the loss
above the least, is at most 1: one standard error on the side of remembering, so that a gain which
is chance doesn't make the memory jump.

References
----------
Muth, "Optimal Properties of Exponentially Weighted Forecasts", Journal of the American Statistical
Association 1960; Harvey, "Forecasting, Structural Time Series Models and the Kalman Filter",
Cambridge University Press 1989, section 4.1.2 (the gain of the local level model). That the
propensities of a bandit's generations are steered by it has no source: it is Croupier's own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from croupier.offline.interactions import LoggedRows, logged_requests
from croupier.policy.errors import InvalidInputError
from croupier.policy.generation import Memory
from croupier.policy.oracle import make_oracle

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import ArrayLike, NDArray

    from croupier.policy.loop import LoopConfig
    from croupier.policy.oracle import EncodedOracle

    FloatArray = NDArray[np.float64]

__all__ = ("BLOCKS", "adaptive_memory", "ages_in_blocks", "memory_of_steps")

BLOCKS = 16
"""Of as many rows each, in the order of time, that estimates are learned from apart."""

LEAST_IN_BLOCK = 50
"""Of fewer rows nothing is measured, and all rows count the same."""

_REQUESTS = 300
# So that the oldest rows still count for something: weights are positive.
_LARGEST_GAIN = 0.99
_GAINS = 397
_MOST_THINGS = 1e6
_TINY = 1e-300


def adaptive_memory(
    config: LoopConfig, learned: pl.DataFrame, weights: FloatArray, *, seed: int
) -> Memory | None:
    """Measure how fast a loop's oracle should forget.

    Oracles are learned from :data:`BLOCKS` blocks of the log apart, and asked about up to 300
    requests of all of it. Of their estimates only what an action is above the mean of its request
    counts: no policy depends on more.

    Parameters
    ----------
    config
        Of the loop: its oracle is what is learned.
    learned
        Rows that could be learned from, of the interactions table.
    weights
        Their importance otherwise, shape (n,).
    seed
        Of oracles, and of the choice of requests.

    Returns
    -------
    memory
        None where there are fewer than :data:`LEAST_IN_BLOCK` rows for each block, or nothing was
        estimated.

    Raises
    ------
    InvalidInputError
        If a request can't be encoded.
    """
    if len(learned) < BLOCKS * LEAST_IN_BLOCK:
        return None
    blocks = (BLOCKS - 1) - ages_in_blocks(learned).astype(np.int64)
    some = learned.sample(min(_REQUESTS, len(learned)), seed=seed)
    requests = list(logged_requests(some))
    estimates = []
    for block in range(BLOCKS):
        oracle: EncodedOracle = make_oracle(config.oracle, random_state=seed)
        mine = blocks == block
        oracle.fit(LoggedRows(learned.filter(mine), weights[mine]))
        scores = [oracle.score(each.context, each.actions) for each in requests]
        estimates.append(np.concatenate([each - each.mean() for each in scores]))
    return memory_of_steps(np.array(estimates))


def ages_in_blocks(learned: pl.DataFrame) -> FloatArray:
    """How many blocks old every row is, 0 to ``BLOCKS - 1``, whole numbers, shape (n,).

    Rows are ordered by their time; those without one are the oldest.
    """
    order = learned["ts"].rank("ordinal").fill_null(0).to_numpy() - 1.0
    place = np.clip(np.floor(order * BLOCKS / len(learned)), 0, BLOCKS - 1)
    return np.asarray((BLOCKS - 1) - place, dtype=np.float64)


def memory_of_steps(estimates: ArrayLike) -> Memory | None:
    """The memory that goes with estimates of the same things, learned one after the other.

    Parameters
    ----------
    estimates
        Shape (B, C): B blocks, at least 3, and C things that are estimated.

    Returns
    -------
    memory
        None where the estimates are the same in all blocks, as with an oracle that learns nothing.

    Raises
    ------
    InvalidInputError
        If `estimates` has another shape or isn't finite.
    """
    table = np.asarray(estimates, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] < 3 or not np.isfinite(table).all():
        raise InvalidInputError(
            "estimates", f"expected finite numbers of shape (B >= 3, C), got {np.shape(estimates)}"
        )
    steps = np.diff(table, axis=0)
    variance = float(np.mean(steps * steps))
    if variance == 0.0:
        return None
    gain, noise = _gain(_components(steps))
    return Memory(
        autocorrelation=float(np.mean(steps[1:] * steps[:-1])) / variance,
        noise=noise,
        drift=_ratio(gain) * noise,
        kept=1.0 - gain,
    )


def _components(steps: FloatArray) -> FloatArray:
    """Mean products of the steps' sine components, shape (B - 1, B - 1)."""
    size = len(steps) + 1
    place = np.arange(1, size)
    sines = math.sqrt(2.0 / size) * np.sin(np.pi * np.outer(place, place) / size)
    components = sines @ steps
    return np.asarray(components @ components.T / components.shape[1])


def _gain(products: FloatArray) -> tuple[float, float]:
    """The smallest gain that is likely, and the variance by chance that goes with it.

    All gains up to `_LARGEST_GAIN` are tried, since the likelihood can have two peaks.
    """
    power = np.maximum(np.diagonal(products), _TINY)
    size = len(power) + 1
    swing = 2.0 - 2.0 * np.cos(np.pi * np.arange(1, size) / size)
    gains = np.linspace(0.0, _LARGEST_GAIN, _GAINS)
    variances = np.array([_ratio(each) for each in gains])[:, None] + swing
    noise = np.mean(power / variances, axis=1)
    loss = np.log(variances).sum(axis=1) + len(power) * np.log(noise)
    correlations = (products / np.sqrt(np.outer(power, power)))[np.triu_indices(len(power), 1)]
    independent = 1.0 / max(float(np.mean(correlations**2)), 1.0 / _MOST_THINGS)
    likely = independent * (loss - loss.min()) <= 1.0
    place = int(np.argmax(likely))
    return float(gains[place]), float(noise[place])


def _ratio(gain: float) -> float:
    """Variance of what the world changes over that of chance, where a gain in [0, 1) is right."""
    return gain * gain / (1.0 - gain)
