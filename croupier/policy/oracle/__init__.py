"""Oracles: regression models of the reward given context and action.

Whoever fits them, all of them end up as tables of weights over the columns of
:class:`~croupier.policy.encoding.FeatureEncoder`: one table (``vowpal_wabbit``, ``sklearn``), one
with its exact posterior (``ridge``), or one for every member of an ensemble (``bootstrap``,
``cover``). Those whose configuration ``learns_online`` can be taught row by row as well.
"""

from __future__ import annotations

from croupier.policy.oracle.base import OnlineOracle, Oracle, TrainingRow
from croupier.policy.oracle.bootstrap import BootstrapConfig, BootstrapOracle, poisson_weights
from croupier.policy.oracle.cover import CoverConfig, CoverOracle
from croupier.policy.oracle.kinds import (
    OracleConfig,
    load_oracle,
    make_online_oracle,
    make_oracle,
)
from croupier.policy.oracle.ridge import RidgeConfig, RidgeOracle
from croupier.policy.oracle.scikit_learn import SklearnConfig, SklearnOracle
from croupier.policy.oracle.tables import EnsembleOracle, LinearOracle, TableOracle
from croupier.policy.oracle.vowpal_wabbit import VowpalWabbitConfig, VowpalWabbitOracle

__all__ = (
    "BootstrapConfig",
    "BootstrapOracle",
    "CoverConfig",
    "CoverOracle",
    "EnsembleOracle",
    "LinearOracle",
    "OnlineOracle",
    "Oracle",
    "OracleConfig",
    "RidgeConfig",
    "RidgeOracle",
    "SklearnConfig",
    "SklearnOracle",
    "TableOracle",
    "TrainingRow",
    "VowpalWabbitConfig",
    "VowpalWabbitOracle",
    "load_oracle",
    "make_online_oracle",
    "make_oracle",
    "poisson_weights",
)
