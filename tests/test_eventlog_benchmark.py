"""The benchmark of the event logs runs, and measures every log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from benchmarks.eventlog import LOGS, QUICK, Report
from croupier.eventlog.log import Durability

ROOT = Path(__file__).parent.parent


@pytest.mark.usefixtures("kafka_runtime")
def test_a_quick_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.eventlog", "--quick", "--json"],
        capture_output=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr.decode()
    report = msgspec.json.decode(done.stdout, type=Report)
    measured = [(row.log, row.durability) for row in report.appends]
    assert sorted(measured) == sorted((log, each) for log in LOGS for each in get_args(Durability))
    assert all(row.per_second > 0 and row.p50_ms <= row.p99_ms for row in report.appends)
    assert len(report.settings) == 2 * len(QUICK.settings)
    assert all(row.append_ms < row.visible_ms for row in report.visible)
    assert [(row.partitions, row.processes) for row in report.sinks] == [
        (1, 1),
        (1, 1),
        (3, 1),
        (3, 3),
    ]
