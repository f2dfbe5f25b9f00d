"""Nights that find nothing new, and nights that find what another one has left half done."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from mlflow import MlflowClient

from croupier.offline.gate import GateConfig
from croupier.offline.nightly import Nightly, NightlyConfig
from croupier.offline.registry import Registry
from croupier.policy.guardrails import Guardrail
from tests.offline.logs import append, outcome
from tests.offline.shop import CONFIG, MINUTE, Shop
from tests.offline.worlds import World, random_world

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from croupier.offline.night import LoopNight
    from croupier.policy.loop import LoopConfig

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

WORLD = World(random_world(3, 4, seed=3).rewards)
NOTHING = "nothing has come since generation 1 was trained"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A day and a night old; tests take a copy."""
    shop = Shop(tmp_path_factory.mktemp("first"), WORLD)
    shop.day(1200)
    (night,) = shop.night().loops
    assert (night.challenger, night.champion, night.resumed) == (1, 1, False)
    return shop


@pytest.fixture
def shop(first: Shop, tmp_path: Path) -> Shop:
    return copy_of(first, tmp_path)


def copy_of(shop: Shop, root: Path) -> Shop:
    """The artifacts of runs stay where they are."""
    shutil.copytree(shop.root, root, dirs_exist_ok=True)
    copied = Shop(root, WORLD, now=shop.now)
    copied.count = shop.count
    copied.rng.bit_generator.state = shop.rng.bit_generator.state
    return copied


def night_of(shop: Shop, config: LoopConfig = CONFIG, **settings: Any) -> LoopNight:
    """A night under settings that may be other ones."""
    shop.nightly = Nightly(shop.lake, shop.registry, {"shop": config}, NightlyConfig(**settings))
    (night,) = shop.night().loops
    return night


def test_a_night_without_anything_new_trains_nothing(shop: Shop) -> None:
    before = shop.rows(), shop.registry.numbers("shop"), shop.lake.version("generations")
    for _ in range(2):
        night = night_of(shop)
        assert (night.challenger, night.skipped, night.champion) == (None, NOTHING, 1)
    assert (shop.rows(), shop.registry.numbers("shop"), shop.lake.version("generations")) == before


def test_a_night_with_new_decisions_trains(shop: Shop) -> None:
    shop.day(50)
    assert (night_of(shop).challenger, night_of(shop).challenger) == (2, None)


def test_a_revised_reward_is_something_new(shop: Shop) -> None:
    rows = shop.lake.scan("interactions", "shop").collect()
    late = rows.filter(rows["reward"] == 0.0)["decision_id"][0]
    with shop.log() as log:
        append(log, [outcome(late, "x", shop.now)])
    night = night_of(shop)
    assert (night.join.revised, night.challenger) == (1, 2)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (msgspec.structs.replace(CONFIG, default_reward=0.1), {}),
        (CONFIG, {"seed": 1}),
        (CONFIG, {"judge_share": 0.4}),
    ],
    ids=["loop", "seed", "judge_share"],
)
def test_other_settings_train_anew(
    shop: Shop, config: LoopConfig, settings: dict[str, Any]
) -> None:
    assert night_of(shop, config, **settings).challenger == 2
    assert night_of(shop, config, **settings).challenger is None


def test_another_gate_trains_nothing(shop: Shop) -> None:
    assert night_of(shop, gate=GateConfig(confidence=0.5)).skipped == NOTHING


def test_another_guardrail_trains_nothing(shop: Shop) -> None:
    guarded = msgspec.structs.replace(CONFIG, guardrails={"refund": Guardrail()})
    assert night_of(shop, guarded).skipped == NOTHING


def test_another_loop_s_day_is_nothing_new(tmp_path: Path) -> None:
    shop = Shop(tmp_path, WORLD, loops={"shop": CONFIG, "mail": CONFIG})
    for loop in ("shop", "mail"):
        shop.day(100, loop)
    assert [each.challenger for each in shop.night().loops] == [1, 1]
    shop.day(50, "mail")
    assert [each.challenger for each in shop.night().loops] == [None, 2]


def test_a_registry_that_was_lost_is_filled_again(shop: Shop) -> None:
    (shop.root / "mlflow.db").unlink()
    shop.registry = Registry(f"sqlite:///{shop.root / 'new.db'}", shop.root / "mlartifacts")
    # Numbers go on, since the table remembers.
    assert night_of(shop).challenger == 2


def test_a_lake_that_was_lost_gets_the_generations_of_the_registry(shop: Shop) -> None:
    known = shop.rows()[1]
    shutil.rmtree(shop.root / "lake")
    shop.day(50)
    night = night_of(shop)
    assert (night.challenger, night.champion) == (2, shop.registry.champion("shop"))
    row = shop.rows()[1]
    for name in ("run_id", "loop_config", "seed", "training_rows", "oracle"):
        assert row[name] == known[name]


def test_what_could_not_be_judged_is_judged_once_it_can(tmp_path: Path) -> None:
    shop = Shop(tmp_path, WORLD)
    shop.day(50)
    first = night_of(shop)
    assert (first.challenger, first.verdict) == (1, None)
    again = night_of(shop)
    assert (again.challenger, again.resumed, again.verdict) == (1, True, None)
    assert "at least 20 judged interactions" in (again.skipped or "")


# Whatever an MLflow client is asked to change in a night, in this order.
_CHANGES = (
    ("create_registered_model", None),
    ("create_experiment", None),
    ("create_run", None),
    ("log_param", None),
    ("log_artifacts", None),
    ("log_text", None),
    ("create_model_version", None),
    ("set_registered_model_alias", "challenger"),
    ("set_terminated", None),
    ("log_text", "promotion/report.html"),
    ("log_text", "promotion/report.json"),
    ("set_registered_model_alias", "champion"),
)


class Died(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.mark.parametrize(
    ("changes", "after"),
    [
        # One of the runs, one of the versions, and all that is done to make a champion.
        (_CHANGES[2:7:4] + _CHANGES[-2:], False),
        pytest.param(_CHANGES, False, marks=pytest.mark.slow),
        pytest.param(_CHANGES, True, marks=pytest.mark.slow),
    ],
    ids=["before some", "before", "after"],
)
def test_a_night_that_breaks_off_at_any_change_of_the_registry_is_gone_on_with(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    changes: tuple[tuple[str, str | None], ...],
    after: bool,
) -> None:
    """The next one comes to what an undisturbed one would have: no number twice, none left out."""
    (tmp_path / "due").mkdir()
    due = Shop(tmp_path / "due", WORLD)
    due.registry._tracking.client()
    due.day(1200)
    undisturbed = copy_of(due, tmp_path / "undisturbed")
    assert night_of(undisturbed).champion == 1
    for change, of in changes:
        shop, place = copy_of(due, tmp_path / f"{change}-{of}".replace("/", "-")), f"{change} {of}"
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, change, dying(change, of, after=after))
            with pytest.raises(Died):
                night_of(shop)
        shop.now -= 2 * MINUTE
        assert night_of(shop).champion == 1, place
        assert registered(shop) == registered(undisturbed), place
        assert told(shop) == told(undisturbed), place


def dying(change: str, of: str | None, *, after: bool) -> Callable[..., Any]:
    """A change that is the last, before or after it was made."""
    real = getattr(MlflowClient, change)

    def last(self: MlflowClient, *given: Any, **more: Any) -> Any:
        if of is not None and of not in given:
            return real(self, *given, **more)
        if after:
            real(self, *given, **more)
        raise Died

    return last


def registered(shop: Shop) -> dict[str, Any]:
    client = shop.registry._tracking.client()
    versions = client.search_model_versions("name='croupier-shop'")
    (experiment,) = [each for each in client.search_experiments() if each.name == "croupier-shop"]
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_id for run in runs} == {each.run_id for each in versions}
    return {
        "versions": sorted((int(each.version), each.tags["generation"]) for each in versions),
        "aliases": dict(client.get_registered_model("croupier-shop").aliases),
        "runs": sorted((run.info.run_name, run.info.status) for run in runs),
        "oracles": [
            shop.registry.load("shop", number)
            .pmf({"x": "x0"}, WORLD.request(0).actions)[0]
            .tolist()
            for number in shop.registry.numbers("shop")
        ],
    }


def told(shop: Shop) -> list[dict[str, Any]]:
    own = {"run_id", "created", "promoted"}
    return [
        {name: value for name, value in row.items() if name not in own}
        for row in shop.rows().values()
    ]
