"""The reward model of estimators that ask one: an oracle that has not learned from the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import polars as pl

from croupier.offline.interactions import LoggedRows, logged_requests
from croupier.offline.ope import cross_fit_oracle
from croupier.policy.encoding import FeatureEncoder
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.generation import Generation
from croupier.policy.oracle import make_oracle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from croupier.offline.counterfactual import Policy
    from croupier.offline.interactions import LoggedRequest
    from croupier.policy.loop import LoopConfig

    FloatArray: TypeAlias = NDArray[np.float64]
    BoolArray: TypeAlias = NDArray[np.bool_]

__all__ = ("RewardModel",)

_MODELS = 3


@dataclass(frozen=True, eq=False)
class RewardModel:
    """What predicts rewards where policies are compared.

    Attributes
    ----------
    name
        In words; None if there is none.
    asked
        A generation whose oracle is asked, or predictions of every row's actions, each of shape
        (K_i,).
    encodable
        Which rows it can be asked about, shape (n,).
    why_none
        Why there is none although one was wanted.
    """

    name: str | None
    asked: Generation | list[FloatArray] | None
    encodable: BoolArray
    why_none: str | None = None

    @classmethod
    def none(cls, rows: int, why: str | None = None) -> RewardModel:
        """No reward model, for so many rows."""
        return cls(None, None, np.ones(rows, dtype=np.bool_), why)

    @classmethod
    def of(
        cls,
        interactions: pl.DataFrame,
        policies: Mapping[str, Generation | Policy | None],
        config: LoopConfig,
        *,
        seed: int,
    ) -> RewardModel:
        """The oracle of the last policy that has one, or oracles that are fitted crosswise.

        Parameters
        ----------
        interactions
            Rows of the interactions table that no policy has learned from.
        policies
            By name.
        config
            Of the loop: its kind of oracle.
        seed
            Of oracles that are fitted here.
        """
        n = len(interactions)
        for name, policy in reversed(list(policies.items())):
            if isinstance(policy, Generation) and policy.oracle is not None:
                return cls(f"the oracle of {name}", policy, np.ones(n, dtype=np.bool_))
        encodable = _encodable_rows(interactions, config)
        try:
            told = _cross_fitted(interactions.filter(pl.Series(encodable)), config, seed=seed)
        except (InvalidInputError, NotEnoughDataError) as error:
            return cls.none(n, f"no reward model could be fitted: {error}")
        predictions = [np.zeros(size) for size in interactions["action_ids"].list.len()]
        for row, each in zip(np.flatnonzero(encodable).tolist(), told, strict=True):
            predictions[row] = each
        kind = config.oracle.__struct_config__.tag
        return cls(f"{kind} oracles, fitted crosswise", predictions, encodable)


def _cross_fitted(interactions: pl.DataFrame, config: LoopConfig, *, seed: int) -> list[FloatArray]:
    """Predictions of every row's actions by oracles that have not seen the row.

    Three of the loop's kind, each fitted to the decisions that it doesn't predict; rows of one
    decision stay together.

    Parameters
    ----------
    interactions
        Rows that can be encoded, see :func:`_encodable_rows`.
    config
        Of the loop.
    seed
        Of the oracles.

    Raises
    ------
    NotEnoughDataError, InvalidInputError
        If the rows are too few, or of too few kinds, to learn from.
    """
    folds = (interactions["fold"].to_numpy() % _MODELS).astype(np.intp)
    rows = list(LoggedRows(interactions))
    return cross_fit_oracle(lambda: make_oracle(config.oracle, random_state=seed), rows, folds)


def _encodable_rows(interactions: pl.DataFrame, config: LoopConfig) -> BoolArray:
    """Which requests an oracle of the loop's kind can encode, shape (n,)."""
    encoder = FeatureEncoder(config.oracle.encoder)
    return np.array([_is_encodable(encoder, each) for each in logged_requests(interactions)])


def _is_encodable(encoder: FeatureEncoder, request: LoggedRequest) -> bool:
    try:
        encoder.encode(request.context, request.actions)
    except InvalidInputError:
        return False
    return True
