"""Off-policy evaluation: mergeable estimators and intervals that cover."""

from __future__ import annotations

from croupier.offline.ope.estimators import (
    DR,
    IPS,
    SNIPS,
    Difference,
    Estimate,
    Estimator,
    LoggedBatch,
    PairedBatch,
)
from croupier.offline.ope.intervals import IntervalMethod

__all__ = (
    "DR",
    "IPS",
    "SNIPS",
    "Difference",
    "Estimate",
    "Estimator",
    "IntervalMethod",
    "LoggedBatch",
    "PairedBatch",
)
