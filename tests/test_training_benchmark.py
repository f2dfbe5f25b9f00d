"""The benchmark of training measures what it says, in small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.training import KINDS, TRAINERS, compare

if TYPE_CHECKING:
    from pathlib import Path


# A minute and more: three trainers, each in processes of its own, of two kinds of actions.
@pytest.mark.slow
def test_all_learn_the_same_from_the_same(tmp_path: Path) -> None:
    """Features are hashed differently, and one more is multiplied: errors are alike, not equal."""
    found = compare(1500, 1, tmp_path)
    assert [(each.actions, each.trainer) for each in found] == [
        (kind, trainer) for kind in KINDS for trainer in TRAINERS
    ]
    for each in found:
        assert each.rows == 1500
        assert each.wall_s > 0.0
        assert each.cpu_s > 0.0
        assert each.peak_mib > 50.0
    ours, theirs, lean = (each.mse for each in found[:3])
    assert theirs == lean
    assert ours == pytest.approx(theirs, rel=0.1)
