"""The commands about who is champion: promote, rollback, report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from croupier.eventlog.log import Record
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.promotion_report import PromotionReport
from croupier.policy.events import Override
from croupier.service.scorer import now_us
from tests.cli.test_batch import CONFIG, Command, hour_ago, in_process
from tests.offline.shop import Shop
from tests.offline.worlds import random_world

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

STRICT = CONFIG + "[nightly.gate]\nmargin = 0.9\n"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Path:
    """A directory with a night's work, which promotes generation 1, and an untried generation 2."""
    directory = tmp_path_factory.mktemp("told")
    (directory / "croupier.toml").write_text(CONFIG)
    (directory / "data").mkdir()
    shutil.copy(empty_registry, directory / "data")
    shop = Shop(directory / "data", random_world(3, 4, seed=3), now=hour_ago())
    shop.day(800)
    done = in_process("nightly", cwd=directory)
    assert done.code == 0, done.err
    assert "the gate lets it through: generation 1 - generation 0 is +" in done.out
    (place,) = [line for line in done.out.splitlines() if "promotion report at" in line]
    assert Path(place.partition("promotion report at ")[2]).is_file()
    assert in_process("retrain", cwd=directory).code == 0
    shutil.copytree(directory / "data" / "mlartifacts", directory / "untouched")
    return directory


@pytest.fixture
def command(told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Works on a copy; the artifacts of runs stay where they are, and are put back."""
    shutil.rmtree(told / "data" / "mlartifacts")
    shutil.copytree(told / "untouched", told / "data" / "mlartifacts")
    shutil.copytree(told, tmp_path, dirs_exist_ok=True)
    return Command(tmp_path, capsys)


def rows(command: Command) -> dict[int, dict[str, Any]]:
    table = command.lake.scan("generations", "shop").collect()
    return {row["generation"]: row for row in table.to_dicts()}


def report(command: Command, *arguments: object) -> PromotionReport:
    done = command("report", *arguments, "--json")
    assert done.code == 0, done.err
    return msgspec.json.decode(done.out, type=PromotionReport, strict=False)


def test_promotions_by_hand(command: Command) -> None:
    """What the gate decides is in the exit code; what a person decides is on record."""
    assert "reason: expected why the gate" in command.refused("promote", "shop", 2, "--override")
    assert "reason: expected --override" in command.refused("promote", "shop", 2, "--reason", "x")
    # Hardly better than the champion, if at all; another margin makes it plain.
    (command.directory / "croupier.toml").write_text(STRICT)
    held = command("promote", "shop", 2, "--json")
    assert held.code == 1
    assert held.facts["promote"] is False
    assert "not shown to be above +0.9" in held.facts["reasons"][0]
    assert "generation 2 of shop not promoted" in command("promote", "shop", 2).out
    assert rows(command)[2]["status"] == "rejected"
    said = command("promote", "shop", 2, "--override", "--reason", "the sale begins", "--json")
    assert said.code == 0
    assert said.facts == {
        "promote": True,
        "reasons": ["overridden: the sale begins"],
        "report": held.facts["report"],
    }
    assert Path(held.facts["report"]).is_file()
    assert "is the champion of shop already" in command.refused("promote", "shop", 2)
    row = rows(command)[2]
    assert (row["status"], row["override_reason"]) == ("champion", "the sale begins")
    assert row["override_by"]
    assert rows(command)[1]["status"] == "retired"
    found = report(command, "--generation", 2)
    assert [each.kind for each in found.events] == ["judged", "overridden"]
    assert (found.events[1].told, found.events[1].by) == ("the sale begins", row["override_by"])


def test_a_rollback_and_what_is_shown_of_it(command: Command) -> None:
    assert command("promote", "shop", 2, "--override", "--reason", "sale").code == 0
    assert "Missing option '--reason'" in command.refused("rollback")
    assert command.refused("rollback", "--reason", " ").startswith("reason: expected why")
    wrong = command.refused("rollback", "--reason", "x", "--to", 2)
    assert wrong.startswith("to: expected an earlier champion of shop (0, 1), got 2")
    assert command.refused("rollback", "--loop", "shed", "--reason", "x").startswith("loop: ")
    with command.lake.lock():
        refused = command.refused("rollback", "--reason", "x")
        assert refused.startswith("another process is writing to the lake")
    done = command("rollback", "--loop", "shop", "--reason", "[b]returns[/b]", "--json")
    assert done.code == 0
    assert {**done.facts, "by": None} == {
        "loop": "shop",
        "left": 2,
        "restored": 1,
        "by": None,
        "reason": "[b]returns[/b]",
    }
    row = rows(command)[2]
    assert (row["status"], row["rolled_back_to"]) == ("rolled_back", 1)
    (change,) = command("split", "shop", "--json").facts["changes"]
    assert (change["what"], change["reason"]) == ("rolled back from 2 to 1", "[b]returns[/b]")
    shown = command("report", "--generation", 2).out
    assert "rolled back" in shown
    # What a person wrote is shown as it was written.
    assert "to generation 1: [b]returns[/b]" in shown
    said = command("rollback", "--reason", "again")
    assert "shop: rolled back from generation 1 to the cold start" in said.out
    assert command.refused("rollback", "--reason", "again") == (
        "loop: expected one with an earlier champion; shop has none before the cold start"
    )
    # Neither of the two passes on what had spoken for it.
    assert "after a rollback only decisions since" in command.refused("promote", "shop", 1)


def test_what_was_asked_for_on_the_dashboard_is_listed_and_done(command: Command) -> None:
    asked = Override(
        override_id="o1",
        loop="shop",
        action="promote",
        generation=2,
        champion=1,
        reason="sale",
        by="ada",
        ts=now_us(),
    )
    with SqliteEventLog(command.directory / "data" / "log") as log:
        log.append([Record.of(asked)])
    assert command("sink").code == 0
    (listed,) = command("overrides", "--json").facts["overrides"]
    assert (listed["state"], listed["by"], listed["generation"]) == ("waits", "ada", 2)
    done = command("overrides", "--act", "--json")
    assert done.code == 0, done.err
    assert done.facts["done"] == {"shop": "generation 2 promoted by override of ada"}
    assert [each["state"] for each in done.facts["overrides"]] == ["done"]
    assert command("overrides", "--act", "--json").facts["done"] == {"shop": None}
    row = rows(command)[2]
    assert (row["status"], row["override_by"]) == ("champion", "ada")


def test_reports_are_got_back(command: Command, tmp_path: Path) -> None:
    # The newest generation was never judged.
    assert command.refused("report") == (
        "generation: expected one that was judged or promoted, got 2"
    )
    found = report(command, "--generation", 1)
    assert found.judged is not None
    assert found.judged.verdict.promote
    shown = command("report", "--loop", "shop", "--generation", 1)
    assert shown.code == 0
    for part in ("draws of generation 0", "total variation", "not measured", "The gate lets it"):
        assert part in shown.out
    page = tmp_path / "page.html"
    assert (
        f"promotion report at {page}" in command("report", "--generation", 1, "--output", page).out
    )
    assert page.read_text().startswith("<!doctype html>")
    facts = tmp_path / "report.json"
    assert command("report", "--generation", 1, "--output", facts).code == 0
    assert msgspec.json.decode(facts.read_bytes(), type=PromotionReport, strict=False) == found
    assert command.refused("report", "--generation", 9) == (
        "the registry has no generation 9 of loop 'shop'"
    )
    assert "the cold start has no report" in command.refused("report", "--generation", 0)
    nowhere = tmp_path / "no" / "page.html"
    refused = command.refused("report", "--generation", 1, "--output", nowhere)
    assert refused.startswith("output: expected a file to write")


def test_a_log_that_isn_t_sound_promotes_nobody(command: Command) -> None:
    """Every draw of the cold start is put down as one of another key."""
    (command.directory / "croupier.toml").write_text(CONFIG)
    interactions = command.lake.scan("interactions").collect()
    command.lake.replace(
        "interactions", interactions.with_columns(draw_key=pl.col("draw_key") + "x")
    )
    assert command("rollback", "--reason", "start anew").code == 0
    # As if the rollback had been long before.
    table = command.lake.scan("generations").collect()
    long_ago = pl.lit(None, pl.Datetime("us", "UTC"))
    command.lake.replace("generations", table.with_columns(rolled_back=long_ago))
    done = command("promote", "shop", 1)
    assert done.code == 1
    assert "draws of generation 0 come out differently when they are replayed" in done.out
    row = rows(command)[1]
    assert row["status"] == "rejected"
    assert "come out differently" in row["verdict"]
    evaluated = command("evaluate", "--generation", 1, "--json").facts["shop"]
    assert evaluated["verdict"]["promote"] is False
    assert "come out differently" in evaluated["verdict"]["reasons"][0]


def test_a_required_section_that_nothing_measures_promotes_nobody(command: Command) -> None:
    required = CONFIG + '[nightly.gate]\nrequired = ["fairness"]\nmargin = -1.0\n'
    (command.directory / "croupier.toml").write_text(required)
    done = command("promote", "shop", 2, "--json")
    assert done.code == 1
    assert done.facts["reasons"] == [
        "fairness is required and was not measured: no attribute is configured to make groups of"
    ]
    bad = CONFIG + '[nightly.gate]\nrequired = ["speed"]\n'
    (command.directory / "croupier.toml").write_text(bad)
    assert "required" in command.refused("promote", "shop", 2)
