"""The commands about individual fairness: audit --pairs and judge."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import polars as pl
import pytest

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.policy.events import Judgement, decode_event
from tests.cli.test_batch import Command
from tests.offline.fairness.lakes import loan_lake

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """
data_dir = "data"

[loops.shop]

[loops.shop.individual_fairness]
action = "approve"

[loops.shop.individual_fairness.auditors.board]
type = "learned"
features = ["income", "debt", "city"]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    (directory / "croupier.toml").write_text(CONFIG)
    loan_lake(directory / "data", by_city=(0.1, 0.6), count=120, judgements=9)
    return directory


@pytest.fixture
def command(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Command(tmp_path, capsys)


def logged(command: Command) -> list[Judgement]:
    with SqliteEventLog(command.directory / "data" / "log") as log:
        events = [decode_event(entry.payload) for entry in log.read(1, limit=10**9)]
    return [each for each in events if isinstance(each, Judgement)]


def kept(command: Command, judgement_id: str) -> pl.DataFrame:
    rows = command.lake.scan("audits").filter(pl.col("judgement_id") == judgement_id)
    return rows.select("auditor", "distance").collect()


def test_a_judgement_goes_into_the_log_and_from_there_to_the_audit(command: Command) -> None:
    before = command("audit", "--pairs", "--json").facts["shop"]
    assert before["auditors"][0]["abstains"]
    assert before["generations"] == []
    assert len(before["proposed"]) == 10
    pair = [before["proposed"][0][side]["decision_id"] for side in ("first", "second")]

    for _ in range(2):
        done = command("judge", *pair, "--distance", 0.3, "--auditor", "ben", "--id", "j-1")
        assert done.code == 0, done.err
    (told, _) = (each for each in logged(command) if each.judgement_id == "j-1")
    assert (told.auditor, told.distance, told.loop) == ("ben", 0.3, "shop")
    assert [told.decision_id, told.other_decision_id] == pair

    assert kept(command, "j-1").is_empty()
    assert command("sink").code == 0
    assert kept(command, "j-1").rows() == [("ben", 0.3)]
    assert command("judge", *pair[::-1], "--alike", "--auditor", "ada").code == 0
    assert command("sink").code == 0

    after = command("audit", "--pairs", "--json")
    (board,) = after.facts["shop"]["auditors"]
    assert board["judgements"] >= 10
    assert not board["abstains"]
    assert [each["generation"] for each in after.facts["shop"]["generations"]] == [0, 1, 2]
    proposed = [
        {each["first"]["decision_id"], each["second"]["decision_id"]}
        for each in after.facts["shop"]["proposed"]
    ]
    assert set(pair) not in proposed


def test_a_given_distance_takes_the_auditors_place(command: Command) -> None:
    done = command(
        "audit", "--pairs", "--distance", '{"income": 0.4}', "--alpha", 0.05, "--worst", 2
    )

    assert done.code in {0, 1}
    assert "violation rate by generation" in done.out
    assert "income 0.4" in done.out
    assert "all pairs compared" in done.out
    assert "the worst violations" in done.out


def test_pairs_are_shown_side_by_side_and_asked_about(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["far", "0.25", "s", "n", "q"])
    monkeypatch.setattr("typer.prompt", lambda _: next(answers))

    done = command("judge", "--count", 4, "--auditor", "ada")

    assert done.code == 0, done.err
    assert done.out.count("How differently may these two be treated?") == 4
    assert "probability of approve" in done.out
    assert "income" in done.out
    assert "expected a number in [0, 1], a, n, s or q, got 'far'" in done.err
    assert [each.distance for each in logged(command)[-2:]] == [0.25, 1.0]


def test_proposals_are_told_to_programs(command: Command) -> None:
    done = command("judge", "--json", "--count", 3)

    assert done.code == 0, done.err
    assert done.out.count('"chance"') == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["g1-0"], "other: expected the ids of two decisions"),
        (["g1-0", "g1-0", "--alike"], "other_decision_id: expected another one"),
        (["g1-0", "none", "--alike"], "other: expected a decision of shop in the lake"),
        (["g1-0", "g1-1", "--distance", "1.5"], "distance: expected a number in [0, 1]"),
        (["g1-0", "g1-1", "--distance", "0.5", "--alike"], "distance: expected either"),
        (["--alike"], "decision: expected the ids of two decisions with a verdict"),
    ],
)
def test_a_judgement_that_can_t_be_is_one_line(
    command: Command, arguments: list[str], said: str
) -> None:
    assert command.refused("judge", *arguments).startswith(said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--distance", "{"], "distance: expected a JSON object"),
        (["--distance", '{"x": -1}'], "distance: expected a JSON object"),
        (["--distance", '{"icnome": 1}'], "features.icnome: expected a feature"),
        (["--alpha", "1"], "alpha: must be in [0, 1)"),
        (["--gamma", "0"], "gamma: must be in (0, 1]"),
        (["--action", "refund"], "pairs need at least two decisions that offer 'refund'"),
    ],
)
def test_an_audit_that_can_t_be_is_one_line(
    command: Command, arguments: list[str], said: str
) -> None:
    assert command.refused("audit", "--pairs", *arguments).startswith(said)


def test_without_auditors_there_is_nothing_to_audit(command: Command) -> None:
    (command.directory / "croupier.toml").write_text('data_dir = "data"\n\n[loops.shop]\n')

    assert command.refused("audit", "--pairs").startswith("distance: expected --distance, or")
    assert command.refused("judge").startswith("loops.shop.individual_fairness: expected auditors")
    assert command.refused("frontier").startswith("loops.shop.individual_fairness: expected")
