"""The benchmark of the join measures what it says, in small."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.join import measure

if TYPE_CHECKING:
    from pathlib import Path


def test_every_step_does_its_work(tmp_path: Path) -> None:
    run = measure(tmp_path, 2000, 500, guardrails=2, dsjson=True)
    rows = {each.name: each.rows for each in run.steps}
    assert rows["fill"] == 2000
    assert rows["join"] == 2000
    # Its own, and what came late for the days before.
    assert 500 <= rows["join the night"] <= 520
    assert rows["join nothing new"] == 0
    assert rows["export Parquet"] == rows["export dsjson"] == 2500
    assert all(each.peak_mib > 50.0 and each.cpu_seconds > 0.0 for each in run.steps)
    assert run.lake_mib > 0.1
