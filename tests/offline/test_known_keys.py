"""Repeats are found without reading the table, and nothing else is taken for one."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.offline import known_keys
from croupier.offline.known_keys import KnownKeys
from croupier.offline.lake import SCHEMAS, Lake
from croupier.offline.sink import decision_row
from tests.offline.logs import EPOCH_US, decision

KEY = ("loop", "decision_id", "slot")
EVERYTHING = pl.lit(value=True)
IDS = st.tuples(st.sampled_from("abcde"), st.sampled_from([None, "", "0"]), st.integers(0, 3))
BATCHES = st.lists(st.lists(IDS, max_size=8), min_size=1, max_size=5)


def frame(ids: list[tuple[str, str | None, int]], partition: int | None = None) -> pl.DataFrame:
    """Decisions, by id, slot and day."""
    made = [
        decision_row(decision(name, EPOCH_US + day * 86_400_000_000, slot=slot), 0, partition)
        for name, slot, day in ids
    ]
    return pl.DataFrame(made, schema=SCHEMAS["decisions"])


def check(batches: list[list[tuple[str, str | None, int]]], reload: int) -> None:
    expected: dict[tuple[str, str | None], int] = {}
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(Path(folder))
        known = KnownKeys(lake, "decisions", KEY, EVERYTHING)
        for number, batch in enumerate(batches):
            if number == reload:
                known = KnownKeys(lake, "decisions", KEY, EVERYTHING)
            new: dict[tuple[str, str | None], int] = {}
            for name, slot, day in batch:
                if (name, slot) not in expected:
                    new.setdefault((name, slot), day)
            expected |= new
            rows = known.new(frame(batch))
            assert rows.select("decision_id", "slot").rows() == list(new)
            lake.append("decisions", rows)
            known.add(rows)


@settings(max_examples=15, deadline=None)
@given(batches=BATCHES, reload=st.integers(0, 5))
def test_each_key_is_new_once(
    batches: list[list[tuple[str, str | None, int]]], reload: int
) -> None:
    check(batches, reload)


@pytest.mark.parametrize("seed", [1, 2])
def test_keys_with_the_same_hash_are_told_apart(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three hashes for everything; and with runs that are put together all the time."""

    def poor(_: KnownKeys, rows: pl.DataFrame) -> np.ndarray:
        return np.array([len(name) % 3 for name in rows["decision_id"]], dtype=np.uint64)

    monkeypatch.setattr(KnownKeys, "_hashes", poor)
    monkeypatch.setattr(known_keys, "_LEAST_TAIL", 4)
    rng = random.Random(seed)
    batches = [
        [("x" * rng.randint(1, 9), rng.choice([None, "", "0"]), rng.randrange(3)) for _ in range(6)]
        for _ in range(8)
    ]
    # What is loaded has its hashes from the table, so nothing is loaded again.
    check(batches, reload=0)


def test_only_rows_that_matter_are_looked_at(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.append("decisions", frame([("a", None, 0)], partition=1))
    lake.append("decisions", frame([("b", None, 0)], partition=2))
    where = pl.col("partition") == 1
    known = KnownKeys(lake, "decisions", KEY, where)
    new = known.new(frame([("a", None, 1), ("b", None, 1), ("c", None, 1)], partition=1))
    assert new["decision_id"].to_list() == ["b", "c"]


def test_what_was_forgotten_is_new_again(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.append("decisions", frame([("a", None, 0), ("b", None, 0)]))
    known = KnownKeys(lake, "decisions", KEY, EVERYTHING)
    assert known.new(frame([("a", None, 0)])).is_empty()
    lake.delete("decisions", "decision_id = 'a'")
    again = known.new(frame([("a", None, 0), ("b", None, 0)]))
    assert again["decision_id"].to_list() == ["a"]
