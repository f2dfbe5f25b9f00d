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
from croupier.offline.ope.session_models import Critic, SessionLog, fit_critic, fit_state_weights
from croupier.offline.ope.sessions import SESSION_ESTIMATORS, SessionBatch, SessionEstimator
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
from croupier.offline.ope.slates import SlateBatch, SlateEstimate, SlateEstimator, slate_rows
from croupier.offline.ope.tuning import Candidate, Slope, candidates, tuned_dr

__all__ = (
    "BATCH_SCHEMA",
    "DM",
    "DR",
    "IPS",
    "SESSION_ESTIMATORS",
    "SNDR",
    "SNIPS",
    "AdjustedDR",
    "Bootstrap",
    "Candidate",
    "ClippedDR",
    "ClippedIPS",
    "ConfidenceSequence",
    "Critic",
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
    "SessionBatch",
    "SessionEstimator",
    "SessionLog",
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
    "fit_critic",
    "fit_state_weights",
    "folds_of",
    "marginalise",
    "mrdr_weights",
    "recalibrate",
    "select",
    "slate_rows",
    "tuned_dr",
)
