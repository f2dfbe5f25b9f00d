"""Several processes that write to one table: nothing is lost, and progress is nobody else's."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from croupier.offline.lake import SCHEMAS, Lake, LakeConflictError, ProgressError
from croupier.offline.sink import decision_row
from tests.offline.logs import decision

if TYPE_CHECKING:
    from croupier.offline.lake import TableName

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def frame(*ids: str) -> pl.DataFrame:
    made = [decision_row(decision(each), offset) for offset, each in enumerate(ids)]
    return pl.DataFrame(made, schema=SCHEMAS["decisions"])


def ids(lake: Lake) -> list[str]:
    return sorted(lake.scan("decisions").select("decision_id").collect()["decision_id"])


def test_a_storm_of_commits_loses_none(lake: Lake) -> None:
    """Three processes make a table at the same moment and go on; a fourth deletes beside them."""
    at = str(time.time() + 3)
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.offline.appending", str(lake.root), app, "15", "20", at],
            cwd=ROOT,
        )
        for app in ("a", "b", "c")
    ]
    while any(child.poll() is None for child in children):
        lake.delete("decisions", "decision_id LIKE '%-7'")
        time.sleep(0.2)
    assert [child.returncode for child in children] == [0, 0, 0]
    lake.delete("decisions", "decision_id LIKE '%-7'")
    assert ids(lake) == sorted(f"{app}-{n}" for app in "abc" for n in range(300) if n != 7)
    assert [lake.progress("decisions", app) for app in "abc"] == [15, 15, 15]


def test_progress_that_somebody_else_has_made_is_not_written_over(lake: Lake) -> None:
    with pytest.raises(ProgressError, match="expected app to have come to 3 in decisions, found N"):
        lake.append("decisions", frame("x"), app="app", progress=4, after=3)
    lake.append("decisions", frame("a"), app="app", progress=4, after=None)
    lake.append("decisions", frame("b"), app="other", progress=9, after=None)
    for after in (None, 3, 5):
        with pytest.raises(ProgressError):
            lake.append("decisions", frame("x"), app="app", progress=7, after=after)
    lake.append("decisions", frame("c"), app="app", progress=7, after=4)
    assert (ids(lake), lake.progress("decisions", "app")) == (["a", "b", "c"], 7)


class Overtaken(Lake):
    """Is overtaken by somebody else right before a commit, after it has looked at the progress."""

    def __init__(self, root: Path, *overtakers: Any) -> None:
        super().__init__(root)
        self.overtakers = list(overtakers)

    def _write(self, *args: Any, **kwargs: Any) -> None:
        if self.overtakers:
            self.overtakers.pop(0)(Lake(self.root))
        super()._write(*args, **kwargs)


def append(decision_id: str, app: str, progress: int, after: int | None) -> Any:
    def write(lake: Lake) -> None:
        lake.append("decisions", frame(decision_id), app=app, progress=progress, after=after)

    return write


@pytest.mark.parametrize("exists", [False, True])
def test_delta_refuses_a_commit_that_was_overtaken(lake: Lake, *, exists: bool) -> None:
    """By one of the same application, however late, also if both make the table."""
    before = None
    if exists:
        append("first", "app", 1, None)(lake)
        before = 1
    late = Overtaken(lake.root, append("other", "app", 5, before))
    with pytest.raises(ProgressError, match="found 5"):
        append("late", "app", 3, before)(late)
    assert "late" not in ids(lake)
    assert lake.progress("decisions", "app") == 5


@pytest.mark.parametrize("exists", [False, True])
def test_a_commit_of_another_application_is_no_obstacle(lake: Lake, *, exists: bool) -> None:
    if exists:
        append("first", "app", 1, None)(lake)
    late = Overtaken(
        lake.root, *(append(f"other{each}", f"other{each}", 5, None) for each in range(3))
    )
    append("late", "app", 3, 1 if exists else None)(late)
    assert {"late", "other0"} <= set(ids(lake))


def test_rows_that_were_deleted_meanwhile_are_no_obstacle(lake: Lake) -> None:
    append("gone", "app", 1, None)(lake)

    def forget(other: Lake) -> None:
        other.delete("decisions", "decision_id = 'gone'")

    append("late", "app", 2, 1)(Overtaken(lake.root, forget))
    assert ids(lake) == ["late"]


def test_files_that_are_not_committed_yet_are_left_alone(lake: Lake) -> None:
    """What another machine is about to commit is not swept away by who forgets here."""
    append("kept", "app", 1, None)(lake)
    append("gone", "app", 2, 1)(lake)
    pending = lake.root / "decisions" / "loop=shop" / "date=2026-09-21" / "part-pending.parquet"
    pending.parent.mkdir(parents=True, exist_ok=True)
    pending.write_bytes(b"not committed")
    lake.delete("decisions", "decision_id = 'gone'")
    assert pending.exists()
    assert ids(lake) == ["kept"]
    files = {Path(uri).name for uri in DeltaTable(lake.root / "decisions").file_uris()}
    left = {path.name for path in (lake.root / "decisions").rglob("part-*.parquet")}
    assert left - {pending.name} == files


def test_it_gives_up_after_many_conflicts(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    append("first", "app", 1, None)(lake)
    tries = []

    def conflict(_: Lake, table: TableName, *__: Any) -> None:
        tries.append(table)
        raise CommitFailedError("somebody was faster")

    monkeypatch.setattr(Lake, "_write", conflict)
    monkeypatch.setattr("croupier.offline.lake._LONGEST_PAUSE_S", 0.01)
    with pytest.raises(LakeConflictError, match="writing to decisions failed: somebody was faster"):
        append("late", "app", 2, 1)(lake)
    assert len(tries) == 8


def test_who_deletes_has_its_turn_and_keeps_out_who_reads(lake: Lake) -> None:
    """However many go in and out, and as often."""
    append("a", "app", 1, None)(lake)
    stop, inside = threading.Event(), []

    def share() -> None:
        while not stop.is_set():
            with lake.keeping_files():
                inside.append(len(lake.scan("decisions").collect()))

    threads = [threading.Thread(target=share) for _ in range(3)]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    for _ in range(5):
        lake.delete("decisions", "decision_id = 'nobody'")
    took = time.monotonic() - started
    stop.set()
    for thread in threads:
        thread.join()
    assert took < 30
    assert set(inside) == {1}
