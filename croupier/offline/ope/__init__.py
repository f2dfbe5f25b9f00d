"""Off-policy evaluation: mergeable estimators and intervals that cover.

A log comes as :class:`LoggedBatch` (arrays or a polars frame); an estimator adds batches, merges
with others of its kind and gives an :class:`Estimate`. ``docs/evaluation.md`` says which estimator
and which interval is for what.
"""

from __future__ import annotations

from croupier.offline.ope.accumulators import Doubt, Estimate
from croupier.offline.ope.adjusted import AdjustedDR
from croupier.offline.ope.batches import BATCH_SCHEMA, LoggedBatch, PairedBatch
from croupier.offline.ope.bootstrap import Bootstrap
from croupier.offline.ope.cross_fitting import (
    CrossFitted,
    cross_fit,
    cross_fit_oracle,
    folds_of,
    mrdr_weights,
    recalibrate,
)
from croupier.offline.ope.differences import Difference
from croupier.offline.ope.estimators import DR, IPS, SNDR, SNIPS, Estimator
from croupier.offline.ope.intervals import IntervalMethod
from croupier.offline.ope.many_loggers import Weighted, balance
from croupier.offline.ope.marginal import embedding_chances, marginalise
from croupier.offline.ope.selection import DealtPolicies, PolicyLog, Trial, deal, select
from croupier.offline.ope.sequences import ConfidenceSequence
from croupier.offline.ope.shrinkage import (
    DM,
    ClippedDR,
    ClippedIPS,
    DRos,
    ShrunkIPS,
    SubgaussianDR,
    SubgaussianIPS,
    SwitchDR,
)
from croupier.offline.ope.slates import SlateBatch, SlateEstimate, SlateEstimator
from croupier.offline.ope.tuning import Candidate, Slope, candidates, tuned_dr

__all__ = (
    "BATCH_SCHEMA",
    "DM",
    "DR",
    "IPS",
    "SNDR",
    "SNIPS",
    "AdjustedDR",
    "Bootstrap",
    "Candidate",
    "ClippedDR",
    "ClippedIPS",
    "ConfidenceSequence",
    "CrossFitted",
    "DRos",
    "DealtPolicies",
    "Difference",
    "Doubt",
    "Estimate",
    "Estimator",
    "IntervalMethod",
    "LoggedBatch",
    "PairedBatch",
    "PolicyLog",
    "ShrunkIPS",
    "SlateBatch",
    "SlateEstimate",
    "SlateEstimator",
    "Slope",
    "SubgaussianDR",
    "SubgaussianIPS",
    "SwitchDR",
    "Trial",
    "Weighted",
    "balance",
    "candidates",
    "cross_fit",
    "cross_fit_oracle",
    "deal",
    "embedding_chances",
    "folds_of",
    "marginalise",
    "mrdr_weights",
    "recalibrate",
    "select",
    "tuned_dr",
)
