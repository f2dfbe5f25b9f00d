"""Brokers, scorers and sinks die, stall, come and go, under a steady load.

What is checked at the end is in :mod:`tests.faults.verdict`: every decision and outcome that was
acknowledged is in the lake, nothing is there twice, nothing that was never sent; only what was sent
and never acknowledged may be there or not. The topics hold exactly what the lake does, but for
repeats; and one process that makes a lake of the topics, without any faults, gets the same tables.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import TYPE_CHECKING

import pytest

from croupier.eventlog.opening import open_log
from croupier.offline.lake import Lake
from croupier.offline.sink import partition_states
from tests.faults.deployment import LOOP, Deployment
from tests.faults.load import Load
from tests.faults.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from croupier.eventlog.kafka.broker import Runtime
    from tests.faults.verdict import Verdict

# Longer than a client waits for an answer, and than a broker may be silent.
STALL_S = 12.0
DRAINED_WITHIN_S = 180.0


class Run:
    """One run of a load with faults.

    Parameters
    ----------
    deployment
        That is running.
    rate
        Decisions a second.
    pause_s
        Between faults.
    kills_only
        Whether nothing but sudden deaths is tried: one of each kind of part.
    """

    def __init__(
        self, deployment: Deployment, *, rate: float, pause_s: float, kills_only: bool = False
    ) -> None:
        self._deployment = deployment
        self._kills_only = kills_only
        self._load = Load(deployment.ports, rate)
        self._pause_s = pause_s
        self._started = time.monotonic()
        self._over = threading.Event()
        self.most_spilled = 0
        self.done: list[str] = []

    def faults(self) -> dict[str, Callable[[], None]]:
        """What is done to the deployment, one after the other."""
        kills = {
            "kill -9 of the broker that leads partition 0, and its return": self._kill_leader,
            "kill -9 of a scorer, and its return": self._kill_scorer,
            "kill -9 of a sink, and its return": self._kill_sink,
            "kill -9 of all brokers, and their return": self._kill_cluster,
        }
        if self._kills_only:
            return kills
        return kills | {
            "a sink more, and one less": self._add_and_remove_sinks,
            f"a broker that stalls for {STALL_S:g} s": self._stall_broker,
            "an orderly restart of all brokers": self._restart_cluster,
        }

    def go(self, seconds: float) -> None:
        """All faults in turn, again and again for at least so long."""
        watcher = threading.Thread(target=self._watch, name="watcher")
        watcher.start()
        try:
            with self._load:
                end = time.monotonic() + seconds
                while True:
                    for name, fault in self.faults().items():
                        time.sleep(self._pause_s)
                        self._say(name)
                        fault()
                        self.done.append(name)
                    if time.monotonic() >= end:
                        break
                time.sleep(self._pause_s)
                self._say("no more decisions")
        finally:
            self._over.set()
            watcher.join()

    def judge(self, folder: Path) -> Verdict:
        """Wait until everything is in the lake, and compare."""
        config, lake = self._deployment.config, Lake(self._deployment.paths.lake)
        self._await("scorers to forward what they spilled", lambda: not any(self._spills()))
        for scorer in self._deployment.scorers:
            assert scorer.stop() == 0
        with open_log(config.log, log_dir=folder / "none", loops=[LOOP]) as log:
            self._await(
                "sinks to bring everything over",
                lambda: sum(each.lag for each in partition_states(log, lake)) == 0,
            )
        while self._deployment.sinks:
            self._deployment.remove_sink()
        self._say("one process makes a lake of the topics")
        verdict = judge(config, lake, self._load.told, folder / "reference")
        told = self._load.told
        self._say(
            f"{told.attempts} requests, {told.failures} of them not acknowledged; "
            f"up to {self.most_spilled} records in spills; faults: {len(self.done)}"
        )
        for name, value in dataclasses.asdict(verdict).items():
            self._say(f"  {name}: {value}")
        return verdict

    def _kill_leader(self) -> None:
        node = self._deployment.leader()
        node.kill()
        time.sleep(max(self._pause_s, 8.0))
        node.launch(self._deployment.cluster.runtime)
        node.await_ready()

    def _kill_scorer(self) -> None:
        scorer = self._deployment.scorers[len(self.done) % len(self._deployment.scorers)]
        scorer.kill()
        time.sleep(1.0)
        scorer.start()

    def _kill_sink(self) -> None:
        sink = self._deployment.sinks[0]
        sink.kill()
        time.sleep(1.0)
        sink.start()
        sink.await_ready()

    def _add_and_remove_sinks(self) -> None:
        self._deployment.add_sink()
        time.sleep(self._pause_s + 3.0)
        self._deployment.remove_sink()

    def _stall_broker(self) -> None:
        node = self._deployment.leader(1)
        node.suspend()
        time.sleep(STALL_S)
        node.resume()

    def _kill_cluster(self) -> None:
        self._deployment.cluster.kill()
        time.sleep(3.0)
        self._deployment.cluster.start()

    def _restart_cluster(self) -> None:
        self._deployment.cluster.stop()
        self._deployment.cluster.start()

    def _watch(self) -> None:
        """Say every few seconds how it goes."""
        while not self._over.wait(5.0):
            spilled = sum(self._spills())
            self.most_spilled = max(self.most_spilled, spilled)
            told = self._load.told
            self._say(
                f"{len(told.decisions)} decisions and {len(told.outcomes)} outcomes acknowledged, "
                f"{told.failures} attempts failed, {spilled} records in spills"
            )

    def _spills(self) -> list[int]:
        return [0 if each is None else each["records"] for each in self._deployment.spills()]

    def _await(self, what: str, condition: Callable[[], bool]) -> None:
        self._say(f"waiting for {what}")
        deadline = time.monotonic() + DRAINED_WITHIN_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.5)

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:6.1f} s  {text}", flush=True)


def run(
    deployment: Deployment,
    folder: Path,
    *,
    seconds: float,
    rate: float,
    pause: float,
    kills_only: bool = False,
) -> None:
    with deployment.running():
        run = Run(deployment, rate=rate, pause_s=pause, kills_only=kills_only)
        run.go(seconds)
        verdict = run.judge(folder)
    assert verdict.complaints() == []
    # Or nothing was tried.
    assert verdict.decisions.acknowledged > 0.3 * rate * seconds
    assert verdict.outcomes.acknowledged > 0
    assert run.most_spilled > 0


@pytest.mark.timeout(900)
def test_nothing_is_lost_or_counted_twice(kafka_runtime: Runtime, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "deployment", kafka_runtime, scorers=2, sinks=2)
    run(deployment, tmp_path, seconds=20, rate=20, pause=1.0, kills_only=True)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_nothing_is_lost_or_counted_twice_for_long(
    kafka_runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = Deployment(tmp_path / "deployment", kafka_runtime)
    with capsys.disabled():
        run(deployment, tmp_path, seconds=330, rate=60, pause=8.0)
