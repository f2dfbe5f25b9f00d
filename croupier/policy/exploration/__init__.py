"""Exploration: from an oracle's estimates to an exact probability for every action.

Each exploration is a small frozen struct: its fields are its parameters, its tag is the name
that a configuration file uses, and :meth:`ExplorationBase.pmf` is the one definition that the
scorer, off-policy evaluation and the simulators share. All arithmetic is float64.
"""

from __future__ import annotations

from typing import TypeAlias

from croupier.policy.exploration.base import Approximation, ExplorationBase, Round, apply_floor
from croupier.policy.exploration.conservative import Conservative, Unguarded
from croupier.policy.exploration.custom import ENTRY_POINTS, Custom
from croupier.policy.exploration.ensembles import Bagging, Cover
from croupier.policy.exploration.gap_weighting import Falcon, FastCB, SquareCB
from croupier.policy.exploration.intervals import RegCB, optimists, survivors
from croupier.policy.exploration.means import EpsilonGreedy, Greedy, Softmax, Uniform
from croupier.policy.exploration.thompson import Thompson

__all__ = (
    "ENTRY_POINTS",
    "Approximation",
    "Bagging",
    "Conservative",
    "Cover",
    "Custom",
    "EpsilonGreedy",
    "Exploration",
    "ExplorationBase",
    "Falcon",
    "FastCB",
    "Greedy",
    "RegCB",
    "Round",
    "Softmax",
    "SquareCB",
    "Thompson",
    "Unguarded",
    "Uniform",
    "apply_floor",
    "optimists",
    "survivors",
)

Exploration: TypeAlias = Unguarded | Conservative
