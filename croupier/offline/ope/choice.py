"""Estimators and intervals by their names: what a person chooses from.

A parameter, where an estimator has one, is found in the log by SLOPE. An interval that doesn't
apply costs the interval and not the value: a :class:`Reading` says why there is none.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Generic, Literal, Self, TypeAlias, TypeVar, get_args

import msgspec
import numpy as np

from croupier.offline.ope.accumulators import Accumulator, BatchT, Estimate
from croupier.offline.ope.adjusted import AdjustedDR
from croupier.offline.ope.bootstrap import Bootstrap
from croupier.offline.ope.differences import Difference
from croupier.offline.ope.estimators import DR, IPS, SNDR, SNIPS, Estimator
from croupier.offline.ope.sequences import ConfidenceSequence
from croupier.offline.ope.shrinkage import (
    DM,
    ClippedDR,
    ClippedIPS,
    DRos,
    Reweighed,
    ShrunkIPS,
    SubgaussianDR,
    SubgaussianIPS,
    SwitchDR,
)
from croupier.offline.ope.tuning import Slope, candidates
from croupier.policy.errors import InvalidInputError, NoIntervalError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from croupier.offline.ope.batches import LoggedBatch
    from croupier.offline.ope.intervals import IntervalMethod

__all__ = (
    "EstimatorKind",
    "IntervalKind",
    "Measure",
    "Reading",
    "estimator_kind",
    "interval_kind",
    "needs_model",
    "tuned",
)

EstimatorKind: TypeAlias = Literal[
    "ips",
    "snips",
    "dm",
    "dr",
    "sndr",
    "adjusted-dr",
    "clipped-ips",
    "clipped-dr",
    "shrunk-ips",
    "dros",
    "switch-dr",
    "subgaussian-ips",
    "subgaussian-dr",
]
"""Estimators of one policy's value."""

IntervalKind: TypeAlias = Literal[
    "empirical-likelihood",
    "normal",
    "outer",
    "bootstrap",
    "empirical-bernstein",
    "clopper-pearson",
    "confidence-sequence",
]
"""Intervals; ``normal`` is the delta method's for a ratio."""

_KindT = TypeVar("_KindT", bound=str)

_PLAIN: dict[EstimatorKind, type[Estimator]] = {
    "ips": IPS,
    "snips": SNIPS,
    "dm": DM,
    "dr": DR,
    "sndr": SNDR,
    "adjusted-dr": AdjustedDR,
}
_TUNED: dict[EstimatorKind, type[Reweighed]] = {
    "clipped-ips": ClippedIPS,
    "clipped-dr": ClippedDR,
    "shrunk-ips": ShrunkIPS,
    "dros": DRos,
    "switch-dr": SwitchDR,
    "subgaussian-ips": SubgaussianIPS,
    "subgaussian-dr": SubgaussianDR,
}
_WITH_MODEL: frozenset[EstimatorKind] = frozenset(
    {"dm", "dr", "sndr", "adjusted-dr", "clipped-dr", "dros", "switch-dr", "subgaussian-dr"}
)
_SHORT: dict[str, EstimatorKind] = {
    "clipped": "clipped-ips",
    "shrunk": "shrunk-ips",
    "switch": "switch-dr",
    "subgaussian": "subgaussian-ips",
}
_SHORT_INTERVALS: dict[str, IntervalKind] = {
    "sequence": "confidence-sequence",
    "delta": "normal",
}
# Weights no larger than this leave nothing to shrink.
_NOTHING_TO_SHRINK = 1.0 + 1e-9
_HALVINGS = 40


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What an estimator found, with its interval or the reason why there is none.

    Attributes
    ----------
    estimator
        Its name, with the parameter where SLOPE has chosen one.
    value
        In the reward's unit per decision; None where the rows don't define one.
    estimate
        With the interval; None if there is none.
    why_none
        Why there is no interval, or no value.
    p_value
        Of a difference's being 0, corrected for how many there are; None where it wasn't asked
        for, see :mod:`croupier.offline.multiplicity`.
    """

    estimator: str
    value: float | None
    estimate: Estimate | None = None
    why_none: str | None = None
    p_value: float | None = None


def estimator_kind(text: str) -> EstimatorKind:
    """The estimator that a person means: ``dr``, ``switch``, ``clipped_dr`` and so on.

    Raises
    ------
    InvalidInputError
        If there is none of that name.
    """
    return _named("estimator", text, get_args(EstimatorKind), _SHORT)


def interval_kind(text: str) -> IntervalKind:
    """The interval that a person means: ``empirical_likelihood``, ``sequence`` and so on.

    Raises
    ------
    InvalidInputError
        If there is none of that name.
    """
    return _named("interval", text, get_args(IntervalKind), _SHORT_INTERVALS)


def needs_model(kind: EstimatorKind) -> bool:
    """Whether an estimator asks a reward model."""
    return kind in _WITH_MODEL


def tuned(
    kind: EstimatorKind,
    batch: LoggedBatch,
    *,
    reward_range: tuple[float, float],
    weight_range: tuple[float, float],
) -> Estimator:
    """An estimator that has counted nothing, with the parameter that SLOPE finds in a log.

    Where no weight is above 1 there is nothing to shrink, and the parameter is the one that leaves
    weights as they are.

    Parameters
    ----------
    kind
        Which one.
    batch
        The whole log, as the policy sees it; looked at only if there is a parameter.
    reward_range, weight_range
        As for :class:`~croupier.offline.ope.estimators.Estimator`.

    Raises
    ------
    InvalidInputError, NotEnoughDataError
        As :class:`~croupier.offline.ope.tuning.Slope` does.
    """
    if kind in _PLAIN:
        return _PLAIN[kind](reward_range=reward_range, weight_range=weight_range)
    family = _TUNED[kind]
    untouched = family(
        0.0 if family.allowed[1] == 1.0 else math.inf,
        reward_range=reward_range,
        weight_range=weight_range,
    )
    largest = weight_range[1]
    if not math.isfinite(largest):
        largest = float(np.max(batch.weight, initial=0.0))
    if largest <= _NOTHING_TO_SHRINK:
        return untouched
    slope = Slope(candidates(untouched, largest)).add(batch)
    (chosen,) = (each.parameter for each in slope.candidates() if each.chosen)
    return untouched.fresh(chosen)


class Measure(Generic[BatchT]):
    """An estimator or a difference with an interval of some kind; add, merge, then read.

    Parameters
    ----------
    accumulator
        Of which only the parameters are used, but for its interval.
    interval
        The kind that is wanted.
    seed
        Of the bootstrap, in [0, 2**63).
    """

    def __init__(
        self, accumulator: Accumulator[BatchT], interval: IntervalKind, *, seed: int = 0
    ) -> None:
        self.plain: Accumulator[BatchT] = _with(accumulator, None)
        self.counter: Accumulator[BatchT] | Bootstrap[BatchT] | ConfidenceSequence[BatchT] | None
        self.why_none: str | None = None
        try:
            self.counter = _counter(accumulator, interval, seed)
        except (InvalidInputError, NoIntervalError) as error:
            self.counter, self.why_none = None, str(error)

    def add(self, batch: BatchT) -> Self:
        """Count the rows of `batch`; for a confidence sequence they are in the order of time.

        Raises
        ------
        InvalidInputError
            As the estimator does. Nothing is counted.
        """
        self.plain.add(batch)
        if self.counter is not None:
            try:
                self.counter.add(batch)
            except InvalidInputError as error:
                # A sequence needs bounded weights where the estimator doesn't.
                self.counter, self.why_none = None, str(error)
        return self

    def merge(self, other: Self) -> Self:
        """Count the rows that `other` counted; `other` stays as it is.

        Raises
        ------
        InvalidInputError
            If `other` is of another kind or has other parameters.
        """
        self.plain.merge(other.plain)
        if other.counter is None:
            self.counter, self.why_none = None, other.why_none
        elif self.counter is not None:
            # Both were made of the same accumulator and interval, or merging says so.
            self.counter.merge(other.counter)  # type: ignore[arg-type]
        return self

    def result(self, confidence: float) -> Reading:
        """What was found.

        Parameters
        ----------
        confidence
            Of the interval, in (0, 1).
        """
        name = self.plain.name
        try:
            value = self._value()
        except NotEnoughDataError as error:
            return Reading(estimator=name, value=None, why_none=str(error))
        if self.counter is None:
            return Reading(estimator=name, value=value, why_none=self.why_none)
        try:
            estimate = self.counter.result(confidence)
        except (NoIntervalError, NotEnoughDataError) as error:
            return Reading(estimator=name, value=value, why_none=str(error))
        return Reading(estimator=name, value=value, estimate=estimate)

    def p_value(self) -> float | None:
        """Of a difference's being 0: the largest error with which its interval leaves 0 out.

        Found by halving; the smallest that is told apart is 2**-40. None if there is no interval.
        """
        if self.result(0.5).estimate is None:
            return None
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2.0
            found = self.result(1.0 - middle).estimate
            if found is not None and (found.lower > 0.0 or found.upper < 0.0):
                high = middle
            else:
                low = middle
        return high

    def _value(self) -> float:
        tally = self.plain.tally_
        if tally is None or tally.moments.n == 0:
            raise NotEnoughDataError("there are no rows")
        return self.plain.point(tally.moments.mean)[0]


def _named(field: str, text: str, known: tuple[_KindT, ...], short: Mapping[str, _KindT]) -> _KindT:
    """Which of the known names is meant, in full or in short."""
    name = text.strip().lower().replace("_", "-")
    for kind in known:
        if name == kind or short.get(name) == kind:
            return kind
    raise InvalidInputError(field, f"expected one of {', '.join(known)}, got {text!r}")


def _counter(
    accumulator: Accumulator[BatchT], interval: IntervalKind, seed: int
) -> Accumulator[BatchT] | Bootstrap[BatchT] | ConfidenceSequence[BatchT]:
    if interval == "bootstrap":
        return Bootstrap(_with(accumulator, None), seed=seed)
    if interval == "confidence-sequence":
        return ConfidenceSequence(_with(accumulator, None))
    estimators = _estimators(accumulator)
    method: IntervalMethod = interval
    if interval == "normal" and "normal" not in estimators[0].intervals:
        method = "delta"
    if method not in estimators[0].intervals:
        offered = ", ".join(estimators[0].intervals)
        raise NoIntervalError(
            "not-of-estimator", f"{estimators[0].kind} has {offered}, but not {interval}"
        )
    if len(estimators) > 1 and method in {"outer", "clopper-pearson"}:
        raise NoIntervalError("not-of-differences", f"{interval} is for one policy's value")
    return _with(accumulator, method)


def _with(accumulator: Accumulator[BatchT], method: IntervalMethod | None) -> Accumulator[BatchT]:
    """The same estimator or difference with another interval, the default if None."""
    wanted: IntervalMethod = "empirical-likelihood" if method is None else method
    fresh = copy.copy(accumulator)
    fresh.tally_, fresh.interval = None, wanted
    if isinstance(fresh, Difference):
        fresh.a, fresh.b = copy.copy(fresh.a), copy.copy(fresh.b)
        for each in (fresh.a, fresh.b):
            each.tally_, each.interval = None, wanted
    return fresh


def _estimators(accumulator: Accumulator[BatchT]) -> tuple[Estimator, ...]:
    if isinstance(accumulator, Difference):
        return (accumulator.a, accumulator.b)
    assert isinstance(accumulator, Estimator)
    return (accumulator,)
