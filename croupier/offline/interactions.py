"""Interactions out of the lake, decoded into what oracles and policies take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.policy.events import Action, Features
from croupier.policy.oracle import TrainingRow

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl
    from numpy.typing import NDArray

__all__ = ("LoggedRequest", "keep_weights", "learning_weights", "logged_requests", "training_rows")

_context_decoder = msgspec.json.Decoder(Features)
_actions_decoder = msgspec.json.Decoder(list[Action])


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """What was asked, for another policy to answer.

    Attributes
    ----------
    context, actions
        The request.
    eligible
        Which actions could be chosen, shape (K,); None if all could.
    chosen
        Index of the action that the log's policy drew.
    baseline
        Index of the application's own choice; None where the log doesn't tell.
    slate_size
        Number of places of the slate that the row is one place of; None for everything else.
    """

    context: Features
    actions: list[Action]
    eligible: NDArray[np.bool_] | None
    chosen: int
    baseline: int | None = None
    slate_size: int | None = None


def logged_requests(interactions: pl.DataFrame) -> Iterator[LoggedRequest]:
    """Decode requests, in the order of the rows."""
    columns = ("context", "actions", "excluded", "chosen", "baseline", "slate_size")
    for context, actions, excluded, *rest in interactions.select(columns).iter_rows():
        decoded = _actions_decoder.decode(actions)
        eligible = np.array([each.id not in excluded for each in decoded]) if excluded else None
        yield LoggedRequest(_context_decoder.decode(context), decoded, eligible, *rest)


def training_rows(
    interactions: pl.DataFrame, weights: NDArray[np.float64] | None = None
) -> Iterator[TrainingRow]:
    """Decode what an oracle learns from, in the order of the rows.

    Parameters
    ----------
    interactions
        Rows of the interactions table.
    weights
        Importance of every row, shape (n,); :func:`learning_weights` if None.
    """
    columns = ("context", "actions", "chosen", "propensity", "reward")
    rows = interactions.select(columns).iter_rows()
    importance = learning_weights(interactions) if weights is None else weights
    for (context, actions, chosen, propensity, reward), weight in zip(
        rows, importance.tolist(), strict=True
    ):
        yield TrainingRow(
            context=_context_decoder.decode(context),
            actions=_actions_decoder.decode(actions),
            chosen=chosen,
            propensity=propensity,
            reward=reward,
            weight=weight,
        )


def keep_weights(interactions: pl.DataFrame) -> NDArray[np.float64]:
    """How many decisions every row of a log stands for, ``1 / keep_prob``, shape (n,)."""
    return 1.0 / interactions["keep_prob"].to_numpy()


def learning_weights(interactions: pl.DataFrame) -> NDArray[np.float64]:
    """Importance of every row to an oracle, shape (n,): ``c·Σc / Σc²`` with ``c = 1 / keep_prob``.

    In proportion to the decisions that a row stands for, so that an oracle learns the mean of all
    of them; in sum the effective sample size (Kish), since a row that stands for five still is a
    single observation: with weights c, an oracle that knows how sure it is would be far too sure,
    and one that learns row by row would take far too large steps. Where all rows were kept with the
    same probability, every weight is exactly 1.
    """
    if interactions.is_empty():
        return np.empty(0)
    weights = keep_weights(interactions)
    relative = weights / weights.min()
    return np.asarray(relative * (relative.sum() / (relative @ relative)))
