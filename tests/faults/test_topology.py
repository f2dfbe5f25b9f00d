"""All that docker/compose.yaml runs, under load, while parts of it die.

Nothing that was acknowledged is lost, nothing is counted twice, and the propensities in the log are
those of the draws; while nights train, judge and promote through an MLflow on PostgreSQL.
"""

from __future__ import annotations

import dataclasses
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest

from croupier.eventlog.opening import open_log
from croupier.offline.lake import Lake
from croupier.offline.sink import partition_states
from tests.faults.deployment import LOOP
from tests.faults.load import Load
from tests.faults.topology import Topology
from tests.faults.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from croupier.eventlog.kafka.broker import Runtime
    from tests.faults.verdict import Verdict

_DRAINED_WITHIN_S = 300.0


# Two minutes of two cores; CI has no room for it beside the rest.
@pytest.mark.slow
def test_it_decides_learns_and_shows(kafka_runtime: Runtime, tmp_path: Path) -> None:
    topology = Topology(tmp_path / "topology", kafka_runtime)
    with topology.running():
        with Load([topology.port], rate=40.0, clients=4) as load:
            time.sleep(12.0)
        _await("the lake to have it all", lambda: _lag(topology, tmp_path) == 0)
        # Until the last window has closed.
        time.sleep(10.0)
        assert topology.night() == 0
        _await("scorers to serve what it promoted", lambda: topology.generations() == [1, 1])
        with Load([topology.port], rate=40.0, clients=4, prefix="d") as more:
            time.sleep(3.0)
        page = urllib.request.urlopen(f"http://127.0.0.1:{topology.dashboard_port}/", timeout=60)
        assert page.status == 200
        topology.deployment.scorers[0].kill()
        _await("the watcher to miss a scorer", lambda: "unreachable" in topology.alerts())
        topology.deployment.scorers[0].start()
        _await("the watcher to find it again", lambda: "unreachable" not in topology.alerts())
        _await("the rest to be there", lambda: _lag(topology, tmp_path) == 0)
        audit = topology.audit()
        assert audit["code"] == 0, audit
    lake = Lake(topology.deployment.paths.lake)
    rows = lake.scan("decisions", LOOP).collect()
    assert set(rows["decision_id"]) == load.told.decisions | more.told.decisions
    assert set(rows["generation"]) == {0, 1}


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_nothing_is_lost_whatever_dies(
    kafka_runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topology = Topology(tmp_path / "topology", kafka_runtime)
    with capsys.disabled(), topology.running():
        told, faults = _soak(topology, seconds=600.0, rate=40.0)
        verdict = _judged(topology, told, tmp_path)
        print(f"faults: {len(faults)}; nights ended with {topology.nights}")
        print(f"{told.told.attempts} requests, {told.told.failures} of them not acknowledged")
        for name, value in dataclasses.asdict(verdict).items():
            print(f"  {name}: {value}", flush=True)
    assert verdict.complaints() == []
    assert verdict.decisions.acknowledged > 0.3 * 40.0 * 600.0
    assert 0 in topology.nights


def _soak(topology: Topology, seconds: float, rate: float) -> tuple[Load, list[str]]:
    deployment = topology.deployment

    def restart(part: object) -> None:
        part.kill()  # type: ignore[attr-defined]
        time.sleep(2.0)
        part.start()  # type: ignore[attr-defined]

    def restart_sink() -> None:
        restart(deployment.sinks[0])
        deployment.sinks[0].await_ready()

    def restart_broker() -> None:
        node = deployment.leader()
        node.kill()
        time.sleep(8.0)
        node.launch(deployment.cluster.runtime)
        node.await_ready()

    faults: dict[str, Callable[[], None]] = {
        "kill -9 of the first scorer": lambda: restart(deployment.scorers[0]),
        "kill -9 of the broker that leads partition 0": restart_broker,
        "kill -9 of PostgreSQL": lambda: restart(topology.database.program),
        "kill -9 of a sink": restart_sink,
        "kill -9 of MLflow": lambda: restart(topology.mlflow),
        "kill -9 of the second scorer": lambda: restart(deployment.scorers[1]),
    }
    done: list[str] = []
    load = Load([topology.port], rate)
    with topology.nightly(pause_s=30.0), load:
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            for name, fault in faults.items():
                time.sleep(15.0)
                print(
                    f"{time.monotonic() - started:6.1f} s  {name}; {len(load.told.decisions)} "
                    f"decisions acknowledged, generations {topology.generations()}",
                    flush=True,
                )
                fault()
                done.append(name)
    return load, done


def _judged(topology: Topology, load: Load, folder: Path) -> Verdict:
    deployment = topology.deployment
    _await(
        "scorers to forward what they spilled",
        lambda: all(each is None or not each["records"] for each in deployment.spills()),
    )
    _await("sinks to bring everything over", lambda: _lag(topology, folder) == 0)
    audit = topology.audit()
    assert audit["code"] == 0, audit
    for scorer in deployment.scorers:
        assert scorer.stop() == 0
    while deployment.sinks:
        deployment.remove_sink()
    return judge(deployment.config, Lake(deployment.paths.lake), load.told, folder / "reference")


def _lag(topology: Topology, folder: Path) -> int:
    """Records in the topics that aren't in the lake."""
    deployment = topology.deployment
    lake = Lake(deployment.paths.lake)
    with open_log(deployment.config.log, log_dir=folder / "none", loops=[LOOP]) as log:
        return sum(each.lag for each in partition_states(log, lake))


def _await(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DRAINED_WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.5)
