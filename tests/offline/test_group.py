"""Sinks in a group, on a real broker: members come, go and die, and every record counts once."""

from __future__ import annotations

import random
import signal
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from croupier.eventlog.kafka.broker import Cluster
from croupier.eventlog.kafka.config import KafkaConfig
from croupier.eventlog.kafka.connection import ensure_topics
from croupier.eventlog.kafka.reading import KafkaLog
from croupier.offline.group import Batching, GroupSink
from croupier.offline.lake import Lake
from croupier.offline.sink import sink
from croupier.policy.errors import LogUnavailableError
from tests.offline.kafka_sinks import LOOPS, is_sunk, rows, start, stop, wait_until
from tests.offline.logs import SUNK, append, decision, mixed_events

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from croupier.eventlog.kafka.broker import Runtime
    from croupier.offline.sink import SinkReport
    from croupier.policy.events import Event

pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def log(kafka_config: KafkaConfig) -> Iterator[KafkaLog]:
    ensure_topics(kafka_config, LOOPS)
    with KafkaLog(kafka_config, LOOPS) as opened:
        yield opened


class Running:
    """A member of a group in a thread of this process."""

    def __init__(self, config: KafkaConfig, lake: Path, batching: Batching) -> None:
        self.stopped = threading.Event()
        self.report: SinkReport | None = None
        self._log = KafkaLog(config, LOOPS)
        self._sink = GroupSink(
            self._log, Lake(lake), config.topic_prefix, batching=batching, session_timeout_s=2
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.report = self._sink.run(self.stopped.is_set)

    def stop(self) -> SinkReport:
        self.stopped.set()
        self._thread.join(30)
        self._log.close()
        assert self.report is not None
        return self.report


@contextmanager
def running(
    config: KafkaConfig, lake: Path, rows: int = 100, seconds: float = 0.0
) -> Iterator[Running]:
    member = Running(config, lake, Batching(rows, seconds))
    try:
        yield member
    finally:
        member.stopped.set()
        member._thread.join(30)


@contextmanager
def traffic(
    log: KafkaLog, events: list[Event], each: int = 20, pause: float = 0.05
) -> Iterator[threading.Thread]:
    """Append events little by little while something happens."""

    def write() -> None:
        for first in range(0, len(events), each):
            append(log, events[first : first + each])
            time.sleep(pause)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


def check(log: KafkaLog, lake: Path, tmp_path: Path) -> None:
    """Row by row what one sink by itself makes of the log."""
    whole = Lake(tmp_path / "whole")
    sink(log, whole, again=True)
    for name in SUNK:
        assert rows(lake, name).equals(rows(whole.root, name)), name
    assert len(rows(lake, "decisions")) > 0


def test_one_member_keeps_up(log: KafkaLog, kafka_config: KafkaConfig, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    events = mixed_events(600, seed=4)
    with running(kafka_config, lake) as member, traffic(log, events) as writing:
        writing.join()
        wait_until(lambda: is_sunk(log, lake))
        report = member.stop()
    added = report.decisions + report.outcomes + len(rows(lake, "audits"))
    assert added + report.duplicates == 600
    assert isinstance(report.position, dict)
    assert len(report.position) == 18
    check(log, lake, tmp_path)


def test_batches_wait_for_rows_or_for_time(
    log: KafkaLog, kafka_config: KafkaConfig, tmp_path: Path
) -> None:
    """A commit for every few records would be a file for every few records."""
    lake = tmp_path / "lake"
    with (
        running(kafka_config, lake, rows=500, seconds=2.0),
        traffic(
            log, [decision("same", slot=str(number)) for number in range(400)], each=10
        ) as writing,
    ):
        writing.join()
        wait_until(lambda: is_sunk(log, lake))
    # Less than a third of a minute.
    assert Lake(lake).version("decisions") <= 10
    assert len(rows(lake, "decisions")) == 400


def test_members_share_and_take_over(
    log: KafkaLog, kafka_config: KafkaConfig, tmp_path: Path
) -> None:
    """Two that come, one that leaves: none of them does all, and nothing is done twice."""
    lake = tmp_path / "lake"
    events = mixed_events(2500, seed=6)
    with running(kafka_config, lake) as first, traffic(log, events) as writing:
        time.sleep(1.5)
        with running(kafka_config, lake) as second:
            time.sleep(2.5)
            with running(kafka_config, lake) as third:
                writing.join()
                reports = [first.stop()]
                append(log, mixed_events(100, seed=7))
                wait_until(lambda: is_sunk(log, lake))
                reports += [second.stop(), third.stop()]
    assert all(report.decisions > 0 for report in reports)
    assert sum(report.decisions for report in reports) == len(rows(lake, "decisions"))
    assert sum(report.outcomes for report in reports) == len(rows(lake, "outcomes"))
    check(log, lake, tmp_path)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_members_that_are_added_stopped_and_killed_at_random(
    log: KafkaLog, kafka_config: KafkaConfig, tmp_path: Path, seed: int
) -> None:
    """In processes of their own, by SIGTERM, SIGKILL, and SIGSTOP for longer than a session."""
    lake, group = tmp_path / "lake", kafka_config.topic_prefix
    rng = random.Random(seed)
    members: list[subprocess.Popen[str]] = []
    frozen: list[tuple[float, subprocess.Popen[str]]] = []
    events = mixed_events(2500, seed)
    said = []
    try:
        with traffic(log, events, each=10, pause=0.07) as writing:
            members += [start(kafka_config, lake, group) for _ in range(2)]
            while writing.is_alive():
                time.sleep(rng.uniform(0.5, 2.5))
                for thawed in [each for each in frozen if each[0] < time.monotonic()]:
                    frozen.remove(thawed)
                    thawed[1].send_signal(signal.SIGCONT)
                    members.append(thawed[1])
                if len(members) < 2 or rng.random() < 0.4:
                    members.append(start(kafka_config, lake, group))
                    continue
                member = members.pop(rng.randrange(len(members)))
                how = rng.choice([signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP])
                if how == signal.SIGSTOP:
                    member.send_signal(how)
                    frozen.append((time.monotonic() + rng.uniform(2.5, 5.0), member))
                else:
                    said.append(stop(member, how))
        for _, member in frozen:
            member.send_signal(signal.SIGCONT)
            members.append(member)
        if not members:
            members.append(start(kafka_config, lake, group))
        wait_until(lambda: is_sunk(log, lake), seconds=90)
        said += [stop(member) for member in members]
        members.clear()
    finally:
        for member in [*members, *(each for _, each in frozen)]:
            member.kill()
            member.communicate()
    assert len(said) > 4
    check(log, lake, tmp_path)


def test_a_nightly_job_sinks_beside_a_group(
    log: KafkaLog, kafka_config: KafkaConfig, tmp_path: Path
) -> None:
    """Over and over, in small batches, so that they meet at the same partitions."""
    lake = tmp_path / "lake"
    added = 0
    with (
        running(kafka_config, lake, rows=10) as member,
        traffic(log, mixed_events(600, seed=8)) as writing,
    ):
        while writing.is_alive():
            with Lake(lake).lock():
                added += sink(log, Lake(lake), batch=10).decisions
        wait_until(lambda: is_sunk(log, lake))
        report = member.stop()
    assert report.decisions > 0
    assert added > 0
    assert report.decisions + added == len(rows(lake, "decisions"))
    check(log, lake, tmp_path)


def test_forgetting_waits_for_no_group_and_breaks_no_batch(
    log: KafkaLog, kafka_config: KafkaConfig, tmp_path: Path
) -> None:
    lake = tmp_path / "lake"
    kept = [decision(f"d{number}") for number in range(600)]
    with running(kafka_config, lake, rows=10), traffic(log, list(kept)) as writing:
        while writing.is_alive():
            Lake(lake).delete("decisions", "decision_id LIKE '%7'")
        wait_until(lambda: is_sunk(log, lake))
    Lake(lake).delete("decisions", "decision_id LIKE '%7'")
    left = [each.decision_id for each in kept if not each.decision_id.endswith("7")]
    assert sorted(rows(lake, "decisions")["decision_id"]) == sorted(left)


def test_a_group_waits_for_brokers_that_are_away(kafka_runtime: Runtime, tmp_path: Path) -> None:
    """The only broker is killed and comes back, twice: the sink goes on by itself."""
    lake = tmp_path / "lake"
    cluster = Cluster.create(tmp_path / "kafka", runtime=kafka_runtime)
    config = KafkaConfig(bootstrap_servers=cluster.bootstrap_servers, partitions=2)
    with cluster.running(), KafkaLog(config, LOOPS) as log:
        append(log, [decision("d0")])
        with running(config, lake) as member:
            wait_until(lambda: is_sunk(log, lake))
            for number in (1, 2):
                cluster.kill()
                time.sleep(4)
                cluster.start()
                wait_until(partial(can_append, log, decision(f"d{number}")))
                wait_until(lambda: is_sunk(log, lake))
            assert member.stop().decisions == 3
        check(log, lake, tmp_path)


def can_append(log: KafkaLog, event: Event) -> bool:
    try:
        append(log, [event])
    except LogUnavailableError:
        return False
    return True
