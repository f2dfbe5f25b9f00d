"""What is exported is read back as it was, by us and by Vowpal Wabbit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl
import pytest
import vowpal_wabbit_next as vw

from croupier.control.dsjson import read_interactions
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.export import export_dsjson, export_parquet
from croupier.offline.interactions import current_interactions
from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.offline.sink import sink
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action
from croupier.policy.guardrails import Guardrail
from croupier.policy.loop import LoopConfig
from tests.offline.logs import EPOCH_US, append, decision, outcome

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.policy.events import Event

CONFIG = LoopConfig(
    reward_min=-1.0, default_reward=0.25, guardrails={"refund": Guardrail(default_reward=0.5)}
)
LATER = EPOCH_US + 10**12


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Decisions with all kinds of features, some of them rewarded, one of them late."""
    rng = np.random.default_rng(2)
    events: list[Event] = []
    for number in range(40):
        count = 2 + number % 3
        pmf = rng.dirichlet(np.ones(count)).tolist()
        chosen = int(rng.integers(count))
        actions = [
            Action(f"item {n}", {"price": rng.random(), "kind": f"é{n}", "new": n % 2 == 0})
            for n in range(count)
        ]
        changes: dict[str, Any] = {
            "context": {"hour": number, "user": {"age": number / 7, "segments": [0.5, 1.0]}},
            "actions": actions,
            "pmf": pmf,
            "chosen": chosen,
            "propensity": pmf[chosen],
            "keep_prob": 0.5,
        }
        events.append(decision(f"d{number}", EPOCH_US + number * 1_000, **changes))
    events += [
        outcome(f"d{n}", f"o{n}", EPOCH_US + n * 1_000, reward=float(rng.uniform(-1, 1)))
        for n in range(0, 40, 3)
    ]
    lake = Lake(tmp_path / "lake")
    with SqliteEventLog(tmp_path / "log") as log:
        append(log, events)
        sink(log, lake)
        join(lake, "shop", CONFIG, LATER)
        told = {"refund": 0.75}
        append(log, [outcome("d1", "late", EPOCH_US + 10**11, reward=-0.5, guardrails=told)])
        sink(log, lake)
        join(lake, "shop", CONFIG, LATER)
    return lake


def interactions(lake: Lake) -> pl.DataFrame:
    return current_interactions(lake, "shop").sort("ts").collect()


def test_parquet_has_the_current_interactions(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "a file.parquet"
    assert export_parquet(lake, "shop", path) == 40
    assert pl.read_parquet(path).sort("ts").equals(interactions(lake))


def test_parquet_has_a_column_for_a_guardrail(lake: Lake, tmp_path: Path) -> None:
    """Null where it was not joined."""
    path = tmp_path / "guarded.parquet"
    assert export_parquet(lake, "shop", path, guardrails=["other", "refund"]) == 40
    rows = pl.read_parquet(path).sort("ts")
    assert rows.drop("guardrail_other", "guardrail_refund").equals(interactions(lake))
    assert rows["guardrail_refund"].to_list() == [0.75 if n == 1 else 0.5 for n in range(40)]
    assert rows["guardrail_other"].is_null().all()


def test_dsjson_is_read_back_as_it_was(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "shop.dsjson"
    assert export_dsjson(lake, "shop", path) == 40
    again = Lake(tmp_path / "again")
    with SqliteEventLog(tmp_path / "other log") as log:
        append(log, read_interactions(path.read_bytes(), "shop", CONFIG, now_us=LATER))
        sink(log, again)
    join(again, "shop", CONFIG, LATER)
    same = [
        "decision_id",
        "ts",
        "context",
        "actions",
        "action_ids",
        "chosen",
        "reward",
        "keep_prob",
    ]
    assert interactions(again).select(same).equals(interactions(lake).select(same))
    for one, other in zip(interactions(lake)["pmf"], interactions(again)["pmf"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    assert interactions(again).filter(decision_id="d1")["reward"].to_list() == [-0.5]


def test_dsjson_is_read_by_vowpal_wabbit(lake: Lake, tmp_path: Path) -> None:
    """With the label that we meant: which action, at what cost, drawn with which probability."""
    path = tmp_path / "shop.dsjson"
    export_dsjson(lake, "shop", path)
    workspace = vw.Workspace(["--cb_explore_adf", "--quiet"])
    labels = []
    with path.open(encoding="utf-8") as file, vw.DSJsonFormatReader(workspace, file) as reader:
        for examples in reader:
            assert isinstance(examples, list)
            for place, example in enumerate(examples[1:]):
                label = example.get_label()
                assert isinstance(label, vw.CBLabel)
                if label.label is not None:
                    _, cost, probability = label.label
                    labels.append((place, cost, probability))
    lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    order = pl.DataFrame({"decision_id": [line["EventId"] for line in lines]})
    rows = order.join(interactions(lake), on="decision_id", maintain_order="left")
    assert [place for place, _, _ in labels] == rows["chosen"].to_list()
    np.testing.assert_allclose([cost for _, cost, _ in labels], -rows["reward"].to_numpy(), 1e-6)
    found = [probability for _, _, probability in labels]
    np.testing.assert_allclose(found, rows["propensity"].to_numpy(), 1e-6)


def test_a_log_without_probabilities_is_no_dsjson(lake: Lake, tmp_path: Path) -> None:
    rows = interactions(lake).with_columns(
        loop=pl.lit("imported"), pmf=pl.lit(None, dtype=pl.List(pl.Float64))
    )
    lake.append("interactions", rows)
    with pytest.raises(InvalidInputError, match=r"pmf: expected the probabilities .* of d0"):
        export_dsjson(lake, "imported", tmp_path / "imported.dsjson")
