"""Estimators of somebody's own, for oracles to find by their paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Nearest(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """The reward of the nearest row: no table and no graph of ours can express it."""

    def fit(self, matrix: Any, rewards: Any, sample_weight: Any = None) -> Nearest:
        self.matrix_, self.rewards_ = np.asarray(matrix), np.asarray(rewards)
        return self

    def predict(self, matrix: Any) -> NDArray[np.float64]:
        distances = ((matrix[:, None, :] - self.matrix_[None]) ** 2).sum(axis=2)
        return np.asarray(self.rewards_[distances.argmin(axis=1)], dtype=np.float64)


class Plain:
    """Neither one of scikit-learn's nor one that takes weights: it shrinks means by the columns."""

    def __init__(self, penalty: float = 1.0) -> None:
        self.penalty = penalty

    def fit(self, matrix: Any, rewards: Any) -> None:
        size = matrix.shape[1]
        gram = matrix.T.astype(np.float64) @ matrix + self.penalty * np.eye(size)
        self.weights = np.linalg.solve(gram, matrix.T @ rewards)

    def predict(self, matrix: Any) -> NDArray[np.float64]:
        return np.asarray(matrix @ self.weights)


class Shares:
    """The probability of a reward, whatever the features are."""

    def fit(self, matrix: Any, rewards: Any, sample_weight: Any) -> None:
        self.share = float(np.average(rewards, weights=sample_weight))

    def predict_proba(self, matrix: Any) -> NDArray[np.float64]:
        return np.tile([1.0 - self.share, self.share], (len(matrix), 1))


class Mute:
    """It can be fitted, and not asked."""

    def fit(self, matrix: Any, rewards: Any, sample_weight: Any) -> None:
        pass
