"""Distillation: what a slow oracle has learned, in a table of weights that is quick to score."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.policy.errors import InexpressibleError, NotEnoughDataError
from croupier.policy.oracle.base import OracleConfigBase, check_rows, require
from croupier.policy.oracle.design import design_of
from croupier.policy.oracle.scikit_learn import SklearnConfig, fit_linear
from croupier.policy.oracle.sklearn_onnx import SklearnOnnxConfig, SklearnOnnxOracle
from croupier.policy.oracle.tables import LinearOracle
from croupier.policy.oracle.vowpal_wabbit_model import (
    VowpalWabbitModelConfig,
    VowpalWabbitModelOracle,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.policy.encoding import EncoderConfig
    from croupier.policy.oracle.base import TrainingRow

__all__ = ("DistilledConfig", "DistilledOracle", "Fidelity")

_HELD_OUT = 5


class DistilledConfig(OracleConfigBase, frozen=True, tag="distilled"):
    """Parameters of :class:`DistilledOracle`.

    Attributes
    ----------
    base
        The oracle that learns from the interactions.
    l2
        Ridge penalty of the table, positive.
    max_rows
        Most interactions that it is distilled on, evenly spread over all of them; 10 to 1,000,000.
    """

    base: SklearnOnnxConfig | VowpalWabbitModelConfig = SklearnOnnxConfig()
    l2: float = 1.0
    max_rows: int = 10_000

    @property
    def weighs_propensities(self) -> bool:
        """If the base does."""
        return self.base.weighs_propensities

    @property
    def encoder(self) -> EncoderConfig:
        """The base's."""
        return self.base.encoder

    def __post_init__(self) -> None:
        require("l2", 0 < self.l2 < math.inf, "positive", self.l2)
        require("max_rows", 10 <= self.max_rows <= 1_000_000, "in [10, 1000000]", self.max_rows)


class Fidelity(msgspec.Struct, frozen=True, kw_only=True):
    """How well a table stands for the oracle it was distilled from, on rows held out.

    Attributes
    ----------
    r2
        Share of the variance of the oracle's estimates, over all actions, that the table explains.
    agreement
        Share of the rows where both have the same best action.
    rows
        How many there are.
    """

    r2: float
    agreement: float
    rows: int


class DistilledOracle(LinearOracle):
    """A table of weights that was fitted to another oracle's estimates.

    The base learns from all interactions. The table is fitted, by ridge regression on the columns
    that a linear oracle has, to what the base then says of every action that was offered, not only
    of those that were chosen: four in five interactions are fitted to, the fifth is held out and
    says how faithful the table is. Since the base itself is never served, it may be an estimator
    that ONNX can't express.

    Attributes
    ----------
    fidelity_
        How faithful; None before :meth:`fit`, and in an oracle that was loaded.
    """

    config: DistilledConfig
    fidelity_: Fidelity | None = None

    def fit(self, rows: Sequence[TrainingRow]) -> DistilledOracle:
        """Learn from interactions.

        Raises
        ------
        NotEnoughDataError
            If there are no rows, or as the base raises it.
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            As the base raises it.
        """
        check_rows(rows)
        if len(rows) < _HELD_OUT:
            raise NotEnoughDataError(
                f"a table is distilled on at least {_HELD_OUT} interactions, got {len(rows)}"
            )
        spread = np.unique(np.linspace(0, len(rows) - 1, self.config.max_rows).astype(np.int64))
        asked = [rows[i] for i in spread.tolist()]
        lessons = list(zip(asked, self._taught(rows, asked), strict=True))
        held_out = lessons[_HELD_OUT - 1 :: _HELD_OUT]
        del lessons[_HELD_OUT - 1 :: _HELD_OUT]
        design = design_of(
            self._encoder,
            [
                msgspec.structs.replace(row, chosen=action, reward=reward)
                for row, rewards in lessons
                for action, reward in enumerate(rewards.tolist())
            ],
        )
        ridge = SklearnConfig(params={"alpha": self.config.l2, "solver": "lsqr", "tol": 1e-8})
        fitted = fit_linear(ridge, self.random_state, design.matrix, design.rewards, design.weights)
        self.weights_ = np.zeros(1 << self.config.encoder.bits, dtype=np.float32)
        self.weights_[design.columns] = fitted.coefficients
        self.fidelity_ = self._fidelity(held_out)
        return self

    def _taught(
        self, rows: Sequence[TrainingRow], asked: Sequence[TrainingRow]
    ) -> list[NDArray[np.float64]]:
        """What the base, fitted to all rows, says of every action of those that are asked."""
        base = _make_base(self.config.base, self.random_state)
        try:
            base.fit(rows)
        except InexpressibleError:
            assert isinstance(base, SklearnOnnxOracle), "only ONNX can't express an estimator"
            return base.estimated([self._encoder.encode(row.context, row.actions) for row in asked])
        return [base.score(row.context, row.actions) for row in asked]

    def _fidelity(self, held_out: Sequence[tuple[TrainingRow, NDArray[np.float64]]]) -> Fidelity:
        pairs = [(taught, self.score(row.context, row.actions)) for row, taught in held_out]
        taught = np.concatenate([taught for taught, _ in pairs])
        missed = taught - np.concatenate([learned for _, learned in pairs])
        total = float(np.square(taught - taught.mean()).sum())
        return Fidelity(
            r2=1.0 - float(np.square(missed).sum()) / total if total > 0.0 else 0.0,
            # Trees think the same of many actions: any of the best is the best.
            agreement=float(
                np.mean([taught[np.argmax(learned)] == taught.max() for taught, learned in pairs])
            ),
            rows=len(pairs),
        )


def _make_base(
    config: SklearnOnnxConfig | VowpalWabbitModelConfig, random_state: int
) -> SklearnOnnxOracle | VowpalWabbitModelOracle:
    if isinstance(config, SklearnOnnxConfig):
        return SklearnOnnxOracle(config, random_state=random_state)
    return VowpalWabbitModelOracle(config, random_state=random_state)
