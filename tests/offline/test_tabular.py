"""Tables of other makers, as interactions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import polars as pl
import pytest

from croupier.offline.interactions import training_rows
from croupier.offline.lake import SCHEMAS, Lake
from croupier.offline.tabular import ColumnMap, import_table, read_column_map
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

MAP = ColumnMap(
    timestamp="when", action="arm", propensity="prob", reward="gain", context=("age", "segment")
)
TABLE = pl.DataFrame(
    {
        "when": ["2026-11-01T10:00:00", "2026-11-02T10:00:00", "2026-11-02T11:30:00"],
        "arm": [2, 1, 2],
        "prob": [0.5, 0.25, 1.0],
        "gain": [1.0, 0.0, -2.5],
        "age": [31, None, 45],
        "segment": ["a", "b", None],
        "unused": [1, 2, 3],
    }
)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_becomes_interactions(tmp_path: Path, suffix: str) -> None:
    path, lake = tmp_path / f"log.{suffix}", Lake(tmp_path / "lake")
    (TABLE.write_csv if suffix == "csv" else TABLE.write_parquet)(path)
    report = import_table(path, lake, "arms", MAP)
    assert (report.added, report.present, report.positive) == (3, 0, 1)
    rows = lake.scan("interactions", "arms").sort("offset").collect()
    assert rows.schema == SCHEMAS["interactions"]
    assert rows["decision_id"].to_list() == [f"log.{suffix}:{n}" for n in range(3)]
    assert rows["ts"][0] == datetime(2026, 11, 1, 10, tzinfo=UTC)
    assert rows.select("action_id", "chosen", "propensity", "reward").rows() == [
        ("2", 1, 0.5, 1.0),
        ("1", 0, 0.25, 0.0),
        ("2", 1, 1.0, -2.5),
    ]
    assert [row.context for row in training_rows(rows)] == [
        {"age": 31, "segment": "a"},
        {"age": None, "segment": "b"},
        {"age": 45, "segment": None},
    ]
    again = import_table(path, lake, "arms", MAP)
    assert (again.added, again.present) == (0, 3)


def test_features_of_actions_and_ids_come_from_the_map(tmp_path: Path) -> None:
    path, lake = tmp_path / "log.parquet", Lake(tmp_path / "lake")
    TABLE.with_columns(id=pl.Series(["x", "y", "z"])).write_parquet(path)
    columns = tmp_path / "columns.toml"
    columns.write_text(
        'timestamp = "when"\naction = "arm"\npropensity = "prob"\nreward = "gain"\n'
        'decision_id = "id"\n[actions.2]\nprice = 3.5\n[actions.1]\n[actions.3]\n'
    )
    import_table(path, lake, "arms", read_column_map(columns))
    rows = lake.scan("interactions", "arms").sort("offset").collect()
    assert rows["decision_id"].to_list() == ["x", "y", "z"]
    assert rows["chosen"].to_list() == [0, 1, 0]
    assert rows["context"].unique().to_list() == ["{}"]
    assert [each.features for each in next(training_rows(rows)).actions] == [{"price": 3.5}, {}, {}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prob": [0.5, 0.0, 1.0]}, r"row 2 prob: expected a probability in \(0, 1\]"),
        ({"gain": [0.5, 0.0, None]}, "row 3 gain: expected a number"),
        ({"when": ["soon", "2026-11-02T10:00:00", None]}, "row 1 when: expected a moment"),
        ({"arm": [None, 1, 1]}, "row 1 arm: expected an action of the map"),
    ],
)
def test_a_row_that_can_t_be_is_named(
    tmp_path: Path, change: dict[str, list[object]], message: str
) -> None:
    path, lake = tmp_path / "log.parquet", Lake(tmp_path / "lake")
    TABLE.with_columns(
        **{name: pl.Series(values) for name, values in change.items()}
    ).write_parquet(path)
    with pytest.raises(InvalidInputError, match=message):
        import_table(path, lake, "arms", MAP)
    assert not lake.exists("interactions")


def test_what_is_no_table_or_no_map_is_refused(tmp_path: Path) -> None:
    lake, path = Lake(tmp_path / "lake"), tmp_path / "log.parquet"
    with pytest.raises(InvalidInputError, match="path: expected a CSV or Parquet file"):
        import_table(path, lake, "arms", MAP)
    TABLE.write_parquet(path)
    with pytest.raises(InvalidInputError, match="expected columns day"):
        import_table(path, lake, "arms", msgspec.structs.replace(MAP, timestamp="day"))
    with pytest.raises(InvalidInputError, match="columns: expected a map of columns"):
        read_column_map(path)
