"""Retraining: from interactions to the next generation."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

import msgspec
import numpy as np
import polars as pl

from croupier import __version__
from croupier.offline.budget import decision_budget
from croupier.offline.calibrate import asked, fit_curve
from croupier.offline.delays import settled_interactions
from croupier.offline.imitation import imitation_lessons
from croupier.offline.interactions import LoggedRows, current_interactions, training_rows
from croupier.offline.join import FOLDS
from croupier.offline.merged_training import learn_merged, merging_of
from croupier.offline.weighting import balancing_ratio, effective, training_weights
from croupier.policy.calibration import PriorCorrection
from croupier.policy.encoding import FeatureEncoder
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.exploration import Conservative
from croupier.policy.generation import Generation, Provenance
from croupier.policy.loop import parse_duration
from croupier.policy.oracle import EncodedOracle, make_oracle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.offline.lake import Lake
    from croupier.offline.merged_training import Spread
    from croupier.policy.loop import LoopConfig
    from croupier.policy.oracle import OnlineOracle, Oracle, TrainingRow
    from croupier.policy.training import TrainingConfig

__all__ = (
    "MIN_TRAINING_ROWS",
    "LearnerFolds",
    "Lesson",
    "budget_of",
    "config_digest",
    "encodable",
    "is_judged",
    "learner_folds",
    "learner_rows",
    "lessons_of",
    "require_lessons",
    "retrain",
    "unseen_by",
)

_log = logging.getLogger(__name__)

MIN_TRAINING_ROWS = 20
# Of fewer rows than a tenth of these, a measure says next to nothing.
MIN_MEASURED_LOG = 1000

Lesson: TypeAlias = "list[TrainingRow]"
"""What one interaction teaches: one row, or several of a baseline that is imitated."""


@dataclass(frozen=True, slots=True)
class LearnerFolds:
    """How the folds that the judge leaves are shared out; every part ends where the next begins.

    Attributes
    ----------
    measured
        First of the folds that only measure what was learned.
    calibrated
        First of the folds that curves are fitted on.
    trained
        First of the folds that the oracle learns from, up to the last of all.
    """

    measured: int
    calibrated: int
    trained: int


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
    champion: Generation | None = None,
    spread: Spread | None = None,
) -> Generation:
    """Fit the loop's oracle on the learner's folds and make a generation of it.

    An apprentice's loop learns what the baseline would choose; any other learns rewards, real ones
    alone, from all interactions whatever the mode was when they were made. A conservative
    exploration whose estimates count as they are gets its budget, see
    :func:`~croupier.offline.budget.decision_budget`. How rows count, what is held out and which
    rows are recent enough is the loop's :class:`~croupier.policy.training.TrainingConfig`.

    The same version of the lake, configuration, seed and champion to start from give the same
    oracle. Requests that can't be encoded (a cold start answers those too) are not learned from.

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
    champion
        The parent, loaded so that it can learn on; only asked for if the loop starts from it.
    spread
        How training is divided among partitions that are merged, where there are rows enough and
        the oracle is one that can be; one learner learns everything if None.

    Raises
    ------
    NotEnoughDataError
        If there are fewer than 20 interactions to learn from, or too few kinds of reward; or none
        since the champion that learns on.
    """
    version = lake.version("interactions") if lake_version is None else lake_version
    if version < 0:
        raise NotEnoughDataError(f"loop {loop!r} has no interactions yet; run the join first")
    rows = learner_rows(
        settled_interactions(lake, loop, config, version=version), config, judge_share
    )
    folds = learner_folds(config.training, judge_share, len(rows))
    learned = rows.filter(pl.col("fold") >= folds.trained)
    started = _to_continue(champion, config, folds)
    if started is None:
        taught, oracle, merging = _afresh(loop, config, seed, learned, spread)
        before = 0
    else:
        known = current_interactions(lake, loop, version=started.lake_version)
        assert champion is not None, "there is one that learning starts from"
        taught, oracle, merging = _continued(loop, config, champion, _new(learned, known), spread)
        before = started.training_rows
    if isinstance(oracle, EncodedOracle):
        measured = rows.filter(pl.col("fold").is_between(folds.calibrated, folds.trained - 1))
        _calibrate(config, oracle, measured)
    provenance = Provenance(
        parent=parent,
        lake_version=version,
        code_version=__version__,
        loop_config=config_digest(config),
        seed=seed,
        training_rows=before + taught,
        created_us=created_us,
        budget=budget_of(config, learned, oracle),
        learned_folds=(folds.calibrated, FOLDS - 1),
        learned_from_us=_earliest(learned),
        learned_from_slices=config.training.learn_from_slices,
        started_from=None if started is None or champion is None else champion.number,
        merged=merging,
    )
    return Generation(loop, number, config.exploration, oracle, provenance)


def is_judged(judge_share: float, training: TrainingConfig | None = None) -> pl.Expr:
    """Whether an interaction belongs to the judge and must not be learned from.

    Parameters
    ----------
    judge_share
        Share of the folds that judge.
    training
        Of the loop; one that doesn't learn from uniform slices leaves all of them to the judge.
    """
    judged = pl.col("fold") < round(judge_share * FOLDS)
    if training is None or training.learn_from_slices:
        return judged
    return judged | _in_slice()


def unseen_by(generation: Generation) -> pl.Expr:
    """Whether an interaction is one that a generation can't have learned from.

    It makes a difference only for one that was trained when the judge's share was smaller, or
    uniform slices were learned from.
    """
    origin = generation.provenance
    if origin is None or origin.learned_folds is None:
        return pl.lit(value=True)
    unseen = pl.col("fold") < origin.learned_folds[0]
    return unseen if origin.learned_from_slices else unseen | _in_slice()


def learner_folds(training: TrainingConfig, judge_share: float, rows: int) -> LearnerFolds:
    """Share the learner's folds out among training, calibrating and measuring.

    Parameters
    ----------
    training
        With the shares.
    judge_share
        Share of all folds that are the judge's.
    rows
        Interactions on the learner's folds: below 1000 nothing is held out to measure.
    """
    first = round(judge_share * FOLDS)
    learner = FOLDS - first
    measures = rows >= MIN_MEASURED_LOG
    calibrated = first + (round(training.holdout * learner) if measures else 0)
    curves = training.calibration != "none"
    trained = calibrated + (round(training.calibration_share * learner) if curves else 0)
    return LearnerFolds(first, calibrated, trained)


def learner_rows(
    interactions: pl.LazyFrame, config: LoopConfig, judge_share: float
) -> pl.DataFrame:
    """The learner's interactions within the loop's training window, in the order of the log."""
    training = config.training
    rows = interactions.filter(~is_judged(judge_share, training))
    if training.window is not None:
        start = pl.col("ts").max() - pl.duration(microseconds=parse_duration(training.window))
        rows = rows.filter(pl.col("ts") > start)
    if training.window_generations is not None:
        latest = pl.col("generation").rank("dense", descending=True)
        rows = rows.filter(latest <= training.window_generations)
    return rows.sort("offset", "decision_id").collect()


def config_digest(config: LoopConfig) -> str:
    """SHA-256 of a loop's configuration in canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(config, order="deterministic")).hexdigest()


def lessons_of(
    config: LoopConfig, learned: pl.DataFrame, weights: NDArray[np.float64]
) -> list[Lesson]:
    """What every interaction teaches an oracle that learns as they come, in the order of the rows.

    Parameters
    ----------
    config
        Of the loop.
    learned
        Rows of the interactions table.
    weights
        Importance of every row, shape (n,).
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
    kept = [lesson for lesson in lessons if _is_encodable(encoder, lesson[0])]
    _warn_of(loop, len(lessons) - len(kept))
    return kept


def _in_slice() -> pl.Expr:
    sources = pl.col("mix").list.eval(pl.element().struct.field("source") == "uniform")
    return sources.list.any().fill_null(value=False)


def _earliest(learned: pl.DataFrame) -> int | None:
    earliest = learned["ts"].dt.epoch("us").min()
    return earliest if isinstance(earliest, int) else None


def budget_of(config: LoopConfig, learned: pl.DataFrame, oracle: Oracle) -> float:
    """What a new generation may spend, see :class:`~croupier.policy.generation.Provenance`."""
    if _imitates(config):
        # Once its loop is online its estimates are no rewards, and nothing may be bet on them.
        return -1.0 if isinstance(config.exploration, Conservative) else 0.0
    return decision_budget(learned, oracle, config)


def _imitates(config: LoopConfig) -> bool:
    return config.learning_mode == "apprentice"


@dataclass(frozen=True, slots=True)
class _Lessons:
    """What interactions teach.

    Attributes
    ----------
    rows
        To be learned from, in their order.
    count
        Interactions that they come from.
    ratio
        How much a row with reward 1 counts for one with reward 0, beside all other weights.
    """

    rows: Sequence[TrainingRow]
    count: int
    ratio: float = 1.0


def _afresh(
    loop: str, config: LoopConfig, seed: int, learned: pl.DataFrame, spread: Spread | None
) -> tuple[int, Oracle, tuple[int, int] | None]:
    """How many interactions were learned from, an oracle that learned nothing else, and how."""
    lessons = _lessons(config, learned)
    require_lessons(loop, lessons.count)
    oracle: EncodedOracle = make_oracle(config.oracle, random_state=seed)
    try:
        merging = _fit(oracle, lessons, spread)
    except InvalidInputError:
        lessons = _lessons(config, _encodable(loop, config, learned))
        require_lessons(loop, lessons.count)
        oracle = make_oracle(config.oracle, random_state=seed)
        merging = _fit(oracle, lessons, spread)
    if lessons.ratio != 1.0:
        oracle.calibration_ = (PriorCorrection(ratio=lessons.ratio),)
    return lessons.count, oracle, merging


def _fit(oracle: EncodedOracle, lessons: _Lessons, spread: Spread | None) -> tuple[int, int] | None:
    """Fit an oracle, in partitions or as one, see :func:`_merged`."""
    merging = _merged(oracle, lessons, spread)
    if merging is None:
        oracle.fit(lessons.rows)
    return merging


def _merged(
    oracle: EncodedOracle, lessons: _Lessons, spread: Spread | None
) -> tuple[int, int] | None:
    """Have an oracle learn in partitions, and say in how many; None where one learner is to do it.

    What imitates a baseline is made up and has no place in the log, so it isn't divided.
    """
    rows = lessons.rows
    if spread is None or not isinstance(rows, LoggedRows):
        return None
    merging = merging_of(spread.merge, oracle, len(rows))
    if merging is not None:
        learn_merged(oracle, rows, merging, spread.engine)
    return merging


def _continued(
    loop: str,
    config: LoopConfig,
    champion: Generation,
    learned: pl.DataFrame,
    spread: Spread | None,
) -> tuple[int, Oracle, tuple[int, int] | None]:
    """How many interactions were joined since, the champion's oracle after them, and how."""
    lessons = _lessons(config, _encodable(loop, config, learned))
    if not lessons.count:
        raise NotEnoughDataError(
            f"loop {loop!r} has nothing to learn that generation {champion.number} hasn't learned"
        )
    oracle = champion.oracle
    assert isinstance(oracle, EncodedOracle), "one that can be taught was asked for"
    oracle.calibration_ = ()
    merging = _merged(oracle, lessons, spread)
    if merging is None:
        cast("OnlineOracle", oracle).partial_fit(lessons.rows)
    return lessons.count, oracle, merging


def _to_continue(
    champion: Generation | None, config: LoopConfig, folds: LearnerFolds
) -> Provenance | None:
    """Where the champion comes from, if learning can go on where it ended; None if not."""
    if champion is None or config.training.start != "champion":
        return None
    origin, oracle = champion.provenance, champion.oracle
    same = isinstance(oracle, EncodedOracle) and oracle.config == config.oracle
    if origin is None or not same or not hasattr(oracle, "partial_fit"):
        return None
    alike = (
        origin.learned_folds == (folds.calibrated, FOLDS - 1)
        and origin.learned_from_slices == config.training.learn_from_slices
    )
    try:
        cast("OnlineOracle", oracle).partial_fit([])
    except GenerationError as error:
        _log.info("generation %d isn't learned on from: %s", champion.number, error)
        return None
    return origin if alike else None


def _new(learned: pl.DataFrame, known: pl.LazyFrame) -> pl.DataFrame:
    """Interactions that were not among those of an earlier version of the lake."""
    key = ["decision_id", "slot"]
    seen = known.select(key).collect()
    return learned.join(seen, on=key, how="anti", nulls_equal=True, maintain_order="left")


def _lessons(config: LoopConfig, learned: pl.DataFrame) -> _Lessons:
    """What every interaction teaches: one row, or several of a baseline that is imitated."""
    if _imitates(config):
        imitated = list(imitation_lessons(learned))
        return _Lessons([row for lesson in imitated for row in lesson], len(imitated))
    weights = training_weights(config.training, learned, config.oracle.encoder)
    ratio = 1.0
    if config.training.class_weight != "none":
        rewards = learned["reward"].to_numpy()
        ratio = balancing_ratio(rewards, weights)
        weights = effective(np.where(rewards == 1.0, ratio, 1.0) * weights)
    return _Lessons(LoggedRows(learned, weights), len(learned), ratio)


def _calibrate(config: LoopConfig, oracle: EncodedOracle, held: pl.DataFrame) -> None:
    """Calibrate an oracle's estimates by rows that were held out for it."""
    training = config.training
    if training.calibration == "none":
        return
    # Weights that tilt rewards are what is to be made up for, and so are not applied here.
    even = training.weighting in ("ips", "mtr")
    plain = training if even else msgspec.structs.replace(training, weighting="none")
    weights = training_weights(plain, held, config.oracle.encoder)
    encoder = FeatureEncoder(config.oracle.encoder)
    rows = [row for row in LoggedRows(held, weights) if _is_encodable(encoder, row)]
    curve = fit_curve(training.calibration, asked(oracle, rows))
    assert curve is not None, "there is a kind"
    oracle.calibration_ = (*oracle.calibration_, curve)


def _encodable(loop: str, config: LoopConfig, interactions: pl.DataFrame) -> pl.DataFrame:
    """Leave out what no oracle can encode: one such request must not end all learning."""
    encoder = FeatureEncoder(config.oracle.encoder)
    fine = np.array([_is_encodable(encoder, row) for row in training_rows(interactions)], bool)
    _warn_of(loop, len(fine) - int(fine.sum()))
    return interactions.filter(pl.Series(fine, dtype=pl.Boolean))


def _warn_of(loop: str, left_out: int) -> None:
    if left_out:
        _log.warning("loop %s: %d interactions can't be encoded and were left out", loop, left_out)


def _is_encodable(encoder: FeatureEncoder, row: TrainingRow) -> bool:
    with contextlib.suppress(InvalidInputError):
        encoder.encode(row.context, row.actions)
        return True
    return False
