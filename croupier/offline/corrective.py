"""Corrective sampling: a generation plays more often what the log has too little of.

A log that was drawn on-policy differs from what the policy would do by chance, and one that
earlier generations have drawn differs by more. What is logged next can make up for it: instead of
its policy p a generation plays a tilted q, see :class:`~croupier.policy.tilt.Tilt`, so that the log
with what is added looks as if p had drawn all of it. The propensities that are logged are q's.

References
----------
Corrado and Hanna, "On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling",
2023 (PROPS): the loss and the stop. It is minimised here over one log-weight for each action in the
place of a network's parameters, and to its minimum, as that is a small problem.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from croupier.offline.interactions import keep_weights, logged_requests
from croupier.policy.errors import InvalidInputError
from croupier.policy.tilt import Tilt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.offline.interactions import LoggedRequest
    from croupier.policy.generation import Generation
    from croupier.policy.training import Corrective

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

__all__ = ("corrective_tilt", "still_remembered")

_ROWS = 20_000
_CANDIDATES = 2_000_000
_STEPS = 200
_HALVINGS = 30
# Of the loss, relative to which an improvement is one, and of a weight that is worth keeping.
_TOLERANCE = 1e-9
_LEAST_WEIGHT = 1e-4


def still_remembered(learned: pl.DataFrame, window_generations: int | None) -> pl.DataFrame:
    """Rows that will be learned from again, together with what the next generation logs.

    Parameters
    ----------
    learned
        Rows of the interactions table that were learned from now.
    window_generations
        How many generations' logs are learned from. Where there are as many, the oldest has had
        its last turn.
    """
    served = learned["generation"].unique()
    if window_generations is None or len(served) < window_generations:
        return learned
    return learned.filter(pl.col("generation") > served.min())


def corrective_tilt(
    generation: Generation, config: Corrective, rows: pl.DataFrame, *, seed: int
) -> tuple[Tilt | None, float | None]:
    """The tilt that minimises PROPS' loss on a log, and its mean relative entropy.

    ``mean_i max(r_i, clip(r_i, 1 - ε, 1 + ε)) + λ mean_i KL(q(·|x_i) ‖ p(·|x_i))`` with the ratio
    ``r_i = q(a_i|x_i) / p(a_i|x_i)`` of what was logged; p is what `generation` plays untilted. As
    a maximum with r_i, the clip only ends what is gained below 1 - ε. Gradient steps from w = 0,
    each divided by the variance of the action under p and halved until the loss falls, go on to the
    minimum or to where the mean relative entropy is `max_kl`. Weights stay within
    ``± log(1 + 1 / λ)``: an action that was never logged would otherwise be worth ``exp(1 / λ)``
    times its probability, much more than what makes up for it.

    Floors are restored when the tilt is applied, and are not part of the loss.

    Parameters
    ----------
    generation
        Whose policy is to be tilted; its own tilt, if it has one, doesn't count.
    config
        λ, ε and the most relative entropy.
    rows
        Of the interactions table, each of which counts for ``1 / keep_prob``. Up to 20,000 are
        taken, fewer where there are many actions: in a longer log little is left to chance, and
        what is corrected is how policies differ. Rows that can't be encoded, or whose action p
        never plays, are left out.
    seed
        Of the choice of rows.

    Returns
    -------
    tilt
        None if there is nothing to correct.
    kl
        Mean of KL(q ‖ p) in nats, in [0, max_kl]; None without a tilt.
    """
    log = _PlayedLog.of(generation, _sample(rows, seed))
    if log is None:
        return None, None
    bound = float(np.log1p(1.0 / config.kl))
    weights = _minimised(_Loss(log, config), bound, config.max_kl)
    kept = np.abs(weights) >= _LEAST_WEIGHT
    if not kept.any():
        return None, None
    weights = np.where(kept, weights, 0.0)
    named = sorted(zip(log.ids, weights.tolist(), strict=True))
    tilt = Tilt(tuple((action_id, weight) for action_id, weight in named if weight != 0.0))
    return tilt, log.divergence(weights)


def _sample(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    if rows.is_empty():
        return rows
    candidates = float(rows["action_ids"].list.len().to_numpy().mean())
    return rows.sample(min(len(rows), _ROWS, max(int(_CANDIDATES / candidates), 1)), seed=seed)


@dataclass(frozen=True, slots=True)
class _PlayedLog:
    """Logged requests, with what can be played in each laid end to end: N entries for n rows.

    Attributes
    ----------
    ids
        Of the A actions.
    pmf, action
        Probabilities under p, all positive, and whose they are among `ids`; shape (N,).
    row, starts
        Which row an entry belongs to, shape (N,), and where each row starts, shape (n,).
    chosen
        Which of `ids` was logged, shape (n,).
    counts
        Share of all decisions that a row stands for, shape (n,), summing to 1.
    """

    ids: list[str]
    pmf: FloatArray
    action: IntArray
    row: IntArray
    starts: IntArray
    chosen: IntArray
    counts: FloatArray

    @classmethod
    def of(cls, generation: Generation, rows: pl.DataFrame) -> _PlayedLog | None:
        """What a policy makes of a log; None where it never plays what was logged."""
        known: dict[str, int] = {}
        parts: list[tuple[FloatArray, list[int]]] = []
        chosen, counts = [], []
        for request, count in zip(logged_requests(rows), keep_weights(rows).tolist(), strict=True):
            pmf = _plain_pmf(generation, request)
            if pmf is None or pmf[request.chosen] <= 0.0:
                continue
            played = np.flatnonzero(pmf > 0.0)
            names = (request.actions[each].id for each in played.tolist())
            parts.append((pmf[played], [known.setdefault(name, len(known)) for name in names]))
            chosen.append(known[request.actions[request.chosen].id])
            counts.append(count)
        if not parts:
            return None
        lengths = np.array([len(pmf) for pmf, _ in parts])
        return cls(
            ids=list(known),
            pmf=np.concatenate([pmf for pmf, _ in parts]),
            action=np.concatenate([np.array(actions) for _, actions in parts]),
            row=np.repeat(np.arange(len(parts)), lengths),
            starts=np.concatenate([[0], np.cumsum(lengths)[:-1]]),
            chosen=np.array(chosen),
            counts=np.array(counts) / np.sum(counts),
        )

    def tilted(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Probabilities q, shape (N,), and the logarithms of its divisors, shape (n,)."""
        odds = self.pmf * np.exp(weights[self.action])
        sums = np.add.reduceat(odds, self.starts)
        return odds / sums[self.row], np.log(sums)

    def by_action(self, values: FloatArray) -> FloatArray:
        """Sums over the entries of each action, shape (A,)."""
        return np.asarray(np.bincount(self.action, values, len(self.ids)), dtype=np.float64)

    def divergence(self, weights: FloatArray) -> float:
        """Mean of ``KL(q ‖ p) = Σ q w - log Σ p exp(w)``."""
        q, log_sums = self.tilted(weights)
        means = np.add.reduceat(q * weights[self.action], self.starts)
        return max(float(self.counts @ (means - log_sums)), 0.0)


def _plain_pmf(generation: Generation, request: LoggedRequest) -> FloatArray | None:
    """What would be played untilted; None if the request can't be encoded."""
    with suppress(InvalidInputError):
        return generation.untilted_pmf(
            request.context, request.actions, request.eligible, request.baseline
        )[0]
    return None


class _Loss:
    """PROPS' loss over log-weights, with its gradient."""

    def __init__(self, log: _PlayedLog, config: Corrective) -> None:
        self.log = log
        self._price, self._least = config.kl, 1.0 - config.clip
        variance = log.by_action(log.counts[log.row] * log.pmf * (1.0 - log.pmf))
        # An action that is the only one wherever it is has no variance, and nothing to be gained.
        self._scale = np.divide(1.0, variance, out=np.zeros_like(variance), where=variance > 0.0)

    def __call__(self, weights: FloatArray) -> float:
        """The loss."""
        ratios = self._ratios(weights, self.log.tilted(weights)[1])
        gained = float(self.log.counts @ np.maximum(ratios, self._least))
        return gained + self._price * self.log.divergence(weights)

    def direction(self, weights: FloatArray) -> FloatArray:
        """Minus the gradient, over the price and the variance of each action under p."""
        log = self.log
        q, log_sums = log.tilted(weights)
        ratios = self._ratios(weights, log_sums)
        pushed = np.where(ratios > self._least, log.counts * ratios, 0.0)
        of_chosen = np.bincount(log.chosen, pushed, minlength=len(log.ids))
        means = np.add.reduceat(q * weights[log.action], log.starts)
        of_divergence = log.counts[log.row] * q * (weights[log.action] - means[log.row])
        gradient = of_chosen + log.by_action(self._price * of_divergence - pushed[log.row] * q)
        return np.asarray(-gradient * self._scale / self._price)

    def _ratios(self, weights: FloatArray, log_sums: FloatArray) -> FloatArray:
        return np.asarray(np.exp(weights[self.log.chosen] - log_sums))


def _minimised(loss: _Loss, bound: float, max_kl: float) -> FloatArray:
    """Log-weights within ± `bound`, from 0 to the minimum or to where the limit is met."""
    weights = np.zeros(len(loss.log.ids))
    value = loss(weights)
    for _ in range(_STEPS):
        found = _lower(loss, weights, value, bound)
        if found is None:
            break
        if loss.log.divergence(found) > max_kl:
            return _until(loss.log, weights, found, max_kl)
        weights, value = found, loss(found)
    return weights


def _lower(loss: _Loss, weights: FloatArray, value: float, bound: float) -> FloatArray | None:
    """Weights on the way down with a lower loss; None where there is none to speak of."""
    direction, size = loss.direction(weights), 1.0
    for _ in range(_HALVINGS):
        tried = np.clip(weights + size * direction, -bound, bound)
        if loss(tried) < value - _TOLERANCE:
            return tried
        size /= 2.0
    return None


def _until(log: _PlayedLog, inside: FloatArray, beyond: FloatArray, max_kl: float) -> FloatArray:
    """The farthest weights on a line that are still within the limit, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        within = log.divergence(inside + middle * (beyond - inside)) <= max_kl
        low, high = (middle, high) if within else (low, middle)
    return inside + low * (beyond - inside)
