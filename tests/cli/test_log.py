"""What the command line says of the log, and what it does with one in Kafka."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from croupier.eventlog.kafka.reading import KafkaLog
from croupier.eventlog.log import Record
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.sink import partition_states
from tests.cli.test_batch import CONFIG, Command, hour_ago, in_process
from tests.offline.kafka_sinks import wait_until
from tests.offline.logs import append, decision, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from croupier.eventlog.kafka.config import KafkaConfig
    from croupier.eventlog.log import EventLog

pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

ROOT = Path(__file__).parents[2]
KAFKA = """
[log]
backend = "kafka"
[log.kafka]
bootstrap_servers = ["{server}"]
topic_prefix = "{prefix}"
partitions = 3
"""


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Over a log on this machine."""
    (tmp_path / "croupier.toml").write_text(CONFIG + "\n[loops.mail]\n")
    return Command(tmp_path, capsys)


@pytest.fixture
def log(command: Command) -> Iterator[SqliteEventLog]:
    with SqliteEventLog(command.directory / "data" / "log") as opened:
        yield opened


@pytest.fixture
def shared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kafka_config: KafkaConfig
) -> Command:
    """Over a log in Kafka."""
    (server,) = kafka_config.bootstrap_servers
    cluster = KAFKA.format(server=server, prefix=kafka_config.topic_prefix)
    (tmp_path / "croupier.toml").write_text(CONFIG + cluster)
    return Command(tmp_path, capsys)


@pytest.fixture
def topics(kafka_config: KafkaConfig) -> Iterator[KafkaLog]:
    with KafkaLog(kafka_config, ["shop"]) as opened:
        yield opened


def lines(out: str) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in out.splitlines()]


def day(log: EventLog, count: int = 30) -> None:
    """Decisions of an hour ago, and an outcome of every other one."""
    now = hour_ago()
    append(log, [decision(f"d{number:03}", now + number) for number in range(count)])
    append(
        log,
        [outcome(f"d{number:03}", f"o{number}", now + number + 1) for number in range(0, count, 2)],
    )


def test_the_tail_is_what_came_last(command: Command, log: SqliteEventLog) -> None:
    assert command("log", "tail").out == ""
    append(log, [decision(f"d{number}", loop=("shop", "mail")[number % 2]) for number in range(50)])
    shown = lines(command("log", "tail", "--json").out)
    assert [each["key"] for each in shown] == [f"d{number}" for number in range(40, 50)]
    assert shown[-1]["event"]["decision_id"] == "d49"
    assert (shown[-1]["partition"], shown[-1]["position"], shown[-1]["loop"]) == ("log", 50, "mail")
    mail = lines(command("log", "tail", "--json", "--loop", "mail", "-n", 3).out)
    assert [each["key"] for each in mail] == ["d45", "d47", "d49"]
    text = command("log", "tail", "-n", 1).out
    assert text.startswith('log 50 decision \'d49\' \'{"type":"decision"')
    assert command("log", "tail", "-n", 0).out == ""
    assert "expected one of the loops" in command.refused("log", "tail", "--loop", "nope")


def test_what_can_t_be_read_is_shown_all_the_same(command: Command, log: SqliteEventLog) -> None:
    log.append([Record("shop", "decision", "k", b"\xff\x00")])
    (shown,) = lines(command("log", "tail", "--json").out)
    assert (shown["key"], shown["bytes"]) == ("k", "/wA=")
    assert "'k'" in command("log", "tail").out


def test_following_goes_on_with_what_comes(command: Command, log: SqliteEventLog) -> None:
    append(log, [decision("before")])
    arguments = [
        "log",
        "tail",
        "--follow",
        "--json",
        "-c",
        str(command.directory / "croupier.toml"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "croupier", *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    seen = [msgspec.json.decode(process.stdout.readline())["key"]]
    for name in ("d1", "d2"):
        append(log, [decision(name)])
        seen.append(msgspec.json.decode(process.stdout.readline())["key"])
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    assert process.wait(30) == 130
    assert seen == ["before", "d1", "d2"]


def test_the_status_of_a_log_on_this_machine(command: Command, log: SqliteEventLog) -> None:
    (state,) = msgspec.json.decode(command("log", "status", "--json").out)
    assert state == {"partition": "log", "start": 1, "end": 1, "sunk": None, "lag": 0}
    append(log, [decision(f"d{number}") for number in range(5)])
    (state,) = msgspec.json.decode(command("log", "status", "--json").out)
    assert state == {"partition": "log", "start": 1, "end": 6, "sunk": None, "lag": 5}
    command("sink")
    append(log, [decision("late")])
    (state,) = msgspec.json.decode(command("log", "status", "--json").out)
    assert state == {"partition": "log", "start": 1, "end": 7, "sunk": 6, "lag": 1}
    assert "1 positions not in the lake yet" in command("log", "status").out
    assert "has no groups" in command.refused("sink", "--group")


def test_a_night_over_kafka_and_its_replay(shared: Command, topics: KafkaLog) -> None:
    """All that is done over a log on one machine is done over partitions."""
    assert msgspec.json.decode(shared("log", "status", "--json").out) == []
    day(topics)
    assert shared("status", "--json").facts["log"] == {"partitions": 9, "not_in_lake": 45}
    assert len(lines(shared("log", "tail", "--json").out)) == 10
    sunk = shared("sink", "--json").facts
    assert (sunk["decisions"], sunk["outcomes"], sunk["duplicates"]) == (30, 15, 0)
    assert sunk["position"] == {part.name: part.end() for part in topics.partitions()}
    assert "9 partitions of the log" in shared("sink").out
    joined = shared("join", "--json").facts["shop"]
    assert (joined["joined"], joined["observed"]) == (30, 15)
    states = msgspec.json.decode(shared("log", "status", "--json").out)
    assert sum(state["lag"] for state in states) == 0
    append(topics, [decision("late", hour_ago())])
    replayed = shared("replay", shared.directory / "fresh", "--json")
    assert (replayed.code, replayed.facts["equal"]) == (0, {"shop": True})
    assert shared("sink", "--json").facts["decisions"] == 1


def test_a_replay_that_differs_is_told(shared: Command, topics: KafkaLog) -> None:
    day(topics)
    shared("join")
    shared.lake.delete("outcomes", "outcome_id = 'o4'")
    replayed = shared("replay", shared.directory / "fresh", "--json")
    assert replayed.code == 1
    tables = replayed.facts["tables"]["shop"]
    assert (tables["decisions"], tables["outcomes"], tables["interactions"]) == (True, False, True)


@pytest.mark.parametrize(
    "how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_sink_in_a_group_runs_until_it_is_stopped(
    shared: Command, topics: KafkaLog, how: int
) -> None:
    """Beside it a night is made, which needs the lake's lock."""
    config = ["--config", str(shared.directory / "croupier.toml")]
    group = ["sink", "--group", "mine", "--batch-seconds", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "croupier", *group, *config],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    day(topics)
    wait_until(lambda: all(each.lag == 0 for each in partition_states(topics, shared.lake)))
    assert shared("join", "--json").facts["shop"]["joined"] == 30
    assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(how)
    out, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    report = msgspec.json.decode(out)
    assert (report["decisions"], report["outcomes"]) == (30, 15)
    assert "sinking in group mine" in said


def test_a_cluster_that_is_away_is_said_in_a_line(tmp_path: Path) -> None:
    cluster = KAFKA.format(server="127.0.0.1:1", prefix="away") + "delivery_timeout_s = 0.2\n"
    (tmp_path / "croupier.toml").write_text(CONFIG + cluster)
    for arguments in (["sink"], ["sink", "--group"], ["log", "status"]):
        done = in_process(*arguments, cwd=tmp_path)
        assert (done.code, done.out) == (2, "")
        assert done.err.splitlines()[-1].startswith("error: connecting to Kafka failed")
    told = in_process("status", "--json", cwd=tmp_path)
    assert "connecting to Kafka failed" in told.facts["log"]["error"]
