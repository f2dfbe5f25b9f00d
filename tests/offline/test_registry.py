"""The registry: generations go in and come back as they were."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from croupier.offline.registry import Change, Registry
from croupier.offline.tracking import RegistryError
from croupier.policy.errors import GenerationError, InvalidInputError
from croupier.policy.events import Action
from croupier.policy.exploration import Conservative, SquareCB
from croupier.policy.generation import Generation, Provenance, cold_start
from croupier.policy.oracle import (
    OracleConfig,
    SklearnConfig,
    TrainingRow,
    VowpalWabbitConfig,
    make_oracle,
)
from croupier.policy.traffic import SHARE_TAG, Split
from tests.processes import free_port

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

ROOT = Path(__file__).parents[2]
ORACLES: dict[str, OracleConfig] = {
    "vowpal_wabbit": VowpalWabbitConfig(),
    "ridge": SklearnConfig(),
    "logistic": SklearnConfig(estimator="sklearn.linear_model.LogisticRegression"),
}

# Children that are forked at once find a registry that isn't there, and all want to write to it;
# each for a loop of its own, as the lake's lock lets only one process publish for a loop.
RACE = """
import os, sys, pathlib
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store
from tests.offline.test_registry import generation, registry_in
data_dir, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
children = []
for number in range(1, count + 1):
    pid = os.fork()
    if pid == 0:
        registry, loop = registry_in(data_dir), f"loop{number}"
        registry.publish(generation(loop=loop, number=number), params={}, metrics={})
        registry.promote(loop, number)
        registry.load(loop, number)
        os._exit(0)
    children.append(pid)
sys.exit(any(os.waitpid(pid, 0)[1] for pid in children))
"""


def registry_in(data_dir: Path) -> Registry:
    return Registry(f"sqlite:///{data_dir / 'mlflow.db'}", data_dir / "mlartifacts")


def generation(
    *, number: int = 1, loop: str = "shop", config: OracleConfig = ORACLES["ridge"]
) -> Generation:
    rng = np.random.default_rng(number)
    rows = [
        TrainingRow(
            context={"age": float(rng.normal()), "city": f"c{rng.integers(5)}"},
            actions=[Action("a", {"price": 3.5}), Action("b"), Action("c")],
            chosen=int(rng.integers(3)),
            propensity=1 / 3,
            reward=float(rng.integers(2)),
        )
        for _ in range(60)
    ]
    provenance = Provenance(
        parent=0,
        lake_version=3,
        code_version="0",
        loop_config="c",
        seed=0,
        training_rows=60,
        created_us=1,
    )
    return Generation(loop, number, SquareCB(), make_oracle(config).fit(rows), provenance)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry's database in which there is nothing yet; to make one takes more than a second."""
    data_dir = tmp_path_factory.mktemp("template")
    with pytest.raises(GenerationError):
        registry_in(data_dir).promote("shop", 1)
    # Looking doesn't make it.
    assert not (data_dir / "mlflow.db").exists()
    registry_in(data_dir).publish(generation(loop="other"), params={}, metrics={})
    return data_dir


@pytest.fixture
def registry(tmp_path: Path, template: Path) -> Registry:
    shutil.copy(template / "mlflow.db", tmp_path)
    return registry_in(tmp_path)


def client(registry: Registry) -> Any:
    from mlflow import MlflowClient  # noqa: PLC0415 - takes seconds

    return MlflowClient(registry.tracking_uri, registry.tracking_uri)


def test_a_new_registry_has_only_cold_starts(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    assert registry.champion("shop") == 0
    assert registry.numbers("shop") == []
    assert registry.load("shop", 0) == cold_start("shop")
    assert list(tmp_path.iterdir()) == []


def test_a_loop_without_generations_has_a_cold_start(registry: Registry) -> None:
    assert registry.champion("shop") == 0
    assert registry.numbers("shop") == []


def test_publishing_and_promoting(registry: Registry) -> None:
    for number in (1, 2, 10):
        registry.publish(generation(number=number), params={}, metrics={})
        assert registry.champion("shop") == 0
    assert registry.numbers("shop") == [1, 2, 10]
    for number in (10, 2):
        registry.promote("shop", number)
        assert registry.champion("shop") == number
    challenger = client(registry).get_model_version_by_alias("croupier-shop", "challenger")
    assert challenger.tags["generation"] == "10"
    # Loops don't see each other's, nor does another instance see anything else.
    assert registry.numbers("other") == [1]
    assert registry.champion("other") == 0
    assert Registry(registry.tracking_uri, Path("elsewhere")).champion("shop") == 2


def published(registry: Registry, *numbers: int) -> Registry:
    for number in numbers:
        registry.publish(generation(number=number), params={}, metrics={})
    return registry


def by_anna(ts: int, reason: str = "") -> Change:
    return Change("anna", ts, reason)


def test_canary_shadow_and_kill_switch(registry: Registry) -> None:
    published(registry, 1, 2, 3).promote("shop", 1)
    assert registry.split("shop") == Split(generation=1)
    registry.set_canary("shop", 2, 0.05, by_anna(1, "looks good"))
    registry.set_shadow("shop", 3, by_anna(2))
    plan = Split(generation=1, canary=2, canary_share=0.05, shadow=3)
    assert registry.split("shop") == plan
    registry.kill("shop", by_anna(3, "complaints"))
    assert registry.split("shop") == msgspec.structs.replace(plan, killed="complaints")
    registry.resume("shop", by_anna(4))
    assert registry.split("shop") == plan
    registry.set_canary("shop", 3, 0.5, by_anna(5))
    assert registry.split("shop") == msgspec.structs.replace(plan, canary=3, canary_share=0.5)
    registry.clear_split("shop", by_anna(6))
    assert registry.split("shop") == Split(generation=1)
    assert registry.changes("shop") == [
        Change("anna", 1, "looks good", "canary 2 with share 0.05"),
        Change("anna", 2, "", "shadow 3"),
        Change("anna", 3, "complaints", "killed"),
        Change("anna", 4, "", "resumed"),
        Change("anna", 5, "", "canary 3 with share 0.5"),
        Change("anna", 6, "", "canary and shadow cleared"),
    ]
    # Loops don't share them.
    assert registry.split("other") == Split(generation=0)
    assert registry.changes("other") == []


def test_who_is_promoted_is_nothing_else_any_more(registry: Registry) -> None:
    published(registry, 1, 2, 3)
    registry.set_canary("shop", 2, 0.1, by_anna(1))
    registry.set_shadow("shop", 2, by_anna(2))
    registry.promote("shop", 1)
    assert registry.split("shop") == Split(generation=1, canary=2, canary_share=0.1, shadow=2)
    registry.promote("shop", 2)
    assert registry.split("shop") == Split(generation=2)
    model = client(registry).get_registered_model("croupier-shop")
    assert set(model.aliases) == {"champion", "challenger"}
    assert SHARE_TAG not in model.tags


def test_a_loop_that_was_never_trained_can_be_killed(registry: Registry) -> None:
    registry.kill("mail", by_anna(1, "not yet"))
    assert registry.split("mail") == Split(generation=0, killed="not yet")
    registry.resume("mail", by_anna(2))
    registry.resume("mail", by_anna(3))
    assert registry.split("mail") == Split(generation=0)
    assert [each.what for each in registry.changes("mail")] == ["killed", "resumed"]


def test_a_registry_that_was_never_made_is_not_made_to_kill(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    with pytest.raises(RegistryError, match="there is no registry yet"):
        registry.kill("shop", by_anna(1, "now"))
    registry.resume("shop", by_anna(2))
    registry.clear_split("shop", by_anna(3))
    assert registry.split("shop") == Split(generation=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 1.0, 1.1, -0.1, float("nan")])
def test_a_share_that_is_none_is_refused(registry: Registry, share: float) -> None:
    published(registry, 1)
    with pytest.raises(InvalidInputError, match=r"share: expected a share in \(0, 1\)"):
        registry.set_canary("shop", 1, share, by_anna(1))
    assert registry.split("shop") == Split(generation=0)


def test_a_change_that_can_t_be_leaves_the_plan_as_it_was(registry: Registry) -> None:
    published(registry, 1, 2).promote("shop", 1)
    registry.set_canary("shop", 2, 0.1, by_anna(1))
    before = registry.split("shop")
    with pytest.raises(GenerationError, match="no generation 5"):
        registry.set_canary("shop", 5, 0.1, by_anna(2))
    with pytest.raises(GenerationError, match="no generation 5"):
        registry.set_shadow("shop", 5, by_anna(2))
    with pytest.raises(InvalidInputError, match="canary: generation 1 is the champion"):
        registry.set_canary("shop", 1, 0.1, by_anna(2))
    with pytest.raises(InvalidInputError, match="shadow: generation 1 is the champion"):
        registry.set_shadow("shop", 1, by_anna(2))
    with pytest.raises(InvalidInputError, match="reason: expected why"):
        registry.kill("shop", by_anna(2, " "))
    with pytest.raises(InvalidInputError, match="reason: expected at most 500 characters"):
        by_anna(2, "x" * 501)
    assert registry.split("shop") == before
    assert len(registry.changes("shop")) == 1


def test_a_plan_that_somebody_else_broke_is_named(registry: Registry) -> None:
    published(registry, 1, 2).set_canary("shop", 2, 0.1, by_anna(1))
    client(registry).set_registered_model_tag("croupier-shop", SHARE_TAG, "a lot")
    with pytest.raises(GenerationError, match=f"tag {SHARE_TAG}, got 'a lot'"):
        registry.split("shop")


def test_a_cold_start_is_the_loop_s(registry: Registry) -> None:
    exploration = Conservative(inner=SquareCB(), alpha=0.2)
    assert registry.load("shop", 0, exploration) == cold_start("shop", exploration)
    assert registry.load("shop", 0, exploration) != cold_start("shop")


def test_the_run_says_what_was_published(registry: Registry) -> None:
    run_id = registry.publish(
        generation(), params={"seed": 7, "config": "{}"}, metrics={"training_rows": 60.0}
    )
    run = client(registry).get_run(run_id)
    assert run.data.params == {"seed": "7", "config": "{}"}
    assert run.data.metrics == {"training_rows": 60.0}
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "generation 1"


@pytest.mark.parametrize("kind", ORACLES)
def test_what_comes_back_scores_the_same_to_the_bit(registry: Registry, kind: str) -> None:
    made = generation(config=ORACLES[kind])
    registry.publish(made, params={}, metrics={})
    loaded = registry.load("shop", 1)
    assert (loaded.loop, loaded.number, loaded.exploration, loaded.provenance) == (
        made.loop,
        made.number,
        made.exploration,
        made.provenance,
    )
    rng = np.random.default_rng(0)
    for _ in range(50):
        context = {"age": float(rng.normal()), "city": f"c{rng.integers(7)}"}
        actions = [Action("a", {"price": float(rng.normal())}), Action("b"), Action("new")]
        for one, two in zip(made.pmf(context, actions), loaded.pmf(context, actions), strict=True):
            assert one is not None
            assert two is not None
            assert one.tobytes() == two.tobytes()


def test_what_isn_t_there_is_named(registry: Registry) -> None:
    registry.publish(generation(), params={}, metrics={})
    for ask in (registry.load, registry.promote):
        with pytest.raises(GenerationError, match="no generation 2 of loop 'shop'"):
            ask("shop", 2)
    with pytest.raises(GenerationError, match="no generation 1 of loop 'mail'"):
        registry.promote("mail", 1)
    assert registry.champion("shop") == 0


def test_an_altered_generation_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.publish(generation(), params={}, metrics={})
    (weights,) = (tmp_path / "mlartifacts").rglob("oracle.json")
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(GenerationError, match="altered"):
        registry.load("shop", 1)


def test_a_registry_that_is_away_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = Registry(f"http://127.0.0.1:{free_port()}", tmp_path)
    for ask in (registry.champion, registry.numbers):
        with pytest.raises(RegistryError, match="the registry failed at") as raised:
            ask("shop")
        assert "\n" not in str(raised.value)


def test_several_processes_may_be_the_first(tmp_path: Path) -> None:
    """None fails, none's generation is lost, and all files are where they belong.

    Wherever the command was started, and whatever the directory is called.
    """
    data_dir, start, home = (tmp_path / name for name in ("data é 1", "start", "home"))
    for directory in (data_dir, start, home):
        directory.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RACE, data_dir, "2"],
        check=False,
        capture_output=True,
        text=True,
        cwd=start,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    registry = registry_in(data_dir)
    for number in (1, 2):
        assert registry.numbers(f"loop{number}") == [number]
        assert registry.champion(f"loop{number}") == number
    assert {path.name for path in data_dir.iterdir()} == {"mlflow.db", "mlartifacts"}
    assert list(start.iterdir()) == []
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_provenance_is_json_in_the_manifest(registry: Registry, tmp_path: Path) -> None:
    """A person can read where a generation comes from without Croupier."""
    registry.publish(generation(number=4), params={}, metrics={})
    (manifest,) = (tmp_path / "mlartifacts").rglob("manifest.json")
    facts = msgspec.json.decode(manifest.read_bytes())
    assert (facts["loop"], facts["number"]) == ("shop", 4)
    assert facts["provenance"]["lake_version"] == 3
