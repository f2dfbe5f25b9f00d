"""Learning online: the same oracle again, whatever happened in between, and no row twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from deltalake import DeltaTable

from croupier.offline.follow import FollowingLearner
from croupier.offline.lake import ForgottenError
from croupier.offline.learner import OnlineLearner, relearn
from croupier.offline.nightly import Nightly, NightlyConfig
from croupier.offline.retrain import is_judged, retrain
from croupier.offline.sink import sink
from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import ConfigError, GenerationError, NotEnoughDataError
from croupier.policy.exploration import EpsilonGreedy
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import (
    AutoConfig,
    BootstrapConfig,
    CoverConfig,
    RidgeConfig,
    SklearnConfig,
    VowpalWabbitConfig,
    VowpalWabbitModelConfig,
)
from tests.offline.shop import Shop
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.offline.follow import LoopRound
    from croupier.offline.retrain import Lesson
    from croupier.policy.generation import Generation
    from croupier.policy.oracle import OracleConfig

BITS = EncoderConfig(bits=12)
VOWPAL = VowpalWabbitConfig(encoder=BITS)
ORACLES: dict[str, OracleConfig] = {
    "vowpal_wabbit": VOWPAL,
    "ridge": RidgeConfig(encoder=BITS),
    "auto": AutoConfig(encoder=BITS),
    "auto, beyond": AutoConfig(encoder=BITS, max_columns=12),
    "bootstrap": BootstrapConfig(base=VOWPAL, members=3),
    "cover": CoverConfig(encoder=BITS, members=3),
    "sklearn": SklearnConfig(
        estimator="sklearn.linear_model.SGDClassifier", params={"loss": "log_loss"}, encoder=BITS
    ),
    "vowpal_wabbit_model": VowpalWabbitModelConfig(arguments="-q ca --nn 2", encoder=BITS),
}
JUDGES = 0.3
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")


def config_of(kind: str = "vowpal_wabbit", **others: object) -> LoopConfig:
    return LoopConfig(
        exploration=EpsilonGreedy(epsilon=0.3),
        oracle=ORACLES[kind],
        attribution_window="1 min",
        **others,  # type: ignore[arg-type]
    )


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return shop_of(tmp_path, config_of())


def shop_of(root: Path, config: LoopConfig, *others: str) -> Shop:
    """A shop whose loops are alike."""
    loops = dict.fromkeys(("shop", *others), config)
    return Shop(root, random_world(3, 4, seed=3), loops=loops, config=NightlyConfig(seed=7))


def trade(shop: Shop, decisions: int, *, loop: str = "shop") -> int:
    """Decide, and join what came of it; gives the version of the interactions."""
    shop.day(decisions, loop)
    shop.now += 120_000_000
    with shop.log() as log:
        sink(log, shop.lake)
    shop.nightly.join(loop, now_us=shop.now)
    return shop.lake.version("interactions")


def learner_of(shop: Shop, base: int, loop: str = "shop") -> OnlineLearner:
    return OnlineLearner(
        shop.lake, loop, shop.nightly.loops[loop], judge_share=JUDGES, seed=7, base=base
    )


def made_by(learner: OnlineLearner) -> Generation:
    return learner.generation(number=1, parent=0, created_us=0)


def scores(shop: Shop, generation: Generation) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    assert generation.oracle is not None
    requests = [shop.world.request(context) for context in range(len(shop.world.rewards))]
    return np.array([generation.oracle.score(each.context, each.actions) for each in requests])


def rounds_of(shop: Shop) -> FollowingLearner:
    """A learner as a new process would make it."""
    nightly = Nightly(shop.lake, shop.registry, shop.nightly.loops, shop.nightly.config)
    return FollowingLearner(nightly, nightly.loops)


def next_round(shop: Shop, learner: FollowingLearner) -> LoopRound:
    with shop.log() as log:
        sink(log, shop.lake)
    (found,) = learner.round(now_us=shop.now)
    return found


@pytest.mark.parametrize("kind", ORACLES)
def test_what_has_learned_bit_by_bit_can_be_made_again(tmp_path: Path, kind: str) -> None:
    shop = shop_of(tmp_path, config_of(kind))
    learner = learner_of(shop, trade(shop, 60))
    learned = [learner.learn()]
    for decisions in (5, 1, 120):
        trade(shop, decisions)
        learned.append(learner.learn())
    assert learner.learn() == 0
    generation = made_by(learner)
    everything = shop.lake.scan("interactions", "shop").filter(~is_judged(JUDGES)).collect()
    assert sum(learned) == learner.lessons == len(everything)
    assert generation.provenance is not None
    assert generation.provenance.training_rows == len(everything)
    # Much is learned afterwards, by others too.
    trade(shop, 30)
    learner.learn()
    again = relearn(shop.lake, "shop", config_of(kind), generation.provenance, judge_share=JUDGES)
    assert again.lessons == len(everything)
    np.testing.assert_array_equal(scores(shop, made_by(again)), scores(shop, generation))
    assert not np.array_equal(scores(shop, made_by(learner)), scores(shop, generation))


def test_vowpal_wabbit_learns_online_what_it_learns_at_once(shop: Shop) -> None:
    learner = learner_of(shop, trade(shop, 40))
    for decisions in (30, 30):
        learner.learn()
        trade(shop, decisions)
    learner.learn()
    at_once = retrain(
        shop.lake,
        "shop",
        shop.nightly.loops["shop"],
        number=1,
        parent=0,
        judge_share=JUDGES,
        seed=7,
        created_us=0,
    )
    np.testing.assert_array_equal(scores(shop, made_by(learner)), scores(shop, at_once))


def test_a_generation_stays_as_it_was_published(shop: Shop) -> None:
    learner = learner_of(shop, trade(shop, 60))
    learner.learn()
    generation = made_by(learner)
    before = scores(shop, generation)
    trade(shop, 3)
    learner.learn()
    np.testing.assert_array_equal(scores(shop, generation), before)


def test_only_its_loop_and_the_learners_folds_are_learned(tmp_path: Path) -> None:
    shop = shop_of(tmp_path, config_of(), "other")
    learner = learner_of(shop, trade(shop, 40))
    trade(shop, 50, loop="other")
    trade(shop, 40)
    learner.learn()
    own = shop.lake.scan("interactions", "shop").collect()
    assert len(own) == 80
    assert learner.lessons == len(own.filter(~is_judged(JUDGES))) < 80


def test_rows_that_were_only_moved_are_not_learned_again(shop: Shop) -> None:
    learner = learner_of(shop, trade(shop, 40))
    learner.learn()
    trade(shop, 20)
    trade(shop, 20)
    DeltaTable(shop.lake.root / "interactions").optimize.compact()
    trade(shop, 20)
    learner.learn()
    rows = shop.lake.scan("interactions", "shop").filter(~is_judged(JUDGES)).collect()
    assert learner.lessons == len(rows)


def test_what_was_forgotten_can_not_be_learned_again(shop: Shop) -> None:
    base = trade(shop, 40)
    learner = learner_of(shop, base)
    learner.learn()
    generation = made_by(learner)
    trade(shop, 40)
    shop.lake.delete("interactions", "loop = 'shop' AND date >= '1970-01-01'")
    with pytest.raises(ForgottenError, match="deleted"):
        learner_of(shop, base).learn()
    assert generation.provenance is not None
    with pytest.raises(ForgottenError):
        relearn(shop.lake, "shop", config_of(), generation.provenance, judge_share=JUDGES)


def test_a_change_of_the_kept_share_weighs_rows_by_what_they_stand_for(tmp_path: Path) -> None:
    shop = shop_of(tmp_path, config_of())
    rare = shop_of(tmp_path, config_of(keep_prob=0.25))
    # The same data directory, with another configuration.
    rare.now, rare.count = shop.now, 10_000
    learner = learner_of(shop, trade(shop, 60))
    learner.learn()
    taught: list[float] = []
    teach = learner._teach

    def noting(lessons: list[Lesson]) -> None:
        taught.extend(row.weight for lesson in lessons for row in lesson)
        teach(lessons)

    learner._teach = noting  # type: ignore[method-assign]
    trade(rare, 60)
    learner.learn()
    n, m = learner.lessons - len(taught), len(taught)
    expected = 4.0 * (n + 4 * m) / (n + 16 * m)
    np.testing.assert_allclose(taught, expected)


def test_who_takes_a_learners_place_comes_to_the_same_oracle(tmp_path: Path) -> None:
    """One learner goes on, another one is replaced after every round."""
    published: list[list[Generation]] = []
    for restarts in (False, True):
        root = tmp_path / str(restarts)
        root.mkdir()
        shop = shop_of(root, config_of(model_export_frequency="1 s"))
        learner, generations = rounds_of(shop), []
        for decisions in (200, 40, 1, 90):
            shop.day(decisions)
            shop.now += 120_000_000
            if restarts:
                learner = rounds_of(shop)
            found = next_round(shop, learner)
            assert found.published is not None
            generations.append(shop.nightly.generation("shop", found.published))
        published.append(generations)
    for one, other in zip(*published, strict=True):
        assert one.provenance == other.provenance
        np.testing.assert_array_equal(scores(shop, one), scores(shop, other))


def test_a_better_generation_is_proven_promoted_and_served(tmp_path: Path) -> None:
    shop = shop_of(tmp_path, config_of(model_export_frequency="10 min"))
    learner = rounds_of(shop)
    champions = []
    for _ in range(5):
        shop.day(400)
        shop.now += 120_000_000
        found = next_round(shop, learner)
        champions.append(found.champion)
        shop.follow()
    assert champions[-1] > 0
    assert shop.unproven_champions() == []
    served = shop.nightly.generation("shop", champions[-1])
    assert shop.world.value(served) > shop.world.value(shop.nightly.generation("shop", 0))
    row = shop.rows()[champions[-1]]
    assert row["base_version"] == 0
    assert row["verdict"] is not None
    plan = shop.scorer.plan("shop")
    assert plan is not None
    assert plan.champion.number == champions[-1]


def test_generations_are_published_when_they_are_due(tmp_path: Path) -> None:
    shop = shop_of(tmp_path, config_of(model_export_frequency="10 min"))
    learner = rounds_of(shop)
    assert next_round(shop, learner).waiting == "no interactions yet"
    shop.day(10)
    shop.now += 120_000_000
    few = next_round(shop, learner)
    assert "of at least 20" in (few.waiting or "")
    shop.day(100)
    shop.now += 120_000_000
    first = next_round(shop, learner)
    assert (first.published, first.version) == (1, 1)
    shop.day(100)
    shop.now += 120_000_000
    early = next_round(shop, learner)
    assert early.published is None
    assert early.learned > 0
    assert "not due" in (early.waiting or "")
    shop.now += 600_000_000
    second = next_round(shop, learner)
    assert (second.published, second.learned) == (2, 0)
    shop.now += 600_000_000
    assert next_round(shop, learner).waiting == "nothing was learned since generation 2"
    # Neither would another process publish it again.
    again = next_round(shop, rounds_of(shop))
    assert (again.published, again.lessons) == (None, second.lessons)


def test_too_little_to_judge_on_leaves_a_challenger(tmp_path: Path) -> None:
    shop = shop_of(tmp_path, config_of(model_export_frequency="1 s"))
    learner = rounds_of(shop)
    shop.day(40)
    shop.now += 120_000_000
    found = next_round(shop, learner)
    assert (found.published, found.champion) == (1, 0)
    assert found.waiting is not None or (found.verdict is not None and not found.verdict.promote)
    assert shop.rows()[1]["status"] in {"challenger", "rejected"}


@pytest.mark.parametrize(
    ("oracle", "field"),
    [
        (SklearnConfig(), "loops.shop.oracle"),
        (BootstrapConfig(base=SklearnConfig()), "loops.shop.oracle"),
        (VowpalWabbitConfig(passes=2), "loops.shop.oracle.passes"),
        (VowpalWabbitModelConfig(passes=2), "loops.shop.oracle.passes"),
        (BootstrapConfig(base=VowpalWabbitConfig(passes=3)), "loops.shop.oracle.base.passes"),
        (AutoConfig(beyond=VowpalWabbitConfig(passes=2)), "loops.shop.oracle.beyond.passes"),
    ],
)
def test_an_oracle_that_can_not_learn_online_is_refused(
    tmp_path: Path, oracle: OracleConfig, field: str
) -> None:
    config = LoopConfig(exploration=EpsilonGreedy(), oracle=oracle)
    shop = Shop(tmp_path, random_world(2, 2, seed=1), loops={"shop": config})
    with pytest.raises(ConfigError) as error:
        rounds_of(shop)
    assert error.value.field == field


def test_too_little_makes_no_generation(shop: Shop) -> None:
    learner = learner_of(shop, trade(shop, 10))
    learner.learn()
    with pytest.raises(NotEnoughDataError, match="at least 20"):
        made_by(learner)


def test_what_can_not_be_learned_ends_in_a_new_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = shop_of(tmp_path, config_of(model_export_frequency="1 s"))
    learner = rounds_of(shop)
    trade(shop, 60)
    with monkeypatch.context() as patch:

        def diverged(*_: object) -> None:
            raise GenerationError("weights grew without bound")

        patch.setattr(OnlineLearner, "_learn", diverged)
        assert next_round(shop, learner).failed == "weights grew without bound"
    found = next_round(shop, learner)
    rows = shop.lake.scan("interactions", "shop").filter(~is_judged(0.3)).collect()
    assert (found.failed, found.lessons, found.published) == (None, len(rows), 1)
