"""A data directory says which format it has, and one of an earlier version can be brought over.

``fixtures/format-1.tar.xz`` was made by Croupier as of 23 November 2026 (commit 82004c8): its
scorer decided 200 times over HTTP, its night trained a generation that was then promoted by hand,
and ``answers.json`` has what callers were answered.
"""

from __future__ import annotations

import sqlite3
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from croupier.cli.main import main
from croupier.eventlog.layouts import log_layouts
from croupier.eventlog.log import FIRST_POSITION, Record
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.backup import relocate
from croupier.offline.data_format import (
    FORMAT,
    FORMAT_FILE,
    DataFormat,
    check_format,
    format_of,
    migrate,
)
from croupier.offline.lake import Lake
from croupier.policy.errors import ConfigError, LogUnavailableError
from tests.offline.shop import Shop
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from tests.command_line import Complain

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning"),
]

ARCHIVE = Path(__file__).parent / "fixtures" / "format-1.tar.xz"
CONFIG = """\
data_dir = "data"

[loops.shop]
attribution_window = "2 s"
exploration = { kind = "epsilon_greedy", epsilon = 0.3 }
oracle = { kind = "sklearn" }
"""


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory of format 1, in the working directory, with its configuration."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "croupier.toml").write_text(CONFIG)
    relocate(tmp_path / "data" / "mlflow.db", "/srv/croupier/data", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def croupier(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["croupier", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_an_earlier_format_is_refused_with_the_command_that_helps(
    earlier: Path, complain: Complain
) -> None:
    assert complain("status") == (
        f"data_dir: expected format {FORMAT} in {earlier}, got 1: end what uses it, back it up, "
        "and run croupier migrate"
    )


def test_a_later_format_is_refused_and_left_alone(tmp_path: Path, complain: Complain) -> None:
    later = msgspec.json.encode(DataFormat(format=FORMAT + 1, written_by="9.9"))
    (tmp_path / FORMAT_FILE).write_bytes(later)
    for command in ("status", "migrate", "nightly", "serve"):
        said = complain(command, "--data-dir", str(tmp_path))
        assert f"expected format {FORMAT} or lower" in said
        assert "written by Croupier 9.9" in said
    assert [path.name for path in tmp_path.iterdir()] == [FORMAT_FILE]


def test_a_damaged_note_is_told(tmp_path: Path, complain: Complain) -> None:
    (tmp_path / FORMAT_FILE).write_text("{")
    assert complain("status", "--data-dir", str(tmp_path)).startswith("data_dir: expected the form")


def test_the_format_is_noted_by_whoever_comes_first(tmp_path: Path) -> None:
    check_format(tmp_path)
    assert format_of(tmp_path) is None
    assert not list(tmp_path.iterdir())
    Shop(tmp_path, random_world(3, 2, seed=0)).day(3)
    check_format(tmp_path)
    found = format_of(tmp_path)
    assert found is not None
    assert found.format == FORMAT
    assert (tmp_path / FORMAT_FILE).exists()


def test_nothing_is_no_data_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a data directory"):
        migrate(tmp_path)


def test_what_an_earlier_version_has_written_goes_on(
    earlier: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = records_of_layout_1(earlier / "log")
    assert log_layouts(earlier / "log") == {1}
    assert croupier(monkeypatch, "migrate") == 0
    assert log_layouts(earlier / "log") == {2}

    with SqliteEventLog(earlier / "log") as log:
        entries = log.read(FIRST_POSITION, limit=1000)
    assert [(e.position, e.loop, e.kind, e.key, e.payload) for e in entries] == before

    given = msgspec.json.decode((earlier.parent / "answers.json").read_bytes())
    columns = ("decision_id", "action_id", "propensity", "generation")
    decisions = Lake(earlier / "lake").scan("decisions", "shop").select(columns).collect()
    logged = {name: list(rest) for name, *rest in decisions.iter_rows()}
    assert logged == given

    for command in (["lake", "verify"], ["nightly"], ["audit"], ["replay", "again"]):
        assert croupier(monkeypatch, *command) == 0, command
    capfd.readouterr()
    assert croupier(monkeypatch, "status", "--json") == 0
    (loop,) = msgspec.json.decode(capfd.readouterr().out)["loops"]
    assert loop["champion"] == 1


def test_a_migration_that_was_killed_is_begun_again(
    earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = records_of_layout_1(earlier / "log")
    replace = Path.replace
    replaced: list[Path] = []

    def killed(path: Path, target: Path) -> Path:
        if len(replaced) == 2:
            raise KeyboardInterrupt
        replaced.append(target)
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            migrate(earlier)
    assert log_layouts(earlier / "log") == {1, 2}
    assert migrate(earlier) == (1, 2)
    with SqliteEventLog(earlier / "log") as log:
        assert [e.position for e in log.read(FIRST_POSITION, limit=1000)] == [r[0] for r in before]
        # It is written to as before.
        end = log.append([Record("shop", "decision", "new", b"{}")])
    assert end == before[-1][0] + 2


def test_a_log_in_use_is_not_migrated(earlier: Path) -> None:
    segment = max(earlier.glob("log/*.db"))
    with closing(sqlite3.connect(segment)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM records LIMIT 1").fetchone()
        with pytest.raises(LogUnavailableError, match="database is locked"):
            migrate(earlier)
    assert log_layouts(earlier / "log") == {1}


def records_of_layout_1(directory: Path) -> list[tuple[int, str, str, str, bytes]]:
    rows: list[tuple[int, str, str, str, bytes]] = []
    for path in sorted(directory.glob("*.db")):
        with closing(sqlite3.connect(path)) as connection:
            rows += connection.execute("SELECT * FROM records ORDER BY position").fetchall()
    return rows
