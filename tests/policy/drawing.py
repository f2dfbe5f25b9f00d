"""Whether many draws happened with the probabilities that were said to be theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.policy.events import Decision

COUNTS = [4_000, pytest.param(100_000, marks=pytest.mark.slow)]
"""How often to draw: in every run of the tests, and in the long one."""

FALSE_ALARM = 1e-4
"""Of each chi-square test; ids are fixed, so that it is the same verdict every time."""


def p_value(decisions: Sequence[Decision]) -> float:
    """Chi-square test of what was chosen against the pmfs, which may differ from row to row.

    The rows must be martingale differences: each pmf is given everything that was drawn before.
    """
    pmfs = np.array([each.pmf for each in decisions])
    chosen = np.array([each.chosen for each in decisions])
    excess = np.bincount(chosen, minlength=pmfs.shape[1]) - pmfs.sum(axis=0)
    covariance = np.diag(pmfs.sum(axis=0)) - pmfs.T @ pmfs
    degrees = int(np.linalg.matrix_rank(covariance))
    statistic = float(excess @ np.linalg.pinv(covariance) @ excess)
    return float(stats.chi2.sf(statistic, degrees))


def by_slot(requests: Sequence[Sequence[Decision]]) -> dict[str | None, list[Decision]]:
    """The decisions of many requests, slot by slot."""
    slots: dict[str | None, list[Decision]] = {}
    for decisions in requests:
        for decision in decisions:
            slots.setdefault(decision.slot, []).append(decision)
    return slots
