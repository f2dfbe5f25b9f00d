"""The benchmark of requests over Kafka runs, and doesn't report what went wrong as a figure."""

from __future__ import annotations

import math

import pytest

from benchmarks.stream import QUICK, WAYS, measure


@pytest.mark.usefixtures("kafka_runtime")
def test_both_ways_are_measured() -> None:
    report = measure(QUICK)
    assert {row.way for row in report.capacity} == set(WAYS)
    assert all(row.requests_per_s > 0 for row in report.capacity)
    assert {(row.way, row.rate) for row in report.latency} == {
        (way, rate) for way in WAYS for rate in QUICK.rates
    }
    assert all(0 < row.p50_ms <= row.p99_ms < math.inf for row in report.latency)
