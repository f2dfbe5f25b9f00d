"""Oracles: regression models of the reward given context and action.

All of them see what :class:`~croupier.policy.encoding.FeatureEncoder` makes of a request. Most end
up as tables of weights over its columns, whoever fits them: one table (``vowpal_wabbit``,
``sklearn``), one with its exact posterior (``ridge``), or one for every member of an ensemble
(``bootstrap``, ``cover``); ``auto`` is a ``ridge`` while that has room for its columns and a
``vowpal_wabbit`` beyond. Others are not linear and are scored by a library from its own model
file: ``sklearn_onnx`` by ONNX Runtime, ``vowpal_wabbit_model`` by Vowpal Wabbit; ``distilled`` is a
table that was fitted to the estimates of one of these. ``fair`` is an ensemble of thresholds whose
votes auditors have kept fair. Those whose configuration ``learns_online``
can be taught row by row as well.
"""

from __future__ import annotations

from croupier.policy.oracle.auto import AutoConfig, AutoOracle, Became, OutgrownError
from croupier.policy.oracle.base import Dampable, OnlineOracle, Oracle, TrainingRow
from croupier.policy.oracle.bootstrap import BootstrapConfig, BootstrapOracle, poisson_weights
from croupier.policy.oracle.cover import CoverConfig, CoverOracle
from croupier.policy.oracle.distilled import DistilledConfig, DistilledOracle, Fidelity
from croupier.policy.oracle.encoded import EncodedOracle
from croupier.policy.oracle.fair import FairConfig, FairOracle
from croupier.policy.oracle.kinds import (
    OracleConfig,
    load_oracle,
    make_online_oracle,
    make_oracle,
)
from croupier.policy.oracle.ridge import RidgeConfig, RidgeOracle
from croupier.policy.oracle.scikit_learn import SklearnConfig, SklearnOracle
from croupier.policy.oracle.sklearn_onnx import SklearnOnnxConfig, SklearnOnnxOracle
from croupier.policy.oracle.tables import EnsembleOracle, LinearOracle, TableOracle
from croupier.policy.oracle.vowpal_wabbit import VowpalWabbitConfig, VowpalWabbitOracle
from croupier.policy.oracle.vowpal_wabbit_model import (
    VowpalWabbitModelConfig,
    VowpalWabbitModelOracle,
)

__all__ = (
    "AutoConfig",
    "AutoOracle",
    "Became",
    "BootstrapConfig",
    "BootstrapOracle",
    "CoverConfig",
    "CoverOracle",
    "Dampable",
    "DistilledConfig",
    "DistilledOracle",
    "EncodedOracle",
    "EnsembleOracle",
    "FairConfig",
    "FairOracle",
    "Fidelity",
    "LinearOracle",
    "OnlineOracle",
    "Oracle",
    "OracleConfig",
    "OutgrownError",
    "RidgeConfig",
    "RidgeOracle",
    "SklearnConfig",
    "SklearnOnnxConfig",
    "SklearnOnnxOracle",
    "SklearnOracle",
    "TableOracle",
    "TrainingRow",
    "VowpalWabbitConfig",
    "VowpalWabbitModelConfig",
    "VowpalWabbitModelOracle",
    "VowpalWabbitOracle",
    "load_oracle",
    "make_online_oracle",
    "make_oracle",
    "poisson_weights",
)
