"""Slates, rankings and slots: several actions in one decision.

A decision fills L positions; position l has reward r_l and a factor f_l, ``sum_l f_l r_l`` being
what the slate is worth. The weight of the whole slate is a product over positions and soon useless,
so estimators differ in what they assume of how positions act on each other:

==========  ===========================================  ======================================
estimator   payoff of a slate                            right if
==========  ===========================================  ======================================
``sips``    ``W sum_l f_l r_l``, W of the whole slate    always
``rips``    ``sum_l f_l r_l prod_{j <= l} w_j``          r_l depends on positions up to l
``iips``    ``sum_l f_l r_l w_l``                        r_l depends on position l only
``pi``      ``(sum_l w_l - L + 1) sum_l f_l r_l``        the slate's reward is a sum of parts, one
                                                         of each position
==========  ===========================================  ======================================

For ``rips`` the weights w_l are those of a position given the ones before it; for ``iips`` and
``pi`` those of what stands there, whatever the others. The pseudo-inverse is in the form for slots
that are filled independently, where it needs no matrix.

Source: SIPS, Precup, Sutton & Singh, ICML 2000; IIPS, Li, Abbasi-Yadkori, Kveton, Muthukrishnan,
Vinay & Wen, "Offline Evaluation of Ranking Policies with Click Models", KDD 2018; RIPS, McInerney,
Brost, Chandar, Mehrotra & Carterette, "Counterfactual Evaluation of Slate Recommendations with
Sequential Reward Interactions", KDD 2020; PI, Swaminathan et al., "Off-policy evaluation for slate
recommendation", NeurIPS 2017, example 4 (arXiv 1605.04812).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, get_args

import msgspec
import numpy as np

from croupier.offline.ope.batches import LoggedBatch
from croupier.offline.ope.intervals import Moments, normal_interval
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from croupier.offline.ope.intervals import FloatArray

__all__ = ("SlateBatch", "SlateEstimate", "SlateEstimator", "SlateKind", "slate_rows")

SlateKind: TypeAlias = Literal["sips", "rips", "iips", "pi"]


@dataclass(frozen=True, eq=False, kw_only=True)
class SlateBatch:
    """Slates as one policy sees them; every slate has L positions.

    Anything that numpy can turn into a float64 array is accepted and stored as one.

    Attributes
    ----------
    reward
        Per position, finite, shape (n, L).
    propensity
        Probability of what stands at the position: under the logging policy given the positions
        before it (for ``sips`` and ``rips``), or whatever the others (for ``iips`` and ``pi``; the
        two are the same where slots are filled independently). In (0, 1], shape (n, L).
    target_probability
        The same under the evaluated policy, in [0, 1], shape (n, L).
    keep_prob
        Probability with which the slate was kept in the log, in (0, 1], shape (n,); 1 if None.

    Raises
    ------
    InvalidInputError
        If a field holds something else; it names the field.
    """

    reward: FloatArray
    propensity: FloatArray
    target_probability: FloatArray
    keep_prob: FloatArray | None = None

    def __post_init__(self) -> None:
        for name in ("reward", "propensity", "target_probability"):
            array = np.asarray(getattr(self, name), dtype=np.float64)
            if array.ndim != 2 or array.shape[1] == 0:
                raise InvalidInputError(name, f"expected shape (n, L), got {array.shape}")
            if not np.isfinite(array).all():
                raise InvalidInputError(name, "expected finite numbers only")
            object.__setattr__(self, name, array)
        for name in ("propensity", "target_probability"):
            array = getattr(self, name)
            if array.shape != self.reward.shape:
                raise InvalidInputError(
                    name, f"expected shape {self.reward.shape}, got {array.shape}"
                )
            lowest = array.min(initial=1.0)
            if lowest < 0.0 or array.max(initial=0.0) > 1.0 + 1e-9:
                raise InvalidInputError(name, "expected values in [0, 1]")
        if self.propensity.min(initial=1.0) <= 0.0:
            raise InvalidInputError("propensity", "expected values in (0, 1]")
        if self.keep_prob is not None:
            keep = np.asarray(self.keep_prob, dtype=np.float64)
            if keep.shape != (len(self),) or not ((keep > 0.0) & (keep <= 1.0)).all():
                raise InvalidInputError("keep_prob", f"expected {len(self)} values in (0, 1]")
            object.__setattr__(self, "keep_prob", keep)

    def __len__(self) -> int:
        return len(self.reward)


class SlateEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a slate of the policy is worth, with its normal or delta interval.

    Attributes
    ----------
    estimator
        ``iips`` or ``sn-iips``, for example.
    value, lower, upper
        In the reward's unit per slate.
    confidence
        Nominal coverage, in (0, 1).
    n
        Number of slates.
    mean_weights
        Mean weight of each position (of the slate for ``sips`` and ``pi``); each has the
        expectation 1.
    """

    estimator: str
    value: float
    lower: float
    upper: float
    confidence: float
    n: int
    mean_weights: tuple[float, ...]


class SlateEstimator:
    """A mergeable estimator of the value of slates.

    The self-normalised form divides what every position earns by the mean of its own weights,
    ``sum_l f_l mean(c w_l r_l) / mean(c w_l)``; ``sips`` and ``pi`` have one weight. Its interval
    takes the denominators as the random sums that they are.

    Parameters
    ----------
    kind
        Which one; see the table of the module.
    positions
        L.
    factors
        f_l, finite, shape (L,); ones if None.
    normalised
        Self-normalised form.

    Raises
    ------
    InvalidInputError
        If a parameter is not of these.
    """

    def __init__(
        self,
        kind: SlateKind,
        positions: int,
        *,
        factors: ArrayLike | None = None,
        normalised: bool = False,
    ) -> None:
        if kind not in get_args(SlateKind):
            raise InvalidInputError("kind", f"expected one of {get_args(SlateKind)}, got {kind!r}")
        if positions < 1:
            raise InvalidInputError("positions", f"expected at least 1, got {positions}")
        factor = np.ones(positions) if factors is None else np.asarray(factors, dtype=np.float64)
        if factor.shape != (positions,) or not np.isfinite(factor).all():
            raise InvalidInputError("factors", f"expected {positions} finite numbers")
        self.kind: SlateKind = kind
        self.positions = positions
        self.factors = factor
        self.normalised = normalised
        self.moments_: Moments | None = None

    @property
    def name(self) -> str:
        """Goes into :class:`SlateEstimate`."""
        return f"sn-{self.kind}" if self.normalised else self.kind

    def add(self, batch: SlateBatch) -> Self:
        """Count the slates of `batch`.

        Raises
        ------
        InvalidInputError
            If they have another number of positions. Nothing is counted.
        """
        if batch.reward.shape[1] != self.positions:
            raise InvalidInputError(
                "reward", f"expected {self.positions} positions, got {batch.reward.shape[1]}"
            )
        keep = np.ones(len(batch)) if batch.keep_prob is None else 1.0 / batch.keep_prob
        weights, rewards = self.parts(batch)
        columns = np.column_stack((np.ones(len(batch)), weights, weights * rewards))
        moments = Moments.of(columns * keep[:, None])
        self.moments_ = moments if self.moments_ is None else self.moments_.merge(moments)
        return self

    def merge(self, other: Self) -> Self:
        """Count the slates that `other` counted; `other` stays as it is.

        Raises
        ------
        InvalidInputError
            If `other` has other parameters.
        """
        mine, theirs = (
            (each.name, each.positions, *map(float, each.factors)) for each in (self, other)
        )
        if mine != theirs:
            raise InvalidInputError("other", "expected the same SlateEstimator parameters")
        if other.moments_ is not None:
            self.moments_ = (
                other.moments_ if self.moments_ is None else self.moments_.merge(other.moments_)
            )
        return self

    def result(self, confidence: float = 0.95) -> SlateEstimate:
        """Estimate and interval of everything counted so far.

        Raises
        ------
        InvalidInputError
            If `confidence` is not in (0, 1).
        NotEnoughDataError
            If fewer than 2 slates were counted, or, self-normalised, the policy never puts what
            was logged at some position.
        """
        moments = self.moments_
        if moments is None or moments.n < 2:
            raise NotEnoughDataError("an estimate with an interval needs at least 2 slates")
        count = (len(moments.mean) - 1) // 2
        keep, weights = moments.mean[0], moments.mean[1 : 1 + count]
        payoffs = moments.mean[1 + count :]
        gradient = np.zeros(len(moments.mean))
        if self.normalised:
            if (weights <= 0.0).any():
                raise NotEnoughDataError("the evaluated policy makes none of the logged slates")
            value = float((payoffs / weights).sum())
            gradient[1 : 1 + count] = -payoffs / weights**2
            gradient[1 + count :] = 1.0 / weights
        else:
            value = float(payoffs.sum() / keep)
            gradient[0] = -value / keep
            gradient[1 + count :] = 1.0 / keep
        lower, upper = normal_interval(value, moments.standard_error(gradient), confidence)
        return SlateEstimate(
            estimator=self.name,
            value=value,
            lower=lower,
            upper=upper,
            confidence=confidence,
            n=moments.n,
            mean_weights=tuple(float(each) for each in weights / keep),
        )

    def parts(self, batch: SlateBatch) -> tuple[FloatArray, FloatArray]:
        """Weights and what they multiply, rewards times factors; both (n, L) or both (n, 1)."""
        ratios: FloatArray = batch.target_probability / batch.propensity
        rewards = batch.reward * self.factors
        if self.kind == "iips":
            return ratios, rewards
        if self.kind == "rips":
            return np.cumprod(ratios, axis=1, dtype=np.float64), rewards
        whole = rewards.sum(axis=1, keepdims=True)
        if self.kind == "sips":
            return ratios.prod(axis=1, keepdims=True), whole
        return ratios.sum(axis=1, keepdims=True) - self.positions + 1.0, whole


def slate_rows(
    batch: SlateBatch,
    kind: SlateKind,
    *,
    factors: ArrayLike | None = None,
    row_id: ArrayLike | None = None,
) -> LoggedBatch:
    """Slates as rows of one action, for the estimators and intervals of these.

    One slate is one row, however its positions depend on each other. Its weight W is that of the
    slate for ``sips``, and for ``rips`` and ``iips`` the mean of its positions' weights by factors,
    ``W = sum_l f_l w_l / F`` with ``F = sum_l f_l``; its reward is ``sum_l f_l r_l``, and ``sum_l
    f_l w_l r_l / W``, so that W times the reward is the payoff of the table above. Both have what
    the intervals ask for: ``E[W] = 1``, and with r_l in [low, high] rewards in [low F, high F].

    IPS of these rows is the estimator of that kind, with ``reward_range`` (low F, high F) and a
    ``weight_range`` up to the largest product of a slate's weights (``sips``, ``rips``) or the
    largest weight of a position (``iips``). Empirical-likelihood intervals and confidence sequences
    come with it, the latter for slates in the order of time. SNIPS divides by the mean of W, not
    position by position.

    Parameters
    ----------
    batch
        n slates.
    kind
        ``sips``, ``rips`` or ``iips``; the weights of ``pi`` may be negative.
    factors
        f_l, finite and at least 0, not all 0, shape (L,); ones if None.
    row_id
        As for :class:`~croupier.offline.ope.LoggedBatch`, shape (n,).

    Returns
    -------
    LoggedBatch
        Of n rows; of its propensities and target probabilities only the ratio means something.

    Raises
    ------
    InvalidInputError
        If a parameter is not of these.
    """
    if kind not in {"sips", "rips", "iips"}:
        raise InvalidInputError("kind", f"expected sips, rips or iips, got {kind!r}")
    estimator = SlateEstimator(kind, batch.reward.shape[1], factors=factors)
    factor = estimator.factors
    whole = float(factor.sum())
    if factor.min() < 0.0 or whole <= 0.0:
        raise InvalidInputError("factors", "expected numbers >= 0, not all of them 0")
    weights, rewards = estimator.parts(batch)
    shares = np.ones(1) if kind == "sips" else factor / whole
    weight = weights @ shares
    total = rewards.sum(axis=1)
    reward = np.divide((weights * rewards).sum(axis=1), weight, out=total, where=weight > 0.0)
    # A mean of the positions' rewards but for rounding.
    reward = np.clip(reward, batch.reward.min(axis=1) * whole, batch.reward.max(axis=1) * whole)
    propensity = 1.0 / np.maximum(weight, 1.0)
    return LoggedBatch(
        reward=reward,
        propensity=propensity,
        target_probability=np.minimum(weight * propensity, 1.0),
        keep_prob=batch.keep_prob,
        row_id=None if row_id is None else np.asarray(row_id),
    )
