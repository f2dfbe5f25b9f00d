"""The benchmark of the estimators: what it times is what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.ope import NAMES, fill, stream

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", NAMES)
def test_a_case_gives_the_estimate(tmp_path: Path, name: str) -> None:
    fill(tmp_path, 2000, 4)
    reward, action, logging, target, q = (
        np.load(tmp_path / f"{each}.npy") for each in ("reward", "action", "logging", "target", "q")
    )
    rows = np.arange(2000)
    w = target[rows, action] / logging[rows, action]
    q_pi, rest = (target * q).sum(axis=1), reward - q[rows, action]
    expected = {
        "ips": np.mean(w * reward),
        "snips": np.mean(w * reward) / np.mean(w),
        "dm": np.mean(q_pi),
        "dr": np.mean(q_pi + w * rest),
        "sndr": np.mean(q_pi) + np.mean(w * rest) / np.mean(w),
        "switch-dr": np.mean(q_pi + np.where(w <= 2.0, w, 0.0) * rest),
        "dros": np.mean(q_pi + 2.0 * w / (w * w + 2.0) * rest),
    }[name]
    command = [sys.executable, "-m", "benchmarks.ope", "--case", name, "--folder", str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told["value"] == pytest.approx(expected, abs=1e-9)
    assert told["seconds"] > 0.0


def test_a_stream_is_added_whole() -> None:
    assert stream(3000, 4).value == pytest.approx(0.33, abs=0.1)
