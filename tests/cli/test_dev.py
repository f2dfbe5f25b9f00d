"""``croupier dev kafka``, with a real Kafka."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.command_line import Complain


def run(command: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "croupier", "dev", "kafka", command, "--dir", folder, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )


@pytest.mark.usefixtures("kafka_runtime")
def test_start_status_stop(tmp_path: Path, complain: Complain) -> None:
    folder = tmp_path / "kafka"
    try:
        started = run("start", folder, "--json")
        assert (started.returncode, started.stderr) == (0, "")
        facts = json.loads(started.stdout)
        (node,) = facts["nodes"]
        assert (node["node"], node["state"]) == (1, "running")
        assert facts["bootstrap_servers"] == [node["address"]]
        assert complain("dev", "kafka", "start", "--dir", str(folder)) == (
            f"dir: the cluster in {folder} is running already"
        )
        assert complain("dev", "kafka", "start", "--dir", str(folder), "--nodes", "3") == (
            f"nodes: expected 1, as the cluster in {folder} has, got 3"
        )
        shown = run("status", folder)
        assert shown.returncode == 0
        assert f"{node['pid']}" in shown.stdout
        assert f'log.kafka.bootstrap_servers = ["{node["address"]}"]' in shown.stdout
    finally:
        stopped = run("stop", folder, "--json")
    assert json.loads(stopped.stdout) == {"dir": str(folder), "stopped": [1]}
    again = run("stop", folder)
    assert (again.returncode, again.stdout) == (0, "Nothing was running.\n")
    after = run("status", folder, "--json")
    assert after.returncode == 1
    assert json.loads(after.stdout)["nodes"] == [{**node, "state": "stopped", "pid": None}]


@pytest.mark.parametrize("command", ["status", "stop"])
def test_a_folder_without_a_cluster(command: str, tmp_path: Path, complain: Complain) -> None:
    assert complain("dev", "kafka", command, "--dir", str(tmp_path)) == (
        f"dir: expected a cluster's folder at {tmp_path}, found none"
    )


@pytest.mark.usefixtures("kafka_runtime")
def test_a_folder_of_something_else(tmp_path: Path, complain: Complain) -> None:
    (tmp_path / "thesis.txt").write_text("")
    assert complain("dev", "kafka", "start", "--dir", str(tmp_path)) == (
        f"dir: expected an empty folder or one of a cluster, but {tmp_path} holds thesis.txt"
    )


def test_without_java(tmp_path: Path, complain: Complain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert complain("dev", "kafka", "start", "--dir", str(tmp_path / "kafka")) == (
        "java: expected Java 17 or newer in the path, found none"
    )
    assert not (tmp_path / "kafka").exists()


def test_two_nodes(tmp_path: Path, complain: Complain) -> None:
    line = complain("dev", "kafka", "start", "--dir", str(tmp_path / "kafka"), "--nodes", "2")
    assert line == "nodes: expected 1 or 3, got 2"
