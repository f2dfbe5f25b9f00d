"""The lake: commits with progress, versions that stay, and one writer at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, get_args

import polars as pl
import pytest
from deltalake import CommitProperties, Transaction, write_deltalake

from croupier.offline.lake import SCHEMAS, Lake, LakeLockedError, TableName
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys, pathlib
from croupier.offline.lake import Lake
with Lake(pathlib.Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def audits(*offsets: int, loop: str = "shop") -> pl.DataFrame:
    moment = datetime(2026, 11, 1, tzinfo=UTC)
    values = {
        "loop": loop,
        "date": moment.date(),
        "kind": "judgement",
        "decision_id": "d",
        "other_decision_id": "e",
        "auditor": "anna",
        "distance": 0.5,
        "ts": moment,
    }
    rows = [values | {"offset": each, "judgement_id": f"j{each}"} for each in offsets]
    return pl.DataFrame(rows, schema=SCHEMAS["audits"])


def interactions(count: int) -> pl.DataFrame:
    empty = dict.fromkeys(SCHEMAS["interactions"].names())
    moment = datetime(2026, 11, 1, tzinfo=UTC)
    rows = [
        empty | {"loop": "shop", "date": moment.date(), "offset": offset, "ts": moment}
        for offset in range(count)
    ]
    return pl.DataFrame(rows, schema=SCHEMAS["interactions"])


def offsets(lake: Lake, loop: str | None = None) -> list[int]:
    rows = lake.scan("audits", loop).select(pl.col("offset").sort()).collect()
    return rows["offset"].to_list()


@pytest.mark.parametrize("table", get_args(TableName))
def test_a_table_that_was_never_written_is_empty(lake: Lake, table: TableName) -> None:
    assert not lake.exists(table)
    assert lake.version(table) == -1
    assert lake.progress(table, "me") is None
    rows = lake.scan(table, "shop").collect()
    assert rows.is_empty()
    assert rows.schema == SCHEMAS[table]


def test_a_crash_before_the_first_commit_leaves_a_usable_table(lake: Lake) -> None:
    """Delta makes the directory first; a process can end between that and the commit."""
    log = lake.root / "audits" / "_delta_log"
    log.mkdir(parents=True)
    (log / "00000000000000000000.json#1").write_text("half a com")
    assert lake.progress("audits", "me") is None
    assert lake.version("audits") == -1
    assert offsets(lake) == []
    lake.append("audits", audits(1), app="me", progress=7)
    assert lake.progress("audits", "me") == 7
    assert offsets(lake) == [1]


def test_rows_and_progress_come_together(lake: Lake) -> None:
    lake.append("audits", audits(1, 2), app="me", progress=3)
    lake.append("audits", audits(), app="me", progress=9)
    lake.append("audits", audits(5, loop="mail"), app="other", progress=1)
    assert lake.progress("audits", "me") == 9
    assert lake.progress("audits", "other") == 1
    assert lake.progress("audits", "nobody") is None
    assert offsets(lake) == [1, 2, 5]
    assert offsets(lake, "mail") == [5]


def test_rows_of_another_schema_are_refused_whole(lake: Lake) -> None:
    lake.append("audits", audits(1), app="me", progress=1)
    with pytest.raises(pl.exceptions.PolarsError):
        lake.append("audits", audits(2).drop("auditor"), app="me", progress=2)
    wrong = audits(2).with_columns(distance=pl.lit("far"))
    with pytest.raises(pl.exceptions.PolarsError):
        lake.append("audits", wrong, app="me", progress=2)
    assert offsets(lake) == [1]
    assert lake.progress("audits", "me") == 1


def test_columns_may_come_in_any_order(lake: Lake) -> None:
    rows = audits(1)
    lake.append("audits", rows.select(reversed(rows.columns)))
    assert lake.scan("audits").collect().equals(rows)


ADDED = ["slate_size", "shadow", "session"]


def write_old(lake: Lake, table: TableName, rows: pl.DataFrame, *, without: list[str]) -> None:
    """Write a table as code did that didn't know some columns."""
    write_deltalake(
        lake.root / table,
        rows.drop(without),
        partition_by=["loop", "date"] if "date" in rows.columns else ["loop"],
        commit_properties=CommitProperties(app_transactions=[Transaction("me", 3)]),
    )


def test_a_table_gains_columns(lake: Lake) -> None:
    """What was written before has nulls in them, in every version."""
    write_old(lake, "interactions", interactions(2), without=ADDED)
    before = lake.scan("interactions", "shop").sort("offset").collect()
    assert before.equals(interactions(2))
    assert before.schema == SCHEMAS["interactions"]

    shadow = {"generation": 4, "pmf": [0.25, 0.75]}
    recall = {"generation": 4, "since": 0, "memory": b"\x00\xff"}
    session = {"id": "d", "step": 1, "previous": "a", "recalls": [recall]}
    fresh = interactions(1).with_columns(
        offset=pl.lit(2, dtype=pl.Int64),
        slot=pl.lit("0"),
        slate_size=pl.lit(2, dtype=pl.Int64),
        shadow=pl.lit(shadow, dtype=SCHEMAS["interactions"]["shadow"]),
        session=pl.Series([session], dtype=SCHEMAS["interactions"]["session"]),
    )
    lake.append("interactions", fresh, app="me", progress=9)
    rows = lake.scan("interactions", "shop").sort("offset").collect()
    assert rows.schema == SCHEMAS["interactions"]
    assert rows.equals(pl.concat([interactions(2), fresh]))
    assert rows["shadow"].to_list() == [None, None, shadow]
    assert rows["session"].to_list() == [None, None, session]
    assert lake.progress("interactions", "me") == 9
    assert lake.scan_version("interactions", 0, "shop").sort("offset").collect().equals(before)
    # By columns and by rows, as the join and the audit read.
    some = lake.scan("interactions").filter(pl.col("slate_size").is_null()).select("offset", "slot")
    assert sorted(some.collect().rows()) == [(0, None), (1, None)]


def test_a_table_that_gained_columns_can_be_replaced(lake: Lake) -> None:
    schema = SCHEMAS["generations"]
    moment = datetime(2026, 11, 1, tzinfo=UTC)
    empty = dict.fromkeys(schema.names())
    row = empty | {"loop": "shop", "generation": 1, "created": moment}
    write_old(
        lake, "generations", pl.DataFrame([row], schema=schema), without=["propensity_p_value"]
    )
    old = lake.scan("generations").collect()
    assert old["propensity_p_value"].to_list() == [None]
    lake.replace("generations", old.with_columns(propensity_p_value=pl.lit(0.5)))
    assert lake.scan("generations").collect()["propensity_p_value"].to_list() == [0.5]
    assert lake.scan_version("generations", 0, "shop").collect().equals(old)


def test_replacing_leaves_older_versions_readable(lake: Lake) -> None:
    moment = datetime(2026, 11, 1, tzinfo=UTC)
    empty = dict.fromkeys(SCHEMAS["generations"].names())
    for number in range(3):
        row = empty | {"loop": "shop", "generation": number, "created": moment}
        lake.replace("generations", pl.DataFrame([row], schema=SCHEMAS["generations"]))
    numbers = [
        lake.scan_version("generations", version, "shop").collect()["generation"].to_list()
        for version in range(lake.version("generations") + 1)
    ]
    assert numbers == [[0], [1], [2]]


def test_versions_and_progress_outlive_delta_s_retention(lake: Lake) -> None:
    """Delta drops commits of more than 30 days whenever it writes a checkpoint, every 100th.

    A generation names the version of the interactions that it learned from, and has to be
    reproducible after that time too.
    """
    for version in range(101):
        lake.append("interactions", interactions(1), app="me", progress=version)
        if version == 98:
            long_ago = time.time() - 400 * 86_400
            for file in (lake.root / "interactions" / "_delta_log").iterdir():
                os.utime(file, (long_ago, long_ago))
    written = {file.name for file in (lake.root / "interactions" / "_delta_log").iterdir()}
    assert any("checkpoint" in name for name in written)
    for version in (0, 57, 100):
        assert len(lake.scan_version("interactions", version, "shop").collect()) == version + 1
    assert lake.progress("interactions", "me") == 100


def test_one_process_writes_at_a_time(lake: Lake) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lake.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LakeLockedError, match="another process is writing"), lake.lock():
        pytest.fail("two processes hold the lock")
    # However it ends, its lock goes with it.
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with lake.lock(), pytest.raises(LakeLockedError), Lake(lake.root).lock():
        pytest.fail("the lock was given out twice")
    with lake.lock():
        pass


def test_a_place_that_can_t_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    lake = Lake(tmp_path / "file" / "lake")
    with pytest.raises(InvalidInputError, match="lake: expected a directory"), lake.lock():
        pytest.fail("there is no such lake")


@pytest.mark.parametrize("name", ["my data", "données", "a+b", "it's {here}", "~x", "co:lon", "*"])
def test_directories_may_be_called_what_people_call_them(tmp_path: Path, name: str) -> None:
    lake = Lake(tmp_path / name / "lake")
    with lake.lock():
        lake.append("audits", audits(1))
        lake.append("audits", audits(2, loop="mail"), app="me", progress=3)
    assert offsets(lake) == [1, 2]
    assert offsets(lake, "mail") == [2]
    assert len(lake.scan_version("audits", 0, "shop").collect()) == 1
    assert lake.progress("audits", "me") == 3
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["100%", "50%20", "a?b", "a#b", "[a]", "a=b", "a\\b", "a|b"])
def test_a_directory_that_libraries_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    lake = Lake(tmp_path / name / "lake")
    with pytest.raises(InvalidInputError, match="expected a path without"), lake.lock():
        pytest.fail("nothing can be written there")
    assert list(tmp_path.iterdir()) == []
