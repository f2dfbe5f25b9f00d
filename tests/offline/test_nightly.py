"""The nightly job, from decisions of the real scorer to its next generation and back."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import polars as pl
import pytest

from croupier.offline.gate import GateConfig
from croupier.offline.lake import LakeLockedError
from croupier.offline.nightly import Nightly, NightlyConfig
from croupier.offline.registry import Registry
from croupier.offline.retrain import is_judged, learner_folds, retrain
from croupier.offline.summaries.tables import summaries_of
from croupier.policy.errors import GenerationError, InvalidInputError
from croupier.policy.exploration import Conservative, EpsilonGreedy, SquareCB
from croupier.policy.generation import cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import (
    AutoConfig,
    DistilledConfig,
    OracleConfig,
    SklearnConfig,
    SklearnOnnxConfig,
    VowpalWabbitModelConfig,
)
from croupier.policy.training import TrainingConfig
from tests.offline.shop import CONFIG, MINUTE, Shop, no_steps
from tests.offline.worlds import SECOND, World, random_world

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.offline.night import LoopNight


# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture(scope="module")
def world() -> World:
    return World(random_world(3, 4, seed=3).rewards, excluded=(None, 1, None))


@dataclass(frozen=True)
class History:
    shop: Shop
    nights: list[LoopNight]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, world: World) -> History:
    """Five days and nights."""
    shop = Shop(tmp_path_factory.mktemp("history"), world)
    nights = []
    for _ in range(5):
        shop.day(400)
        (night,) = shop.night().loops
        nights.append(night)
    return History(shop, nights)


@pytest.fixture(scope="module")
def template(history: History, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry's database without the loop: it takes more than a second to make one."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    shutil.copy(history.shop.root / "mlflow.db", path)
    registry = Registry(f"sqlite:///{path}", path.parent)
    client = registry._tracking.client()
    client.rename_registered_model("croupier-shop", "something-else")
    experiment = client.get_experiment_by_name("croupier-shop")
    client.rename_experiment(experiment.experiment_id, "something-else")
    assert registry.numbers("shop") == []
    return path


def test_generations_improve_and_the_world_confirms_it(history: History, world: World) -> None:
    shop, nights = history.shop, history.nights
    champions = [night.champion for night in nights]
    assert champions == sorted(champions)
    assert champions[-1] > 0
    assert shop.registry.champion("shop") == champions[-1]
    values = [world.value(shop.registry.load("shop", number)) for number in (0, champions[-1])]
    assert values[1] > values[0] + 0.1
    # Every night trains, whether or not it promotes; numbers are never used twice.
    assert (
        [night.challenger for night in nights] == shop.registry.numbers("shop") == [1, 2, 3, 4, 5]
    )
    assert all(night.skipped is None and night.failed is None for night in nights)
    assert sum(not night.verdict.promote for night in nights if night.verdict) >= 1


def test_the_sink_and_the_join_take_in_the_day(history: History) -> None:
    lake = history.shop.lake
    for night in history.nights:
        assert night.join.joined == 400
        assert night.join.observed + night.join.defaulted == 400
        assert (night.join.open, night.join.late, night.join.orphans) == (0, 0, 0)
    decisions = lake.scan("decisions", "shop").collect()
    interactions = lake.scan("interactions", "shop").collect()
    assert len(decisions) == decisions["decision_id"].n_unique() == 2000
    assert sorted(interactions["decision_id"]) == sorted(decisions["decision_id"])
    clicks = lake.scan("outcomes", "shop").collect()
    assert interactions["reward"].sum() == len(clicks)


def test_small_tables_hold_what_nights_found(history: History) -> None:
    shop, summaries = history.shop, summaries_of(history.shop.lake)
    nights = summaries.read("shop", "nights")
    assert nights["joined"].to_list() == [400] * 5
    assert nights["champion"].to_list() == [night.champion for night in history.nights]
    assert nights["challenger"].to_list() == [1, 2, 3, 4, 5]
    assert summaries.read("shop", "days")["joined"].sum() == 2000
    estimates = summaries.read("shop", "estimates")
    for number, row in list(shop.rows().items())[1:]:
        told = estimates.filter(
            pl.col("policy") == f"generation {number}",
            pl.col("generation") == number,
            pl.col("estimator") == row["estimator"],
        )
        columns = ("value", "lower", "upper", "ess", "max_weight")
        promised = ("estimate", "lower", "upper", "ess", "max_weight")
        assert told.select(columns).rows() == [tuple(row[name] for name in promised)]
    drifted = summaries.read("shop", "drift")
    served = summaries.read("shop", "hours")["generation"].unique().sort().to_list()
    assert drifted.select("before", "after").unique().rows() == [tuple(served[-2:])]
    assert not drifted["significant"].any()


def test_rows_hold_what_was_promised(history: History) -> None:
    rows = history.shop.rows()
    champion, now = 0, history.nights[-1].champion
    for night in history.nights:
        assert night.challenger is not None
        assert night.evaluation is not None
        assert night.verdict is not None
        row = rows[night.challenger]
        first, second = (policy.estimates["dr"] for policy in night.evaluation.policies)
        difference = night.evaluation.differences["dr"]
        assert {
            name: row[name] for name in ("estimate", "lower", "upper", "ess", "max_weight")
        } == {
            "estimate": second.value,
            "lower": second.lower,
            "upper": second.upper,
            "ess": second.ess,
            "max_weight": second.max_weight,
        }
        assert row["champion_estimate"] == first.value
        assert (row["difference"], row["difference_lower"], row["difference_upper"]) == (
            difference.value,
            difference.lower,
            difference.upper,
        )
        assert row["estimator"] == "dr"
        assert row["judged_rows"] == night.evaluation.rows
        assert row["verdict"] == "; ".join(night.verdict.reasons)
        assert row["parent"] == champion
        assert row["override_reason"] is None
        assert (row["promoted"] is not None) == night.verdict.promote
        if night.verdict.promote:
            champion = night.challenger
        assert night.champion == champion
        former = "retired" if night.verdict.promote else "rejected"
        assert row["status"] == ("champion" if night.challenger == now else former)
    assert [number for number, row in rows.items() if row["status"] == "champion"] == [champion]
    assert rows[0]["status"] == "retired"


def test_rows_hold_what_then_happened(history: History) -> None:
    """As of the last night; all figures are those of the lake."""
    rows = history.shop.rows()
    interactions = history.shop.lake.scan("interactions", "shop").collect()
    for (number,), served in interactions.group_by("generation"):
        row = rows[number]
        assert row["decisions"] == len(served)
        assert row["realised_mean"] == pytest.approx(served["reward"].mean())
        assert row["realised_lower"] < row["realised_mean"] < row["realised_upper"]
        # The draws are right; the seeds are fixed.
        assert row["propensity_p_value"] > 1e-3
        if number != 0:
            # Two 95 % intervals that don't touch would be a broken promise.
            assert row["lower"] <= row["realised_upper"]
            assert row["realised_lower"] <= row["upper"]
    served_ever = set(interactions["generation"])
    assert all(rows[number]["decisions"] is None for number in rows.keys() - served_ever)


def test_no_champion_was_ever_unproven(history: History) -> None:
    assert history.shop.lake.version("generations") > 10
    assert history.shop.unproven_champions() == []


def test_the_run_alone_is_enough_to_make_a_generation_again(
    history: History, tmp_path: Path
) -> None:
    """From what MLflow holds and the lake, which has grown since (invariant 3)."""
    shop = history.shop
    run = shop.registry._tracking.client().get_run(shop.rows()[2]["run_id"])
    params = run.data.params
    assert params["generation"] == "2"
    again = retrain(
        shop.lake,
        "shop",
        msgspec.json.decode(params["config"], type=LoopConfig),
        number=int(params["generation"]),
        parent=int(params["parent"]),
        judge_share=float(params["judge_share"]),
        seed=int(params["seed"]),
        created_us=int(params["created_us"]),
        lake_version=int(params["lake_version"]),
    )
    original = shop.registry.load("shop", 2)
    assert again.provenance == original.provenance
    again.save(tmp_path / "again")
    original.save(tmp_path / "original")
    for name in ("manifest.json", "oracle/weights.npz", "oracle/oracle.json"):
        assert (tmp_path / "again" / name).read_bytes() == (
            tmp_path / "original" / name
        ).read_bytes()


def test_provenance_in_the_table_is_that_of_the_generation(history: History) -> None:
    for number, row in history.shop.rows().items():
        provenance = history.shop.registry.load("shop", number).provenance
        if provenance is None:
            assert number == 0
            continue
        for name in ("parent", "lake_version", "code_version", "loop_config", "seed"):
            assert row[name] == getattr(provenance, name)
        learned = history.shop.lake.scan_version("interactions", row["lake_version"], "shop")
        rows = learned.filter(~is_judged(0.3)).collect()
        # A tenth of the learner's rows, where they are many, only measure.
        first = learner_folds(TrainingConfig(), 0.3, len(rows)).trained
        assert row["training_rows"] == len(rows.filter(pl.col("fold") >= first))
        assert (row["exploration"], row["oracle"]) == ("epsilon_greedy(epsilon=0.3)", "sklearn")


# By hand.


STRICT = NightlyConfig(gate=GateConfig(margin=0.9))


@pytest.fixture(scope="module")
def held_back(tmp_path_factory: pytest.TempPathFactory, world: World, template: Path) -> Shop:
    shop = Shop(tmp_path_factory.mktemp("held"), world, config=STRICT, template=template)
    shop.day(800)
    (night,) = shop.night().loops
    assert night.champion == 0
    assert shop.rows()[1]["status"] == "rejected"
    return shop


@pytest.fixture
def shop(tmp_path: Path, world: World, held_back: Shop) -> Shop:
    """A day and a night old, with a challenger that a strict gate has held back."""
    shutil.copytree(held_back.root, tmp_path, dirs_exist_ok=True)
    shop = Shop(tmp_path, world, config=STRICT, now=held_back.now)
    shop.count = held_back.count
    return shop


def test_an_override_is_recorded(shop: Shop) -> None:
    shop.nightly.override("shop", 1, now_us=shop.now, reason="the sale begins")
    rows = shop.rows()
    assert shop.registry.champion("shop") == 1
    assert (rows[1]["status"], rows[1]["override_reason"]) == ("champion", "the sale begins")
    assert "not shown to be above +0.9" in rows[1]["verdict"]
    assert rows[0]["status"] == "retired"
    assert shop.unproven_champions() == []


@pytest.mark.parametrize(
    ("number", "reason", "error", "message"),
    [
        (1, "", InvalidInputError, "reason: expected why"),
        (1, " \n", InvalidInputError, "reason: expected why"),
        (7, "why not", GenerationError, "no generation 7"),
        (0, "why not", InvalidInputError, "0 is the champion of shop already"),
    ],
)
def test_an_override_that_can_t_be_meant_changes_nothing(
    shop: Shop, number: int, reason: str, error: type[Exception], message: str
) -> None:
    before, version = shop.rows(), shop.lake.version("generations")
    with pytest.raises(error, match=message):
        shop.nightly.override("shop", number, now_us=shop.now, reason=reason)
    assert shop.rows() == before
    assert shop.lake.version("generations") == version
    assert shop.registry.champion("shop") == 0


def test_a_promotion_by_hand_asks_the_gate(shop: Shop) -> None:
    challenger = shop.registry.load("shop", 1)
    _, verdict = shop.nightly.promote_on_evidence(challenger, now_us=shop.now)
    assert not verdict.promote
    assert shop.registry.champion("shop") == 0

    shop.nightly.config = NightlyConfig()
    _, verdict = shop.nightly.promote_on_evidence(challenger, now_us=shop.now)
    assert verdict.promote
    assert shop.registry.champion("shop") == 1
    assert shop.rows()[1]["status"] == "champion"
    assert shop.unproven_champions() == []
    # A second time there is nothing to be better than.
    before = shop.rows()
    with pytest.raises(InvalidInputError, match="1 is the champion of shop already"):
        shop.nightly.promote_on_evidence(challenger, now_us=shop.now)
    assert shop.rows() == before


class Crashing(Registry):
    """A registry whose process ends right before or right after a promotion."""

    after = False

    def promote(self, loop: str, number: int) -> None:
        if self.after:
            super().promote(loop, number)
        raise KeyboardInterrupt


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("overridden", [False, True])
def test_a_crash_at_a_promotion_leaves_no_unproven_champion(
    shop: Shop, *, overridden: bool, after: bool
) -> None:
    """The next night puts the table right, whichever of the two was written."""
    crashing = Crashing(shop.registry.tracking_uri, shop.root / "mlartifacts")
    crashing.after = after
    config = NightlyConfig()
    nightly = Nightly(shop.lake, crashing, {"shop": CONFIG}, config)

    def promote() -> None:
        if overridden:
            nightly.override("shop", 1, now_us=shop.now, reason="the sale begins")
        else:
            nightly.promote_on_evidence(shop.registry.load("shop", 1), now_us=shop.now)

    with pytest.raises(KeyboardInterrupt):
        promote()
    champion = 1 if after else 0
    assert shop.registry.champion("shop") == champion
    if overridden:
        assert shop.rows()[1]["override_reason"] == "the sale begins"

    (night,) = shop.night().loops
    assert night.champion == champion
    rows = shop.rows()
    assert [number for number, row in rows.items() if row["status"] == "champion"] == [champion]
    assert shop.unproven_champions() == []
    if after and not overridden:
        assert rows[1]["override_reason"] is None


def test_a_champion_that_was_made_in_mlflow_is_an_override(shop: Shop) -> None:
    """Nothing can keep a person from it; the record can say that it was done."""
    shop.registry.promote("shop", 1)
    shop.night()
    rows = shop.rows()
    assert rows[1]["status"] == "champion"
    assert rows[1]["override_reason"] == "made champion in the registry, not by Croupier"
    assert shop.unproven_champions() == []


# Nights on which not everything goes well.


def test_a_night_without_a_log_says_so_and_goes_on(
    tmp_path: Path, world: World, template: Path
) -> None:
    shop = Shop(tmp_path, world, template=template)
    report = shop.night()
    assert (report.sink.decisions, report.sink.position) == (0, 1)
    (night,) = report.loops
    assert (night.champion, night.challenger, night.failed) == (0, None, None)
    assert night.skipped == "loop 'shop' has no interactions yet; run the join first"
    assert shop.rows()[0]["status"] == "champion"
    shop.day(300)
    assert shop.night().loops[0].challenger == 1


def test_a_night_with_too_little_data_says_so_and_goes_on(
    tmp_path: Path, world: World, template: Path
) -> None:
    """First too little to learn from, then too little to judge by, then enough."""
    shop = Shop(tmp_path, world, template=template)
    shop.day(10)
    (night,) = shop.night().loops
    assert night.challenger is None
    assert night.skipped is not None
    assert "interactions to learn from; expected at least 20" in night.skipped
    assert shop.rows()[0]["decisions"] == 10

    shop.day(40)
    (night,) = shop.night().loops
    assert (night.challenger, night.champion, night.verdict) == (1, 0, None)
    assert night.skipped is not None
    assert "at least 20 judged interactions" in night.skipped
    assert shop.rows()[1]["status"] == "challenger"

    shop.day(200)
    (night,) = shop.night().loops
    assert night.skipped is None
    assert night.challenger == 2


def test_a_second_night_at_once_is_refused(shop: Shop) -> None:
    before = shop.lake.version("generations"), shop.registry.numbers("shop")
    with shop.lake.lock(), pytest.raises(LakeLockedError, match="another process"):
        shop.night()
    assert (shop.lake.version("generations"), shop.registry.numbers("shop")) == before


def test_a_loop_that_fails_doesn_t_keep_the_others_from_their_night(
    tmp_path: Path, world: World, template: Path
) -> None:
    oracle = SklearnConfig(estimator="sklearn.linear_model.NoSuchThing")
    broken = msgspec.structs.replace(CONFIG, oracle=oracle)
    loops = {"broken": broken, "shop": CONFIG}
    shop = Shop(tmp_path, world, loops=loops, template=template)
    for loop in loops:
        shop.day(200, loop)
    first, second = shop.night().loops
    assert (first.loop, first.challenger, first.champion) == ("broken", None, 0)
    assert first.failed is not None
    assert "NoSuchThing" in first.failed
    assert first.join.joined == 200
    assert (second.loop, second.failed, second.challenger) == ("shop", None, 1)


def test_a_conservative_loop_is_conservative_from_its_first_decision(
    tmp_path: Path, world: World, template: Path
) -> None:
    exploration = Conservative(inner=EpsilonGreedy(epsilon=0.3), alpha=0.2)
    config = msgspec.structs.replace(CONFIG, exploration=exploration)
    shop = Shop(tmp_path, world, loops={"shop": config}, template=template)
    shop.day(200)
    (night,) = shop.night().loops
    assert night.failed is None
    decisions = shop.lake.scan("decisions").collect()
    mostly = [pmf[baseline] for pmf, baseline in zip(*decisions["pmf", "baseline"], strict=True)]
    assert min(mostly) > 0.8
    rows = shop.rows()
    assert rows[0]["exploration"].startswith("conservative(")
    assert rows[0]["budget"] is None
    # Some 140 explored decisions have not saved the root of 140 yet.
    assert rows[1]["budget"] < 0.0
    provenance = shop.nightly.generation("shop", 1).provenance
    assert provenance is not None
    assert provenance.budget == rows[1]["budget"]


@pytest.mark.parametrize(
    "oracle",
    [
        SklearnOnnxConfig(),
        SklearnOnnxConfig(estimator="sklearn.ensemble.HistGradientBoostingClassifier"),
        VowpalWabbitModelConfig(arguments="--nn 5 --inpass -q ca", passes=10),
        DistilledConfig(base=SklearnOnnxConfig(), l2=0.1),
    ],
    ids=["trees", "classifier", "network", "distilled"],
)
def test_oracles_that_are_not_linear_are_promoted_and_served(
    tmp_path: Path, world: World, template: Path, oracle: OracleConfig
) -> None:
    config = msgspec.structs.replace(CONFIG, oracle=oracle)
    shop = Shop(tmp_path, world, loops={"shop": config}, template=template)
    shop.day(700)
    (night,) = shop.night().loops
    assert (night.failed, night.champion) == (None, 1)
    plan = shop.scorer.plan("shop")
    assert plan is not None
    assert plan.champion.number == 1
    assert world.value(plan.champion) > world.value(cold_start("shop")) + 0.1
    from mlflow import MlflowClient  # noqa: PLC0415 - takes seconds

    run = MlflowClient(shop.registry.tracking_uri).get_run(shop.rows()[1]["run_id"])
    fidelity = {
        name.removeprefix("fidelity_"): value
        for name, value in run.data.metrics.items()
        if name.startswith("fidelity_")
    }
    if isinstance(oracle, DistilledConfig):
        assert night.fidelity is not None
        assert night.fidelity.r2 > 0.9
        assert fidelity == msgspec.structs.asdict(night.fidelity)
    else:
        assert night.fidelity is None
        assert fidelity == {}


@pytest.mark.parametrize("room", [1000, 5], ids=["ridge", "vowpal_wabbit"])
def test_an_oracle_that_chooses_by_size_says_what_it_has_become(
    tmp_path: Path, world: World, template: Path, room: int
) -> None:
    """It is promoted and served, and the run says what as."""
    config = msgspec.structs.replace(
        CONFIG,
        oracle=AutoConfig(max_columns=room),
        exploration=SquareCB(optimism=0.01, floor=0.02),
    )
    shop = Shop(tmp_path, world, loops={"shop": config}, template=template)
    shop.day(700)
    (night,) = shop.night().loops
    assert (night.failed, night.champion) == (None, 1)
    assert world.value(shop.nightly.generation("shop", 1)) > world.value(cold_start("shop")) + 0.1
    from mlflow import MlflowClient  # noqa: PLC0415 - takes seconds

    run = MlflowClient(shop.registry.tracking_uri).get_run(shop.rows()[1]["run_id"])
    became = night.became
    assert became is not None
    assert run.data.params["became"] == became.kind
    assert run.data.metrics.get("became_columns") == became.columns
    if room == 5:
        assert (became.kind, became.columns) == ("vowpal_wabbit", None)
    else:
        assert became.kind == "ridge"
        assert became.columns is not None
        assert 5 < became.columns <= 1000


def test_the_baseline_s_log_promotes_nobody(tmp_path: Path, world: World, template: Path) -> None:
    """It shows what the baseline earns and nothing else."""
    config = msgspec.structs.replace(CONFIG, learning_mode="logging_only")
    shop = Shop(tmp_path, world, loops={"shop": config}, template=template)
    shop.day(300)
    (night,) = shop.night().loops
    assert (night.champion, night.challenger) == (0, 1)
    assert night.skipped is not None
    assert "that say nothing about the policies" in night.skipped


def test_the_baseline_s_days_don_t_speak_for_the_first_generation(
    tmp_path: Path, world: World, template: Path
) -> None:
    """First with the log alone, then online: only what was drawn judges."""
    config = msgspec.structs.replace(CONFIG, learning_mode="logging_only")
    shop = Shop(tmp_path, world, loops={"shop": config}, template=template)
    shop.day(300)
    shop.nightly.loops = shop.scorer.loops = {"shop": CONFIG}
    shop.day(300)
    (night,) = shop.night().loops
    assert night.evaluation is not None
    online = shop.lake.scan("interactions").filter(
        (pl.col("learning_mode") == "online") & is_judged(0.3)
    )
    assert night.evaluation.rows == len(online.collect())
    assert night.evaluation.left_out > 0


def test_a_decision_is_settled_before_it_is_joined(
    tmp_path: Path, world: World, template: Path
) -> None:
    """What was received within the window has the settling time to reach the log."""
    config = NightlyConfig(settle="30 s")
    shop = Shop(tmp_path, world, config=config, template=template)
    shop.day(1)
    shop.now += MINUTE + 30 * SECOND
    assert shop.nightly.config == config
    with shop.log() as log:
        for wait, joined in ((0, 0), (1, 1)):
            report = shop.nightly.run(log, now_us=shop.now + wait, steps=no_steps)
            assert report.loops[0].join.joined == joined


@pytest.mark.parametrize("share", [0.0, 0.04, 0.96, float("nan")])
def test_a_share_that_leaves_nothing_to_one_side_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="judge_share"):
        NightlyConfig(judge_share=share)


def test_a_settling_time_must_be_a_duration() -> None:
    with pytest.raises(ValueError, match="duration"):
        NightlyConfig(settle="a while")
