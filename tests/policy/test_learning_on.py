"""Oracles of scikit-learn and of Vowpal Wabbit's own models that are taught further."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.linear_model import SGDClassifier, SGDRegressor

from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import GenerationError, InvalidInputError
from croupier.policy.oracle import (
    SklearnConfig,
    SklearnOracle,
    VowpalWabbitModelConfig,
    VowpalWabbitModelOracle,
    load_oracle,
    make_online_oracle,
    make_oracle,
)
from tests.policy.training import random_request, random_rows

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.policy.oracle import EncodedOracle, TrainingRow

ENCODER = EncoderConfig(bits=11)
REGRESSOR = SklearnConfig(
    estimator="sklearn.linear_model.SGDRegressor", params={"eta0": 0.02}, encoder=ENCODER
)
CLASSIFIER = SklearnConfig(
    estimator="sklearn.linear_model.SGDClassifier", params={"loss": "log_loss"}, encoder=ENCODER
)
SGD = pytest.mark.parametrize("config", [REGRESSOR, CLASSIFIER], ids=["regressor", "classifier"])
# One set of arguments for every one under which Vowpal Wabbit's file holds all that it needs.
RESUMED = [
    "-q ca",
    "--cubic cca",
    "--interactions cca --ignore_linear c",
    "--lrq ca3",
    "--lrqfa ca3",
    "-q ca --clip_p 0.1",
    "-q ca --ftrl",
    "-q ca --coin",
    "-q ca --pistol",
    "-q ca --sgd",
    "-q ca --adaptive",
    "-q ca --normalized",
    "-q ca --power_t 0.2 --initial_t 3",
    "-q ca --initial_weight 0.1",
    "-q ca --random_weights",
]
OTHERS = ["-q ca --nn 3", "-q ca --boosting 4", "-q ca --new_mf 2", "-q ca --stage_poly"]


def rows_for(config: SklearnConfig | VowpalWabbitModelConfig, count: int) -> list[TrainingRow]:
    rows = random_rows(count)
    if config is CLASSIFIER:
        rows = [msgspec.structs.replace(row, reward=float(row.reward > 0.5)) for row in rows]
    return rows


def lines(rows: list[TrainingRow]) -> tuple[Any, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The chosen actions over the whole table, their rewards and weights."""
    encoder = FeatureEncoder(ENCODER)
    dense = np.zeros((len(rows), 1 << ENCODER.bits))
    for line, row in zip(dense, rows, strict=True):
        columns = encoder.columns(
            encoder.encode_context(row.context), encoder.encode_action(row.actions[row.chosen])
        )
        np.add.at(line, columns.indices, columns.values.astype(np.float64))
    weights = np.array([row.weight for row in rows])
    return csr_array(dense), np.array([row.reward for row in rows]), weights


def own_estimator(config: SklearnConfig) -> SGDRegressor | SGDClassifier:
    kind = SGDRegressor if config is REGRESSOR else SGDClassifier
    return kind(fit_intercept=False, random_state=3, **config.params)


def own_partial_fit(estimator: SGDRegressor | SGDClassifier, rows: list[TrainingRow]) -> None:
    matrix, rewards, weights = lines(rows)
    more = {"classes": [0.0, 1.0]} if isinstance(estimator, SGDClassifier) else {}
    estimator.partial_fit(matrix, rewards, sample_weight=weights, **more)


@SGD
def test_batches_are_taught_as_scikit_learn_does_it(config: SklearnConfig) -> None:
    """Over all columns of the table, where the oracle looks at those that have occurred."""
    rows = rows_for(config, 200)
    oracle, own = SklearnOracle(config, random_state=3), own_estimator(config)
    for start, end in ((0, 50), (50, 51), (51, 200)):
        oracle.partial_fit(rows[start:end])
        own_partial_fit(own, rows[start:end])
        assert oracle.weights_ is not None
        np.testing.assert_allclose(oracle.weights_, own.coef_.ravel(), rtol=1e-5, atol=1e-7)
    context, actions = rows[7].context, rows[7].actions
    matrix, _, _ = lines([msgspec.structs.replace(rows[7], chosen=k) for k in range(4)])
    told = own.predict(matrix) if config is REGRESSOR else own.predict_proba(matrix)[:, 1]
    np.testing.assert_allclose(oracle.score(context, actions), told, rtol=1e-4, atol=1e-12)


@SGD
def test_what_was_fitted_is_taught_further(config: SklearnConfig) -> None:
    rows = rows_for(config, 200)
    oracle, own = SklearnOracle(config, random_state=3), own_estimator(config)
    oracle.fit(rows[:120])
    matrix, rewards, weights = lines(rows[:120])
    own.fit(matrix, rewards, sample_weight=weights)
    oracle.partial_fit(rows[120:])
    own_partial_fit(own, rows[120:])
    assert oracle.weights_ is not None
    np.testing.assert_allclose(oracle.weights_, own.coef_.ravel(), rtol=1e-5, atol=1e-7)


@SGD
def test_what_was_saved_is_taught_further_bit_for_bit(
    config: SklearnConfig, tmp_path: Path
) -> None:
    rows = rows_for(config, 200)
    oracle = SklearnOracle(config, random_state=3).fit(rows[:120])
    oracle.save(tmp_path)
    loaded = load_oracle(tmp_path, to_learn=True)
    assert isinstance(loaded, SklearnOracle)
    # What was only read is kept when it is saved again.
    (tmp_path / "again").mkdir()
    loaded.save(tmp_path / "again")
    again = load_oracle(tmp_path / "again", to_learn=True)
    assert isinstance(again, SklearnOracle)
    for each in (oracle, loaded, again):
        each.partial_fit(rows[120:])
    assert oracle.weights_ is not None
    assert loaded.weights_ is not None
    assert again.weights_ is not None
    assert oracle.weights_.tobytes() == loaded.weights_.tobytes() == again.weights_.tobytes()
    served = load_oracle(tmp_path)
    assert isinstance(served, SklearnOracle)
    with pytest.raises(GenerationError, match="it was loaded without its learner"):
        served.partial_fit(rows[120:])


@SGD
def test_an_oracle_that_knows_nothing_says_so(config: SklearnConfig) -> None:
    oracle = make_online_oracle(config)
    request = random_request(np.random.default_rng(0))
    nothing = 0.0 if config is REGRESSOR else 0.5
    assert oracle.score(*request).tolist() == [nothing] * 4
    oracle.partial_fit([])
    assert oracle.score(*request).tolist() == [nothing] * 4
    oracle.partial_fit(rows_for(config, 1))
    assert len(set(oracle.score(*request))) > 1


def test_a_classifier_learns_no_other_rewards() -> None:
    oracle = SklearnOracle(CLASSIFIER).fit(rows_for(CLASSIFIER, 50))
    with pytest.raises(GenerationError, match="classifies, and needs rewards 0 and 1"):
        oracle.partial_fit(random_rows(5))


@pytest.mark.parametrize(
    "config",
    [
        SklearnConfig(),
        SklearnConfig(estimator="sklearn.linear_model.LogisticRegression"),
        *(
            SklearnConfig(estimator=REGRESSOR.estimator, params=params)
            for params in (
                {"average": True},
                {"average": 10},
                {"learning_rate": "adaptive"},
                {"early_stopping": True},
            )
        ),
    ],
)
def test_estimators_that_need_more_are_fitted_at_once(config: SklearnConfig) -> None:
    assert not config.learns_online
    with pytest.raises(InvalidInputError, match=f"got sklearn with {config.estimator}"):
        make_online_oracle(config)
    with pytest.raises(GenerationError, match="is fitted to all rows at once"):
        SklearnOracle(config).partial_fit([])


def model_config(arguments: str, cb_type: Any = "mtr") -> VowpalWabbitModelConfig:
    return VowpalWabbitModelConfig(arguments=arguments, cb_type=cb_type, encoder=ENCODER)


def scores(oracle: EncodedOracle, rows: list[TrainingRow]) -> bytes:
    return b"".join(oracle.score(row.context, row.actions).tobytes() for row in rows)


@pytest.mark.parametrize(
    ("arguments", "cb_type"), [*((each, "mtr") for each in RESUMED + OTHERS), ("-q ca", "dr")]
)
def test_a_model_that_is_taught_in_parts_is_the_one_of_all(arguments: str, cb_type: str) -> None:
    config, rows = model_config(arguments, cb_type), random_rows(150)
    whole = VowpalWabbitModelOracle(config, random_state=3).fit(rows)
    for cuts in ((0, 1, 40, 150), (0, 149, 150)):
        parts = make_oracle(config, random_state=3)
        for start, end in itertools.pairwise(cuts):
            parts.partial_fit(rows[start:end])
        assert scores(parts, rows[:30]) == scores(whole, rows[:30])


@pytest.mark.parametrize("arguments", RESUMED)
@pytest.mark.parametrize("cb_type", ["mtr", "ips"])
def test_a_model_that_was_saved_is_taught_further_bit_for_bit(
    arguments: str, cb_type: str, tmp_path: Path
) -> None:
    config, rows = model_config(arguments, cb_type), random_rows(400)
    assert config.resumes
    oracle = VowpalWabbitModelOracle(config, random_state=3).fit(rows[:200])
    oracle.save(tmp_path)
    loaded = load_oracle(tmp_path, to_learn=True)
    assert isinstance(loaded, VowpalWabbitModelOracle)
    before = scores(loaded, rows[:30])
    oracle.partial_fit(rows[200:])
    loaded.partial_fit(rows[200:])
    assert scores(loaded, rows[:50]) == scores(oracle, rows[:50]) != before


@pytest.mark.parametrize(
    ("arguments", "cb_type"), [*((each, "mtr") for each in OTHERS), ("-q ca", "dr")]
)
def test_a_model_that_does_not_hold_all_is_not_taught_further(
    arguments: str, cb_type: str, tmp_path: Path
) -> None:
    config = model_config(arguments, cb_type)
    assert config.learns_online
    assert not config.resumes
    VowpalWabbitModelOracle(config).fit(random_rows(50)).save(tmp_path)
    loaded = load_oracle(tmp_path, to_learn=True)
    assert isinstance(loaded, VowpalWabbitModelOracle)
    with pytest.raises(GenerationError, match="model file doesn't hold all that goes on"):
        loaded.partial_fit(random_rows(5))


def test_a_model_that_knows_nothing_says_so() -> None:
    oracle = make_online_oracle(model_config("-q ca"))
    assert oracle.score(*random_request(np.random.default_rng(0))).tolist() == [0.0] * 4
    with pytest.raises(InvalidInputError, match=r"rows\[0\]\.reward"):
        oracle.partial_fit([msgspec.structs.replace(random_rows(1)[0], reward=np.nan)])


@pytest.mark.parametrize("option", ["--bootstrap 4", "--freegrad", "--invariant"])
def test_a_model_that_is_changed_by_a_look_is_fitted_at_once(option: str) -> None:
    config = model_config(f"-q ca {option}")
    assert not config.learns_online
    with pytest.raises(InvalidInputError, match="got vowpal_wabbit_model under '-q ca --"):
        make_online_oracle(config)
    with pytest.raises(GenerationError, match="it is fitted to all rows at once"):
        VowpalWabbitModelOracle(config).partial_fit([])
