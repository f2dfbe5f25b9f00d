"""The commands of the batch side: exit codes, one-line errors, and JSON for programs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl
import pytest
from prometheus_client.parser import text_string_to_metric_families

from croupier.cli.main import main
from croupier.eventlog.log import Record
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.generations import record_generation
from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.policy.loop import LoopConfig
from tests.offline.logs import decision, outcome
from tests.offline.shop import MINUTE, Shop
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from croupier.offline.lake import TableName

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

ROOT = Path(__file__).parents[2]
CONFIG = """\
data_dir = "data"

[loops.shop]
attribution_window = "1 min"
exploration = { kind = "epsilon_greedy", epsilon = 0.3 }
oracle = { kind = "sklearn" }
"""


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        assert self.out.count("\n") == 1, self.out
        decoded = msgspec.json.decode(self.out)
        assert isinstance(decoded, dict)
        return decoded


class Command:
    """Runs ``croupier`` in this process, in a directory with a configuration file."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.lake = Lake(directory / "data" / "lake")
        self._capture = capture

    def __call__(self, *arguments: object) -> Done:
        self._capture.readouterr()
        config = ["--config", str(self.directory / "croupier.toml")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["croupier", *map(str, arguments), *config])
            with pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code
        assert isinstance(code, int)
        return Done(code, *self._capture.readouterr())

    def refused(self, *arguments: object) -> str:
        """The one line that a command ends with, on stderr and nothing on stdout."""
        done = self(*arguments)
        assert (done.code, done.out) == (2, "")
        *_, last = lines = done.err.splitlines()
        # What was done before is said there too; but it is said once what went wrong.
        assert [line for line in lines if line.startswith("error: ")] == [last]
        assert "Traceback" not in done.err
        return last.removeprefix("error: ")


def hour_ago() -> int:
    return time.time_ns() // 1000 - 60 * MINUTE


def in_process(*arguments: object, cwd: Path) -> Done:
    """Run ``croupier`` as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "croupier", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=500,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def sunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a log of an hour ago and a night's work on it; tests take a copy."""
    directory = tmp_path_factory.mktemp("sunk")
    (directory / "croupier.toml").write_text(CONFIG)
    (directory / "data").mkdir()
    shop = Shop(directory / "data", random_world(3, 4, seed=3), now=hour_ago())
    shop.day(500)
    done = in_process("nightly", "--json", cwd=directory)
    assert done.code == 0, done.err
    (night,) = done.facts["loops"]
    assert (night["loop"], night["challenger"], night["skipped"]) == ("shop", 1, None)
    assert done.facts["sink"]["decisions"] == 500
    return directory


@pytest.fixture
def command(sunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Works on a copy; the artifacts of runs stay where they are."""
    shutil.copytree(sunk, tmp_path, dirs_exist_ok=True)
    return Command(tmp_path, capsys)


@pytest.fixture
def empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Nothing but a configuration file."""
    (tmp_path / "croupier.toml").write_text(CONFIG)
    return Command(tmp_path, capsys)


# Before there is anything.


def test_commands_on_nothing_say_so(empty: Command) -> None:
    assert empty("sink", "--json").facts == {
        "decisions": 0,
        "outcomes": 0,
        "duplicates": 0,
        "position": 1,
    }
    assert empty("join", "--json").facts["shop"]["joined"] == 0
    assert "no interactions yet" in empty.refused("retrain")
    assert "import or join some first" in empty.refused("evaluate")
    assert "expected a loop with interactions" in empty.refused("evaluate", "--loop", "shop")
    assert "no generation 1 of loop 'shop'" in empty.refused("promote", "shop", 1)
    assert "no generation 1 of loop 'shop'" in empty.refused(
        "promote", "shop", 1, "--override", "--reason", "x"
    )
    assert empty("audit", "--json").facts["shop"]["decisions"] == 0
    done = empty("nightly", "--json")
    assert done.code == 0
    (night,) = done.facts["loops"]
    assert night["champion"] == 0
    assert "no interactions yet" in night["skipped"]
    said = empty("nightly")
    assert said.code == 0
    assert "nothing trained, nothing judged: loop 'shop' has no interactions yet" in said.out


@pytest.mark.parametrize("name", ["sink", "join", "retrain", "evaluate", "nightly", "audit"])
def test_a_mistake_in_the_configuration_is_one_line(empty: Command, name: str) -> None:
    (empty.directory / "croupier.toml").write_text("[loops.shop]\nattribution_window = 'soon'\n")
    assert "attribution_window" in empty.refused(name)


@pytest.mark.parametrize("name", ["join", "retrain", "nightly", "audit", "replay"])
def test_a_configuration_without_loops_is_one_line(empty: Command, name: str) -> None:
    (empty.directory / "croupier.toml").write_text("data_dir = 'data'\n")
    arguments = [empty.directory / "again"] if name == "replay" else []
    assert "at least one [loops.<name>] section" in empty.refused(name, *arguments)


@pytest.mark.parametrize("name", ["join", "retrain", "audit"])
def test_an_unknown_loop_is_one_line(empty: Command, name: str) -> None:
    assert "expected one of the loops (shop), got 'shed'" in empty.refused(name, "--loop", "shed")
    assert not (empty.directory / "data" / "lake").exists()


def test_a_data_directory_that_is_none_is_one_line(empty: Command) -> None:
    (empty.directory / "data").write_text("a file")
    for name in ("sink", "join", "nightly"):
        assert str(empty.directory / "data") in empty.refused(name)


# Step by step.


def test_the_steps_of_a_night(command: Command) -> None:
    """Each by itself, over what a night left."""
    shop = Shop(command.directory / "data", random_world(3, 4, seed=3), now=hour_ago())
    shop.count = 10_000
    shop.day(30)
    sunk = command("sink", "--json").facts
    assert (sunk["decisions"], sunk["duplicates"]) == (30, 0)
    joined = command("join", "--json").facts
    assert joined["shop"] == {
        "joined": 30,
        "observed": sunk["outcomes"],
        "defaulted": 30 - sunk["outcomes"],
        "open": 0,
        "late": 0,
        "orphans": 0,
        "revised": 0,
    }
    assert "Join" in command("join").out
    trained = command("retrain", "--json").facts
    assert trained["shop"]["generation"] == 2
    learned = trained["shop"]["training_rows"]
    assert 0.6 * 530 < learned < 0.8 * 530
    table = command("retrain", "--loop", "shop")
    assert "Challengers" in table.out
    assert "epsilon_greedy" in table.out
    assert command("audit").out.endswith("Sound.\n")


def test_training_says_what_an_oracle_has_become(command: Command) -> None:
    """Of one that chooses by size, for programs and for people, by day and by night."""
    settings = CONFIG.replace('{ kind = "sklearn" }', '{ kind = "auto", max_columns = 1000 }')
    settings = settings.replace(
        '{ kind = "epsilon_greedy", epsilon = 0.3 }', '{ kind = "squarecb", optimism = 0.01 }'
    )
    file = command.directory / "croupier.toml"
    file.write_text(settings)
    trained = command("retrain", "--json").facts["shop"]
    became = trained["became"]
    assert (trained["exploration"], became["kind"]) == ("squarecb(optimism=0.01)", "ridge")
    assert 3 < became["columns"] <= 1000
    file.write_text(settings.replace("1000", "3"))
    assert command("retrain", "--json").facts["shop"]["became"] == {
        "kind": "vowpal_wabbit",
        "columns": None,
    }
    shown = command("retrain")
    assert "shop: auto is vowpal_wabbit, as there are too many columns" in shown.out + shown.err
    file.write_text(settings)
    by_night = command("nightly")
    said = f"shop: auto is a ridge of {became['columns']} columns"
    assert said in by_night.out + by_night.err


def test_the_join_takes_in_the_log_first(empty: Command) -> None:
    """Else an outcome that isn't in the lake yet would count as missing, for good."""
    now = hour_ago()
    with SqliteEventLog(empty.directory / "data" / "log") as log:
        log.append([Record.of(decision("d", now))])
        assert empty("sink").code == 0
        log.append([Record.of(outcome("d", "o", now + 1, reward=0.5))])
        report = empty("join", "--json").facts["shop"]
    assert (report["joined"], report["observed"]) == (1, 1)
    assert empty.lake.scan("interactions").collect()["reward"].to_list() == [0.5]


def test_a_generation_is_evaluated_against_the_champion(command: Command) -> None:
    (name, facts), *others = command("evaluate", "--generation", 1, "--json").facts.items()
    assert (name, others) == ("shop", [])
    assert facts["policies"][1]["name"] == "generation 1"
    assert set(facts["differences"]) == {"ips", "snips", "dr"}
    assert isinstance(facts["verdict"]["promote"], bool)
    shown = command("evaluate", "--loop", "shop")
    assert shown.code == 0
    assert "trained on the other half" in shown.out
    assert "The gate " in shown.out
    assert "no generation 9" in command.refused("evaluate", "--generation", 9)


def test_a_log_that_says_too_little_gives_reasons_and_no_figures(command: Command) -> None:
    strict = CONFIG + "[nightly.gate]\nmin_ess = 100000\n"
    (command.directory / "croupier.toml").write_text(strict)
    asked = ("evaluate", "--generation", 1)
    told = command(*asked)
    assert told.code == 1
    assert "no figures (--anyway gives them): effective sample size" in told.out
    assert "difference" not in told.out
    facts = command(*asked, "--json").facts["shop"]
    assert facts.keys() == {"loop", "rows", "refused", "logged", "verdict"}
    assert all("effective sample size" in each for each in facts["refused"])
    anyway = command(*asked, "--anyway")
    assert anyway.code == 0
    assert "difference" in anyway.out


def test_a_night_that_is_not_due_joins_and_trains_nothing(command: Command) -> None:
    (night,) = command("nightly", "--due", "--json").facts["loops"]
    assert night["challenger"] is None
    assert "model_export_frequency is 1 d" in night["skipped"]
    often = CONFIG + 'model_export_frequency = "1 ms"\n'
    (command.directory / "croupier.toml").write_text(often)
    (night,) = command("nightly", "--due", "--json").facts["loops"]
    assert night["challenger"] == 2


def test_a_night_leaves_metrics_of_what_it_found(command: Command) -> None:
    lake = Lake(command.directory / "data" / "lake")
    swings = {"oscillates": True, "spread_p_value": 0.01, "alternation_p_value": 0.02}
    swings |= {"disparity_rises": True, "violations_rise": False}
    with lake.lock():
        record_generation(lake, {"loop": "shop", "generation": 1} | swings)
    written = command.directory / "croupier.prom"
    written.write_text("of the last night\n")
    assert command("nightly", "--metrics", str(written)).code == 0
    samples = [
        sample
        for family in text_string_to_metric_families(written.read_text())
        for sample in family.samples
    ]
    alerts = {
        each.labels["rule"]: each.value for each in samples if each.name == "croupier_alert_open"
    }
    assert {rule for rule, is_open in alerts.items() if is_open} == {
        "oscillation",
        "disparity",
        # Its few decisions tell little of a challenger.
        "support",
    }
    shown = {
        each.name: (each.labels, each.value)
        for each in samples
        if each.name != "croupier_alert_open"
    }
    ended = shown.pop("croupier_nightly_ended_timestamp_seconds")[1]
    assert abs(ended - time.time()) < 600
    of_shop = {"loop": "shop"}
    assert shown == {
        "croupier_nightly_failed": (of_shop, 0.0),
        "croupier_nightly_champion": (of_shop, 1.0),
        "croupier_oscillates": (of_shop, 1.0),
        "croupier_spread_p_value": (of_shop, 0.01),
        "croupier_alternation_p_value": (of_shop, 0.02),
        "croupier_disparity_rises": (of_shop, 1.0),
        "croupier_violations_rise": (of_shop, 0.0),
    }


def test_a_night_can_not_leave_metrics_in_no_directory(command: Command) -> None:
    said = command("nightly", "--metrics", str(command.directory / "none" / "croupier.prom"))
    assert said.code == 2
    assert "metrics: expected a directory that exists at" in said.err


def test_a_night_that_fails_for_a_loop_says_so_by_its_exit_code(command: Command) -> None:
    broken = CONFIG.replace('"sklearn"', '"sklearn", estimator = "sklearn.linear_model.Nothing"')
    (command.directory / "croupier.toml").write_text(broken)
    done = command("nightly", "--json")
    assert done.code == 1
    assert "sklearn.linear_model.Nothing" in done.facts["loops"][0]["failed"]
    assert "shop: failed: " in done.err
    assert "shop: failed: " in command("nightly").out


WRITING: list[list[object]] = [
    ["sink"],
    ["join"],
    ["retrain"],
    ["nightly"],
    ["promote", "shop", 1],
    ["import", ROOT / "examples" / "open_bandit", "--format", "open-bandit"],
]


def test_a_second_writer_is_refused_with_one_line(command: Command) -> None:
    with command.lake.lock():
        for arguments in WRITING:
            assert "another process is writing to the lake" in command.refused(*arguments)
        # Readers don't mind.
        assert command("audit").code == 0


def test_two_nights_at_once_are_one_night(command: Command) -> None:
    """As processes of their own; the other one is refused as long as the first one works."""
    argv = [sys.executable, "-m", "croupier", "nightly", "--json"]
    with (
        command.lake.lock(),
        subprocess.Popen(
            argv,
            cwd=command.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: another process is writing to the lake")
    assert "Traceback" not in err


# Replay.


def test_a_replayed_lake_is_the_same(command: Command, tmp_path: Path) -> None:
    """Also when records have come since, and when windows are still open."""
    now = time.time_ns() // 1000
    late = [decision(f"late-{n}", now - 2 * MINUTE * (n % 2)) for n in range(6)]
    with SqliteEventLog(command.directory / "data" / "log") as log:
        log.append([Record.of(each) for each in late[:4]])
        assert command("nightly").code == 0
        log.append([Record.of(each) for each in late[4:]])
    done = command("replay", tmp_path / "again", "--json")
    assert done.code == 0, done.err
    assert done.facts["equal"] == {"shop": True}
    assert set(done.facts["tables"]["shop"].values()) == {True}
    assert done.facts["decisions"] == 506
    fresh = Lake(tmp_path / "again")
    # Row for row; those that came since are there too.
    assert rows(fresh, "interactions").equals(rows(command.lake, "interactions"))
    assert len(rows(fresh, "interactions")) == 502
    assert rows(fresh, "decisions")[:-2].equals(rows(command.lake, "decisions"))
    said = command("replay", tmp_path / "once more")
    assert said.code == 0
    assert "506 decisions" in said.out
    assert "into: expected a directory that doesn't exist" in command.refused(
        "replay", tmp_path / "again"
    )


def test_a_replay_knows_what_the_last_join_knew(command: Command, tmp_path: Path) -> None:
    """Outcomes that were sunk since then are not in the rewards; those that revised some are."""
    decided = rows(command.lake, "interactions").filter(pl.col("outcomes") == 0)["decision_id"]
    now = time.time_ns() // 1000
    for number in range(2):
        with SqliteEventLog(command.directory / "data" / "log") as log:
            log.append([Record.of(outcome(decided[number], f"late {number}", now))])
        assert command("sink").code == 0
        done = command("replay", tmp_path / f"again {number}", "--json")
        assert (done.code, done.facts["equal"]) == (0, {"shop": True})
        fresh = Lake(tmp_path / f"again {number}")
        assert fresh.scan("outcomes").sort("offset").collect()["ts"].dt.epoch("us")[-1] == now
        assert command("join", "--json").facts["shop"]["revised"] == 1
        # What was left out of the rewards there comes in with the next join.
        loop = LoopConfig(attribution_window="1 min")
        assert join(fresh, "shop", loop, now).revised == 1
    assert command("replay", tmp_path / "once more").code == 0


def rows(lake: Lake, table: TableName) -> pl.DataFrame:
    return lake.scan(table).sort("offset").collect()


TAMPERED: dict[str, tuple[TableName, pl.Expr | None]] = {
    "a reward": ("interactions", 1.0 - pl.col("reward")),
    "a propensity": ("decisions", pl.col("propensity") * (1 + 1e-15)),
    "an outcome": ("outcomes", pl.col("reward") + 1.0),
    "a row that is gone": ("interactions", None),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_lake_that_was_tampered_with_is_found(
    command: Command, tmp_path: Path, what: str
) -> None:
    """In a single value of a single row."""
    table, change = TAMPERED[what]
    found = rows(command.lake, table)
    here = pl.col("offset") == found["offset"][len(found) // 2]
    if change is None:
        changed = found.filter(~here)
    else:
        name = change.meta.root_names()[0]
        changed = found.with_columns(pl.when(here).then(change).otherwise(pl.col(name)).alias(name))
    command.lake.replace(table, changed)
    done = command("replay", tmp_path / "again", "--json")
    assert done.code == 1
    assert done.facts["equal"] == {"shop": False}
    assert [name for name, same in done.facts["tables"]["shop"].items() if not same] == [table]


def test_a_lake_that_was_lost_is_built_again(command: Command, tmp_path: Path) -> None:
    kept = rows(command.lake, "decisions")
    shutil.rmtree(command.lake.root)
    done = command("replay", tmp_path / "again", "--json")
    assert done.code == 1
    assert done.facts["equal"] == {"shop": False}
    assert rows(Lake(tmp_path / "again"), "decisions").equals(kept)


def test_an_audit_finds_what_was_altered(command: Command) -> None:
    found = rows(command.lake, "decisions")
    here = pl.col("offset") == found["offset"][7]
    altered = pl.when(here).then(pl.col("propensity") / 2).otherwise("propensity")
    command.lake.replace("decisions", found.with_columns(propensity=altered))
    done = command("audit", "--json")
    assert done.code == 1
    assert done.facts["shop"]["violations"]["bad_propensity"] == 1
    assert done.facts["shop"]["replayed"] == 500
    said = command("audit")
    assert said.code == 1
    assert "Not sound" in said.out
    lost = pl.when(here).then(0.0).otherwise("keep_prob")
    command.lake.replace("decisions", found.with_columns(keep_prob=lost))
    done = command("audit", "--json")
    assert (done.code, done.facts["shop"]["bad_keep_prob"]) == (1, 1)


# Looking after the lake, and data that come and go.


def test_a_lake_is_verified_and_compacted(command: Command) -> None:
    found = command("lake", "verify", "--json")
    assert found.code == 0, found.err
    assert found.facts["shop"]["checked"] == 500
    rewards = rows(command.lake, "interactions")
    assert set(command("lake", "compact", "--json").facts) == {
        *("decisions", "outcomes", "interactions"),
    }
    assert rows(command.lake, "interactions").equals(rewards)
    here = pl.col("offset") == rewards["offset"][3]
    altered = pl.when(here).then(pl.col("reward") + 1.0).otherwise("reward")
    command.lake.replace("interactions", rewards.with_columns(reward=altered))
    said = command("lake", "verify")
    assert said.code == 1
    assert "Lake against log" in said.out


def test_delays_are_shown(command: Command) -> None:
    curve = command("delays", "--json").facts["shop"]
    assert curve["outcomes"] == len(
        rows(command.lake, "interactions").filter(pl.col("outcomes") > 0)
    )
    assert curve["share"][-1] == 1.0
    assert "shop: share of the outcomes" in command("delays").out


def test_what_was_exported_can_be_imported(
    command: Command, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = rows(command.lake, "interactions")
    path = tmp_path_factory.mktemp("export") / "shop.dsjson"
    done = command("export", "shop", path, "--format", "dsjson", "--json")
    assert done.facts == {"interactions": 500}
    assert command("export", "shop", path.with_suffix(".parquet")).code == 0
    assert pl.read_parquet(path.with_suffix(".parquet")).sort("offset").equals(kept)

    other = Command(tmp_path_factory.mktemp("other"), capsys)
    (other.directory / "croupier.toml").write_text(CONFIG)
    assert "--loop" in other.refused("import", path, "--format", "dsjson")
    # Whoever imports it twice has it once.
    for _ in range(2):
        assert other("import", path, "--format", "dsjson", "--loop", "shop").code == 0
    assert other("join", "--json").facts["shop"]["joined"] == 500
    same = ["decision_id", "reward", "chosen", "actions", "context"]
    again = rows(other.lake, "interactions").select(same).sort("decision_id")
    assert again.equals(kept.select(same).sort("decision_id"))
    path.write_bytes(path.read_bytes() + b'{"EventId": 3}')
    assert "line 501" in other.refused("import", path, "--format", "dsjson", "--loop", "shop")


def test_a_table_is_imported_by_a_map_of_its_columns(empty: Command) -> None:
    table, columns = empty.directory / "log.csv", empty.directory / "columns.toml"
    table.write_text(
        "when,arm,p,gain\n2026-11-01T10:00:00Z,a,0.5,1\n2026-11-01T11:00:00Z,b,0.5,0\n"
    )
    columns.write_text('timestamp = "when"\naction = "arm"\npropensity = "p"\nreward = "gain"\n')
    assert "--columns" in empty.refused("import", table, "--format", "table", "--loop", "arms")
    done = empty(
        *("import", table, "--format", "table", "--loop", "arms"), "--columns", columns, "--json"
    )
    assert done.facts["arms"]["added"] == 2


# The Open Bandit Dataset, as a user would take it in.


@pytest.fixture(scope="module")
def bandit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bandit")
    done = in_process(
        *("import", ROOT / "examples" / "open_bandit", "--format", "open-bandit"),
        *("--data-dir", "data", "--json"),
        cwd=directory,
    )
    assert done.code == 0, done.err
    assert {name: (row["added"], row["positive"]) for name, row in done.facts.items()} == {
        "open-bandit-bts-men": (10_000, 69),
        "open-bandit-random-men": (10_000, 46),
    }
    return directory


def test_69_clicks_can_t_tell_policies_apart(bandit: Path) -> None:
    loop = "open-bandit-bts-men"
    done = in_process("evaluate", "--data-dir", "data", "--loop", loop, "--json", cwd=bandit)
    assert done.code == 0, done.err
    evaluation = done.facts[loop]
    lake = Lake(bandit / "data" / "lake")
    judged = lake.scan("interactions", loop).filter(pl.col("fold") < 500).collect()
    assert evaluation["rows"] == len(judged)
    logged, _ = evaluation["policies"]
    assert logged["name"] == "logged"
    for estimate in logged["estimates"].values():
        assert estimate["value"] == pytest.approx(judged["reward"].mean(), abs=1e-12)
    # 69 clicks in 10,000 rounds: what the log's own policy was worth, over all of it.
    assert evaluation["logged"]["value"] == pytest.approx(69 / 10_000, abs=1e-12)
    assert evaluation["logged"]["n"] == 10_000
    for difference in evaluation["differences"].values():
        assert difference["lower"] < 0.0 < difference["upper"]
    assert evaluation["verdict"]["promote"] is False


def test_a_person_is_told_that_clicks_are_few(tmp_path: Path) -> None:
    """Of half of a log, which takes half of the time."""
    whole = ROOT / "examples" / "open_bandit"
    shutil.copy(whole / "item_context_men.parquet", tmp_path)
    half = pl.read_parquet(whole / "random_men.parquet")[:5000]
    half.write_parquet(tmp_path / "random_men.parquet")
    where = ("--data-dir", "data")
    taken = in_process("import", tmp_path, "--format", "open-bandit", *where, cwd=tmp_path)
    assert taken.code == 0, taken.err
    assert "with a reward" in taken.out
    done = in_process("evaluate", *where, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "open-bandit-random-men: the whole log's mean reward is" in done.out
    assert "This log can't tell the two policies apart." in done.out
    assert "The gate holds it back" in done.out


def test_what_can_t_be_imported_is_one_line(empty: Command, tmp_path: Path) -> None:
    (tmp_path / "random_men.parquet").write_text("no such thing")
    for path, message in (
        (tmp_path / "nowhere", "path: expected Open Bandit logs"),
        (tmp_path, "path: expected a Parquet file at"),
    ):
        assert message in empty.refused("import", path, "--format", "open-bandit")
    assert "'open-bandit'" in empty.refused("import", tmp_path, "--format", "csv")


def test_tuning_shows_every_configuration_and_the_correction(command: Command) -> None:
    before = command.lake.version("generations")
    grid = ["--grid", "exploration.epsilon=[0.1, 0.9]", "--grid", 'training.weighting=["ips"]']
    facts = command("tune", "shop", *grid, "--json").facts
    assert facts["compared"] == 2
    assert facts["trials"][0]["changes"] == {}
    assert len(facts["trials"]) == 3
    shown = command("tune", "shop", *grid).out
    assert "the loop's own" in shown
    assert "Bonferroni" in shown
    assert "97.5 %" in shown
    # It looks, and changes nothing.
    assert command.lake.version("generations") == before
    assert "grid: expected name=[values]" in command.refused("tune", "shop", "--grid", "x")
    assert "expected one of the loops (shop)" in command.refused("tune", "shed", *grid)
