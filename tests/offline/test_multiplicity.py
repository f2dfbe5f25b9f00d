"""Corrections for many tests, against exact values and by counting false alarms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from croupier.offline.multiplicity import bonferroni, holm, holm_p_values


def test_by_hand() -> None:
    """Holm's of .01, .04, .03 and .005: 4 x .005, 3 x .01, 2 x .03, and no less than before."""
    assert holm_p_values([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05).tolist() == [True, False, False, True]
    assert holm_p_values([]).tolist() == []
    assert holm_p_values([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert bonferroni(0.95, 5) == pytest.approx(0.99)
    assert bonferroni(0.95, 0) == 0.95


def test_false_alarms_of_the_family() -> None:
    """In 5 % of 2,000 families of ten, half of which are wrong. False alarm: 1e-3."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(2000):
        true = rng.random(5)
        wrong = rng.random(5) * 1e-4
        alarms += bool(holm([*true, *wrong], 0.05)[:5].any())
    assert alarms <= stats.binom.isf(1e-3, 2000, 0.05)
    # Five hypotheses are left when the wrong ones are gone: 1 - .99^5 = 4.9 % to be expected.
    assert alarms >= stats.binom.ppf(1e-3, 2000, 0.049)
