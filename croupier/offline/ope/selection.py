"""Choosing an estimator by trying it where the answer is known: in a log cut in two.

Rows are dealt into two parts by the action that was logged, so that one part is a log of one
policy and the rest a log of another, and the two policies differ as the evaluated one and the
logging one do. In the first part the first policy's value can be read off; how far an estimator is
from it, given the rest, is what it would be off by in the whole log. Unlike SLOPE, this takes any
estimators, in no order, and asks for both policies' whole pmfs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.offline.ope.batches import ROUNDING, LoggedBatch
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.offline.ope.estimators import Estimator
    from croupier.offline.ope.intervals import FloatArray

__all__ = ("DealtPolicies", "PolicyLog", "Trial", "deal", "select")

# Newton's steps for the multiplier, which stop when the share is met to this, and for a root.
_OUTER, _PRECISION, _STEPS = 60, 1e-12, 12


@dataclass(frozen=True, eq=False, kw_only=True)
class PolicyLog:
    """A log, both policies' pmfs over all actions, and a reward model's predictions.

    Every row was kept with the same probability.

    Attributes
    ----------
    action
        The logged ones, integers in [0, K), shape (n,).
    reward
        Finite, shape (n,).
    logging, target
        Pmfs of the logging and of the evaluated policy, shape (n, K). Wherever the evaluated
        policy has a probability, so has the logging one.
    q
        Predictions of every action's reward by a model that hasn't seen the row, shape (n, K);
        None if there is no model.

    Raises
    ------
    InvalidInputError
        If a field holds something else; it names the field.
    """

    action: NDArray[np.intp]
    reward: FloatArray
    logging: FloatArray
    target: FloatArray
    q: FloatArray | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.logging)
        if len(shape) != 2 or shape[0] < 2:
            raise InvalidInputError("logging", f"expected shape (n, K), n >= 2, got {shape}")
        for name in ("logging", "target", "q"):
            table = getattr(self, name)
            if table is not None and (np.shape(table) != shape or not np.isfinite(table).all()):
                raise InvalidInputError(name, f"expected finite numbers of shape {shape}")
        for name in ("logging", "target"):
            _require_pmfs(name, getattr(self, name))
        chosen = np.asarray(self.action)
        if chosen.shape != shape[:1] or ((chosen < 0) | (chosen >= shape[1])).any():
            raise InvalidInputError("action", f"expected {shape[0]} integers in [0, {shape[1]})")
        if np.shape(self.reward) != shape[:1] or not np.isfinite(self.reward).all():
            raise InvalidInputError("reward", f"expected {shape[0]} finite numbers")
        if (self.logging[np.arange(len(chosen)), chosen] <= 0.0).any():
            raise InvalidInputError("action", "expected logged actions of positive probability")
        if ((self.target > 0.0) & (self.logging <= 0.0)).any():
            raise InvalidInputError("target", "expected no action that the log could not have")


@dataclass(frozen=True, eq=False)
class DealtPolicies:
    """How rows are dealt, and what policies the two parts are logs of.

    Attributes
    ----------
    chance
        Probability with which a row goes to the first part if its action is a, shape (n, K).
    evaluated, logging
        Pmfs of the first part and of the rest, shape (n, K).
    distance
        Mean over rows and logged actions of the squared difference between the weights
        ``evaluated / logging`` and those that were to be imitated.
    """

    chance: FloatArray
    evaluated: FloatArray
    logging: FloatArray
    distance: float


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """How an estimator did.

    Attributes
    ----------
    estimator
        Its name.
    mean_squared_error
        Estimated; that of the first part's own mean reward, which is the same for all estimators,
        is in it.
    standard_error
        Of it, over the rounds.
    chosen
        Whether it has the least.
    """

    estimator: str
    mean_squared_error: float
    standard_error: float
    chosen: bool


def deal(logging: FloatArray, target: FloatArray, share: float) -> DealtPolicies:
    r"""Deal rows so that the parts' weights are as close as can be to the policies' weights.

    With chances rho(a) of the first part, ``sum_a mu(a) rho(a) = k``, the first part is a log of
    ``mu rho / k`` and the rest one of ``mu (1 - rho) / (1 - k)``; their weight is ``o(a) / t`` with
    odds ``o = rho / (1 - rho)``, ``t = k / (1 - k)``. Importance fitting asks in every context
    for::

        min_rho sum_a mu(a) (o(a) / t - w(a))^2   subject to   sum_a mu(a) rho(a) = k

    which is convex in the odds: the demand is met with ">=" at no more cost, as ``o = t w`` has too
    small a sum by Jensen's inequality. By Lagrange's condition ``(o - t w) (1 + o)^2`` is the same
    nonnegative number for all actions, found by Newton's steps, as the odds are from it. As k goes
    to 0 they go to ``t w`` and the weights to those of the policies.

    Source: Udagawa, Kiyohara, Narita, Saito & Tateno, "Policy-Adaptive Estimator Selection for
    Off-Policy Evaluation", AAAI 2023 (PAS-IF). There rho is a network of context and action, fitted
    by gradient descent to the same distance plus a penalty on ``(sum_a mu rho - k)^2``. Both
    policies' pmfs are at hand for every row, so it is solved here row by row; with k met exactly in
    every context, both parts have the contexts of the log.

    Parameters
    ----------
    logging, target
        Pmfs, shape (n, K); where `logging` is 0, so is `target`.
    share
        k, in (0, 1).

    Raises
    ------
    InvalidInputError
        If `share` is out of its range.
    """
    if not 0.0 < share < 1.0:
        raise InvalidInputError("share", f"expected a number in (0, 1), got {share}")
    weight = np.divide(target, logging, out=np.zeros(np.shape(logging)), where=logging > 0.0)
    times = share / (1.0 - share)
    wanted = times * weight
    level = np.zeros((len(logging), 1))
    # The sum is concave in the level: steps from 0 rise to the root and don't pass it.
    for _ in range(_OUTER):
        odds = _odds(wanted, level)
        missing = share - (logging * (odds / (1.0 + odds))).sum(axis=1, keepdims=True)
        if missing.max() <= _PRECISION * share:
            break
        rise = 1.0 / ((1.0 + odds) ** 3 * (1.0 + 3.0 * odds - 2.0 * wanted))
        slope = (logging * rise).sum(axis=1, keepdims=True)
        level += np.maximum(missing, 0.0) / slope
    chance = odds / (1.0 + odds)
    first, rest = logging * chance, logging / (1.0 + odds)
    difference = logging * (odds / times - weight) ** 2
    return DealtPolicies(
        chance=chance,
        evaluated=first / first.sum(axis=1, keepdims=True),
        logging=rest / rest.sum(axis=1, keepdims=True),
        distance=float(difference.sum(axis=1).mean()),
    )


def select(
    log: PolicyLog,
    estimators: Sequence[Estimator],
    *,
    rng: np.random.Generator,
    share: float = 0.2,
    rounds: int = 100,
) -> list[Trial]:
    """Try estimators on a log cut in two, often; the one of least mean squared error is chosen.

    In every round n rows are drawn from the log with replacement and dealt (:func:`deal`): drawn
    rows fall into the two parts independently of each other, as two logs would. With e the mean
    reward of the first part::

        mean squared error = mean over rounds of (v(rest) - e)^2 - var(d) / n,
        d_i = (1 - rho_i) / (1 - k) psi_i - rho_i / k (r_i - e)

    with psi the estimator's influence function, ``v(rest)``'s gradient times the row. All rounds
    deal one log, and what is taken off is what its luck adds to all of them: the first part's
    share in it is IPS's too, but not that of the direct method, which doesn't follow single
    rewards.

    It can't know what the rest, of ``1 - share`` of the rows and with weights somewhat closer
    together than the policies', doesn't show. Rewards of the first part may be known to the model
    that predicts the rest.

    Source: as for :func:`deal`, with bootstrap draws; what is taken off is own work.

    Parameters
    ----------
    log
        The rows; estimators with a reward model need its `q`.
    estimators
        At least two, of which only the parameters are used.
    rng
        Draws and deals.
    share
        Expected share of the first part, in (0, 1). The smaller, the closer are the weights to
        those of the policies and the noisier is the answer that estimators are held against.
    rounds
        How often, at least 2.

    Returns
    -------
    list of Trial
        In the order of `estimators`.

    Raises
    ------
    InvalidInputError
        If a parameter is out of its range, or an estimator lacks something.
    NotEnoughDataError
        If an estimator has no value on a part.
    """
    if len(estimators) < 2:
        raise InvalidInputError("estimators", f"expected at least 2, got {len(estimators)}")
    if rounds < 2:
        raise InvalidInputError("rounds", f"expected at least 2, got {rounds}")
    dealt = deal(log.logging, log.target, share)
    rows = np.arange(len(log.reward))
    whole = _batch(log, dealt, rows)
    columns = [each.columns(whole) for each in estimators]
    chance = dealt.chance[rows, log.action]
    errors = np.empty((rounds, len(estimators)))
    for number in range(rounds):
        drawn = rng.integers(len(rows), size=len(rows))
        first = rng.random(len(rows)) < chance[drawn]
        if first.all() or not first.any():
            raise InvalidInputError("share", f"expected rows in both parts, got {share} of them")
        truth = float(log.reward[drawn[first]].mean())
        counts = np.bincount(drawn[~first], minlength=len(rows)).astype(np.float64)
        counts /= counts.sum()
        errors[number] = [
            each.point(counts @ its)[0] - truth
            for each, its in zip(estimators, columns, strict=True)
        ]
    squares = errors**2
    luck = [
        _luck(each, its, chance, log.reward) for each, its in zip(estimators, columns, strict=True)
    ]
    means = squares.mean(axis=0) - np.array(luck)
    spread = squares.std(axis=0, ddof=1) / np.sqrt(rounds)
    return [
        Trial(
            estimator=each.name,
            mean_squared_error=float(means[i]),
            standard_error=float(spread[i]),
            chosen=i == int(np.argmin(means)),
        )
        for i, each in enumerate(estimators)
    ]


def _luck(
    estimator: Estimator, columns: FloatArray, chance: FloatArray, reward: FloatArray
) -> float:
    """Variance, over logs, of an estimator's mean error over all ways to deal one."""
    first, rest = chance / chance.sum(), (1.0 - chance) / (1.0 - chance).sum()
    _, gradient = estimator.point(rest @ columns)
    influence = rest * (columns @ gradient) - first * (reward - float(first @ reward))
    n = len(reward)
    return float(n / (n - 1) * (influence @ influence))


def _odds(wanted: FloatArray, level: FloatArray) -> FloatArray:
    """The root ``o >= wanted`` of ``(o - wanted) (1 + o)^2 = level``, shape (n, K).

    The left side is convex and rising there, so that Newton's steps from above fall onto the root.
    """
    odds = wanted + np.minimum(level, np.cbrt(level))
    for _ in range(_STEPS):
        above = odds - wanted
        value = above * (1.0 + odds) ** 2 - level
        odds = np.maximum(odds - value / ((1.0 + odds) * (1.0 + odds + 2.0 * above)), wanted)
    return odds


def _batch(log: PolicyLog, dealt: DealtPolicies, rows: NDArray[np.intp]) -> LoggedBatch:
    """The log as one of the rest's policy, for the first part's to be evaluated on."""
    return LoggedBatch(
        reward=log.reward,
        propensity=dealt.logging[rows, log.action],
        target_probability=dealt.evaluated[rows, log.action],
        q_logged=None if log.q is None else log.q[rows, log.action],
        q_target=None if log.q is None else (log.q * dealt.evaluated).sum(axis=1),
    )


def _require_pmfs(name: str, table: FloatArray) -> None:
    if (table < 0.0).any() or (np.abs(table.sum(axis=1) - 1.0) > _SUMS).any():
        raise InvalidInputError(name, "expected probabilities that sum to 1 in every row")


# Sums of many float64 probabilities.
_SUMS = 1e3 * ROUNDING
