"""Parity with scikit-learn: what ONNX Runtime serves is what the estimator predicts."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, RegressorMixin

from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.events import Action
from croupier.policy.oracle import (
    SklearnOnnxConfig,
    SklearnOnnxOracle,
    TrainingRow,
    load_oracle,
    make_online_oracle,
)
from tests.policy.training import random_request, random_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.policy.events import Features

ENCODER = EncoderConfig(bits=12)
BOOSTING = "sklearn.ensemble.HistGradientBoosting"
FORESTS = {"n_estimators": 20, "max_depth": 8}
NETWORKS = {"hidden_layer_sizes": [8], "tol": 0.01, "learning_rate_init": 0.05}
REGRESSORS: list[tuple[str, dict[str, Any]]] = [
    (f"{BOOSTING}Regressor", {"max_iter": 30}),
    (f"{BOOSTING}Regressor", {"max_iter": 30, "loss": "poisson"}),
    (f"{BOOSTING}Regressor", {"max_iter": 30, "loss": "absolute_error"}),
    (f"{BOOSTING}Regressor", {"max_iter": 30, "loss": "quantile", "quantile": 0.8}),
    (f"{BOOSTING}Regressor", {"max_iter": 30, "max_bins": 8, "max_depth": 3}),
    ("sklearn.ensemble.RandomForestRegressor", FORESTS),
    ("sklearn.ensemble.ExtraTreesRegressor", FORESTS),
    ("sklearn.ensemble.GradientBoostingRegressor", {"n_estimators": 30}),
    ("sklearn.tree.DecisionTreeRegressor", {}),
    ("sklearn.neural_network.MLPRegressor", NETWORKS),
]
CLASSIFIERS: list[tuple[str, dict[str, Any]]] = [
    (f"{BOOSTING}Classifier", {"max_iter": 30}),
    ("sklearn.ensemble.RandomForestClassifier", FORESTS),
    ("sklearn.ensemble.ExtraTreesClassifier", FORESTS),
    ("sklearn.ensemble.GradientBoostingClassifier", {"n_estimators": 30}),
    ("sklearn.neural_network.MLPClassifier", NETWORKS),
]


def config(estimator: str, params: dict[str, Any], **settings: Any) -> SklearnOnnxConfig:
    return SklearnOnnxConfig(
        estimator=estimator, params=params, **({"encoder": ENCODER} | settings)
    )


def product(context: Features, action: Action) -> float:
    """A reward that no sum of features tells."""
    return float(context["v"][0] * action.features["x"] + context["v"][1] > 0)


def matrix_of(
    oracle: SklearnOnnxOracle, requests: Sequence[tuple[Features, list[Action]]]
) -> NDArray[np.float32]:
    """The dense rows of all actions, built from the encoder's columns without the oracle's code."""
    encoder = FeatureEncoder(oracle.config.encoder)
    mask = int(encoder.mask)
    assert oracle.vocabulary_ is not None
    places = {int(column): place for place, column in enumerate(oracle.vocabulary_.columns)}
    lines = []
    for context, actions in requests:
        shared = encoder.encode_context(context)
        for action in actions:
            own = encoder.encode_action(action)
            if oracle.config.products:
                columns = encoder.columns(shared, own)
                pairs = list(zip(columns.indices, columns.values, strict=True))
            else:
                pairs = [
                    *zip(shared.indices, shared.values, strict=True),
                    *zip(own.indices, own.values, strict=True),
                ]
            line = np.zeros(len(places), dtype=np.float32)
            for index, value in pairs:
                place = places.get(int(index) & mask)
                if place is not None:
                    line[place] += np.float32(value)
            lines.append(line)
    return np.array(lines)


def predicted(estimator: Any, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    if hasattr(estimator, "predict_proba"):
        assert estimator.classes_.tolist() == [0.0, 1.0]
        return np.asarray(estimator.predict_proba(matrix)[:, 1])
    return np.asarray(estimator.predict(matrix), dtype=np.float64)


def odd_requests(n: int, seed: int = 1) -> list[tuple[Features, list[Action]]]:
    """Requests with features that were never seen, others that are missing, and nulls."""
    rng = np.random.default_rng(seed)
    requests = []
    for position in range(n):
        context, actions = random_request(rng, n_actions=int(rng.integers(1, 7)))
        if position % 3 == 1:
            context |= {"unseen": float(rng.normal()), "country": "XX"}
            actions.append(Action("unseen", {"x": 50.0, "color": "none of these", "new": True}))
        if position % 3 == 2:
            context["user"] = {"segment": None}
            del context["v"]
            actions.append(Action("bare"))
        requests.append((context, actions))
    return requests


class TestParity:
    @pytest.mark.parametrize("products", [False, True])
    @pytest.mark.parametrize(("estimator", "params"), REGRESSORS + CLASSIFIERS, ids=str)
    def test_with_the_fitted_estimator(
        self, estimator: str, params: dict[str, Any], products: bool
    ) -> None:
        rows = random_rows(600, reward=None if "Regressor" in estimator else product)
        oracle = SklearnOnnxOracle(config(estimator, params, products=products)).fit(rows)
        requests = odd_requests(60)
        scores = np.concatenate([oracle.score(*request) for request in requests])
        expected = predicted(oracle.estimator_, matrix_of(oracle, requests))
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
        assert len(np.unique(scores)) > 10

    @pytest.mark.parametrize(
        ("estimator", "params"), [REGRESSORS[0], REGRESSORS[5], CLASSIFIERS[0]], ids=str
    )
    def test_with_an_estimator_fitted_by_hand(self, estimator: str, params: dict[str, Any]) -> None:
        """The same rows, weights and seed outside of the oracle."""
        rows = random_rows(300, reward=product)
        oracle = SklearnOnnxOracle(config(estimator, params), random_state=3).fit(rows)
        module, _, name = estimator.rpartition(".")
        by_hand = getattr(importlib.import_module(module), name)(**params, random_state=3)
        chosen = [(row.context, [row.actions[row.chosen]]) for row in rows]
        by_hand.fit(
            matrix_of(oracle, chosen),
            [row.reward for row in rows],
            sample_weight=[row.weight for row in rows],
        )
        requests = odd_requests(60)
        scores = np.concatenate([oracle.score(*request) for request in requests])
        expected = predicted(by_hand, matrix_of(oracle, requests))
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)

    @given(
        numbers=st.lists(
            st.floats(-100, 100, width=32) | st.sampled_from([0.0, 1.0, -1.0, 0.1, 1e-30]),
            min_size=20,
            max_size=60,
        ),
        seed=st.integers(0, 1000),
    )
    @settings(deadline=None, max_examples=60)
    def test_where_values_lie_next_to_thresholds(self, numbers: list[float], seed: int) -> None:
        """Thresholds lie between neighbours: rounded to float32, many would lie on one of them."""
        close = np.array(numbers, dtype=np.float32)
        close = np.concatenate([close, np.nextafter(close, np.float32(np.inf))])
        rng = np.random.default_rng(seed)
        rows = [
            TrainingRow(
                context={},
                actions=[Action("a", {"x": float(value)})],
                chosen=0,
                propensity=1.0,
                reward=float(rng.random()),
            )
            for value in close
        ]
        params = {"max_iter": 3, "min_samples_leaf": 1, "learning_rate": 1.0}
        oracle = SklearnOnnxOracle(config(f"{BOOSTING}Regressor", params)).fit(rows)
        requests: list[tuple[Features, list[Action]]] = [({}, row.actions) for row in rows]
        scores = np.concatenate([oracle.score(*request) for request in requests])
        expected = predicted(oracle.estimator_, matrix_of(oracle, requests))
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("products", [False, True])
    def test_of_features_too_large_for_products(self, products: bool) -> None:
        asked = config(*REGRESSORS[0], products=products)
        oracle = SklearnOnnxOracle(asked).fit(random_rows(300))
        actions = [Action("a0", {"x": -1e38}), Action("a1", {"x": 1e38})]
        assert np.isfinite(oracle.score({"v": [1e38, -1e38, 1e38]}, actions)).all()

    def test_estimates_are_the_scores(self) -> None:
        oracle = SklearnOnnxOracle(config(*REGRESSORS[0])).fit(random_rows(200))
        context, actions = random_request(np.random.default_rng(2))
        estimates = oracle.estimate(context, actions, frozenset({"deviation"}))
        assert estimates.mean.tobytes() == oracle.score(context, actions).tobytes()
        assert estimates.mean.dtype == np.float64
        assert estimates.deviation is None

    @pytest.mark.parametrize(("estimator", "params"), CLASSIFIERS, ids=str)
    def test_a_classifier_predicts_a_probability(
        self, estimator: str, params: dict[str, Any]
    ) -> None:
        oracle = SklearnOnnxOracle(config(estimator, params)).fit(
            random_rows(400, reward=lambda _, action: float(action.features["x"] > 0))
        )
        actions = [Action("a0", {"x": x, "color": "0"}) for x in (-2.0, 2.0)]
        low, high = oracle.score({}, actions)
        assert 0.0 <= low < high <= 1.0


class TestLearning:
    def test_trees_find_products_by_themselves(self) -> None:
        rows, fresh = random_rows(3000, reward=product), random_rows(300, seed=1, reward=product)
        oracle = SklearnOnnxOracle(config(f"{BOOSTING}Regressor", {"max_iter": 60})).fit(rows)
        scores = [oracle.score(row.context, row.actions)[row.chosen] for row in fresh]
        assert np.corrcoef(scores, [row.reward for row in fresh])[0, 1] > 0.8

    def test_a_rows_weight_counts(self) -> None:
        """Two kinds of rows that contradict each other: the heavier kind wins."""
        actions = [Action("a"), Action("b")]
        rows = [
            TrainingRow(
                context={},
                actions=actions,
                chosen=i % 2,
                propensity=0.5,
                reward=reward,
                weight=weight,
            )
            for i in range(100)
            for reward, weight in ((1.0, 9.0), (0.0, 1.0))
        ]
        for estimator in (f"{BOOSTING}Regressor", f"{BOOSTING}Classifier"):
            oracle = SklearnOnnxOracle(config(estimator, {})).fit(rows)
            np.testing.assert_allclose(oracle.score({}, actions), [0.9, 0.9], atol=0.01)

    def test_the_commonest_columns_are_kept(self) -> None:
        def row(position: int) -> TrainingRow:
            features: dict[str, Any] = {"often": 1.0 + position}
            if position % 2 == 0:
                features["sometimes"] = 1.0
            if position == 0:
                features["rare"] = 1.0
            # No column: as to any oracle, zero is the absence of a feature.
            features["never"] = 0.0
            action = Action("a", features)
            return TrainingRow(
                context={"all": 2.0}, actions=[action], chosen=0, propensity=1.0, reward=1.0
            )

        rows = [row(position) for position in range(30)]
        encoder = FeatureEncoder(ENCODER)
        shared, own = encoder.encode_context({"all": 2.0}), encoder.encode_action(Action("a"))
        names = ("often", "sometimes", "rare")
        index = {
            name: int(encoder.encode_action(Action("a", {name: 1.0})).indices[-1] & encoder.mask)
            for name in names
        }
        everywhere = {int(each & encoder.mask) for each in (*shared.indices, *own.indices)}
        for limit, kept in [(4, ("often",)), (5, ("often", "sometimes")), (100, names)]:
            oracle = SklearnOnnxOracle(config(*REGRESSORS[0], max_columns=limit)).fit(rows)
            assert oracle.vocabulary_ is not None
            columns = oracle.vocabulary_.columns.tolist()
            assert columns == sorted(everywhere | {index[name] for name in kept})

    @pytest.mark.parametrize(
        ("estimator", "params"), [REGRESSORS[0], REGRESSORS[5], CLASSIFIERS[0]], ids=str
    )
    def test_the_same_rows_and_seed_give_the_same_model(
        self, estimator: str, params: dict[str, Any]
    ) -> None:
        rows = random_rows(100, reward=product)
        models = [
            SklearnOnnxOracle(config(estimator, params), random_state=seed).fit(rows).model_
            for seed in (1, 1, 2)
        ]
        assert models[0] == models[1]
        if "RandomForest" in estimator:
            assert models[0] != models[2]


class TestFiles:
    def test_are_a_graph_that_names_its_columns(self, tmp_path: Path) -> None:
        oracle = SklearnOnnxOracle(config(*CLASSIFIERS[1])).fit(random_rows(100, reward=product))
        oracle.save(tmp_path)
        graph = onnx.load(tmp_path / "model.onnx")
        onnx.checker.check_model(graph)
        (columns,) = (each.value for each in graph.metadata_props if "columns" in each.key)
        assert oracle.vocabulary_ is not None
        assert msgspec.json.decode(columns) == oracle.vocabulary_.columns.tolist()
        (rows,) = graph.graph.input
        assert rows.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert len(graph.graph.output) == 1

    def test_hold_no_pickle(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        SklearnOnnxOracle(config(*REGRESSORS[5])).fit(random_rows(60)).save(tmp_path)

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("something was unpickled")

        monkeypatch.setattr("pickle.load", refuse)
        monkeypatch.setattr("pickle.loads", refuse)
        monkeypatch.setattr("pickle.Unpickler", refuse)
        assert len(load_oracle(tmp_path).score(*random_request(np.random.default_rng(0)))) == 4

    def test_threads_get_what_one_gets(self, tmp_path: Path) -> None:
        SklearnOnnxOracle(config(*REGRESSORS[0])).fit(random_rows(300)).save(tmp_path)
        oracle = load_oracle(tmp_path)
        requests = odd_requests(400)
        expected = [oracle.score(*request).tobytes() for request in requests]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                scored = pool.map(lambda request: oracle.score(*request).tobytes(), requests)
                assert list(scored) == expected


class TestRefusal:
    @pytest.mark.parametrize(
        ("estimator", "params", "message"),
        [
            ("sklearn.ensemble.NoForest", {}, "dotted path.*'sklearn.ensemble.NoForest'"),
            (f"{BOOSTING}Regressor", {"max_itre": 1}, "takes the given params.*max_itre"),
            (f"{BOOSTING}Regressor", {"max_iter": -1}, "can't be fitted.*max_iter"),
            ("sklearn.neighbors.KNeighborsRegressor", {}, "can't be fitted.*sample_weight"),
            ("sklearn.linear_model.RidgeClassifier", {}, "it has no predict_proba"),
            ("tests.policy.estimators.Mute", {}, "it has no predict"),
            ("tests.policy.estimators.Plain", {}, "can't be fitted.*sample_weight"),
            (f"{BOOSTING}Regressor", {"categorical_features": [0]}, "ONNX can express.*categories"),
            ("sklearn.cluster.KMeans", {"n_clusters": 2}, "ONNX can express"),
            ("tests.policy.test_sklearn_onnx.Unknown", {}, "ONNX can express.*kind distilled"),
            ("tests.policy.estimators.Shares", {}, "ONNX can express.*kind distilled"),
            ("fractions.Fraction", {}, "dotted path of a scikit-learn estimator"),
        ],
        ids=str,
    )
    def test_of_what_cannot_be_served(
        self, estimator: str, params: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(GenerationError, match=message):
            SklearnOnnxOracle(config(estimator, params)).fit(random_rows(100, reward=product))

    @pytest.mark.parametrize(
        ("rewards", "message"),
        [([1.0, 1.0], "exactly two kinds; got 1"), ([0.0, 2.0], "rewards 0 and 1; got 0 and 2")],
    )
    def test_of_rewards_that_cannot_be_classified(self, rewards: list[float], message: str) -> None:
        rows = [
            msgspec.structs.replace(row, reward=reward)
            for row, reward in zip(random_rows(2), rewards, strict=True)
        ]
        with pytest.raises(NotEnoughDataError, match=message):
            SklearnOnnxOracle(config(f"{BOOSTING}Classifier", {})).fit(rows)

    def test_of_no_rows_and_of_rows_that_cannot_be(self) -> None:
        oracle = SklearnOnnxOracle(SklearnOnnxConfig())
        with pytest.raises(NotEnoughDataError):
            oracle.fit([])
        with pytest.raises(InvalidInputError, match=r"rows\[0\]\.weight"):
            oracle.fit([msgspec.structs.replace(row, weight=0.0) for row in random_rows(3)])

    def test_before_it_is_fitted(self) -> None:
        with pytest.raises(GenerationError, match="not fitted"):
            SklearnOnnxOracle(SklearnOnnxConfig()).score({}, [Action("a")])

    def test_to_learn_online(self) -> None:
        with pytest.raises(InvalidInputError, match=r"learns online.*got sklearn_onnx"):
            make_online_oracle(SklearnOnnxConfig())

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"max_columns": 0}, r"max_columns must be in \[1, 10000\], got 0"),
            ({"max_columns": 10_001}, r"max_columns must be in \[1, 10000\], got 10001"),
            ({"threads": 0}, r"threads must be in \[1, 256\], got 0"),
            ({"products": "yes"}, "products"),
            ({"estimator": 1}, "estimator"),
            ({"estimator": ""}, "estimator must be the dotted path of a class, got ''"),
            ({"estimator": "Forest"}, "estimator must be the dotted path of a class"),
            ({"estimator": "my-forest.Forest"}, "estimator must be the dotted path of a class"),
            ({"hidden": 1}, "hidden"),
        ],
        ids=str,
    )
    def test_configuration_names_what_is_wrong(self, table: dict[str, Any], message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.convert({"kind": "sklearn_onnx", **table}, SklearnOnnxConfig)


class Unknown(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator that no converter knows."""

    def fit(self, matrix: Any, rewards: Any, sample_weight: Any) -> Unknown:
        self.mean_ = np.average(rewards, weights=sample_weight)
        return self

    def predict(self, matrix: Any) -> NDArray[np.float64]:
        return np.full(len(matrix), self.mean_)
