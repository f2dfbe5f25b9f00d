"""Reward models for evaluation: every row is predicted by a model that hasn't seen it.

A model that was fitted on a row knows part of its noise. The doubly robust estimate then takes the
noise off the residual, where it belongs, and looks better than it is, most of all for the policy
that was learned by the same model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone, is_classifier

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from croupier.offline.ope.intervals import FloatArray
    from croupier.policy.oracle import Oracle, TrainingRow

__all__ = (
    "CrossFitted",
    "cross_fit",
    "cross_fit_oracle",
    "folds_of",
    "mrdr_weights",
    "recalibrate",
)


@dataclass(frozen=True, eq=False)
class CrossFitted:
    """Predictions of every action's reward, each by a model that hasn't seen the row.

    Attributes
    ----------
    q
        Shape (n, K).
    fold
        Which model predicted the row, shape (n,): the one that was fitted on all other folds.
    """

    q: FloatArray
    fold: NDArray[np.intp]

    def of(self, action: ArrayLike, target: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """`q_logged` and `q_target` for a batch.

        Parameters
        ----------
        action
            The logged ones, shape (n,).
        target
            The evaluated policy's pmfs, shape (n, K).
        """
        rows = np.arange(len(self.q))
        return self.q[rows, np.asarray(action)], (self.q * np.asarray(target)).sum(axis=1)


def folds_of(n: int, folds: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Put n rows into folds of equal size (but for one row) at random, shape (n,)."""
    if not 2 <= folds <= n:
        raise InvalidInputError("folds", f"expected a number in 2 to {n}, got {folds}")
    return rng.permutation(np.arange(n) % folds)


def mrdr_weights(propensity: ArrayLike, target_probability: ArrayLike) -> FloatArray:
    r"""Row weights under which a reward model makes the doubly robust variance small (MRDR).

    Given the context and but for the noise, the variance of ``q_pi + w (r - q_a)`` is, with e_a for
    the model's error, ``sum_a pi(a)^2 / mu(a) e_a^2 - (sum_a pi(a) e_a)^2``; its diagonal part is
    ``sum_a pi(a)^2 (1 / mu(a) - 1) e_a^2``, which squared errors of logged rows estimate with the
    weight ``pi^2 (1 - mu) / mu^2 = w^2 (1 - mu)``. For a deterministic policy that is all of it.

    Source: Farajtabar, Chow & Ghavamzadeh, "More Robust Doubly Robust Off-policy Evaluation", ICML
    2018, for a deterministic policy. The Open Bandit Pipeline has ``pi (1 - mu) / mu^2`` for all
    policies, which is the same for deterministic ones only.

    Parameters
    ----------
    propensity, target_probability
        Of the logged actions, shape (n,).
    """
    p = np.asarray(propensity, dtype=np.float64)
    weight = np.asarray(target_probability, dtype=np.float64) / p
    return weight * weight * (1.0 - p)


def cross_fit(
    model: Any,
    *,
    context: ArrayLike,
    action: ArrayLike,
    reward: ArrayLike,
    fold: NDArray[np.intp],
    action_features: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> CrossFitted:
    """Cross-fit a scikit-learn regressor, or a classifier of rewards that are 0 or 1.

    The features of a row are the context's followed by those of the action.

    Parameters
    ----------
    model
        Any estimator of scikit-learn's kind; it is cloned and stays as it is.
    context
        Shape (n, d).
    action
        The logged ones, integers in [0, K), shape (n,).
    reward
        Shape (n,).
    fold
        Of :func:`folds_of`, or of days or users where rows aren't independent; shape (n,).
    action_features
        Shape (K, e); the identity matrix for one indicator an action.
    sample_weight
        Weights of the rows when fitting, shape (n,): importance weights, :func:`mrdr_weights`, or
        one over the keep probability.

    Raises
    ------
    InvalidInputError
        If a shape is another one, or there are fewer than 2 folds; it names the argument.
    """
    table = np.asarray(context, dtype=np.float64)
    features = np.asarray(action_features, dtype=np.float64)
    chosen, target = np.asarray(action), np.asarray(reward, dtype=np.float64)
    n, actions = len(table), len(features)
    if table.ndim != 2:
        raise InvalidInputError("context", f"expected shape (n, d), got {table.shape}")
    if features.ndim != 2:
        raise InvalidInputError("action_features", f"expected shape (K, e), got {features.shape}")
    if chosen.shape != (n,) or ((chosen < 0) | (chosen >= actions)).any():
        raise InvalidInputError("action", f"expected {n} values in [0, {actions})")
    weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    for name, given in (("reward", target), ("fold", fold), ("sample_weight", weights)):
        if given is not None and given.shape != (n,):
            raise InvalidInputError(name, f"expected shape ({n},), got {given.shape}")
    rows = np.hstack((table, features[chosen]))
    q = np.empty((n, actions))
    for part in _folds(fold):
        held = fold == part
        fitted = clone(model)
        if weights is None:
            fitted.fit(rows[~held], target[~held])
        else:
            fitted.fit(rows[~held], target[~held], sample_weight=weights[~held])
        for k in range(actions):
            asked = np.hstack((table[held], np.tile(features[k], (int(held.sum()), 1))))
            q[held, k] = _predicted(fitted, asked)
    return CrossFitted(q, fold)


def recalibrate(
    fitted: CrossFitted,
    *,
    action: ArrayLike,
    reward: ArrayLike,
    logging: ArrayLike,
    target: ArrayLike,
) -> CrossFitted:
    """Bring a reward model to the log's scale, with what both policies think of an action.

    Per fold, the rewards of all other folds are regressed by least squares on a constant, the
    model's prediction and the two policies' probabilities of the logged action::

        q'(x, a) = b_0 + b_1 q(x, a) + b_2 pi(a|x) + b_3 mu(a|x)

    cut to the range of the rewards. A policy that was learned knows which actions are good, so its
    pmf predicts rewards where the model is weak; what it gets wrong the coefficients tell. Doubly
    robust estimates stay consistent, as they do with any model.

    Source: own work. A model's prediction corrected by a regression with the policies' chances in
    it is the idea of targeted learning (van der Laan & Rubin, "Targeted Maximum Likelihood
    Learning", International Journal of Biostatistics, 2006), whose covariate is their ratio.

    Parameters
    ----------
    fitted
        Of :func:`cross_fit`: predictions q and folds. Four coefficients are fitted to predictions
        that knew the fold's rewards, which weighs nothing beside what the fold's own model knows.
    action
        The logged ones, integers in [0, K), shape (n,).
    reward
        Finite, shape (n,).
    logging, target
        Pmfs of the logging and of the evaluated policy, shape (n, K).

    Raises
    ------
    InvalidInputError
        If a shape is another one, or there are fewer than 2 folds; it names the argument.
    """
    q, chosen, seen = fitted.q, np.asarray(action), np.asarray(reward, dtype=np.float64)
    n, actions = q.shape
    if chosen.shape != (n,) or ((chosen < 0) | (chosen >= actions)).any():
        raise InvalidInputError("action", f"expected {n} values in [0, {actions})")
    if seen.shape != (n,) or not np.isfinite(seen).all():
        raise InvalidInputError("reward", f"expected {n} finite numbers")
    pmfs = [np.asarray(each, dtype=np.float64) for each in (target, logging)]
    for name, pmf in zip(("target", "logging"), pmfs, strict=True):
        if pmf.shape != q.shape:
            raise InvalidInputError(name, f"expected shape {q.shape}, got {pmf.shape}")
    regressors = np.stack((np.ones(q.shape), q, *pmfs), axis=-1)
    logged = regressors[np.arange(n), chosen]
    corrected = np.empty(q.shape)
    for part in _folds(fitted.fold):
        held = fitted.fold == part
        coefficients, *_ = np.linalg.lstsq(logged[~held], seen[~held], rcond=None)
        low, high = seen[~held].min(), seen[~held].max()
        corrected[held] = np.clip(regressors[held] @ coefficients, low, high)
    return CrossFitted(corrected, fitted.fold)


def cross_fit_oracle(
    make: Callable[[], Oracle], rows: Sequence[TrainingRow], fold: NDArray[np.intp]
) -> list[FloatArray]:
    """Cross-fit one of our oracles; action sets may differ between rows.

    Parameters
    ----------
    make
        Makes an unfitted oracle.
    rows
        The log, n rows.
    fold
        Of :func:`folds_of`, shape (n,).

    Returns
    -------
    list of FloatArray
        For every row, predictions of all its actions, shape (K_i,).

    Raises
    ------
    InvalidInputError
        If the shape of `fold` is another one, or there are fewer than 2 folds.
    """
    if fold.shape != (len(rows),):
        raise InvalidInputError("fold", f"expected shape ({len(rows)},), got {fold.shape}")
    found: dict[int, FloatArray] = {}
    for part in _folds(fold):
        oracle = make().fit([row for row, its in zip(rows, fold, strict=True) if its != part])
        for index in np.flatnonzero(fold == part):
            row = rows[int(index)]
            found[int(index)] = np.asarray(oracle.score(row.context, row.actions))
    return [found[index] for index in range(len(rows))]


def _folds(fold: NDArray[np.intp]) -> NDArray[np.intp]:
    parts = np.unique(fold)
    if len(parts) < 2:
        raise InvalidInputError("fold", f"expected at least 2 folds, got {len(parts)}")
    return parts


def _predicted(fitted: Any, rows: FloatArray) -> FloatArray:
    """Expected rewards: of a classifier, the probability of 1, which it may never have seen."""
    if not is_classifier(fitted):
        return np.asarray(fitted.predict(rows), dtype=np.float64)
    columns = np.flatnonzero(np.asarray(fitted.classes_) == 1)
    if len(columns) == 0:
        return np.zeros(len(rows))
    return np.asarray(fitted.predict_proba(rows)[:, columns[0]], dtype=np.float64)
