"""Retraining: from interactions to the next generation."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from typing import TYPE_CHECKING

import msgspec
import polars as pl

from croupier import __version__
from croupier.offline.interactions import training_rows
from croupier.offline.join import FOLDS
from croupier.policy.encoding import FeatureEncoder
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.generation import Generation, Provenance
from croupier.policy.oracle import make_oracle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.offline.lake import Lake
    from croupier.policy.loop import LoopConfig
    from croupier.policy.oracle import TrainingRow

__all__ = ("config_digest", "is_judged", "retrain")

_log = logging.getLogger(__name__)

MIN_TRAINING_ROWS = 20


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
        lake.scan_version("interactions", version, loop)
        .filter(~is_judged(judge_share))
        .sort("offset", "decision_id")
        .collect()
    )
    rows = list(training_rows(learned))
    _require_rows(loop, rows)
    try:
        oracle = make_oracle(config.oracle, random_state=seed).fit(rows)
    except InvalidInputError:
        rows = _encodable(loop, config, rows)
        _require_rows(loop, rows)
        oracle = make_oracle(config.oracle, random_state=seed).fit(rows)
    provenance = Provenance(
        parent=parent,
        lake_version=version,
        code_version=__version__,
        loop_config=config_digest(config),
        seed=seed,
        training_rows=len(rows),
        created_us=created_us,
    )
    return Generation(loop, number, config.exploration, oracle, provenance)


def is_judged(judge_share: float) -> pl.Expr:
    """Whether an interaction belongs to the judge and must not be learned from."""
    return pl.col("fold") < round(judge_share * FOLDS)


def _require_rows(loop: str, rows: Sequence[TrainingRow]) -> None:
    if len(rows) < MIN_TRAINING_ROWS:
        raise NotEnoughDataError(
            f"loop {loop!r} has {len(rows)} interactions to learn from; "
            f"expected at least {MIN_TRAINING_ROWS}"
        )


def _encodable(loop: str, config: LoopConfig, rows: Sequence[TrainingRow]) -> list[TrainingRow]:
    """Leave out what no oracle can encode: one such request must not end all learning."""
    encoder = FeatureEncoder(config.oracle.encoder)
    kept = []
    for row in rows:
        with contextlib.suppress(InvalidInputError):
            encoder.encode(row.context, row.actions)
            kept.append(row)
    _log.warning(
        "loop %s: %d interactions can't be encoded and were left out", loop, len(rows) - len(kept)
    )
    return kept


def config_digest(config: LoopConfig) -> str:
    """SHA-256 of a loop's configuration in canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(config, order="deterministic")).hexdigest()
