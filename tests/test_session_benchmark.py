"""The benchmark of decisions within sessions runs, and asks in all of its ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import session_serving
from benchmarks.session_serving import WAYS, measure

if TYPE_CHECKING:
    import pytest


def test_it_asks_in_all_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_serving, "_WARM_UP", 1)
    report = measure(60)
    rows = {row.way: row for row in report.rows}
    assert tuple(rows) == WAYS
    assert all(0.0 < row.p50_ms <= row.p99_ms for row in report.rows)
    assert all(row.scorer_us > 0.0 for row in report.rows)
    # A token is a part of the answer, of 128 bytes of state and more.
    assert rows["token"].answer_bytes > rows["store"].answer_bytes + 170
