"""Engines: the same results from tasks on a cluster as from one process, also when workers die."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl
import pytest

from benchmarks.engines import compare
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.compare import compare as compare_policies
from croupier.offline.counterfactual import random_policy
from croupier.offline.engine import LOCAL, EngineError, LocalEngine
from croupier.offline.evaluate import evaluate
from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.offline.merged_training import MergeConfig, Spread
from croupier.offline.policies import FixedAction
from croupier.offline.ray_engine import RayEngine
from croupier.offline.retrain import retrain
from croupier.offline.sink import sink
from croupier.offline.tune import tune
from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Activation
from croupier.policy.exploration import EpsilonGreedy
from croupier.policy.generation import cold_start
from croupier.policy.guardrails import Guardrail
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import (
    AutoConfig,
    AutoOracle,
    SklearnConfig,
    TableOracle,
    VowpalWabbitConfig,
)
from tests.offline.logs import EPOCH_US, append, decision, outcome, table
from tests.offline.worlds import random_world
from tests.ray_cluster import Killing, die

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from croupier.offline.engine import Engine
    from croupier.policy.events import Event
    from croupier.policy.generation import Generation

# Workers take their time to start where others have the machine.
pytestmark = pytest.mark.timeout(900)

HOUR = 3_600_000_000
WORLD = random_world(3, 4, seed=1)
ENCODER = EncoderConfig(bits=12)
LEARNING = LoopConfig(
    exploration=EpsilonGreedy(epsilon=0.2), oracle=VowpalWabbitConfig(encoder=ENCODER)
)
MERGE = MergeConfig(partitions=3, rounds=4, rows=200)


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "local":
        return LocalEngine()
    found: Engine = request.getfixturevalue("ray_engine")
    return found


def add(given: int, item: int) -> int:
    return given + item


def refuse(given: str, item: int) -> int:
    raise InvalidInputError(f"items[{item}]", given)


def end(_given: None, _item: int) -> int:
    die()


def test_results_are_in_the_order_of_the_items(engine: Engine) -> None:
    asked = []

    def items() -> Iterator[int]:
        for number in range(20):
            asked.append(number)
            yield number

    found = engine.map(add, items(), 10)
    assert next(found) == 10
    # Not all items were taken, only to hold what comes of them.
    assert len(asked) < 20
    assert list(found) == list(range(11, 30))
    assert list(engine.map(add, [], 10)) == []


def test_what_a_task_raises_is_raised(engine: Engine) -> None:
    with pytest.raises(InvalidInputError) as raised:
        list(engine.map(refuse, range(3), "expected less"))
    assert (raised.value.field, raised.value.expected) == ("items[0]", "expected less")


def test_a_task_that_always_kills_its_worker_is_an_error(
    ray_engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another engine within the same process is on the same cluster, and leaves it up.

    Nothing of it gets into what a command prints.
    """
    with RayEngine(retries=1) as engine, pytest.raises(EngineError, match="could not do end in 2"):
        list(engine.map(end, [1], None))
    assert list(ray_engine.map(add, [1], 1)) == [2]
    assert capsys.readouterr().out == ""


def shop_events(first: int, count: int) -> list[Event]:
    """Plain decisions, deferred ones, ones with slots; outcomes in time, late and of nobody."""
    events: list[Event] = []
    rng = np.random.default_rng(first)
    for number in range(first, first + count):
        ts, name = EPOCH_US + number * HOUR, f"d{number}"
        if number % 7 == 0:
            events += [decision(name, ts, slot=slot) for slot in ("top", "side")]
            events.append(outcome(name, f"s{number}", ts + 1, slot="side", reward=0.25))
        else:
            events.append(decision(name, ts, deferred=number % 5 == 0))
        if number % 10 == 0:
            events.append(Activation(decision_id=name, loop="shop", ts=ts + 5))
        for copy in range(int(rng.integers(3))):
            delay = int(rng.integers(2 * HOUR))
            reward = float(rng.random())
            told = {"refund": reward / 2} if number % 3 else {"calls": 1.0, "refund": 0.1}
            changes: dict[str, Any] = {"reward": reward, "guardrails": told}
            events.append(outcome(name, f"o{number}-{copy}", ts + delay, **changes))
    events.append(outcome("nobody", f"n{first}", EPOCH_US + first * HOUR))
    return events


JOINING = LoopConfig(
    attribution_window="1 h",
    aggregation="sum",
    guardrails={"refund": Guardrail(default_reward=0.5), "calls": Guardrail(aggregation="last")},
)


def joined(root: Path, engine: Engine) -> tuple[list[Any], pl.DataFrame]:
    """Two joins, with outcomes in between that revise some of what the first has joined."""
    lake, reports = Lake(root / "lake"), []
    with SqliteEventLog(root / "log", synchronous="normal") as log:
        for first, until in ((0, 150), (150, 300)):
            late = [outcome(f"d{n}", f"l{n}", EPOCH_US + 200 * HOUR) for n in range(0, first, 9)]
            append(log, [*shop_events(first, until - first), *late])
            sink(log, lake, engine=engine)
            as_of = EPOCH_US + (until + 24) * HOUR
            reports.append(join(lake, "shop", JOINING, as_of, held=60, engine=engine))
    rows = table(lake.root, "interactions").sort("decision_id", "slot", "revision")
    assert not (lake.root / ".join").exists()
    return reports, rows


def test_joins_are_those_of_a_single_process(ray_engine: Engine, tmp_path: Path) -> None:
    """Row by row and count by count, though of each kind of task one is killed in the middle."""
    reports, rows = joined(tmp_path / "local", LOCAL)
    assert reports[1].revised > 0
    assert reports[0].orphans > 0
    reading = Killing(ray_engine, "_read_keys", tmp_path)
    resolving = Killing(reading, "_resolve_bucket", tmp_path)
    writing = Killing(resolving, "_write_group", tmp_path)
    found = joined(tmp_path / "ray", writing)
    assert found[0] == reports
    assert found[1].equals(rows)
    assert rows["guardrails"].null_count() == 0
    assert rows["guardrails"].n_unique() > 50
    assert all(each.killed for each in (reading, resolving, writing))
    # They are files as others are: put together, and known by their bounds.
    lake = Lake(tmp_path / "ray" / "lake")
    files = lake.snapshot("interactions", "shop").files
    assert sum(each.rows for each in files) == len(rows)
    assert all(each.lowest is not None for each in files)
    assert lake.compact()["interactions"] > 0
    again = table(lake.root, "interactions").sort("decision_id", "slot", "revision")
    assert again.equals(rows)


def test_a_table_of_fewer_columns_gets_the_others(ray_engine: Engine, tmp_path: Path) -> None:
    """As one that an earlier version has made."""
    lake = Lake(tmp_path / "lake")
    with SqliteEventLog(tmp_path / "log", synchronous="normal") as log:
        append(log, shop_events(0, 20))
        sink(log, lake)
    join(lake, "shop", JOINING, EPOCH_US + 4 * HOUR)
    old = table(lake.root, "interactions")
    shutil.rmtree(lake.root / "interactions")
    old.drop("revision", "partition", "shadow", "guardrails").write_delta(
        str(lake.root / "interactions"), delta_write_options={"partition_by": ["loop", "date"]}
    )
    join(lake, "shop", JOINING, EPOCH_US + 40 * HOUR, engine=ray_engine)
    rows = table(lake.root, "interactions")
    assert len(rows.filter(pl.col("revision") == 0)) > 0
    shutil.rmtree(lake.root / "interactions")
    join(lake, "shop", JOINING, EPOCH_US + 40 * HOUR)
    keys = ["decision_id", "slot", "reward", "outcomes"]
    whole = table(lake.root, "interactions").select(keys).sort(keys)
    assert rows.select(keys).unique().sort(keys).equals(whole)


@pytest.fixture(scope="module")
def history() -> pl.DataFrame:
    return WORLD.log(cold_start("shop"), 3000, seed=1)


def trained(
    lake: Lake, engine: Engine, config: LoopConfig = LEARNING, merge: MergeConfig = MERGE
) -> Generation:
    return retrain(
        lake,
        "shop",
        config,
        number=1,
        parent=0,
        judge_share=0.3,
        seed=7,
        created_us=EPOCH_US,
        spread=Spread(merge, engine),
    )


def weights(generation: Generation) -> Any:
    oracle = generation.oracle
    if isinstance(oracle, AutoOracle):
        oracle = oracle.estimator_
    assert isinstance(oracle, TableOracle)
    return oracle.weights_


@pytest.mark.parametrize(
    ("oracle", "task", "merged"),
    [
        (VowpalWabbitConfig(), "_learn", (3, 4)),
        (AutoConfig(), "_moments", (3, 1)),
    ],
    ids=["vowpal_wabbit", "auto"],
)
def test_training_is_the_same_wherever_it_is_done(
    ray_engine: Engine,
    tmp_path: Path,
    history: pl.DataFrame,
    *,
    oracle: Any,
    task: str,
    merged: tuple[int, int],
) -> None:
    """Bit for bit, also when a worker is killed: what is merged depends on the folds alone."""
    lake = Lake(tmp_path / "lake")
    lake.append("interactions", history)
    config = msgspec.structs.replace(LEARNING, oracle=oracle)
    here = trained(lake, LOCAL, config)
    killing = Killing(ray_engine, task, tmp_path)
    there = trained(lake, killing, config)
    assert killing.killed
    assert here.provenance is not None
    assert here.provenance.merged == merged
    assert there.provenance == here.provenance
    assert np.array_equal(weights(here), weights(there))
    assert weights(here).any()


def test_a_ridge_regression_of_parts_is_that_of_the_whole(
    tmp_path: Path, history: pl.DataFrame
) -> None:
    """Up to rounding: what it needs of its rows are sums."""
    lake = Lake(tmp_path / "lake")
    lake.append("interactions", history)
    config = msgspec.structs.replace(LEARNING, oracle=AutoConfig())
    parts, whole = (
        trained(lake, LOCAL, config),
        trained(lake, LOCAL, config, MergeConfig(rows=10**6)),
    )
    assert parts.provenance is not None
    assert whole.provenance is not None
    assert (parts.provenance.merged, whole.provenance.merged) == ((3, 1), None)
    np.testing.assert_allclose(weights(parts), weights(whole), rtol=1e-9, atol=1e-12)
    # With more columns than it may have, it is Vowpal Wabbit's, and merged as that is.
    small, table = AutoConfig(max_columns=3, encoder=ENCODER), VowpalWabbitConfig(encoder=ENCODER)
    beyond, other = (
        trained(lake, LOCAL, msgspec.structs.replace(config, oracle=each))
        for each in (small, table)
    )
    assert beyond.provenance is not None
    assert beyond.provenance.merged == (3, 4)
    assert np.array_equal(weights(beyond), weights(other))


def test_what_can_t_be_merged_is_learned_by_one(tmp_path: Path, history: pl.DataFrame) -> None:
    lake = Lake(tmp_path / "lake")
    lake.append("interactions", history[:500])
    oracles = (SklearnConfig(), VowpalWabbitConfig(cb_type="dr"), VowpalWabbitConfig(l2=1e-4))
    for oracle in oracles:
        made = trained(lake, LOCAL, msgspec.structs.replace(LEARNING, oracle=oracle))
        assert made.provenance is not None
        assert made.provenance.merged is None
    few = trained(Lake(shutil.copytree(lake.root, tmp_path / "few")), LOCAL)
    assert few.provenance is not None
    assert few.provenance.merged is None


def test_estimates_are_those_of_a_single_process(
    ray_engine: Engine, tmp_path: Path, history: pl.DataFrame
) -> None:
    challenger = WORLD.generation(2, EpsilonGreedy(epsilon=0.1))
    champion = WORLD.generation(1, EpsilonGreedy(epsilon=0.5), believed=1.0 - WORLD.rewards)
    killing = Killing(ray_engine, "_ask", tmp_path)
    for other in (champion, None):
        here = evaluate(history, other, challenger, LEARNING)
        there = evaluate(history, other, challenger, LEARNING, engine=killing)
        assert msgspec.to_builtins(there) == msgspec.to_builtins(here)
    assert killing.killed


def test_comparisons_are_those_of_a_single_process(
    ray_engine: Engine, tmp_path: Path, history: pl.DataFrame
) -> None:
    """Also of policies that are functions; and the reward model is known by its generation."""
    policies: dict[str, Any] = {
        "generation": WORLD.generation(2, EpsilonGreedy(epsilon=0.1)),
        "uniform": random_policy,
        "fixed": FixedAction("a1"),
    }
    killing = Killing(ray_engine, "_ask", tmp_path)
    here = compare_policies(history, policies, LEARNING)
    there = compare_policies(history, policies, LEARNING, engine=killing)
    assert there == here
    assert killing.killed


def test_a_search_finds_the_same(ray_engine: Engine, tmp_path: Path, history: pl.DataFrame) -> None:
    lake = Lake(tmp_path / "lake")
    lake.append("interactions", history)
    grid: dict[str, list[Any]] = {
        "exploration.epsilon": [0.05, 0.2],
        "oracle.learning_rate": [0.1, 0.5],
    }
    done: list[tuple[int, int]] = []
    given: dict[str, Any] = {"judge_share": 0.3, "seed": 0, "created_us": EPOCH_US}
    here = tune(lake, "shop", LEARNING, grid, **given)
    killing = Killing(ray_engine, "_try", tmp_path)
    there = tune(
        lake, "shop", LEARNING, grid, **given, engine=killing, progress=lambda *at: done.append(at)
    )
    assert killing.killed
    assert there == here
    assert done[-1] == (3, 3)


def test_a_generation_goes_from_one_process_to_another(ray_engine: Engine) -> None:
    """As it was saved; its workspace of Vowpal Wabbit's stays where it is."""
    made = WORLD.generation(3, EpsilonGreedy(epsilon=0.1))
    ((pid, there),) = ray_engine.map(answers, [0], made)
    assert pid != os.getpid()
    assert there == answers(made, 0)[1]


def answers(generation: Generation, context: int) -> tuple[int, list[float]]:
    return os.getpid(), WORLD.pmf(generation, context).tolist()


def test_the_benchmark_times_every_step(ray_engine: Engine, tmp_path: Path) -> None:
    found = compare(tmp_path, 400, ray_engine)
    assert [each.name for each in found] == ["start workers", "join", "train", "evaluate"]
    assert all(each.ray_s > 0.0 for each in found)
    lakes = [table(tmp_path / name, "interactions") for name in ("local", "ray")]
    assert len(lakes[0]) == 400
    assert lakes[0].equals(lakes[1])
