"""Sessions: what a policy would have earned over several decisions that follow each other.

A policy that answers a user several times changes what it meets: the state in which it decides
next. The weight of a step is then not that of its own decision but that of all decisions that led
there. What is estimated is the mean over sessions of ``sum_t d^t r_t``, t < H, with a discount d; a
session that ended earlier stays ended and earns 0.

Session i has at step t the reward r, the ratio ``rho_t = pi(a_t|s_t) / mu(a_t|s_t)`` and a weight
W_t:

- *cumulative*, ``W_t = rho_0 ... rho_t``: right whatever the world is, with a variance that grows
  exponentially with t;
- *marginal*, ``W_t = w(s_t) rho_t``, where ``w(s_t) = E[rho_0 ... rho_(t-1) | s_t]`` is how much
  more often pi is found in that state than mu: a variance that grows with t and no faster, right if
  the state is one, that is if it tells all of the past that the future depends on, and if w is
  right.

Both can be self-normalised, and both can have a critic as control variate
(:class:`SessionEstimator`). After the end of a session its last weight goes on, so that the mean
weight of every step is 1.

The sessions are independent of each other; decisions within one need not be.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

import numpy as np

from croupier.offline.ope.accumulators import Accumulator, Doubt, Linear, Tally
from croupier.offline.ope.batches import ROUNDING
from croupier.policy.errors import InvalidInputError, NoIntervalError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from croupier.offline.ope.intervals import FloatArray, IntervalMethod

__all__ = ("SESSION_ESTIMATORS", "SessionBatch", "SessionEstimator", "SessionWeights")

SessionWeights: TypeAlias = Literal["cumulative", "marginal"]

# Where the columns of an estimator stand; those of the steps follow.
_KEEP, _WEIGHT, _PAYOFF = range(3)

# Numbers of a batch that are worked on at once.
_AT_ONCE = 1 << 20


@dataclass(frozen=True, eq=False, kw_only=True)
class SessionBatch:
    """Sessions as one policy sees them: a row each, a column for each step.

    What stands beyond the end of a session doesn't matter.

    Attributes
    ----------
    reward
        Of every step, shape (n, T), finite.
    propensity
        Probability with which the logged action was drawn, in (0, 1], shape (n, T).
    target_probability
        Probability that the evaluated policy gives to it, in [0, 1], shape (n, T).
    steps
        How many steps each session has, in 1 to T, shape (n,); T of each if None.
    q_logged, v_target
        A critic's expectation of the rewards from a step on, discounted to that step, under the
        evaluated policy: with the logged action at that step, and before it; shape (n, T). Both or
        neither. The critic must not have been fitted on these sessions.
    state_weight
        How much more often the evaluated policy is found in the step's state at that step, at least
        0, shape (n, T); for marginal weights. Not fitted on these sessions either.
    keep_prob
        Probability with which the session was kept in the log, in (0, 1], shape (n,); 1 if None.

    Raises
    ------
    InvalidInputError
        If a field holds something else; it names the field.
    """

    reward: FloatArray
    propensity: FloatArray
    target_probability: FloatArray
    steps: NDArray[np.int64] | None = None
    q_logged: FloatArray | None = None
    v_target: FloatArray | None = None
    state_weight: FloatArray | None = None
    keep_prob: FloatArray | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.reward)
        if len(shape) != 2 or shape[1] == 0:
            raise InvalidInputError("reward", f"expected shape (n, T), got {shape}")
        n, horizon = shape
        steps = np.full(n, horizon) if self.steps is None else _lengths(self.steps, n, horizon)
        object.__setattr__(self, "steps", steps)
        live = np.arange(horizon) < steps[:, None]
        for name, beyond in _BEYOND.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _steps(name, value, live, beyond))
        _require("propensity", self.propensity, self.propensity > 0.0, "in (0, 1]")
        for name in ("propensity", "target_probability"):
            value = getattr(self, name)
            fine = (value >= 0.0) & (value <= 1.0 + ROUNDING)
            _require(name, value, fine, "in [0, 1]")
        if self.state_weight is not None:
            _require("state_weight", self.state_weight, self.state_weight >= 0.0, "at least 0")
        if (self.q_logged is None) != (self.v_target is None):
            missing = "q_logged" if self.q_logged is None else "v_target"
            raise InvalidInputError(missing, "expected q_logged and v_target, or neither")
        if self.keep_prob is not None:
            keep = np.asarray(self.keep_prob, dtype=np.float64)
            if keep.shape != (n,):
                raise InvalidInputError("keep_prob", f"expected shape ({n},), got {keep.shape}")
            _require("keep_prob", keep, (keep > 0.0) & (keep <= 1.0), "in (0, 1]")
            object.__setattr__(self, "keep_prob", keep)

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def keep_weight(self) -> FloatArray:
        """How many sessions of the stream a row stands for, shape (n,)."""
        return np.ones(len(self)) if self.keep_prob is None else 1.0 / self.keep_prob

    def weights(self, kind: SessionWeights, horizon: int) -> FloatArray:
        """Of every step before the horizon, shape (n, horizon); the last one after the end.

        Raises
        ------
        InvalidInputError
            If the weights are marginal and the batch has no `state_weight`, or has more steps.
        """
        length = self.reward.shape[1]
        assert self.steps is not None
        ratio = self.target_probability / self.propensity
        if kind == "cumulative":
            weight = ratio.cumprod(axis=1)
        elif self.state_weight is None:
            raise InvalidInputError("state_weight", "expected them for marginal weights")
        else:
            # Beyond the end they are those of the last step.
            last = np.minimum(np.arange(length), self.steps[:, None] - 1)
            weight = np.take_along_axis(self.state_weight * ratio, last, axis=1)
        if horizon <= length:
            return weight[:, :horizon]
        return np.concatenate((weight, np.repeat(weight[:, -1:], horizon - length, axis=1)), axis=1)

    def parts(self) -> Iterator[Self]:
        """The sessions, some at a time."""
        rows = max(1, _AT_ONCE // self.reward.shape[1])
        for start in range(0, len(self), rows):
            part = object.__new__(type(self))
            for field in fields(self):
                value = getattr(self, field.name)
                cut = None if value is None else value[start : start + rows]
                # What was checked once isn't again.
                object.__setattr__(part, field.name, cut)
            yield part


class SessionEstimator(Accumulator[SessionBatch]):
    r"""Value of a policy over sessions, as an accumulator that adds batches and merges with others.

    With W for the weights, ``W_(-1) = 1``, q for the critic at the logged action and v before it::

        plain       mean_i sum_t d^t W_t r_t
        control     mean_i sum_t d^t (W_t (r_t - q_t) + W_(t-1) v_t)
        normalised  each W_t divided by its mean over the sessions

    =============  ==========  ==========  =======  ======================================
    name           weights     normalised  control  known as
    =============  ==========  ==========  =======  ======================================
    ``pdis``       cumulative  no          no       per-decision importance sampling
    ``wpdis``      cumulative  yes         no       its weighted form
    ``sdr``        cumulative  no          yes      sequential doubly robust
    ``wdr``        cumulative  yes         yes      weighted doubly robust
    ``mis``        marginal    no          no       marginalised importance sampling
    ``wmis``       marginal    yes         no       its weighted form
    ``mdr``        marginal    no          yes      double reinforcement learning
    ``wmdr``       marginal    yes         yes      its weighted form
    =============  ==========  ==========  =======  ======================================

    The intervals are large-sample ones over sessions; a ratio's denominators are taken as the
    random sums that they are. Of ``mis`` and ``wmis`` they tell nothing of the error of the state
    weights, which an `Estimate` says (``own-expectation``). With a control both errors have to be
    large for the estimate to be off: it is right if either the critic or the weights are.

    Sources: Precup, Sutton & Singh, "Eligibility Traces for Off-Policy Policy Evaluation", ICML
    2000; Jiang & Li, "Doubly Robust Off-policy Value Evaluation for Reinforcement Learning", ICML
    2016; Thomas & Brunskill, "Data-Efficient Off-Policy Policy Evaluation for Reinforcement
    Learning", ICML 2016; Xie, Ma & Wang, "Towards Optimal Off-Policy Evaluation for Reinforcement
    Learning with Marginalized Importance Sampling", NeurIPS 2019; Kallus & Uehara, "Double
    Reinforcement Learning for Efficient Off-Policy Evaluation in Markov Decision Processes", JMLR
    2020.

    Parameters
    ----------
    weights
        ``cumulative`` or ``marginal``; the latter needs a batch's `state_weight`.
    normalised, control
        See above; a control needs a batch's `q_logged` and `v_target`.
    horizon
        H, how many steps count; sessions may be longer.
    discount
        d, in (0, 1].

    Raises
    ------
    InvalidInputError
        If a parameter is not of these; it names the parameter.
    """

    def __init__(
        self,
        *,
        weights: SessionWeights = "cumulative",
        normalised: bool = True,
        control: bool = False,
        horizon: int,
        discount: float = 1.0,
    ) -> None:
        super().__init__()
        if weights not in ("cumulative", "marginal"):
            raise InvalidInputError("weights", f"expected cumulative or marginal, got {weights!r}")
        if horizon < 1:
            raise InvalidInputError("horizon", f"expected at least 1, got {horizon!r}")
        if not 0.0 < discount <= 1.0:
            raise InvalidInputError("discount", f"expected a number in (0, 1], got {discount!r}")
        self.weights: SessionWeights = weights
        self.normalised = normalised
        self.control = control
        self.horizon = horizon
        self.discount = discount
        self.interval: IntervalMethod = "delta" if normalised else "normal"

    @classmethod
    def named(cls, name: str, *, horizon: int, discount: float = 1.0) -> Self:
        """The estimator of a name.

        Raises
        ------
        InvalidInputError
            If there is none.
        """
        if name not in SESSION_ESTIMATORS:
            raise InvalidInputError("name", f"expected one of {', '.join(SESSION_ESTIMATORS)}")
        weights, normalised, control = SESSION_ESTIMATORS[name]
        return cls(
            weights=weights,
            normalised=normalised,
            control=control,
            horizon=horizon,
            discount=discount,
        )

    @property
    def name(self) -> str:
        """Goes into :class:`~croupier.offline.ope.Estimate`."""
        kind = (self.weights, self.normalised, self.control)
        return next(name for name, each in SESSION_ESTIMATORS.items() if each == kind)

    def parameters(self) -> tuple[object, ...]:
        """The constructor's parameters; only estimators with equal ones can be merged."""
        return (self.weights, self.normalised, self.control, self.horizon, self.discount)

    def columns(self, batch: SessionBatch) -> FloatArray:
        """Per session (c, c W_(H-1), c payoff); normalised, c times each step's parts follow."""
        keep = batch.keep_weight
        weight = batch.weights(self.weights, self.horizon)
        before = np.concatenate((np.ones((len(batch), 1)), weight[:, :-1]), axis=1)
        residual, expected = self._rewards(batch)
        earned, carried = weight * residual, before * expected
        payoff = (earned + carried).sum(axis=1)
        ends = np.column_stack((keep, keep * weight[:, -1], keep * payoff))
        if not self.normalised:
            return ends
        parts = (weight, earned, carried) if self.control else (weight, earned)
        return np.concatenate((ends, *(keep[:, None] * each for each in parts)), axis=1)

    def point(self, mean: FloatArray) -> tuple[float, FloatArray]:
        """The value as a function of the columns' means, and its gradient there."""
        gradient = np.zeros(len(mean))
        if not self.normalised:
            value = float(mean[_PAYOFF] / mean[_KEEP])
            gradient[[_PAYOFF, _KEEP]] = 1.0 / mean[_KEEP], -value / mean[_KEEP]
            return value, gradient
        steps = self.horizon
        weight, earned = mean[3 : 3 + steps], mean[3 + steps : 3 + 2 * steps]
        if weight.min() <= 0.0:
            raise NotEnoughDataError("the evaluated policy takes none of the logged courses")
        gradient[3 : 3 + steps] = -earned / weight**2
        gradient[3 + steps : 3 + 2 * steps] = 1.0 / weight
        value = float((earned / weight).sum())
        if self.control:
            carried = mean[3 + 2 * steps :]
            before = np.concatenate((mean[[_KEEP]], weight[:-1]))
            value += float((carried / before).sum())
            gradient[3 + 2 * steps :] = 1.0 / before
            of_before = -carried / before**2
            gradient[_KEEP] += of_before[0]
            gradient[3 : 2 + steps] += of_before[1:]
        return value, gradient

    def linear(self, tally: Tally) -> Linear:
        """Not for sessions: raises NoIntervalError."""
        del tally
        raise NoIntervalError("no range", "what sessions can earn has no range that is known")

    def doubts_of_its_own(self) -> tuple[Doubt, ...]:
        """That of what rests on state weights alone."""
        return ("own-expectation",) if self.weights == "marginal" and not self.control else ()

    def _rewards(self, batch: SessionBatch) -> tuple[FloatArray, FloatArray]:
        """Discounted rewards less the critic's q, and its v; both (n, H), 0 after the end."""
        given: list[FloatArray] = [batch.reward]
        if self.control:
            if batch.q_logged is None or batch.v_target is None:
                raise InvalidInputError("q_logged", f"expected a critic's for {self.name}")
            given += [batch.q_logged, batch.v_target]
        n, length = batch.reward.shape
        used = min(length, self.horizon)
        factor = self.discount ** np.arange(used)
        whole = np.zeros((len(given), n, self.horizon))
        for target, values in zip(whole, given, strict=True):
            target[:, :used] = values[:, :used] * factor
        return (
            (whole[0] - whole[1], whole[2]) if self.control else (whole[0], np.zeros_like(whole[0]))
        )

    def _count(self, batch: SessionBatch) -> Tally:
        columns = self.columns(batch)
        keep = columns[:, _KEEP]
        weight = columns[:, _WEIGHT] / keep
        nonzero = weight * np.abs(batch.reward[:, : self.horizon]).sum(axis=1)
        return Tally.of(columns=columns, tracked=(keep, weight), nonzero=nonzero)

    def _weight_columns(self) -> tuple[tuple[int, int], ...]:
        return ((_WEIGHT, 1),)


SESSION_ESTIMATORS: Final[dict[str, tuple[SessionWeights, bool, bool]]] = {
    "pdis": ("cumulative", False, False),
    "wpdis": ("cumulative", True, False),
    "sdr": ("cumulative", False, True),
    "wdr": ("cumulative", True, True),
    "mis": ("marginal", False, False),
    "wmis": ("marginal", True, False),
    "mdr": ("marginal", False, True),
    "wmdr": ("marginal", True, True),
}
"""Weights, normalised or not, with a control or without, by name."""

# What stands in a field after a session's end: it earns nothing, and weights go on as they are.
_BEYOND: Final = {
    "reward": 0.0,
    "propensity": 1.0,
    "target_probability": 1.0,
    "q_logged": 0.0,
    "v_target": 0.0,
    "state_weight": 0.0,
}


def _lengths(value: object, n: int, horizon: int) -> NDArray[np.int64]:
    steps = np.asarray(value)
    if steps.shape != (n,) or steps.dtype.kind not in "iu":
        raise InvalidInputError(
            "steps", f"expected integers of shape ({n},), got {steps.dtype} of shape {steps.shape}"
        )
    _require("steps", steps, (steps >= 1) & (steps <= horizon), f"in 1 to {horizon}")
    return steps.astype(np.int64)


def _steps(name: str, value: object, live: NDArray[np.bool_], beyond: float) -> FloatArray:
    """A field as float64 numbers, with what stands beyond the ends put right."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(name, f"expected numbers: {error}") from error
    if array.shape != live.shape:
        raise InvalidInputError(name, f"expected shape {live.shape}, got {array.shape}")
    array = np.where(live, array, beyond)
    _require(name, array, np.isfinite(array), "finite")
    return array


def _require(name: str, array: NDArray[np.generic], fine: NDArray[np.bool_], what: str) -> None:
    if not fine.all():
        wrong = np.argwhere(~fine)[0]
        place = ", ".join(map(str, wrong))
        raise InvalidInputError(
            name, f"expected values {what}, got {array[tuple(wrong)]} at {place}"
        )
