"""The long run in small: a process that decides and swaps doesn't grow."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest


def soak(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--json", *arguments],
        capture_output=True,
        check=False,
        timeout=1200,
    )
    return done.returncode, msgspec.json.decode(done.stdout)


@pytest.mark.slow
def test_memory_stays_what_it_is_after_the_warm_up() -> None:
    code, report = soak("--decisions", "400000", "--swaps", "200")
    assert code == 0, report
    assert (report["decisions"], report["swaps"], report["records"]) == (400_000, 200, 400_000)
    assert report["warm_up"] == 200_000
    assert report["growth_percent"] <= 5.0


# A minute, most of it for a single start.
@pytest.mark.slow
def test_growth_over_the_limit_is_an_error() -> None:
    # Measured before anything was decided, there is all of the growth that a warm-up has.
    code, report = soak("--decisions", "3000", "--swaps", "3", "--warm-up", "1", "--limit", "-99")
    assert code == 1
    assert report["growth_percent"] > report["limit_percent"] == -99.0
    assert (report["swaps"], report["records"]) == (3, 3000)
