"""Training in partitions that learn side by side, and are merged.

The rows are divided by folds, which are a hash of the decision's id, so that a partition is the
same whatever the cluster is. Of a ridge regression the moments of the partitions are added up
(:mod:`croupier.policy.oracle.moments`), which comes to what one learner learns, but for rounding.
Of Vowpal Wabbit's regression, each partition learns in every round its share of the round's rows
from the same start, and what they have learned is merged (:mod:`croupier.policy.oracle.merging`)
and is the start of the next round. The rounds are stretches of the log, one after the other.

What comes out depends on the rows, the seed, and the numbers of partitions and rounds, and not on
where the partitions have learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.offline.engine import LOCAL, Engine
from croupier.policy.encoding import FeatureEncoder
from croupier.policy.errors import GenerationError
from croupier.policy.oracle import AutoOracle, RidgeOracle, VowpalWabbitOracle
from croupier.policy.oracle.base import checked
from croupier.policy.oracle.merging import merged, teach
from croupier.policy.oracle.moments import (
    Moments,
    TooManyColumnsError,
    moments_of,
    require_room,
)
from croupier.policy.oracle.vowpal_wabbit import BanditLearner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from croupier.offline.interactions import LoggedRows
    from croupier.policy.oracle import Oracle, RidgeConfig, VowpalWabbitConfig

__all__ = ("MergeConfig", "Spread", "learn_merged", "merging_of")


class MergeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How training is divided where a cluster does it.

    Attributes
    ----------
    partitions
        How many learn side by side, at most, 1 to 300.
    rounds
        How often they are merged in every pass, 1 to 1000.
    rows
        Interactions, at least 1, that there are to be for every partition: with fewer there are
        fewer partitions, and with fewer than two of so many one learner learns all of them.
    """

    partitions: int = 4
    rounds: int = 16
    rows: int = 10_000

    def __post_init__(self) -> None:
        for name, most in (("partitions", 300), ("rounds", 1000), ("rows", 10**9)):
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise ValueError(f"{name} must be in [1, {most}], got {value}")


@dataclass(frozen=True, slots=True)
class Spread:
    """Where and how training is divided.

    Attributes
    ----------
    merge
        Into which partitions.
    engine
        Where they learn.
    """

    merge: MergeConfig
    engine: Engine = LOCAL


def merging_of(merge: MergeConfig, oracle: Oracle, rows: int) -> tuple[int, int] | None:
    """Numbers of partitions and rounds that an oracle is learned in; None if one learner does it.

    Ridge regressions can be merged that have learned nothing yet, and Vowpal Wabbit's where their
    model file holds all that they have learned.
    """
    partitions = min(merge.partitions, rows // merge.rows)
    if partitions < 2 or not _can_be_merged(oracle):
        return None
    return partitions, merge.rounds


def learn_merged(
    oracle: Oracle, rows: LoggedRows, merging: tuple[int, int], engine: Engine
) -> tuple[int, int] | None:
    """Have an oracle learn from interactions, in partitions, all from where it stands.

    Parameters
    ----------
    oracle
        Of a kind that :func:`merging_of` says can be merged. One that has learned before learns
        every row once, as it does by itself.
    rows
        In the order of the log.
    merging
        Numbers of partitions and of rounds in every pass.
    engine
        Where the partitions learn.

    Returns
    -------
    merged
        Numbers of partitions and of rounds that there were; None if nothing was learned and one
        learner has to do it, as the digits of moments don't do.

    Raises
    ------
    InvalidInputError
        If a row's chosen index, propensity, reward or weight can't be, or a request not be encoded.
    GenerationError
        If the weights grew without bound, or there are more columns than a ridge regression may
        have.
    """
    if isinstance(oracle, VowpalWabbitOracle):
        _learn_in_rounds(oracle, rows, merging, engine)
        return merging
    assert isinstance(oracle, RidgeOracle | AutoOracle), "nothing else is merged"
    ridge = oracle.config.ridge if isinstance(oracle, AutoOracle) else oracle.config
    try:
        fitted = oracle.fit_moments(_summed(ridge, rows, merging[0], engine))
    except GenerationError:
        if not isinstance(oracle, AutoOracle):
            raise
        beyond = VowpalWabbitOracle(oracle.config.vowpal_wabbit, random_state=oracle.random_state)
        oracle.adopt(_learn_in_rounds(beyond, rows, merging, engine))
        return merging
    return (merging[0], 1) if fitted else None


def _can_be_merged(oracle: Oracle) -> bool:
    if isinstance(oracle, VowpalWabbitOracle):
        return oracle.config.resumes
    if isinstance(oracle, AutoOracle):
        return oracle.became_ is None and oracle.config.vowpal_wabbit.resumes
    return isinstance(oracle, RidgeOracle) and oracle.weights_ is None


def _summed(config: RidgeConfig, rows: LoggedRows, partitions: int, engine: Engine) -> Moments:
    """The moments of all rows.

    Raises
    ------
    TooManyColumnsError
        If there are too many columns for a ridge regression.
    """
    parts = next(_divided(rows, partitions, 1))
    total = Moments()
    for found in engine.map(_moments, parts, config):
        if found is not None:
            total.merge(found)
        columns = config.max_columns + 1 if found is None else len(total.columns)
        require_room(columns, config.max_columns)
    return total


def _moments(config: RidgeConfig, rows: LoggedRows) -> Moments | None:
    """The moments of a partition; None if there are too many columns in it already."""
    encoder, parts = FeatureEncoder(config.encoder), config.prior == "parts"
    try:
        return moments_of(encoder, rows, most=config.max_columns, parts=parts)
    except TooManyColumnsError:
        # An error that other processes raise comes back as one of another kind.
        return None


def _learn_in_rounds(
    oracle: VowpalWabbitOracle, rows: LoggedRows, merging: tuple[int, int], engine: Engine
) -> BanditLearner:
    """Have Vowpal Wabbit's regression learn on, merged after every round; gives its learner."""
    config, seed = oracle.config, oracle.random_state
    known = oracle.learners().get("learner")
    learner = BanditLearner(config, seed, known)
    for _ in range(config.passes if known is None else 1):
        for parts in _divided(rows, *merging):
            start = learner.serialize()
            shared = _Start(config, seed, start)
            learned = [
                BanditLearner(config, seed, model) for model in engine.map(_learn, parts, shared)
            ]
            learner = merged(BanditLearner(config, seed, start), learned)
    oracle.adopt(learner)
    return learner


def _divided(rows: LoggedRows, partitions: int, rounds: int) -> Iterator[list[LoggedRows]]:
    """Round by round the rows of every partition that has some."""
    of = rows.folds % partitions
    ends = np.linspace(0, len(rows), rounds + 1).astype(np.int64)
    for first, end in pairwise(ends.tolist()):
        parts = [rows[first:end].only(of[first:end] == number) for number in range(partitions)]
        if end > first:
            yield [part for part in parts if len(part)]


@dataclass(frozen=True, slots=True)
class _Start:
    """Where partitions begin to learn."""

    config: VowpalWabbitConfig
    random_state: int
    model: bytes


def _learn(start: _Start, rows: LoggedRows) -> bytes:
    """The learner, serialized, after it has learned a partition's rows of a round."""
    learner = BanditLearner(start.config, start.random_state, start.model)
    teach(learner, FeatureEncoder(start.config.encoder), checked(rows))
    return learner.serialize()
