"""How late outcomes come, and what is made of decisions whose outcome may still come.

A decision is seen for as long as it is old, so of recent ones only outcomes that came fast are
known: their delays are truncated from the right. Looked at backwards in time they are truncated
from the left, and the product-limit estimate of that serves (Lagakos, Barraj and De Gruttola, 1988,
"Nonparametric analysis of truncated survival data, with application to AIDS", Biometrika 75)::

    F(d) = Π over delays u > d of 1 - n(u) / R(u)

with n(u) outcomes of delay u, and R(u) of those that came no later than u for decisions that are at
least u old. It says which share of the outcomes that ever come within the age of the oldest
decision has come by d; what comes later still, nobody can know.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
import scipy

from croupier.offline.guardrails import GUARDRAILS, column_of, guardrail_reward, packed
from croupier.offline.interactions import current_interactions
from croupier.offline.pending import joined_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import date

    from numpy.typing import ArrayLike, NDArray

    from croupier.offline.lake import Lake
    from croupier.policy.loop import LoopConfig

__all__ = ("DelayCurve", "delay_curve", "estimate_delays", "settled_interactions", "settling")

# Where a decision has had less than this share of its outcomes, it is held back: its weight would
# be larger than five.
_SMALLEST_SHARE = 0.2


class DelayCurve(msgspec.Struct, frozen=True, kw_only=True):
    """Share of the outcomes that have come by a delay.

    Attributes
    ----------
    outcomes
        That it was estimated from: the first of every decision that has one.
    delays_s
        Ascending delays in seconds at which the share changes, shape (n,).
    share
        Of the outcomes, in [0, 1], at those delays; 1 at the last.
    lower, upper
        Pointwise interval of the share (of its logarithm, by Greenwood's formula).
    confidence
        Of the interval.
    """

    outcomes: int
    delays_s: list[float]
    share: list[float]
    lower: list[float]
    upper: list[float]
    confidence: float

    def share_by(self, delay_s: ArrayLike) -> NDArray[np.float64]:
        """Share that has come by each of some delays; 1 where nothing is known."""
        if not self.delays_s:
            return np.ones(np.shape(delay_s))
        places = np.searchsorted(self.delays_s, delay_s, side="right")
        return np.concatenate([[0.0], self.share])[places]

    def delay_of(self, share: float) -> float:
        """Shortest delay in seconds by which a share has come; 0 where nothing is known."""
        if not self.delays_s:
            return 0.0
        place = int(np.searchsorted(self.share, share, side="left"))
        return self.delays_s[min(place, len(self.delays_s) - 1)]

    def thinned(self, points: int = 50) -> DelayCurve:
        """The same curve at fewer delays, for a table or a chart."""
        if len(self.delays_s) <= points:
            return self
        wanted = np.searchsorted(self.share, np.linspace(self.share[0], 1.0, points))
        places = np.unique(wanted.clip(max=len(self.share) - 1)).tolist()

        def chosen(values: Sequence[float]) -> list[float]:
            return [values[place] for place in places]

        return msgspec.structs.replace(
            self,
            delays_s=chosen(self.delays_s),
            share=chosen(self.share),
            lower=chosen(self.lower),
            upper=chosen(self.upper),
        )


def estimate_delays(
    delays_s: ArrayLike, ages_s: ArrayLike, *, confidence: float = 0.95
) -> DelayCurve:
    """Estimate the distribution of delays from those that are not longer than an age.

    Parameters
    ----------
    delays_s, ages_s
        Of every outcome its delay, and how old its decision is now, in seconds, shape (n,).
    confidence
        Of the pointwise interval, in (0, 1).
    """
    delay = np.asarray(delays_s, dtype=np.float64)
    # An outcome that is known has come; a clock may have said otherwise.
    age = np.maximum(np.asarray(ages_s, dtype=np.float64), delay)
    points, counts = np.unique(delay, return_counts=True)
    come = np.cumsum(counts)
    too_young = np.searchsorted(np.sort(age), points, side="left")
    # Of those that are younger than u, all came before u.
    at_risk = come - too_young
    left = 1.0 - counts[1:] / at_risk[1:]
    with np.errstate(divide="ignore"):
        logs = np.log(left)
        spread = counts[1:] / (at_risk[1:] * (at_risk[1:] - counts[1:]).astype(np.float64))
    log_share = np.concatenate([np.cumsum(logs[::-1])[::-1], [0.0]])
    variance = np.concatenate([np.cumsum(spread[::-1])[::-1], [0.0]])
    reach = scipy.stats.norm.isf((1.0 - confidence) / 2.0) * np.sqrt(variance)
    share = np.exp(log_share)
    with np.errstate(invalid="ignore", over="ignore"):
        lower = np.nan_to_num(share * np.exp(-reach), nan=0.0)
        upper = np.nan_to_num(np.minimum(share * np.exp(reach), 1.0), nan=1.0)
    return DelayCurve(
        outcomes=len(delay),
        delays_s=points.tolist(),
        share=share[: len(points)].tolist(),
        lower=lower[: len(points)].tolist(),
        upper=upper[: len(points)].tolist(),
        confidence=confidence,
    )


def delay_curve(
    lake: Lake,
    loop: str,
    config: LoopConfig,
    *,
    version: int | None = None,
    confidence: float = 0.95,
) -> DelayCurve:
    """How late a loop's outcomes come, by its decisions of the last two late horizons.

    Parameters
    ----------
    lake, loop
        Whose interactions.
    config
        Of the loop.
    version
        Of the interactions; the latest if None.
    confidence
        Of the interval.
    """
    until = joined_until(lake, loop, version)
    if until is None:
        return estimate_delays([], [], confidence=confidence)
    age = _age_s(until)
    first = datetime.fromtimestamp(max(until - 2 * config.late_horizon_us, 0) / 1e6, tz=UTC)
    known = (
        current_interactions(lake, loop, version=version, since=first.date())
        .filter(pl.col("delay_s").is_not_null(), age <= 2e-6 * config.late_horizon_us)
        .select("delay_s", age=age)
        .collect()
    )
    return estimate_delays(
        known["delay_s"].to_numpy(), known["age"].to_numpy(), confidence=confidence
    )


def settled_interactions(
    lake: Lake,
    loop: str,
    config: LoopConfig,
    *,
    version: int | None = None,
    since: date | None = None,
) -> pl.LazyFrame:
    """Current interactions, corrected for outcomes that may still come as the loop wants it.

    ``hold_back`` leaves out decisions that are younger than the delay by which the share
    `settled_share` of the outcomes has come. ``weight`` puts ``d + (r - d) / F(age)`` in the place
    of the reward r of a decision that has an outcome, with d the default reward and F the share of
    outcomes that has come by its age: the inverse of the probability of having been seen (Horvitz
    and Thompson, 1952; for censored outcomes Robins and Rotnitzky, 1992). Its mean is that of the
    final rewards if the delay depends neither on the request, the action nor the reward, and a
    decision has one outcome at most. It may lie outside the range of rewards. Guardrails are
    corrected likewise. The loss that it
    gives to a regression is in the mean that of the final rewards, up to a constant, as with the
    fake negatives of Ktena et al. (2019, "Addressing delayed feedback for continuous training with
    neural networks in CTR prediction", RecSys), without their negative weights.

    Parameters
    ----------
    lake, loop, config
        Whose, and how.
    version
        Of the interactions; the latest if None. The correction depends on it alone.
    since
        The first day whose decisions are wanted, see
        :func:`~croupier.offline.interactions.current_interactions`.
    """
    rows = current_interactions(lake, loop, version=version, since=since)
    return settling(lake, loop, config, version=version)(rows)


def settling(
    lake: Lake, loop: str, config: LoopConfig, *, version: int | None = None
) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
    """What :func:`settled_interactions` does to any of a loop's interactions.

    Parameters
    ----------
    lake, loop, config, version
        See there.
    """
    until = joined_until(lake, loop, version)
    if config.censoring == "none" or until is None:
        return lambda rows: rows
    curve = delay_curve(lake, loop, config, version=version)
    age = _age_s(until)
    if config.censoring == "hold_back":
        return lambda rows: rows.filter(age >= curve.delay_of(config.settled_share))
    share = age.map_batches(
        lambda ages: pl.Series(curve.share_by(ages.to_numpy())), return_dtype=pl.Float64
    )
    names = sorted(config.guardrails)

    def weighted(value: pl.Expr, default: float) -> pl.Expr:
        final = default + (value - default) / pl.col("share")
        return pl.when(pl.col("outcomes") > 0).then(final).otherwise(value)

    corrected = [weighted(pl.col("reward"), config.default_reward).alias("reward")] + [
        weighted(guardrail_reward(name), config.guardrails[name].default_reward).alias(
            column_of(name)
        )
        for name in names
    ]
    repacked = [pl.when(pl.col(GUARDRAILS).is_not_null()).then(packed(names))] if names else []
    return lambda rows: (
        rows.with_columns(share=share)
        .filter(pl.col("share") >= _SMALLEST_SHARE)
        .with_columns(corrected)
        .with_columns(repacked)
        .drop("share", *map(column_of, names))
    )


def _age_s(until_us: int) -> pl.Expr:
    """How old decisions were when they were joined last, in seconds."""
    now = pl.lit(until_us).cast(pl.Datetime("us", "UTC"))
    return (now - pl.col("ts")).dt.total_microseconds() / 1e6
