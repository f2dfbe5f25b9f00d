"""Retraining: reproducible to the byte, and blind to what the judge will see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
import pytest

from croupier import __version__
from croupier.offline.join import FOLDS
from croupier.offline.lake import Lake
from croupier.offline.retrain import config_digest, is_judged, retrain
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.events import Action
from croupier.policy.exploration import EpsilonGreedy
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import (
    AutoConfig,
    DistilledConfig,
    OracleConfig,
    SklearnConfig,
    SklearnOnnxConfig,
    VowpalWabbitConfig,
    VowpalWabbitModelConfig,
)
from tests.offline.logs import EPOCH_US
from tests.offline.worlds import World, random_world

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]

ORACLES: dict[str, OracleConfig] = {
    "vowpal_wabbit": VowpalWabbitConfig(passes=2),
    "ridge": SklearnConfig(),
    "logistic": SklearnConfig(estimator="sklearn.linear_model.LogisticRegression"),
    # Draws the order of rows at random.
    "sgd": SklearnConfig(estimator="sklearn.linear_model.SGDRegressor", params={"shuffle": True}),
    "trees": SklearnOnnxConfig(),
    "forest": SklearnOnnxConfig(
        estimator="sklearn.ensemble.RandomForestClassifier", params={"n_estimators": 10}
    ),
    "network": VowpalWabbitModelConfig(arguments="--nn 5 -q ca", passes=2),
    "distilled": DistilledConfig(),
    "auto": AutoConfig(),
    "auto, beyond": AutoConfig(max_columns=5),
}
# The rest are tables.
MODELS = {"trees": "model.onnx", "forest": "model.onnx", "network": "model.vw"}

AGAIN = """
import sys, pathlib, msgspec
from croupier.offline.lake import Lake
from croupier.offline.retrain import retrain
from croupier.policy.generation import Provenance
from croupier.policy.loop import LoopConfig
lake, into, config, origin = sys.argv[1:]
provenance = msgspec.json.decode(origin, type=Provenance)
retrain(
    Lake(pathlib.Path(lake)),
    "shop",
    msgspec.json.decode(config, type=LoopConfig),
    number=1,
    parent=provenance.parent,
    judge_share=0.3,
    seed=provenance.seed,
    created_us=provenance.created_us,
    lake_version=provenance.lake_version,
).save(pathlib.Path(into))
"""


def train(
    lake: Lake, config: LoopConfig, *, seed: int = 7, lake_version: int | None = None
) -> Generation:
    return retrain(
        lake,
        "shop",
        config,
        number=1,
        parent=0,
        judge_share=0.3,
        seed=seed,
        created_us=EPOCH_US,
        lake_version=lake_version,
    )


def files(generation: Generation, directory: Path) -> Mapping[str, bytes]:
    """What a generation is made of, byte for byte."""
    if not directory.exists():
        generation.save(directory)
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def history() -> pl.DataFrame:
    return random_world(3, 4, seed=1).log(cold_start("shop"), 400, seed=1)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.mark.parametrize("kind", ORACLES)
def test_provenance_is_enough_to_make_it_again(
    lake: Lake, history: pl.DataFrame, tmp_path: Path, kind: str
) -> None:
    """Byte by byte: after the lake has grown, in another process, with other hashes of strings."""
    config = LoopConfig(oracle=ORACLES[kind], exploration=EpsilonGreedy(epsilon=0.2))
    lake.append("interactions", history[:200])
    lake.append("interactions", history[200:300])
    first = train(lake, config)
    provenance = first.provenance
    assert provenance is not None
    original = files(first, tmp_path / "first")
    model = f"oracle/{MODELS.get(kind, 'weights.npz')}"
    assert {"oracle/oracle.json", model} <= original.keys()

    lake.append("interactions", history[300:])
    grown = files(train(lake, config), tmp_path / "grown")
    assert grown[model] != original[model]
    again = train(lake, config, seed=provenance.seed, lake_version=provenance.lake_version)
    assert files(again, tmp_path / "again") == original

    told = [msgspec.json.encode(each).decode() for each in (config, provenance)]
    subprocess.run(
        [sys.executable, "-c", AGAIN, lake.root, tmp_path / "elsewhere", *told],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert files(first, tmp_path / "elsewhere") == original


def test_how_rows_came_into_the_lake_makes_no_difference(
    lake: Lake, history: pl.DataFrame, tmp_path: Path
) -> None:
    other = Lake(tmp_path / "other")
    lake.append("interactions", history)
    for part in (history[250:], history[:100], history[100:250].reverse()):
        other.append("interactions", part)
    config = LoopConfig()
    first, second = (
        files(train(each, config, lake_version=0 if each is lake else 2), tmp_path / name)
        for each, name in ((lake, "first"), (other, "second"))
    )
    assert first["oracle/weights.npz"] == second["oracle/weights.npz"]


def test_provenance_says_where_it_comes_from(lake: Lake, history: pl.DataFrame) -> None:
    lake.append("interactions", history)
    config = LoopConfig()
    generation = train(lake, config, seed=11)
    assert (generation.loop, generation.number) == ("shop", 1)
    assert generation.exploration == config.exploration
    assert generation.provenance is not None
    assert msgspec.structs.asdict(generation.provenance) == {
        "parent": 0,
        "lake_version": 0,
        "code_version": __version__,
        "loop_config": config_digest(config),
        "seed": 11,
        "training_rows": int((history["fold"] >= 300).sum()),
        "created_us": EPOCH_US,
        "budget": 0.0,
        "base_version": None,
        "learned_folds": (300, 999),
        "learned_from_us": int(
            history.filter(pl.col("fold") >= 300)["ts"].dt.epoch("us").min()  # type: ignore[arg-type]
        ),
        "learned_from_slices": True,
        "started_from": None,
        "merged": None,
        "step": 1.0,
        "memory": None,
        "tilt_kl": None,
    }


def test_the_seed_is_used(lake: Lake, history: pl.DataFrame, tmp_path: Path) -> None:
    lake.append("interactions", history)
    config = LoopConfig(oracle=ORACLES["sgd"])
    one, two = (files(train(lake, config, seed=n), tmp_path / str(n)) for n in (1, 2))
    assert one["oracle/weights.npz"] != two["oracle/weights.npz"]


@pytest.mark.parametrize("kind", ["vowpal_wabbit", "ridge"])
def test_nothing_is_learned_from_the_judge_s_rows(lake: Lake, tmp_path: Path, kind: str) -> None:
    """A second lake, where the judge's rows say the opposite of the learner's, teaches the same."""
    world = World(np.tile([0.0, 1.0, 0.0], (2, 1)))
    clean = world.log(cold_start("shop"), 300, seed=2)
    judged = clean["fold"] < 300
    assert 60 < judged.sum() < 120
    poisoned = clean.with_columns(
        reward=pl.when(is_judged(0.3)).then(1.0 - pl.col("reward")).otherwise("reward")
    )
    assert not poisoned.filter(judged)["reward"].equals(clean.filter(judged)["reward"])

    config = LoopConfig(oracle=ORACLES[kind])
    other = Lake(tmp_path / "poisoned")
    lake.append("interactions", clean)
    other.append("interactions", poisoned)
    generation = train(lake, config)
    assert files(generation, tmp_path / "a") == files(train(other, config), tmp_path / "b")
    _, scores = generation.pmf({"x": "x0"}, [Action(f"a{n}") for n in range(3)])
    assert scores is not None
    assert int(np.argmax(scores)) == 1


@pytest.mark.parametrize(("share", "first_learned"), [(0.0, 0), (0.3, 300), (0.95, 950)])
def test_the_judge_s_share_is_a_share_of_the_folds(share: float, first_learned: int) -> None:
    folds = pl.DataFrame({"fold": range(FOLDS)})
    assert folds.filter(~is_judged(share))["fold"].to_list() == list(range(first_learned, FOLDS))


def test_too_few_rows_are_said_to_be_too_few(lake: Lake, history: pl.DataFrame) -> None:
    with pytest.raises(NotEnoughDataError, match="no interactions yet"):
        train(lake, LoopConfig())
    learned = history.filter(~is_judged(0.3))
    lake.append("interactions", learned[:19])
    with pytest.raises(NotEnoughDataError, match="has 19 interactions to learn from; expected at"):
        train(lake, LoopConfig())
    lake.append("interactions", learned[19:20])
    assert train(lake, LoopConfig()).provenance is not None


def test_a_classifier_needs_both_kinds_of_reward(lake: Lake, history: pl.DataFrame) -> None:
    lake.append("interactions", history.with_columns(reward=pl.lit(0.0)))
    with pytest.raises(NotEnoughDataError, match="two kinds"):
        train(lake, LoopConfig(oracle=ORACLES["logistic"]))


UNENCODABLE = [
    '{"deep":' + '{"a":' * 9 + "1" + "}" * 10,
    '{"large":1e39}',
]


@pytest.mark.parametrize("kind", ["vowpal_wabbit", "ridge"])
def test_a_request_that_can_t_be_encoded_does_not_end_all_learning(
    lake: Lake,
    history: pl.DataFrame,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """The cold start asks no oracle, so it answers, and logs, what later generations refuse."""
    config = LoopConfig(oracle=ORACLES[kind])
    learned = history.filter(~is_judged(0.3))
    spoiled = learned.with_columns(
        context=pl.when(pl.col("offset") == learned["offset"][5])
        .then(pl.lit(UNENCODABLE[0]))
        .when(pl.col("offset") == learned["offset"][9])
        .then(pl.lit(UNENCODABLE[1]))
        .otherwise("context")
    )
    lake.append("interactions", spoiled)
    generation = train(lake, config)
    assert "2 interactions can't be encoded and were left out" in caplog.text
    assert generation.provenance is not None
    assert generation.provenance.training_rows == len(learned) - 2

    without = Lake(tmp_path / "without")
    without.append("interactions", pl.concat([learned[:5], learned[6:9], learned[10:]]))
    assert files(generation, tmp_path / "a") == files(train(without, config), tmp_path / "b")


def test_only_requests_that_can_t_be_encoded_are_too_few(lake: Lake, history: pl.DataFrame) -> None:
    lake.append("interactions", history.with_columns(context=pl.lit(UNENCODABLE[1])))
    with pytest.raises(NotEnoughDataError, match="has 0 interactions"):
        train(lake, LoopConfig())


def test_the_digest_is_of_what_the_configuration_says() -> None:
    one = LoopConfig(oracle=SklearnConfig(params={"alpha": 1.0, "tol": 1e-3}))
    two = LoopConfig(oracle=SklearnConfig(params={"tol": 1e-3, "alpha": 1.0}))
    three = LoopConfig(oracle=SklearnConfig(params={"tol": 1e-3, "alpha": 2.0}))
    assert config_digest(one) == config_digest(two) != config_digest(three)
