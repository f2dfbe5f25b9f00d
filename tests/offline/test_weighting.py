"""How rows count: against closed forms, in a world whose truth is known.

The log is made by a policy that sees the context, and is learned from without it: what an action
earned where it was played is then not what it would earn everywhere. Seeds are fixed; every
comparison is to within 4.5 standard errors, which 1 in 150,000 unbiased estimates would miss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
import pytest

from croupier.offline.interactions import LoggedRows, learning_weights
from croupier.offline.weighting import balancing_ratio, effective, training_weights
from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import GenerationError, NotEnoughDataError
from croupier.policy.events import Action
from croupier.policy.exploration import EpsilonGreedy
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import (
    BootstrapConfig,
    CoverConfig,
    DistilledConfig,
    OracleConfig,
    RidgeConfig,
    SklearnConfig,
    SklearnOnnxConfig,
    VowpalWabbitConfig,
    VowpalWabbitModelConfig,
    make_oracle,
)
from croupier.policy.training import TrainingConfig, Weighting
from tests.offline.worlds import World

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENCODER = EncoderConfig(bits=10)
WORLD = World(np.array([[0.9, 0.5, 0.3], [0.1, 0.5, 0.7]]))
POLICY = WORLD.generation(1, EpsilonGreedy(epsilon=0.3))
ACTIONS = [Action(f"a{number}") for number in range(3)]
ROWS = 4000

LINEAR = SklearnConfig(params={"alpha": 1e-6, "solver": "cholesky"}, encoder=ENCODER)
TREE = SklearnOnnxConfig(estimator="sklearn.tree.DecisionTreeRegressor", encoder=ENCODER)
WEIGHTED: dict[str, OracleConfig] = {
    "sklearn": LINEAR,
    "logistic": SklearnConfig(
        estimator="sklearn.linear_model.LogisticRegression", params={"C": 1e6}, encoder=ENCODER
    ),
    "ridge": RidgeConfig(l2=1e-3, encoder=ENCODER),
    "tree": TREE,
    "bootstrap": BootstrapConfig(members=10, base=LINEAR),
    "distilled": DistilledConfig(base=TREE, l2=1e-3, max_rows=1000),
}
VW: dict[str, OracleConfig] = {
    **{
        cb_type: VowpalWabbitConfig(cb_type=cb_type, learning_rate=0.03, encoder=ENCODER)
        for cb_type in ("mtr", "ips", "dr")
    },
    "model": VowpalWabbitModelConfig(learning_rate=0.03, encoder=EncoderConfig(bits=16)),
    "cover": CoverConfig(members=2, psi=0.0, learning_rate=0.03, encoder=ENCODER),
}


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    """Interactions whose contexts are hidden."""
    return WORLD.log(POLICY, ROWS, seed=3).with_columns(context=pl.lit("{}"))


def learned(config: OracleConfig, log: pl.DataFrame, training: TrainingConfig) -> list[float]:
    weights = training_weights(training, log, config.encoder)
    oracle = make_oracle(config).fit(LoggedRows(log, weights))
    return [float(score) for score in oracle.score({}, ACTIONS)]


def means_and_errors(log: pl.DataFrame, weights: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Weighted mean reward of every action, and its standard error by the delta method."""
    found = []
    for action in range(len(ACTIONS)):
        mine = log["chosen"].to_numpy() == action
        reward, weight = log["reward"].to_numpy()[mine], weights[mine]
        mean = float(np.average(reward, weights=weight))
        found.append((mean, float(np.sqrt(np.sum((weight * (reward - mean)) ** 2)) / weight.sum())))
    return found


def played() -> NDArray[np.float64]:
    """What every action earned where it was played, exactly."""
    pmf = np.array([WORLD.pmf(POLICY, context) for context in range(2)])
    return np.asarray((pmf * WORLD.rewards).sum(axis=0) / pmf.sum(axis=0))


@pytest.mark.parametrize("weighting", ["ips", "mtr"])
@pytest.mark.parametrize("kind", WEIGHTED)
def test_propensities_make_estimates_those_of_all_contexts(
    log: pl.DataFrame, kind: str, weighting: Weighting
) -> None:
    training = TrainingConfig(weighting=weighting)
    estimates = learned(WEIGHTED[kind], log, training)
    errors = means_and_errors(log, 1.0 / log["propensity"].to_numpy())
    truth = WORLD.rewards.mean(axis=0)
    # A bootstrap's members add a tenth of its variance; a table's penalty is next to nothing.
    for estimate, (_, error), true in zip(estimates, errors, truth, strict=True):
        assert abs(estimate - true) < 4.5 * np.sqrt(1.1) * error + 1e-3


@pytest.mark.parametrize("kind", ["sklearn", "tree"])
def test_without_weights_they_are_those_of_where_actions_were_played(
    log: pl.DataFrame, kind: str
) -> None:
    estimates = learned(WEIGHTED[kind], log, TrainingConfig())
    errors = means_and_errors(log, np.ones(len(log)))
    for estimate, (_, error), true in zip(estimates, errors, played(), strict=True):
        assert abs(estimate - true) < 4.5 * error + 1e-3
    # The two truths are apart by far more than that.
    assert np.abs(played() - WORLD.rewards.mean(axis=0)).max() > 0.15


@pytest.mark.parametrize("kind", VW)
def test_vowpal_wabbit_corrects_for_propensities_by_itself(log: pl.DataFrame, kind: str) -> None:
    """Its steps leave an error of their own, of about 0.04; the bias would be above 0.2."""
    estimates = learned(VW[kind], log, TrainingConfig())
    truth = WORLD.rewards.mean(axis=0)
    assert np.abs(np.subtract(estimates, truth)).max() < 0.07
    with pytest.raises(ValueError, match=r"training\.weighting must be none.*by itself"):
        LoopConfig(oracle=VW[kind], training=TrainingConfig(weighting="ips"))


def test_rows_of_a_subsampled_log_count_for_those_that_were_not_kept(log: pl.DataFrame) -> None:
    """Rewards are kept four times as often as others; both weights together undo everything."""
    keep = np.where(log["reward"].to_numpy() == 1.0, 0.8, 0.2)
    kept = log.with_columns(keep_prob=pl.Series(keep)).filter(
        pl.Series(np.random.default_rng(1).random(len(log)) < keep)
    )
    training = TrainingConfig(weighting="ips")
    estimates = learned(LINEAR, kept, training)
    importance = 1.0 / (kept["propensity"] * kept["keep_prob"]).to_numpy()
    for estimate, (mean, error), true in zip(
        estimates, means_and_errors(kept, importance), WORLD.rewards.mean(axis=0), strict=True
    ):
        assert estimate == pytest.approx(mean, abs=1e-4)
        assert abs(estimate - true) < 4.5 * error
    careless = learned(LINEAR, kept.with_columns(keep_prob=1.0), training)
    assert np.subtract(careless, WORLD.rewards.mean(axis=0)).min() > 0.15


def test_clipping_is_at_the_largest_weight(log: pl.DataFrame) -> None:
    weights = training_weights(TrainingConfig(weighting="ips", largest_weight=5.0), log, ENCODER)
    inverse = np.minimum(1.0 / log["propensity"].to_numpy(), 5.0)
    np.testing.assert_allclose(weights / weights[0], inverse / inverse[0])
    assert weights.max() / weights.min() < 5.0


def test_mtr_weighs_1_on_average_and_the_others_sum_to_what_is_known(log: pl.DataFrame) -> None:
    """The mean of ``1 / (p K)`` is 1; its standard error here is below 0.02."""
    mtr = training_weights(TrainingConfig(weighting="mtr"), log, ENCODER)
    np.testing.assert_allclose(mtr, 1.0 / (3.0 * log["propensity"].to_numpy()))
    assert abs(mtr.mean() - 1.0) < 4.5 * mtr.std() / np.sqrt(len(mtr))
    raw = 1.0 / log["propensity"].to_numpy()
    for weighting in ("ips", "trajectory", "advantage"):
        weights = training_weights(TrainingConfig(weighting=weighting), log, ENCODER)
        assert weights.sum() == pytest.approx(weights.sum() ** 2 / (weights @ weights), rel=1e-9)
        if weighting == "ips":
            assert weights.sum() == pytest.approx(raw.sum() ** 2 / (raw @ raw), rel=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_trajectory_weights_tilt_means_as_they_are_said_to(
    log: pl.DataFrame, temperature: float
) -> None:
    """With rewards of 0 and 1 the tilted mean of a mean m is ``m e / (m e + 1 - m)``."""
    training = TrainingConfig(weighting="trajectory", temperature=temperature)
    estimates = learned(LINEAR, log, training)
    e = np.exp(1.0 / temperature)
    plain = [mean for mean, _ in means_and_errors(log, np.ones(len(log)))]
    tilted = [mean * e / (mean * e + 1.0 - mean) for mean in plain]
    np.testing.assert_allclose(estimates, tilted, atol=1e-4)
    # Heavier rows of rewards of 1 are what VW's learner makes of them too, within its steps.
    theirs = learned(VW["mtr"], log, training)
    assert np.greater(theirs, np.array(learned(VW["mtr"], log, TrainingConfig())) + 0.02).all()


def test_a_trajectory_is_all_rows_of_a_request(log: pl.DataFrame) -> None:
    paired = log.with_columns(
        decision_id=pl.Series([f"d{number // 2}" for number in range(len(log))])
    )
    weights = training_weights(
        TrainingConfig(weighting="trajectory", temperature=1.0), paired, ENCODER
    )
    sums = np.repeat(paired["reward"].to_numpy().reshape(-1, 2).sum(axis=1), 2)
    np.testing.assert_allclose(weights, effective(np.exp(sums / 2.0)), rtol=1e-12)


def test_advantages_are_over_what_the_context_earns_anyway() -> None:
    """Two contexts, one lucky: within each, rows count by their rewards alone."""
    log = World(np.array([[0.9, 0.9], [0.1, 0.1]])).log(POLICY_OF_TWO, 1000, seed=1)
    training = TrainingConfig(weighting="advantage", temperature=0.5)
    weights = training_weights(training, log, ENCODER)
    rewards = log["reward"].to_numpy()
    lucky = log["context"].str.contains("x0").to_numpy()
    expected = np.where(lucky, rewards[lucky].mean(), rewards[~lucky].mean())
    gained = rewards - expected
    scaled = (gained - gained.min()) / np.ptp(gained)
    np.testing.assert_allclose(weights, effective(np.exp(scaled / 0.5)), rtol=1e-3)
    # By returns, nearly all of the weight is the lucky context's; by advantages it is not.
    returns = training_weights(
        msgspec.structs.replace(training, weighting="trajectory"), log, ENCODER
    )
    assert returns[lucky].sum() / returns.sum() > 0.7
    assert weights[lucky].sum() / weights.sum() < 0.5


POLICY_OF_TWO = World(np.array([[0.9, 0.9], [0.1, 0.1]])).generation(1, EpsilonGreedy(epsilon=1.0))


def test_rewards_that_are_all_the_same_count_the_same(log: pl.DataFrame) -> None:
    flat = log.with_columns(reward=pl.lit(0.25))
    for weighting in ("trajectory", "advantage"):
        weights = training_weights(TrainingConfig(weighting=weighting), flat, ENCODER)
        np.testing.assert_allclose(weights, 1.0, rtol=1e-6)
    assert training_weights(TrainingConfig(), log, ENCODER).tolist() == (
        learning_weights(log).tolist()
    )
    assert len(training_weights(TrainingConfig(weighting="ips"), log[:0], ENCODER)) == 0


def test_a_context_that_can_not_be_encoded_counts_as_an_empty_one(log: pl.DataFrame) -> None:
    spoiled = log.with_columns(
        context=pl.when(pl.int_range(pl.len()) == 3).then(pl.lit('{"x":1e39}')).otherwise("context")
    )
    training = TrainingConfig(weighting="advantage")
    np.testing.assert_array_equal(
        training_weights(training, spoiled, ENCODER), training_weights(training, log, ENCODER)
    )


def test_balancing() -> None:
    rewards, weights = np.array([1.0, 0.0, 0.0, 1.0]), np.array([1.0, 2.0, 5.0, 1.0])
    assert balancing_ratio(rewards, weights) == 3.5
    with pytest.raises(GenerationError, match=r"training\.class_weight: .*other than 0 and 1"):
        balancing_ratio(np.array([0.5, 0.0]), np.ones(2))
    with pytest.raises(NotEnoughDataError, match="only one kind"):
        balancing_ratio(np.ones(2), np.ones(2))
