"""Marginal weights, cross-fitted reward models, and batches from frames."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.tree import DecisionTreeRegressor

from croupier.offline.ope import (
    DR,
    IPS,
    LoggedBatch,
    cross_fit,
    cross_fit_oracle,
    embedding_chances,
    folds_of,
    marginalise,
    mrdr_weights,
)
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action
from croupier.policy.oracle import RidgeConfig, TrainingRow, make_oracle
from tests.offline.ope_logs import Q_LOGGED, Q_TARGET, REWARD, batch

LOGGING = np.array([0.4, 0.1, 0.3, 0.2])
TARGET = np.array([0.05, 0.55, 0.1, 0.3])
CLUSTERS = np.array([0, 0, 1, 1])
CHANCES = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.0, 1.0]])


@pytest.mark.parametrize("chances", [CLUSTERS, CHANCES])
def test_mips_is_unbiased_if_rewards_go_through_the_embedding(chances: np.ndarray) -> None:
    """By enumeration of every log of two rows: unbiased, and of smaller variance than IPS."""
    table = np.eye(2)[chances] if chances.ndim == 1 else chances
    rates = np.array([0.2, 0.7])
    kinds = [
        (a, e, r, LOGGING[a] * table[a, e] * (rates[e] if r else 1.0 - rates[e]))
        for a, e, r in itertools.product(range(4), range(2), (0.0, 1.0))
    ]
    moments = np.zeros((2, 2))
    for log in itertools.product(kinds, repeat=2):
        p = log[0][3] * log[1][3]
        if p == 0.0:
            continue
        action, embedding, reward = (np.array(each) for each in list(zip(*log, strict=True))[:3])
        marginal = marginalise(
            reward=reward,
            embedding=embedding,
            logging=np.tile(LOGGING, (2, 1)),
            target=np.tile(TARGET, (2, 1)),
            chances=chances,
        )
        plain = LoggedBatch(
            reward=reward, propensity=LOGGING[action], target_probability=TARGET[action]
        )
        for kind, rows in enumerate((marginal, plain)):
            value = IPS(interval="normal").add(rows).result().value
            moments[kind] += p * np.array([value, value**2])
    value = float(TARGET @ table @ rates)
    assert moments[:, 0] == pytest.approx(value, abs=1e-12)
    variance = moments[:, 1] - moments[:, 0] ** 2
    assert variance[0] < 0.5 * variance[1]


def test_chances_are_learned_from_pairs() -> None:
    rng = np.random.default_rng(3)
    action = rng.choice(3, 20_000)
    embedding = (rng.random(20_000) > CHANCES[action, 0]).astype(int)
    found = embedding_chances(action, embedding, (4, 2), smoothing=1.0)
    assert found[:3] == pytest.approx(CHANCES[:3], abs=0.02)
    assert found[3] == pytest.approx([0.5, 0.5])
    assert embedding_chances([0], [1], (2, 2)) == pytest.approx(np.array([[0.0, 1.0], [0.5, 0.5]]))


def test_what_marginalise_refuses() -> None:
    good = {
        "reward": [1.0, 0.0],
        "embedding": [0, 1],
        "logging": np.tile(LOGGING, (2, 1)),
        "target": np.tile(TARGET, (2, 1)),
        "chances": CHANCES,
    }
    for name, wrong in (
        ("embedding", [0, 2]),
        ("embedding", [0.0, 1.0]),
        ("logging", LOGGING),
        ("target", np.full((2, 4), 0.3)),
        ("chances", 2.0 * CHANCES),
        ("embedding", [-1, 1]),
    ):
        with pytest.raises(InvalidInputError, match=name):
            marginalise(**(good | {name: wrong}))  # type: ignore[arg-type]
    never = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(InvalidInputError, match="row 1"):
        marginalise(**(good | {"logging": np.tile([0.5, 0.5, 0.0, 0.0], (2, 1)), "chances": never}))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="smoothing"):
        embedding_chances([0], [0], (1, 1), smoothing=-1.0)


def small_log(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    context = rng.standard_normal((n, 2))
    action = rng.choice(4, n, p=LOGGING)
    reward = (rng.random(n) < 1.0 / (1.0 + np.exp(-context[:, 0] - 0.5 * action + 1.0))) * 1.0
    return context, action, reward


def test_no_row_is_predicted_by_a_model_that_has_seen_it() -> None:
    """A tree that remembers everything: cross-fitted it can't tell a row's own noise."""
    context, action, _ = small_log(400, 4)
    rng = np.random.default_rng(5)
    fold = folds_of(400, 4, rng)
    assert sorted(np.bincount(fold)) == [100] * 4
    noise = rng.standard_normal(400)
    fitted = cross_fit(
        DecisionTreeRegressor(random_state=0),
        context=context,
        action=action,
        reward=noise,
        fold=fold,
        action_features=np.eye(4),
    )
    own = fitted.q[np.arange(400), action]
    assert abs(np.corrcoef(own, noise)[0, 1]) < 0.25
    one_part = np.hstack((context, np.eye(4)[action]))
    remembered = DecisionTreeRegressor(random_state=0).fit(one_part, noise).predict(one_part)
    assert np.corrcoef(remembered, noise)[0, 1] > 0.99
    # A row's own reward changes none of the predictions of its fold.
    changed = noise.copy()
    changed[fold == 2] += 100.0
    again = cross_fit(
        DecisionTreeRegressor(random_state=0),
        context=context,
        action=action,
        reward=changed,
        fold=fold,
        action_features=np.eye(4),
    )
    np.testing.assert_array_equal(again.q[fold == 2], fitted.q[fold == 2])
    assert not np.array_equal(again.q[fold == 1], fitted.q[fold == 1])


@pytest.mark.parametrize(
    "model",
    [
        LinearRegression(),
        LogisticRegression(),
        RandomForestRegressor(20, min_samples_leaf=20, random_state=0),
    ],
)
def test_any_scikit_learn_model_makes_a_batch(model: object) -> None:
    context, action, reward = small_log(600, 6)
    target = np.tile(TARGET, (600, 1))
    fitted = cross_fit(
        model,
        context=context,
        action=action,
        reward=reward,
        fold=folds_of(600, 3, np.random.default_rng(1)),
        action_features=np.eye(4),
        sample_weight=mrdr_weights(LOGGING[action], TARGET[action]) + 1e-6,
    )
    q_logged, q_target = fitted.of(action, target)
    assert q_target == pytest.approx(fitted.q @ TARGET)
    rows = LoggedBatch(
        reward=reward,
        propensity=LOGGING[action],
        target_probability=TARGET[action],
        q_logged=q_logged,
        q_target=q_target,
    )
    width = {}
    for kind in (IPS(interval="normal"), DR(interval="normal")):
        estimate = kind.add(rows).result()
        width[kind.kind] = estimate.upper - estimate.lower
    assert width["dr"] < 0.8 * width["ips"]


def test_a_fold_without_a_click_has_a_classifier_that_expects_none() -> None:
    context, action, _ = small_log(40, 7)
    reward = np.zeros(40)
    reward[:20] = np.arange(20) % 2
    fold = np.repeat((0, 1), 20)
    fitted = cross_fit(
        DecisionTreeRegressor(random_state=0),
        context=context,
        action=action,
        reward=reward,
        fold=fold,
        action_features=np.eye(4),
    )
    assert (fitted.q[fold == 0] == 0.0).all()


def test_an_oracle_is_cross_fitted() -> None:
    rng = np.random.default_rng(8)
    actions = [Action(id=name, features={"x": name}) for name in "ab"]
    rows = [
        TrainingRow(
            context={"day": "mon"},
            actions=actions,
            chosen=int(i % 2),
            propensity=0.5,
            reward=float(rng.random() < (0.2, 0.8)[i % 2]),
        )
        for i in range(200)
    ]
    fold = folds_of(200, 4, rng)
    found = cross_fit_oracle(lambda: make_oracle(RidgeConfig()), rows, fold)
    mean = np.mean(found, axis=0)
    assert mean == pytest.approx([0.2, 0.8], abs=0.15)
    changed = [
        msgspec.structs.replace(row, reward=50.0) if part == 1 else row
        for row, part in zip(rows, fold, strict=True)
    ]
    again = cross_fit_oracle(lambda: make_oracle(RidgeConfig()), changed, fold)
    for part, before, after in zip(fold, found, again, strict=True):
        if part == 1:
            np.testing.assert_array_equal(before, after)


def test_the_weights_of_mrdr_make_the_variance_of_dr_small() -> None:
    """One constant as the model, chosen by weighted least squares on the exact distribution."""
    rates = np.array([0.1, 0.9, 0.4, 0.6])

    def variance(constant: float) -> float:
        residual = rates - constant
        weight = TARGET / LOGGING
        mean = float(TARGET @ residual)
        return float(LOGGING @ (weight**2 * residual**2)) - mean**2

    def fitted(weights: np.ndarray) -> float:
        return float((LOGGING * weights) @ rates / (LOGGING @ weights))

    ours = variance(fitted(mrdr_weights(LOGGING, TARGET)))
    theirs = variance(fitted(TARGET * (1.0 - LOGGING) / LOGGING**2))
    assert ours < theirs < variance(fitted(np.ones(4)))
    deterministic = np.eye(4)[1]
    assert mrdr_weights(LOGGING, deterministic) == pytest.approx(
        deterministic * (1.0 - LOGGING) / LOGGING**2
    )


def test_what_cross_fitting_refuses() -> None:
    context, action, reward = small_log(30, 9)
    good = {
        "context": context,
        "action": action,
        "reward": reward,
        "fold": np.arange(30) % 2,
        "action_features": np.eye(4),
    }
    for name, wrong in (
        ("context", context[:, 0]),
        ("action", action + 4),
        ("reward", reward[:10]),
        ("fold", np.zeros(30, dtype=int)),
        ("action_features", np.ones(4)),
        ("sample_weight", np.ones(3)),
    ):
        with pytest.raises(InvalidInputError, match=name):
            cross_fit(LinearRegression(), **(good | {name: wrong}))
    with pytest.raises(InvalidInputError, match="folds"):
        folds_of(3, 4, np.random.default_rng(0))
    with pytest.raises(InvalidInputError, match="fold"):
        cross_fit_oracle(lambda: make_oracle(RidgeConfig()), [], np.zeros(1, dtype=int))


# --- frames ---------------------------------------------------------------------------------------


def frame() -> pl.DataFrame:
    rows = batch()
    return pl.DataFrame(
        {
            "reward": REWARD,
            "propensity": rows.propensity,
            "target_probability": rows.target_probability,
            "q_logged": Q_LOGGED,
            "q_target": Q_TARGET,
            "row_id": pl.Series([2**64 - 1, 1, 2, 3], dtype=pl.UInt64),
            "something": ["a", "b", "c", "d"],
        }
    )


def test_a_frame_is_a_batch() -> None:
    rows = LoggedBatch.from_frame(frame())
    assert DR().add(rows).result() == DR().add(batch()).result()
    assert rows.row_id is not None
    assert int(rows.row_id[0]) == 2**64 - 1
    counted = frame().with_columns(reward=pl.col("reward") > 0.5, keep_prob=1)
    assert LoggedBatch.from_frame(counted).reward.tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (pl.col("reward").cast(pl.String), "reward"),
        (pl.when(pl.col("reward") > 0.6).then("propensity").alias("propensity"), "propensity"),
        ((2.0 * pl.col("target_probability")).alias("target_probability"), "target_probability"),
        (pl.col("row_id").cast(pl.Float64), "row_id"),
    ],
)
def test_a_wrong_column_is_named(change: pl.Expr, field: str) -> None:
    with pytest.raises(InvalidInputError, match=field):
        LoggedBatch.from_frame(frame().with_columns(change))


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InvalidInputError, match="propensity: expected a column of type Float64"):
        LoggedBatch.from_frame(frame().drop("propensity"))
