"""Interactions out of the lake, decoded into what oracles and policies take."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl

from croupier.offline.rewards import KEY
from croupier.policy.events import Action, Features
from croupier.policy.oracle import TrainingRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from croupier.offline.lake import Lake

__all__ = (
    "LoggedRequest",
    "current_interactions",
    "keep_weights",
    "learning_weights",
    "logged_requests",
    "training_rows",
)

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


def current_interactions(
    lake: Lake, loop: str | None = None, *, version: int | None = None
) -> pl.LazyFrame:
    """Interactions as they are known to be: of every decision and slot the highest revision.

    Parameters
    ----------
    lake
        To read lazily.
    loop
        Whose; all loops' if None.
    version
        Of the table; the latest if None.
    """
    if version is None:
        rows = lake.scan("interactions", loop)
    else:
        assert loop is not None
        rows = lake.scan_version("interactions", version, loop)
    key = ("loop", *KEY)
    revision = pl.col("revision").fill_null(0)
    # Few have been revised, so these are held, and all others stream past them.
    revised = rows.filter(pl.col("revision") > 0).group_by(key).agg(last=pl.col("revision").max())
    last = pl.col("last").fill_null(0)
    return (
        rows.with_columns(revision)
        .join(revised, on=key, how="left", nulls_equal=True, maintain_order="left")
        .filter(pl.col("revision") == last)
        .drop("last")
    )


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
    importance = (learning_weights(interactions) if weights is None else weights).tolist()
    for (context, actions, chosen, propensity, reward), weight in zip(
        rows, importance, strict=True
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


def learning_weights(
    interactions: pl.DataFrame, before: Mapping[float, int] | None = None
) -> NDArray[np.float64]:
    """Importance of every row to an oracle, shape (n,): ``c·Σc / Σc²`` with ``c = 1 / keep_prob``.

    In proportion to the decisions that a row stands for, so that an oracle learns the mean of all
    of them; in sum the effective sample size (Kish), since a row that stands for five still is a
    single observation: with weights c, an oracle that knows how sure it is would be far too sure,
    and one that learns row by row would take far too large steps. Where all rows were kept with the
    same probability, every weight is exactly 1.

    Parameters
    ----------
    interactions
        Rows of the interactions table.
    before
        How many rows of which `keep_prob` an oracle that learns bit by bit has learned already,
        which count in the sums. What they weighed can't be changed any more, so after a change of
        `keep_prob` the proportions are right only in the long run.
    """
    if interactions.is_empty():
        return np.empty(0)
    weights = keep_weights(interactions)
    if not before:
        relative = weights / weights.min()
        return np.asarray(relative * (relative.sum() / (relative @ relative)))
    rows = Counter(before)
    rows.update(interactions["keep_prob"].to_list())
    least = 1.0 / max(rows)
    relative = weights / least
    # Whole numbers, if all were kept with the same probability: then their ratio is exactly 1.
    total = math.fsum(count * (1.0 / kept / least) for kept, count in rows.items())
    squares = math.fsum(count * (1.0 / kept / least) ** 2 for kept, count in rows.items())
    return np.asarray(relative * (total / squares))
