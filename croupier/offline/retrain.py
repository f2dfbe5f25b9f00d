"""Retraining: from interactions to the next generation."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import polars as pl

from croupier import __version__
from croupier.offline.budget import decision_budget
from croupier.offline.delays import settled_interactions
from croupier.offline.imitation import imitation_lessons
from croupier.offline.interactions import training_rows
from croupier.offline.join import FOLDS
from croupier.policy.encoding import FeatureEncoder
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.exploration import Conservative
from croupier.policy.generation import Generation, Provenance
from croupier.policy.oracle import make_oracle

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from croupier.offline.lake import Lake
    from croupier.policy.loop import LoopConfig
    from croupier.policy.oracle import Oracle, TrainingRow

__all__ = (
    "MIN_TRAINING_ROWS",
    "Lesson",
    "budget_of",
    "config_digest",
    "encodable",
    "is_judged",
    "lessons_of",
    "require_lessons",
    "retrain",
)

_log = logging.getLogger(__name__)

MIN_TRAINING_ROWS = 20

Lesson: TypeAlias = "list[TrainingRow]"
"""What one interaction teaches: one row, or several of a baseline that is imitated."""


def retrain(
    lake: Lake,
    loop: str,
    config: LoopConfig,
    *,
    number: int,
    parent: int,
    judge_share: float,
    seed: int,
    created_us: int,
    lake_version: int | None = None,
) -> Generation:
    """Fit the loop's oracle on the learner's folds and make a generation of it.

    An apprentice's loop learns what the baseline would choose; any other learns rewards, real ones
    alone, from all interactions whatever the mode was when they were made. A conservative
    exploration whose estimates count as they are gets its budget, see
    :func:`~croupier.offline.budget.decision_budget`.

    The same version of the lake, configuration and seed give the same oracle. Requests that can't
    be encoded (a cold start answers those too) are not learned from.

    Parameters
    ----------
    lake
        With the loop's interactions.
    loop, config
        What to train, and how.
    number, parent
        Of the new generation and of the champion it challenges.
    judge_share
        Share of the decisions, in [0, 1), that are kept for judging and never learned from.
    seed
        Of everything random in training.
    created_us
        Now, in microseconds since the epoch.
    lake_version
        Version of the interactions table to learn from; the latest if None.

    Raises
    ------
    NotEnoughDataError
        If there are fewer than 20 interactions to learn from, or too few kinds of reward.
    """
    version = lake.version("interactions") if lake_version is None else lake_version
    if version < 0:
        raise NotEnoughDataError(f"loop {loop!r} has no interactions yet; run the join first")
    learned = (
        settled_interactions(lake, loop, config, version=version)
        .filter(~is_judged(judge_share))
        .sort("offset", "decision_id")
        .collect()
    )
    lessons = lessons_of(config, learned)
    require_lessons(loop, len(lessons))
    try:
        oracle = _fitted(config, seed, lessons)
    except InvalidInputError:
        lessons = encodable(loop, config, lessons)
        require_lessons(loop, len(lessons))
        oracle = _fitted(config, seed, lessons)
    provenance = Provenance(
        parent=parent,
        lake_version=version,
        code_version=__version__,
        loop_config=config_digest(config),
        seed=seed,
        training_rows=len(lessons),
        created_us=created_us,
        budget=budget_of(config, learned, oracle),
    )
    return Generation(loop, number, config.exploration, oracle, provenance)


def is_judged(judge_share: float) -> pl.Expr:
    """Whether an interaction belongs to the judge and must not be learned from."""
    return pl.col("fold") < round(judge_share * FOLDS)


def lessons_of(
    config: LoopConfig, learned: pl.DataFrame, weights: NDArray[np.float64] | None = None
) -> list[Lesson]:
    """What every interaction teaches an oracle of a loop, in the order of the rows.

    Parameters
    ----------
    config
        Of the loop.
    learned
        Rows of the interactions table.
    weights
        Importance of every row, shape (n,); among themselves by `learning_weights` if None.
    """
    if _imitates(config):
        return list(imitation_lessons(learned, weights))
    return [[row] for row in training_rows(learned, weights)]


def require_lessons(loop: str, count: int) -> None:
    """Refuse to make a generation of too few lessons.

    Raises
    ------
    NotEnoughDataError
        If there are fewer than 20.
    """
    if count < MIN_TRAINING_ROWS:
        raise NotEnoughDataError(
            f"loop {loop!r} has {count} interactions to learn from; "
            f"expected at least {MIN_TRAINING_ROWS}"
        )


def encodable(loop: str, config: LoopConfig, lessons: Sequence[Lesson]) -> list[Lesson]:
    """Leave out what no oracle can encode: one such request must not end all learning."""
    encoder = FeatureEncoder(config.oracle.encoder)
    kept = []
    for lesson in lessons:
        with contextlib.suppress(InvalidInputError):
            encoder.encode(lesson[0].context, lesson[0].actions)
            kept.append(lesson)
    _log.warning(
        "loop %s: %d interactions can't be encoded and were left out",
        loop,
        len(lessons) - len(kept),
    )
    return kept


def budget_of(config: LoopConfig, learned: pl.DataFrame, oracle: Oracle) -> float:
    """What a new generation may spend, see :class:`~croupier.policy.generation.Provenance`."""
    if _imitates(config):
        # Once its loop is online its estimates are no rewards, and nothing may be bet on them.
        return -1.0 if isinstance(config.exploration, Conservative) else 0.0
    return decision_budget(learned, oracle, config)


def config_digest(config: LoopConfig) -> str:
    """SHA-256 of a loop's configuration in canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(config, order="deterministic")).hexdigest()


def _imitates(config: LoopConfig) -> bool:
    return config.learning_mode == "apprentice"


def _fitted(config: LoopConfig, seed: int, lessons: Sequence[Lesson]) -> Oracle:
    rows = [row for lesson in lessons for row in lesson]
    return make_oracle(config.oracle, random_state=seed).fit(rows)
