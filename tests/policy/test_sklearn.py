"""Parity with scikit-learn: the table of weights scores what the estimator predicts."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from scipy.sparse import csr_array

from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.oracle import SklearnConfig, SklearnOracle, TrainingRow
from tests.policy.training import random_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.policy.events import Action

ENCODER = EncoderConfig(bits=12)


def config(estimator: str, **params: Any) -> SklearnConfig:
    return SklearnConfig(estimator=estimator, params=params, encoder=ENCODER)


def columns_of(rows: list[TrainingRow]) -> NDArray[np.float64]:
    """All 2^12 columns of the chosen actions, built without the oracle's code."""
    encoder = FeatureEncoder(ENCODER)
    matrix = np.zeros((len(rows), 1 << ENCODER.bits))
    for line, row in zip(matrix, rows, strict=True):
        decision = encoder.encode(row.context, row.actions)
        columns = encoder.columns(decision.context, decision.actions[row.chosen])
        np.add.at(line, columns.indices.astype(np.int64), columns.values)
    return matrix


def scores_of_chosen(oracle: SklearnOracle, rows: list[TrainingRow]) -> list[float]:
    return [float(oracle.score(row.context, row.actions)[row.chosen]) for row in rows]


class ByHand:
    """An estimator without Croupier's code, on the columns that occur in training."""

    def __init__(self, estimator: str, rows: list[TrainingRow], params: dict[str, Any]) -> None:
        matrix = columns_of(rows)
        self.used = np.flatnonzero(matrix.any(axis=0))
        module, _, name = estimator.rpartition(".")
        self.estimator = getattr(importlib.import_module(module), name)(
            fit_intercept=False, **params
        )
        self.estimator.fit(
            csr_array(matrix[:, self.used]),
            np.array([row.reward for row in rows]),
            sample_weight=np.array([row.weight for row in rows]),
        )

    def columns(self, rows: list[TrainingRow]) -> Any:
        return csr_array(columns_of(rows)[:, self.used])


def clicks(n: int, seed: int = 0) -> list[TrainingRow]:
    """Rewards of 0 and 1 that depend on context and action."""

    def reward(context: dict[str, Any], action: Action) -> float:
        return float(context["v"][0] * action.features["x"] + context["v"][1] > 0)

    return random_rows(n, seed=seed, reward=reward)


class TestParity:
    @pytest.mark.parametrize(
        ("estimator", "params"),
        [
            ("sklearn.linear_model.Ridge", {"alpha": 1.0, "tol": 1e-10}),
            ("sklearn.linear_model.Ridge", {"alpha": 0.1, "solver": "lsqr", "tol": 1e-10}),
            ("sklearn.linear_model.ElasticNet", {"alpha": 0.01}),
            ("sklearn.linear_model.SGDRegressor", {"random_state": 0}),
            ("sklearn.svm.LinearSVR", {"random_state": 0, "C": 0.01}),
        ],
        ids=str,
    )
    def test_of_a_regressor(self, estimator: str, params: dict[str, Any]) -> None:
        rows, fresh = random_rows(200), random_rows(50, seed=1)
        oracle = SklearnOracle(config(estimator, **params)).fit(rows)
        by_hand = ByHand(estimator, rows, params)
        expected = by_hand.estimator.predict(by_hand.columns(fresh))
        np.testing.assert_allclose(scores_of_chosen(oracle, fresh), expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        ("estimator", "params"),
        [
            ("sklearn.linear_model.LogisticRegression", {"C": 1.0, "tol": 1e-8}),
            (
                "sklearn.linear_model.LogisticRegression",
                {"solver": "liblinear", "C": 0.1, "random_state": 0},
            ),
            ("sklearn.linear_model.SGDClassifier", {"loss": "log_loss", "random_state": 0}),
        ],
        ids=str,
    )
    def test_of_a_classifier(self, estimator: str, params: dict[str, Any]) -> None:
        rows, fresh = clicks(200), clicks(50, seed=1)
        oracle = SklearnOracle(config(estimator, **params)).fit(rows)
        by_hand = ByHand(estimator, rows, params)
        assert by_hand.estimator.classes_.tolist() == [0.0, 1.0]
        expected = by_hand.estimator.predict_proba(by_hand.columns(fresh))[:, 1]
        scores = scores_of_chosen(oracle, fresh)
        np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-6)
        assert min(scores) >= 0.0
        assert max(scores) <= 1.0

    def test_learns_a_planted_reward(self) -> None:
        def reward(context: dict[str, Any], action: Action) -> float:
            return 0.5 + 0.1 * float(context["v"][0] * action.features["x"])

        rows, fresh = (random_rows(400, seed=seed, reward=reward) for seed in (0, 1))
        oracle = SklearnOracle(config("sklearn.linear_model.Ridge", alpha=1e-6)).fit(rows)
        planted = [row.reward for row in fresh]
        np.testing.assert_allclose(scores_of_chosen(oracle, fresh), planted, atol=0.01)

    def test_a_rows_weight_counts_as_that_many_rows(self) -> None:
        rows = [msgspec.structs.replace(row, weight=1.0) for row in random_rows(100)]
        doubled = [msgspec.structs.replace(row, weight=2.0) for row in rows]
        exact = config("sklearn.linear_model.Ridge", tol=1e-12)
        left = SklearnOracle(exact).fit(rows + rows)
        right = SklearnOracle(exact).fit(doubled)
        np.testing.assert_allclose(
            scores_of_chosen(left, rows), scores_of_chosen(right, rows), atol=1e-6
        )

    @pytest.mark.parametrize(
        "estimator", ["sklearn.linear_model.Ridge", "sklearn.linear_model.SGDRegressor"]
    )
    def test_the_same_rows_and_seed_give_the_same_weights(self, estimator: str) -> None:
        rows = random_rows(100)
        first, second = (
            SklearnOracle(config(estimator), random_state=5).fit(rows).weights_ for _ in range(2)
        )
        assert first is not None
        assert second is not None
        assert first.tobytes() == second.tobytes()

    def test_the_seed_reaches_the_estimator(self) -> None:
        rows = random_rows(100)
        scores = [
            scores_of_chosen(
                SklearnOracle(config("sklearn.linear_model.SGDRegressor"), random_state=seed).fit(
                    rows
                ),
                rows,
            )
            for seed in (1, 2)
        ]
        assert scores[0] != scores[1]


class TestRefusal:
    @pytest.mark.parametrize("estimator", ["Ridge", ".Ridge"])
    def test_of_what_is_no_dotted_path(self, estimator: str) -> None:
        with pytest.raises(ValueError, match="estimator must be the dotted path of a class"):
            config(estimator)

    @pytest.mark.parametrize(
        ("estimator", "params", "message"),
        [
            ("sklearn.linear_model.Bridge", {}, "dotted path.*'sklearn.linear_model.Bridge'"),
            ("no_such_package.Ridge", {}, "dotted path"),
            ("sklearn.linear_model.Ridge", {"alhpa": 1}, "takes the given params.*alhpa"),
            ("math.floor", {}, "dotted path"),
            ("sklearn.linear_model.Ridge", {"alpha": -1.0}, "can't be fitted.*alpha"),
            ("sklearn.ensemble.RandomForestRegressor", {}, "dotted path of a linear"),
            ("sklearn.neighbors.KNeighborsRegressor", {}, "dotted path of a linear"),
            ("sklearn.linear_model.RANSACRegressor", {}, "dotted path of a linear"),
            # These have coefficients, but not only or under another link.
            ("sklearn.linear_model.Ridge", {"fit_intercept": True}, "no intercept"),
            ("sklearn.linear_model.PoissonRegressor", {}, "identity link"),
            # No weights of rows, or no probabilities.
            ("sklearn.linear_model.Lars", {}, "can't be fitted"),
            ("sklearn.linear_model.RidgeClassifier", {}, "predict_proba"),
            ("sklearn.linear_model.SGDClassifier", {"loss": "modified_huber"}, "logistic link"),
        ],
        ids=str,
    )
    def test_of_what_is_not_a_linear_estimator(
        self, estimator: str, params: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(GenerationError, match=message):
            SklearnOracle(config(estimator, **params)).fit(clicks(60))

    def test_of_coefficients_that_are_not_finite(self) -> None:
        rows = random_rows(50, reward=lambda _, action: 1e100 * action.features["x"])
        with pytest.raises(GenerationError, match="not finite"):
            SklearnOracle(config("sklearn.linear_model.Ridge")).fit(rows)

    def test_of_too_few_rows(self) -> None:
        with pytest.raises(NotEnoughDataError):
            SklearnOracle(config("sklearn.linear_model.Ridge")).fit([])

    @pytest.mark.parametrize(
        ("rewards", "message"),
        [
            ([0.0, 0.0], "exactly two kinds; got 1"),
            ([0.0, 0.5, 1.0], "exactly two kinds; got 3"),
            ([0.0, 2.0], "rewards 0 and 1; got 0 and 2"),
        ],
        ids=str,
    )
    def test_of_rewards_that_cannot_be_classified(self, rewards: list[float], message: str) -> None:
        base = random_rows(len(rewards))
        rows = [
            msgspec.structs.replace(row, reward=reward)
            for row, reward in zip(base, rewards, strict=True)
        ]
        with pytest.raises(NotEnoughDataError, match=message):
            SklearnOracle(config("sklearn.linear_model.LogisticRegression")).fit(rows)

    def test_of_rows_that_cannot_be(self) -> None:
        rows = [msgspec.structs.replace(row, reward=float("nan")) for row in random_rows(3)]
        with pytest.raises(InvalidInputError, match=r"rows\[0\]\.reward"):
            SklearnOracle(config("sklearn.linear_model.Ridge")).fit(rows)
