"""Fitting calibration curves, and measuring what an oracle knows, on rows that were held out."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.policy.calibration import (
    IsotonicCurve,
    PlattCurve,
    calibrated,
    platt_input,
)
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from croupier.policy.calibration import CalibrationStep
    from croupier.policy.oracle import Oracle, TrainingRow
    from croupier.policy.training import Calibration

__all__ = ("HeldOut", "Reliability", "asked", "fit_curve", "measure", "reliability")

MIN_CURVE_ROWS = 50
BINS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What an oracle says of the chosen actions of rows that it never saw, and what came of them.

    Attributes
    ----------
    scores, rewards, weights
        Of the rows, shape (n,).
    """

    scores: NDArray[np.float64]
    rewards: NDArray[np.float64]
    weights: NDArray[np.float64]

    def after(self, steps: Sequence[CalibrationStep]) -> HeldOut:
        """The same rows with scores that went through curves."""
        return replace(self, scores=calibrated(steps, self.scores))


class Reliability(msgspec.Struct, frozen=True, kw_only=True):
    """Mean scores and rewards of rows with similar scores.

    Attributes
    ----------
    scores, rewards, weights
        Means, and the weight in sum, of every bin that has rows.
    """

    scores: list[float]
    rewards: list[float]
    weights: list[float]


def asked(oracle: Oracle, rows: Iterable[TrainingRow]) -> HeldOut:
    """Ask an oracle for the chosen actions of held-out rows, going through them once.

    What it can't encode is left out: it was not learned from either.
    """
    found: list[tuple[float, float, float]] = []
    for row in rows:
        with contextlib.suppress(InvalidInputError):
            score = oracle.score(row.context, [row.actions[row.chosen]])[0]
            found.append((float(score), row.reward, row.weight))
    scores, rewards, weights = np.array(found, dtype=np.float64).reshape(-1, 3).T.copy()
    return HeldOut(scores=scores, rewards=rewards, weights=weights)


def fit_curve(kind: Calibration, rows: HeldOut) -> CalibrationStep | None:
    """The curve that takes scores to mean rewards best; None for the kind ``none``.

    Raises
    ------
    NotEnoughDataError
        If there are fewer than 50 rows.
    """
    if kind == "none":
        return None
    if len(rows.scores) < MIN_CURVE_ROWS:
        raise NotEnoughDataError(
            f"a calibration is fitted on at least {MIN_CURVE_ROWS} rows held out for it, got "
            f"{len(rows.scores)}"
        )
    return _isotonic(rows) if kind == "isotonic" else _platt(rows)


def _isotonic(rows: HeldOut) -> IsotonicCurve:
    from sklearn.isotonic import isotonic_regression  # noqa: PLC0415 - slow to import

    # Equal scores are one point: nothing can tell them apart.
    scores, place = np.unique(rows.scores, return_inverse=True)
    weights = np.bincount(place, rows.weights)
    means = np.bincount(place, rows.weights * rows.rewards) / weights
    fitted = isotonic_regression(means, sample_weight=weights)
    block = np.concatenate([[0], np.cumsum(np.diff(fitted) > 0.0)])
    total = np.bincount(block, weights)
    centres = np.bincount(block, weights * scores) / total
    levels = np.bincount(block, weights * fitted) / total
    return IsotonicCurve(scores=centres.tolist(), rewards=levels.tolist())


def _platt(rows: HeldOut) -> PlattCurve:
    """Logistic regression of rewards in [0, 1] on scores, by Newton's method with halved steps."""
    # Estimates that are all probabilities are taken for such.
    log_odds = bool(rows.scores.min() >= 0.0 and rows.scores.max() <= 1.0)
    inputs = platt_input(rows.scores, log_odds=log_odds)
    design = np.column_stack([inputs, np.ones(len(inputs))])
    # Platt's targets: rewards drawn in as by one more row of each kind, or a log that a score
    # separates would have no finite curve.
    total = float(rows.weights.sum())
    targets = (rows.rewards * total + 1.0) / (total + 2.0)
    found = np.zeros(2)
    loss = _logistic_loss(found, design, targets, rows.weights)
    for _ in range(100):
        chances = 0.5 * (1.0 + np.tanh(0.5 * (design @ found)))
        gradient = design.T @ (rows.weights * (chances - targets))
        curvature = (design * (rows.weights * chances * (1.0 - chances))[:, None]).T @ design
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        while (reached := _logistic_loss(found - step, design, targets, rows.weights)) > loss:
            step *= 0.5
            if np.abs(step).max() < 1e-12:
                break
        if reached >= loss - 1e-12 * total:
            break
        found, loss = found - step, reached
    return PlattCurve(slope=float(found[0]), intercept=float(found[1]), log_odds=log_odds)


def _logistic_loss(
    found: NDArray[np.float64],
    design: NDArray[np.float64],
    targets: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> float:
    linear = design @ found
    return float(weights @ (np.logaddexp(0.0, linear) - targets * linear))


def reliability(rows: HeldOut, *, bins: int = BINS) -> Reliability:
    """Rows binned by their scores, about as many in each bin."""
    order = np.argsort(rows.scores, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    weights = [float(rows.weights[part].sum()) for part in parts]
    means = [
        [float(np.average(each[part], weights=rows.weights[part])) for part in parts]
        for each in (rows.scores, rows.rewards)
    ]
    return Reliability(scores=means[0], rewards=means[1], weights=weights)


def measure(rows: HeldOut) -> dict[str, float]:
    """What an oracle knows, by name.

    ``mse``, the mean squared error; ``ece``, the expected calibration error, the mean distance
    between scores and rewards in 15 bins of equally many rows. Where rewards are within [0, 1] also
    ``log_loss``, of scores clipped to within 1e-6 of them; where they are 0 and 1 also ``auc``, the
    probability that a row with reward 1 has a higher score than one with reward 0.

    References
    ----------
    Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian
    Binning", 2015 (expected calibration error).
    """
    scores, rewards, weights = rows.scores, rows.rewards, rows.weights
    bins = reliability(rows)
    gaps = np.abs(np.subtract(bins.scores, bins.rewards))
    found = {
        "rows": float(len(scores)),
        "mse": float(np.average((scores - rewards) ** 2, weights=weights)),
        "ece": float(np.average(gaps, weights=bins.weights)),
    }
    if rewards.min() >= 0.0 and rewards.max() <= 1.0:
        chances = np.clip(scores, 1e-6, 1.0 - 1e-6)
        losses = -(rewards * np.log(chances) + (1.0 - rewards) * np.log1p(-chances))
        found["log_loss"] = float(np.average(losses, weights=weights))
    if set(np.unique(rewards).tolist()) == {0.0, 1.0}:
        found["auc"] = _auc(rows)
    return found


def _auc(rows: HeldOut) -> float:
    """Area under the curve by ranks; ties count half."""
    _, place = np.unique(rows.scores, return_inverse=True)
    ones = np.bincount(place, rows.weights * rows.rewards)
    zeros = np.bincount(place, rows.weights * (1.0 - rows.rewards))
    below = np.cumsum(zeros) - 0.5 * zeros
    return float(ones @ below / (ones.sum() * zeros.sum()))
