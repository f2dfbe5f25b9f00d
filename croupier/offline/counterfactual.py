"""What any number of policies would have earned on a log, window by window.

The comparison of :mod:`croupier.offline.evaluate` is for a gate: two policies, on rows that tell
about both. Here every policy stands for itself, on the rows that tell about it, by inverse
propensity scoring, with the sums that the estimate is made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np
import polars as pl

from croupier.offline.evaluate import UNSEEN, largest_weight, of_the_row, reward_range_of
from croupier.offline.interactions import logged_requests
from croupier.offline.ope import IPS, LoggedBatch
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from croupier.offline.interactions import LoggedRequest
    from croupier.policy.loop import LoopConfig

    Policy: TypeAlias = Callable[[LoggedRequest], NDArray[np.float64] | None]

__all__ = ("PolicyOnLog", "WindowSums", "baseline_policy", "judge_policies", "random_policy")


class WindowSums(msgspec.Struct, frozen=True, kw_only=True):
    """A policy on the decisions of a time window. Rows kept with a probability count for more.

    Attributes
    ----------
    start_us
        When the window begins, in microseconds since the epoch.
    rows
        Number of decisions, as if all had been kept.
    weighted_rewards, weights, squares
        Sums of w·r, of w and of (w·r)², with the importance weights w.
    taken
        Number of decisions whose action the policy might have taken.
    value, lower, upper
        Mean of w·r with its interval; no interval where there are too few rows.
    """

    start_us: int
    rows: float
    weighted_rewards: float
    weights: float
    squares: float
    taken: int
    value: float
    lower: float | None
    upper: float | None


class PolicyOnLog(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy would have earned.

    Attributes
    ----------
    total, windows
        On all rows, and on those of every window that has any.
    left_out
        Rows that say nothing about the policy: it may take an action that could not have been
        drawn, or the request can't be encoded.
    """

    total: WindowSums
    windows: list[WindowSums]
    left_out: int


def random_policy(request: LoggedRequest) -> NDArray[np.float64]:
    """Any eligible action."""
    actions = len(request.actions)
    eligible = np.ones(actions, dtype=np.bool_) if request.eligible is None else request.eligible
    return np.asarray(eligible / np.count_nonzero(eligible), dtype=np.float64)


def baseline_policy(request: LoggedRequest) -> NDArray[np.float64] | None:
    """The application's own choice; None where the log doesn't tell."""
    if request.baseline is None:
        return None
    pmf = np.zeros(len(request.actions))
    pmf[request.baseline] = 1.0
    return pmf


def judge_policies(
    interactions: pl.DataFrame,
    policies: Mapping[str, Policy | None],
    config: LoopConfig,
    *,
    window_us: int,
    confidence: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, PolicyOnLog]:
    """Estimate what policies would have earned, in all and window by window.

    Parameters
    ----------
    interactions
        Rows of the interactions table, of one loop; none that a policy has learned from.
    policies
        By name: what gives the pmf of a request, None where it can't. None in the place of a
        policy is whatever made the log; its weights are 1.
    config
        Of the loop: the range of its reward.
    window_us
        Length of the windows, which begin at multiples of it since the epoch.
    confidence
        Of all intervals, in (0, 1).
    progress
        Called with rows done and in all.

    Raises
    ------
    NotEnoughDataError
        If there are fewer than two rows.
    """
    if len(interactions) < 2:
        raise NotEnoughDataError(f"expected at least 2 interactions, got {len(interactions)}")
    seen = {name: _Seen.of(interactions, policy) for name, policy in policies.items()}
    logged_pmfs = interactions["pmf"]
    n = len(interactions)
    for row, request in enumerate(logged_requests(interactions)):
        if progress is not None and (row % 500 == 499 or row + 1 == n):
            progress(row + 1, n)
        logged = logged_pmfs[row]
        possible = None if logged is None else logged.to_numpy()
        for name, policy in policies.items():
            if policy is not None:
                seen[name].ask(row, policy, request, possible)
    starts = interactions["ts"].dt.epoch("us").to_numpy() // window_us * window_us
    reward_range = reward_range_of(interactions, config)
    return {
        name: _summed(interactions, starts, seen[name], reward_range, confidence)
        for name in policies
    }


@dataclass(slots=True)
class _Seen:
    """A policy on every row: whether it can be judged there, and its chance of what was logged."""

    usable: NDArray[np.bool_]
    probability: NDArray[np.float64]
    smallest: float
    largest: float

    @classmethod
    def of(cls, interactions: pl.DataFrame, policy: Policy | None) -> _Seen:
        rows = len(interactions)
        if policy is None:
            probability = interactions["propensity"].to_numpy()
            return cls(np.ones(rows, dtype=np.bool_), probability, 1.0, 1.0)
        return cls(np.zeros(rows, dtype=np.bool_), np.zeros(rows), 0.0, 1.0)

    def ask(
        self,
        row: int,
        policy: Policy,
        request: LoggedRequest,
        possible: NDArray[np.float64] | None,
    ) -> None:
        try:
            answer = policy(request)
        except InvalidInputError:
            # No oracle can encode it.
            return
        if answer is None:
            return
        pmf = of_the_row(answer, request)
        if possible is not None and pmf[possible <= 0.0].sum() > UNSEEN:
            return
        self.usable[row] = True
        self.probability[row] = pmf[request.chosen]
        self.largest = max(self.largest, largest_weight(pmf, possible))


def _summed(
    interactions: pl.DataFrame,
    starts: NDArray[np.int64],
    seen: _Seen,
    reward_range: tuple[float, float],
    confidence: float,
) -> PolicyOnLog:
    usable = seen.usable
    kept, begins = interactions.filter(pl.Series(usable)), starts[usable]
    batch = LoggedBatch(
        reward=kept["reward"].to_numpy(),
        propensity=kept["propensity"].to_numpy(),
        target_probability=seen.probability[usable],
        keep_prob=kept["keep_prob"].to_numpy(),
    )

    def sums(start: int, rows: NDArray[np.bool_]) -> WindowSums:
        part = LoggedBatch(
            reward=batch.reward[rows],
            propensity=batch.propensity[rows],
            target_probability=batch.target_probability[rows],
            keep_prob=None if batch.keep_prob is None else batch.keep_prob[rows],
        )
        return _sums(start, part, reward_range, (seen.smallest, seen.largest), confidence)

    windows = [sums(int(start), begins == start) for start in np.unique(begins)]
    everything = np.ones(len(kept), dtype=np.bool_)
    first = int(begins.min()) if len(begins) else 0
    return PolicyOnLog(
        total=sums(first, everything),
        windows=windows,
        left_out=len(interactions) - len(kept),
    )


def _sums(
    start: int,
    batch: LoggedBatch,
    reward_range: tuple[float, float],
    weight_range: tuple[float, float],
    confidence: float,
) -> WindowSums:
    keep, weight = batch.keep_weight, batch.weight
    gained = weight * batch.reward
    rows = float(keep.sum())
    lower = upper = None
    try:
        estimate = IPS(reward_range=reward_range, weight_range=weight_range).add(batch)
        interval = estimate.result(confidence)
    except NotEnoughDataError:
        value = float((keep * gained).sum() / rows) if rows else 0.0
    else:
        value, lower, upper = interval.value, interval.lower, interval.upper
    return WindowSums(
        start_us=start,
        rows=rows,
        weighted_rewards=float((keep * gained).sum()),
        weights=float((keep * weight).sum()),
        squares=float((keep * gained**2).sum()),
        taken=int(np.count_nonzero(batch.target_probability)),
        value=value,
        lower=lower,
        upper=upper,
    )
