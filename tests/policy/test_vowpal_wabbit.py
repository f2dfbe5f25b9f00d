"""Parity with Vowpal Wabbit: the table of weights.

Vowpal Wabbit computes in float32. Its sums carry an error of about 1e-7 of the size of their terms;
comparisons are to 1e-6.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import pytest
import vowpal_wabbit_next as vw
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.events import Action
from croupier.policy.oracle import TrainingRow, VowpalWabbitConfig, VowpalWabbitOracle
from croupier.policy.oracle.vowpal_wabbit import BanditLearner, lesson_of
from tests.policy.strategies import FEATURES, action_lists
from tests.policy.training import random_request, random_rows, vw_examples, vw_rewards

if TYPE_CHECKING:
    from numpy.typing import NDArray

CbType = Literal["mtr", "ips", "dr"]
CB_TYPES: list[CbType] = ["mtr", "ips", "dr"]

BITS = 14


def trained_workspace(config: VowpalWabbitConfig, rows: list[TrainingRow]) -> Any:
    """The same learner, driven by hand."""
    # Doubly robust learning keeps two weights per feature in the same table.
    bits = config.encoder.bits + (config.cb_type == "dr")
    arguments = (
        f"--quiet --cb_adf --cb_type {config.cb_type} -q ca --noconstant -b {bits} "
        f"--learning_rate {config.learning_rate} --l2 {config.l2}"
    )
    if config.power_t != VowpalWabbitConfig().power_t:
        arguments += f" --power_t {config.power_t}"
    workspace: Any = vw.Workspace(arguments.split())
    encoder = FeatureEncoder(config.encoder)
    for _ in range(config.passes):
        for row in rows:
            workspace.learn_one(vw_examples(encoder.encode(row.context, row.actions), row))
    return workspace


class TestTable:
    """Weights set by hand, so that every column of every request has one."""

    @given(FEATURES, action_lists(), st.sampled_from([10, 18]), st.booleans())
    @settings(deadline=None, max_examples=150)
    def test_scores_what_vowpal_wabbit_predicts_of_any_request(
        self, context: dict[str, Any], actions: list[Action], bits: int, action_id: bool
    ) -> None:
        """Products included, and columns that share a weight; of all features JSON can hold."""
        workspace, weights = pinned_workspace(bits)
        encoder = FeatureEncoder(EncoderConfig(bits=bits, action_id=action_id))
        decision = encoder.encode(context, actions)
        costs = -np.array(vw_rewards(workspace, decision))
        scores = encoder.linear_scores(weights, decision)
        for score, cost, own in zip(scores, costs, decision.actions, strict=True):
            columns = encoder.columns(decision.context, own)
            terms = np.abs(weights[columns.indices].astype(np.float64) * columns.values)
            # Relative to the size of the terms: Vowpal Wabbit adds them up in float32.
            assert abs(score - cost) <= 1e-6 * max(1.0, terms.sum())

    @pytest.mark.parametrize("n_actions", [1, 10, 50])
    def test_of_wide_requests(self, n_actions: int) -> None:
        """20 context and 20 action features, as benchmarks have them."""
        workspace, weights = pinned_workspace(18)
        encoder = FeatureEncoder(EncoderConfig(bits=18))
        rng = np.random.default_rng(0)
        context = {"v": rng.normal(size=20).tolist()}
        actions = [
            Action(f"a{k}", {f"f{i}": float(rng.normal()) for i in range(20)})
            for k in range(n_actions)
        ]
        decision = encoder.encode(context, actions)
        costs = -np.array(vw_rewards(workspace, decision))
        scores = encoder.linear_scores(weights, decision)
        # 440 terms of size 1 are in each.
        np.testing.assert_allclose(scores, costs, rtol=1e-6, atol=1e-5)


@functools.cache
def pinned_workspace(bits: int) -> tuple[Any, NDArray[np.float32]]:
    workspace: Any = vw.Workspace(f"--quiet --cb_adf -q ca --noconstant -b {bits}".split())
    weights = np.random.default_rng(bits).normal(size=1 << bits).astype(np.float32)
    workspace.weights()[:, 0, 0] = weights
    return workspace, weights


class TestOracle:
    @pytest.mark.parametrize("cb_type", CB_TYPES)
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"passes": 3},
            {"learning_rate": 5.0},
            {"learning_rate": 0.01, "power_t": 0.0},
            {"power_t": 0.8, "l2": 1e-3},
            {"l2": 1e-3},
            {"l2": 1e-2, "passes": 2},
            {"encoder": {"bits": 10}},
            {"encoder": {"bits": 18, "action_id": False}},
        ],
        ids=str,
    )
    def test_scores_what_vowpal_wabbit_predicts(
        self, cb_type: CbType, settings: dict[str, Any]
    ) -> None:
        config = msgspec.convert(
            {"kind": "vowpal_wabbit", "cb_type": cb_type, **settings}, VowpalWabbitConfig
        )
        rows = random_rows(150)
        oracle = VowpalWabbitOracle(config).fit(rows)
        workspace = trained_workspace(config, rows)
        encoder = FeatureEncoder(config.encoder)
        rng = np.random.default_rng(1)
        for _ in range(50):
            context, actions = random_request(rng)
            expected = vw_rewards(workspace, encoder.encode(context, actions))
            np.testing.assert_allclose(
                oracle.score(context, actions), expected, rtol=1e-6, atol=1e-6
            )

    @pytest.mark.parametrize("cb_type", CB_TYPES)
    def test_estimates_are_not_clipped_to_the_range_of_rewards(self, cb_type: CbType) -> None:
        """Neither by Vowpal Wabbit: a plane through rewards in [0, 1] goes on beyond them."""
        rows = random_rows(300, reward=lambda _, action: float(action.features["x"] > 0))
        config = VowpalWabbitConfig(cb_type=cb_type, encoder=EncoderConfig(bits=BITS))
        oracle = VowpalWabbitOracle(config).fit(rows)
        actions = [Action("a0", {"x": x, "color": "0"}) for x in (-20.0, 20.0)]
        scores = oracle.score({}, actions)
        assert scores[0] < 0.0
        assert scores[1] > 1.0
        decision = FeatureEncoder(config.encoder).encode({}, actions)
        np.testing.assert_allclose(
            scores, vw_rewards(trained_workspace(config, rows), decision), rtol=1e-6
        )

    @pytest.mark.parametrize(
        ("cb_type", "correlation"),
        # Rewards over small propensities are noisy labels, and ips has nothing against that.
        [("mtr", 0.999), ("dr", 0.999), ("ips", 0.3)],
    )
    def test_learns_a_planted_reward(self, cb_type: CbType, correlation: float) -> None:
        def reward(context: dict[str, Any], action: Action) -> float:
            return 0.5 + 0.1 * float(context["v"][0] * action.features["x"])

        rows = random_rows(1000, reward=reward)
        config = VowpalWabbitConfig(cb_type=cb_type, passes=3, encoder=EncoderConfig(bits=BITS))
        oracle = VowpalWabbitOracle(config).fit(rows)
        rng = np.random.default_rng(2)
        planted: list[float] = []
        learned: list[float] = []
        for _ in range(50):
            context, actions = random_request(rng)
            planted.extend(reward(context, action) for action in actions)
            learned.extend(oracle.score(context, actions))
        assert np.corrcoef(planted, learned)[0, 1] > correlation

    @pytest.mark.parametrize("cb_type", CB_TYPES)
    def test_the_same_rows_give_the_same_weights(self, cb_type: CbType) -> None:
        rows = random_rows(100)
        first, second = (
            VowpalWabbitOracle(VowpalWabbitConfig(cb_type=cb_type), random_state=7).fit(rows)
            for _ in range(2)
        )
        assert first.weights_ is not None
        assert second.weights_ is not None
        assert first.weights_.tobytes() == second.weights_.tobytes()

    @pytest.mark.parametrize("cb_type", CB_TYPES)
    def test_a_rows_weight_counts(self, cb_type: CbType) -> None:
        """Two kinds of rows that contradict each other: the heavier kind wins."""
        action = [Action("a"), Action("b")]
        rows = [
            TrainingRow(
                context={},
                actions=action,
                chosen=i % 2,
                propensity=0.5,
                reward=reward,
                weight=weight,
            )
            for i in range(400)
            for reward, weight in ((1.0, 1.0), (0.0, 0.01))
        ]
        oracle = VowpalWabbitOracle(VowpalWabbitConfig(cb_type=cb_type)).fit(rows)
        swapped = [msgspec.structs.replace(row, weight=1.01 - row.weight) for row in rows]
        other = VowpalWabbitOracle(VowpalWabbitConfig(cb_type=cb_type)).fit(swapped)
        assert (oracle.score({}, action) > other.score({}, action) + 0.2).all()

    def test_a_row_of_weight_two_is_half_the_propensity(self) -> None:
        """Under mtr, weight and inverse propensity are one importance."""
        rows = random_rows(100)
        heavy = [
            msgspec.structs.replace(row, weight=1.0 + i % 2, propensity=row.propensity)
            for i, row in enumerate(rows)
        ]
        rare = [
            msgspec.structs.replace(row, weight=1.0, propensity=row.propensity / (1.0 + i % 2))
            for i, row in enumerate(rows)
        ]
        left, right = (
            VowpalWabbitOracle(VowpalWabbitConfig()).fit(each).weights_ for each in (heavy, rare)
        )
        assert left is not None
        assert right is not None
        np.testing.assert_allclose(left, right, atol=1e-6)

    def test_takes_actions_without_features(self) -> None:
        config = VowpalWabbitConfig(encoder=EncoderConfig(action_id=False))
        row = TrainingRow(
            context={}, actions=[Action("a"), Action("b")], chosen=0, propensity=0.5, reward=1.0
        )
        scores = VowpalWabbitOracle(config).fit([row] * 50).score({}, row.actions)
        assert scores[0] == scores[1] > 0.5

    def test_takes_a_single_action(self) -> None:
        row = TrainingRow(context={}, actions=[Action("a")], chosen=0, propensity=1.0, reward=0.25)
        oracle = VowpalWabbitOracle(VowpalWabbitConfig()).fit([row] * 50)
        np.testing.assert_allclose(oracle.score({}, row.actions), [0.25], atol=0.01)

    def test_needs_rows(self) -> None:
        with pytest.raises(NotEnoughDataError):
            VowpalWabbitOracle(VowpalWabbitConfig()).fit([])

    def test_has_to_be_fitted_first(self) -> None:
        with pytest.raises(GenerationError, match="not fitted"):
            VowpalWabbitOracle(VowpalWabbitConfig()).score({}, [Action("a")])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"propensity": 0.0}, r"rows\[3\]\.propensity: expected a number in \(0, 1\], got 0.0"),
            ({"propensity": float("nan")}, r"rows\[3\]\.propensity"),
            ({"propensity": 1.5}, r"rows\[3\]\.propensity"),
            ({"chosen": 4}, r"rows\[3\]\.chosen: expected the index of an action, got 4"),
            ({"chosen": -1}, r"rows\[3\]\.chosen"),
            ({"reward": float("nan")}, r"rows\[3\]\.reward: expected a finite number"),
            ({"weight": 0.0}, r"rows\[3\]\.weight: expected a positive, finite number"),
            ({"weight": float("inf")}, r"rows\[3\]\.weight"),
        ],
        ids=str,
    )
    def test_refuses_rows_that_vowpal_wabbit_would_pass_over_in_silence(
        self, change: dict[str, Any], message: str
    ) -> None:
        rows = random_rows(6)
        rows[3] = msgspec.structs.replace(rows[3], **change)
        with pytest.raises(InvalidInputError, match=message):
            VowpalWabbitOracle(VowpalWabbitConfig()).fit(rows)

    def test_refuses_weights_that_are_not_finite(self) -> None:
        config = VowpalWabbitConfig(l2=1000.0)
        with pytest.raises(GenerationError, match="not finite"):
            VowpalWabbitOracle(config).fit(random_rows(100))

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"cb_type": "dm"}, "cb_type"),
            ({"learning_rate": 0}, "learning_rate must be positive, got 0"),
            ({"learning_rate": float("inf")}, "learning_rate must be positive, got inf"),
            ({"passes": 0}, r"passes must be in \[1, 1000\], got 0"),
            ({"l2": -1}, "l2 must be at least 0, got -1"),
            ({"l2": float("nan")}, "l2 must be at least 0, got nan"),
            ({"encoder": {"bits": 30}}, r"bits must be in \[10, 26\], got 30.*encoder"),
            ({"hidden": 1}, "hidden"),
        ],
        ids=str,
    )
    def test_configuration_names_what_is_wrong(self, table: dict[str, Any], message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.convert({"kind": "vowpal_wabbit", **table}, VowpalWabbitConfig)


@pytest.mark.parametrize("l2", [0.0, 1e-3])
@pytest.mark.parametrize("power_t", [0.5, 0.0])
def test_mtr_is_the_contextual_bandit_reduction_bit_for_bit(l2: float, power_t: float) -> None:
    """One regression example a row gives the weights that all of its actions give ``--cb_adf``."""
    rows = [row for k in (1, 3, 5) for row in random_rows(150, seed=k, n_actions=k)]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    config = VowpalWabbitConfig(l2=l2, power_t=power_t, encoder=EncoderConfig(bits=12))
    learner, encoder = BanditLearner(config, 3), FeatureEncoder(config.encoder)
    workspace = vw.Workspace(
        f"--quiet --cb_adf --cb_type mtr -q ca --noconstant -b 12 --random_seed 3 "
        f"--learning_rate 0.5 --l2 {l2} --power_t {power_t}".split()
    )
    for row in rows:
        learner.learn(lesson_of(config, encoder, row), row.weight)
        workspace.learn_one(vw_examples(encoder.encode(row.context, row.actions), row))
    theirs = -workspace.weights()[:, 0, 0]
    if l2 == 0.0:
        assert (learner.weights() == theirs).all()
    else:
        # Both keep how far all weights were shrunk apart from them.
        context, actions = random_request(np.random.default_rng(1))
        decision = encoder.encode(context, actions)
        ours = encoder.linear_scores(learner.weights(), decision)
        np.testing.assert_allclose(ours, vw_rewards(workspace, decision), rtol=1e-5, atol=1e-6)
    assert np.count_nonzero(theirs) > 100
