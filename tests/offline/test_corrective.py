"""Corrective sampling: the tilt that is learned, what it does to a log, and how it is served."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl
import pytest
from scipy import optimize, stats

from croupier.offline.answers import ask_policies
from croupier.offline.audit import audit_propensities
from croupier.offline.corrective import corrective_tilt, still_remembered
from croupier.offline.lake import Lake
from croupier.offline.retrain import retrain
from croupier.offline.sink import decision_row
from croupier.offline.study.arms import oscillation_arms
from croupier.policy.exploration import Conservative, EpsilonGreedy, Greedy, Softmax, SquareCB
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import SklearnConfig
from croupier.policy.traffic import Plan
from croupier.policy.training import Corrective, TrainingConfig
from croupier.service.scorer import Scorer
from tests.offline.logs import EPOCH_US
from tests.offline.worlds import World, random_world

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

WORLD = World(random_world(3, 4, seed=4).rewards, excluded=(None, 2, None))
CONTEXTS, ACTIONS = WORLD.rewards.shape
TARGET = WORLD.generation(1, Softmax(temperature=0.3))
FREE = Corrective(kl=0.5, clip=0.999, max_kl=100.0)


def pmfs(generation: Generation) -> NDArray[np.float64]:
    """Of every context, shape (contexts, actions)."""
    return np.array([WORLD.pmf(generation, x) for x in range(CONTEXTS)])


POLICY = pmfs(TARGET)
(ROW,) = WORLD.log(cold_start("shop"), 1, seed=0).to_dicts()


def log_of(contexts: Sequence[int], chosen: Sequence[int], keep_prob: float = 1.0) -> pl.DataFrame:
    """The columns of `interactions` that a tilt is learned from."""
    rows = []
    for context, action in zip(contexts, chosen, strict=True):
        barred = WORLD.excluded[context]
        rows.append(
            ROW
            | {
                "context": f'{{"x":"x{context}"}}',
                "excluded": [] if barred is None else [f"a{barred}"],
                "chosen": action,
                "keep_prob": keep_prob,
            }
        )
    columns = ["context", "actions", "action_ids", "excluded", "chosen", "baseline", "slate_size"]
    return pl.DataFrame(rows, infer_schema_length=None).select(*columns, "keep_prob")


def drawn(policy: NDArray[np.float64], contexts: NDArray[np.int64], rng: Any) -> list[int]:
    """An action for every context."""
    ends = np.cumsum(policy, axis=1)[contexts]
    found = (rng.random(len(contexts))[:, None] * ends[:, -1:] >= ends).sum(axis=1)
    return [int(each) for each in found]


def learned(rows: pl.DataFrame, config: Corrective = FREE) -> NDArray[np.float64]:
    """Log-weights of all actions, shape (ACTIONS,)."""
    tilt, _ = corrective_tilt(TARGET, config, rows, seed=0)
    known = {} if tilt is None else dict(tilt.log_weights)
    return np.array([known.get(f"a{each}", 0.0) for each in range(ACTIONS)])


def loss(
    weights: NDArray[np.float64], contexts: list[int], chosen: list[int], config: Corrective
) -> float:
    """The paper's, row by row."""
    total = 0.0
    for context, action in zip(contexts, chosen, strict=True):
        p = POLICY[context]
        q = p * np.exp(weights) / (p @ np.exp(weights))
        ratio = q[action] / p[action]
        own = p > 0.0
        divergence = float(q[own] @ np.log(q[own] / p[own]))
        clipped = np.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
        total += max(ratio, clipped) + config.kl * divergence
    return float(total / len(contexts))


@pytest.mark.parametrize("config", [FREE, Corrective(max_kl=100.0)], ids=["free", "clipped"])
def test_the_tilt_minimises_the_loss(config: Corrective) -> None:
    """Against a general minimiser of the loss as it is written, with the same bound on weights."""
    rng = np.random.default_rng(3)
    contexts = rng.integers(CONTEXTS, size=60)
    chosen = drawn(pmfs(cold_start("shop")), contexts, rng)
    found = learned(log_of(contexts.tolist(), chosen), config)
    given = (contexts.tolist(), chosen, config)
    bound = float(np.log1p(1.0 / config.kl))
    other = optimize.minimize(
        loss,
        np.zeros(ACTIONS),
        args=given,
        method="Powell",
        bounds=[(-bound, bound)] * ACTIONS,
        options={"xtol": 1e-6, "ftol": 1e-10},
    )
    before = loss(np.zeros(ACTIONS), *given)
    assert before - other.fun > 1e-3
    assert loss(found, *given) == pytest.approx(other.fun, abs=0.01 * (before - other.fun))
    assert np.abs(found).max() <= bound


def test_the_limit_on_divergence_is_kept_and_gone_up_to() -> None:
    contexts = [0, 1, 2] * 20
    chosen = POLICY.argmax(axis=1)[contexts].tolist()
    rows = log_of(contexts, chosen)
    for limit in (0.001, 0.01, 0.03):
        tilt, kl = corrective_tilt(TARGET, Corrective(max_kl=limit), rows, seed=0)
        assert tilt is not None
        p, q = POLICY, pmfs(replace(TARGET, tilt=tilt))
        own = p > 0.0
        divergence = (q[own] @ np.log(q[own] / p[own])) / CONTEXTS
        assert kl == pytest.approx(divergence, rel=1e-9)
        assert limit * 0.999 < divergence <= limit * (1.0 + 1e-9)


def test_what_is_missing_is_played_more_and_never_beyond_the_bound() -> None:
    rows = log_of([0, 2] * 50, [0, 2] * 50)
    weights = learned(rows, Corrective(kl=0.3, max_kl=100.0))
    assert weights[0] < 0.0
    assert weights[2] < 0.0
    assert max(weights[1], weights[3]) <= np.log1p(1.0 / 0.3)
    assert min(weights[1], weights[3]) > 0.0


def test_a_row_counts_for_what_it_stands_for() -> None:
    few, many = ([0, 1, 2, 0], [0, 1, 3, 1]), ([0, 1, 2], [2, 3, 1])
    thinned = pl.concat([log_of(*few), log_of(*many, keep_prob=0.25)])
    whole = pl.concat([log_of(*few), *[log_of(*many)] * 4])
    np.testing.assert_allclose(learned(thinned), learned(whole), atol=1e-6)
    assert np.abs(learned(thinned)).max() > 0.01


def test_there_may_be_nothing_to_correct() -> None:
    """A log in the very shares of the policy, one that it never plays, and none."""
    even = WORLD.generation(1, EpsilonGreedy(epsilon=1.0))
    exact = log_of([0] * 4 + [1] * 3, [0, 1, 2, 3, 0, 1, 3])
    assert corrective_tilt(even, Corrective(), exact, seed=0) == (None, None)
    greedy = WORLD.generation(1, Greedy())
    never = log_of([0] * 3, [each for each in range(4) if pmfs(greedy)[0][each] == 0.0])
    assert corrective_tilt(greedy, Corrective(), never, seed=0) == (None, None)
    assert corrective_tilt(even, Corrective(), exact.clear(), seed=0) == (None, None)


def test_only_what_will_be_learned_from_again_is_made_up_for() -> None:
    rows = pl.DataFrame({"generation": [1, 4, 4, 6]})
    assert still_remembered(rows, None)["generation"].to_list() == [1, 4, 4, 6]
    assert still_remembered(rows, 4)["generation"].to_list() == [1, 4, 4, 6]
    assert still_remembered(rows, 3)["generation"].to_list() == [4, 4, 6]


def off_by(actions: list[int], contexts: NDArray[np.int64]) -> float:
    """Largest difference of a log's shares of actions from those to be expected of the target."""
    expected = POLICY[contexts].mean(axis=0)
    return float(np.abs(np.bincount(actions, minlength=ACTIONS) / len(actions) - expected).max())


@pytest.mark.parametrize("seeds", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_correction_makes_a_log_look_more_as_its_policy_would(seeds: int) -> None:
    """With the same 200 rows before and 100 rows after them, drawn as before or corrected.

    A correction that does nothing would pass once in 10,000 times (paired t-test, one-sided).
    """
    plain: list[float] = []
    corrected: list[float] = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        contexts = rng.integers(CONTEXTS, size=300)
        before = drawn(POLICY, contexts[:200], rng)
        tilt, _ = corrective_tilt(
            TARGET, Corrective(), log_of(contexts[:200].tolist(), before), seed=0
        )
        tilted = pmfs(replace(TARGET, tilt=tilt))
        for errors, after in ((plain, POLICY), (corrected, tilted)):
            errors.append(off_by([*before, *drawn(after, contexts[200:], rng)], contexts))
    found = stats.ttest_rel(plain, corrected, alternative="greater")
    assert found.pvalue < 1e-4
    assert np.mean(corrected) < 0.85 * np.mean(plain)


class TestLoop:
    """From the lake through training to what a scorer logs and an evaluation replays."""

    @pytest.mark.parametrize(
        "exploration", [SquareCB(gamma_scale=3.0, floor=0.03), Softmax(temperature=0.2)]
    )
    def test_what_is_trained_is_logged_and_evaluated(
        self, tmp_path: Path, exploration: SquareCB | Softmax
    ) -> None:
        config = LoopConfig(
            exploration=exploration,
            oracle=SklearnConfig(),
            training=TrainingConfig(window_generations=2, holdout=0.0, corrective=Corrective()),
        )
        lake, log = Lake(tmp_path / "lake"), WORLD.log(cold_start("shop"), 300, seed=1)
        lake.append("interactions", log)
        generation = trained(lake, config, 1)
        assert generation.tilt is not None
        assert generation.provenance is not None
        assert generation.provenance.tilt_kl is not None
        assert 0.0 < generation.provenance.tilt_kl <= Corrective().max_kl
        assert trained(lake, config, 1).tilt == generation.tilt
        generation.save(tmp_path / "1")
        loaded = Generation.load(tmp_path / "1")

        scorer = Scorer({"shop": config}, clock=lambda: EPOCH_US)
        scorer.swap(Plan(loaded))
        made = [scorer.decide("shop", WORLD.request(each % 3, f"d{each}")) for each in range(400)]
        for decision in made:
            x = int(decision.context["x"][1:])
            assert decision.pmf == WORLD.pmf(generation, x).tolist()
            assert decision.propensity == decision.pmf[decision.chosen]
            eligible = [each for each in range(ACTIONS) if each != WORLD.excluded[x]]
            assert min(decision.pmf[each] for each in eligible) >= exploration.floor * (1 - 1e-12)
        assert not np.allclose(pmfs(generation), pmfs(replace(generation, tilt=None)), atol=1e-3)

        rows = pl.DataFrame(
            [decision_row(each, number) for number, each in enumerate(made, 1)],
            schema_overrides=log.schema,
        ).with_columns(reward=pl.lit(0.0))
        audit = audit_propensities(rows)
        assert audit.violations is not None
        assert audit.violations.rows == audit.replay_mismatches == 0
        assert audit.test is not None
        # Once in 10,000 times it is false; ids are fixed.
        assert audit.test.p_value > 1e-4
        asked = ask_policies(rows, [loaded], (0.0, 1.0))
        np.testing.assert_array_equal(asked.probability[0], rows["propensity"].to_numpy())

    def test_the_oldest_of_a_full_window_has_had_its_turn(self, tmp_path: Path) -> None:
        """Only its log is off, and it will be forgotten when the next one is learned from."""
        config = LoopConfig(
            exploration=EpsilonGreedy(epsilon=1.0),
            oracle=SklearnConfig(),
            training=TrainingConfig(window_generations=2, holdout=0.0, corrective=Corrective()),
        )
        skewed = WORLD.generation(1, Softmax(temperature=0.1))
        second = WORLD.generation(2, EpsilonGreedy(epsilon=1.0))
        lakes = [Lake(tmp_path / name) for name in ("skewed", "even")]
        for lake, first in zip(lakes, (skewed, replace(second, number=1)), strict=True):
            lake.append("interactions", WORLD.log(first, 200, seed=1))
            lake.append("interactions", WORLD.log(second, 200, seed=2, first=200))
        one, other = (trained(lake, config, 3) for lake in lakes)
        assert one.tilt == other.tilt
        assert one.tilt is not None

    def test_without_it_nothing_is_tilted(self, tmp_path: Path) -> None:
        lake = Lake(tmp_path)
        lake.append("interactions", WORLD.log(cold_start("shop"), 200, seed=1))
        generation = trained(lake, LoopConfig(oracle=SklearnConfig()), 1)
        assert generation.tilt is None
        assert generation.provenance is not None
        assert generation.provenance.tilt_kl is None

    @pytest.mark.parametrize(
        ("loop", "said"),
        [
            ({"training": {"corrective": {"kl": 0.0}}}, r"kl must be in \[0\.01, 100\], got 0"),
            ({"training": {"corrective": {"clip": 1.0}}}, r"clip must be in \(0, 1\), got 1"),
            ({"training": {"corrective": {"max_kl": 0.0}}}, "max_kl must be positive"),
            ({"training": {"corrective": {"lr": 0.1}}}, "unknown field `lr`"),
            (
                {"training": {"corrective": {}, "window_generations": 1}},
                "corrective needs window_generations to be at least 2",
            ),
            (
                {"training": {"corrective": {}, "max_total_variation": 0.1}},
                "corrective must be none with max_total_variation",
            ),
            (
                {
                    "training": {"corrective": {}},
                    "exploration": msgspec.to_builtins(Conservative(inner=SquareCB())),
                },
                r"training\.corrective must be none with exploration conservative",
            ),
            (
                {"training": {"corrective": {}}, "learning_mode": "apprentice"},
                "an apprentice learns no rewards",
            ),
        ],
        ids=str,
    )
    def test_configurations_that_mean_nothing_are_refused(
        self, loop: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(msgspec.ValidationError, match=said):
            msgspec.convert(loop, LoopConfig)

    def test_it_is_an_arm_of_the_study(self) -> None:
        arms = {each.name: each.config.training for each in oscillation_arms(LoopConfig())}
        training = arms["igw, W = 3, corrective"]
        assert (training.window_generations, training.corrective) == (3, Corrective())


def trained(lake: Lake, config: LoopConfig, number: int) -> Generation:
    return retrain(
        lake,
        "shop",
        config,
        number=number,
        parent=number - 1,
        judge_share=0.2,
        seed=5,
        created_us=EPOCH_US,
    )
