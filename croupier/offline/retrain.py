"""Retraining: from interactions to the next generation."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import msgspec
import numpy as np
import polars as pl

from croupier import __version__
from croupier.offline.budget import decision_budget, has_budget
from croupier.offline.calibrate import asked, fit_curve
from croupier.offline.corrective import corrective_tilt, still_remembered
from croupier.offline.damping import damped
from croupier.offline.folds import (
    MIN_MEASURED_LOG,
    LearnerFolds,
    is_judged,
    learner_folds,
    unseen_by,
)
from croupier.offline.imitation import imitation_lessons
from croupier.offline.interactions import LoggedRows, training_rows
from croupier.offline.learner_log import LearnerLog
from croupier.offline.memory import adaptive_memory, ages_in_blocks
from croupier.offline.merged_training import learn_merged, merging_of
from croupier.offline.rewards import FOLDS
from croupier.offline.weighting import balancing_ratio, effective, training_weights
from croupier.policy.calibration import PriorCorrection
from croupier.policy.encoding import FeatureEncoder
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.exploration import Conservative, SquareCB
from croupier.policy.generation import Generation, Provenance
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import (
    Dampable,
    EncodedOracle,
    OutgrownError,
    VowpalWabbitConfig,
    make_oracle,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from croupier.offline.lake import Lake
    from croupier.offline.merged_training import Spread
    from croupier.policy.generation import Memory
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
    "lessons_of",
    "require_lessons",
    "retrain",
    "unseen_by",
)

_log = logging.getLogger(__name__)

_UNSET = object()
# What a loop was by default in the first version, from which digests tell what was set.
_FIRST_DEFAULTS = LoopConfig(exploration=SquareCB(), oracle=VowpalWabbitConfig())

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
    champion: Generation | None = None,
    spread: Spread | None = None,
    resample: int | None = None,
) -> Generation:
    """Fit the loop's oracle on the learner's folds and make a generation of it.

    An apprentice's loop learns what the baseline would choose; any other learns rewards, real ones
    alone, from all interactions whatever the mode was when they were made. A conservative
    exploration whose estimates count as they are gets its budget, see
    :func:`~croupier.offline.budget.decision_budget`. How rows count, what is held out and which
    rows are recent enough is the loop's :class:`~croupier.policy.training.TrainingConfig`; so is
    whether what is made corrects the log, see :func:`~croupier.offline.corrective.corrective_tilt`.

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
        The parent; loaded so that it can learn on, if the loop starts from it. Asked for then, and
        where :attr:`~croupier.policy.training.TrainingConfig.needs_champion` otherwise says so.
    spread
        How training is divided among partitions that are merged, where there are rows enough and
        the oracle is one that can be; one learner learns everything if None.
    resample
        Seed of a bootstrap: as many rows are learned from, drawn with replacement, to see what
        chance alone changes. The rows as they are if None.

    Raises
    ------
    NotEnoughDataError
        If there are fewer than 20 interactions to learn from, or too few kinds of reward; or none
        since the champion that learns on.
    """
    version = lake.version("interactions") if lake_version is None else lake_version
    if version < 0:
        raise NotEnoughDataError(f"loop {loop!r} has no interactions yet; run the join first")
    log = LearnerLog(lake, loop, config, judge_share, version=version)
    folds = learner_folds(config.training, judge_share, log.count(MIN_MEASURED_LOG))
    trains = pl.col("fold") >= folds.trained
    started, memory = _to_continue(champion, config, folds), None
    if started is not None:
        assert champion is not None, "there is one that learning starts from"
        learned = log.rows_since(started.lake_version, trains)
        try:
            taught, oracle, merging = _continued(loop, config, champion, learned, spread)
        except OutgrownError as error:
            _log.info("generation %d isn't learned on from: %s", champion.number, error)
            started = None
    if started is None:
        learned = _resampled(log.rows(trains), resample)
        taught, oracle, merging, memory = _afresh(loop, config, seed, learned, spread)
    step = 1.0
    limit = config.training.max_total_variation
    if limit is not None and champion is not None and isinstance(oracle, Dampable):
        oracle, step = damped(
            champion,
            oracle,
            config.exploration,
            learned,
            limit=limit,
            training_rows=taught,
            seed=seed,
        )
    if isinstance(oracle, EncodedOracle) and config.training.calibration != "none":
        calibrates = pl.col("fold").is_between(folds.calibrated, folds.trained - 1)
        _calibrate(config, oracle, log.rows(calibrates))
    provenance = Provenance(
        parent=parent,
        lake_version=version,
        code_version=__version__,
        loop_config=config_digest(config),
        seed=seed,
        training_rows=taught if started is None else started.training_rows + taught,
        created_us=created_us,
        budget=budget_of(config, lambda: learned if started is None else log.rows(trains), oracle),
        learned_folds=(folds.calibrated, FOLDS - 1),
        learned_from_us=_earliest(learned, started),
        learned_from_slices=config.training.learn_from_slices,
        started_from=None if started is None or champion is None else champion.number,
        merged=merging,
        step=step,
        memory=memory,
    )
    if step < 1.0 and champion is not None and champion.provenance is not None:
        provenance = _mixed(provenance, champion.provenance)
    made = Generation(loop, number, config.exploration, oracle, provenance)
    if config.training.corrective is None:
        return made
    return _corrected(made, config.training, learned if started is None else log.rows(trains))


def _corrected(made: Generation, training: TrainingConfig, learned: pl.DataFrame) -> Generation:
    """The generation, tilted towards what the log has too little of."""
    assert training.corrective is not None, "it is asked for"
    assert made.provenance is not None, "it was trained"
    rows = still_remembered(learned, training.window_generations)
    tilt, kl = corrective_tilt(made, training.corrective, rows, seed=made.provenance.seed)
    return replace(made, tilt=tilt, provenance=msgspec.structs.replace(made.provenance, tilt_kl=kl))


def _resampled(rows: pl.DataFrame, seed: int | None) -> pl.DataFrame:
    if seed is None:
        return rows
    drawn = rows.sample(fraction=1.0, with_replacement=True, seed=seed)
    return drawn.sort("offset", "decision_id")


def _mixed(own: Provenance, champion: Provenance) -> Provenance:
    """Provenance of what lies between two generations: it has learned what either of them has."""
    known = [each for each in (own.learned_folds, champion.learned_folds) if each is not None]
    begins = own.learned_from_us, champion.learned_from_us
    return msgspec.structs.replace(
        own,
        learned_folds=(min(first for first, _ in known), max(last for _, last in known)),
        learned_from_us=min((each for each in begins if each is not None), default=None),
        learned_from_slices=own.learned_from_slices or champion.learned_from_slices,
    )


def config_digest(config: LoopConfig) -> str:
    """SHA-256 of what was set of a loop's configuration, in canonical JSON.

    Without guardrails, audits, sessions and simulators, of which no oracle learns anything: to
    change them is no reason to train anew. Nor is a setting that is what it is by default, so that
    one which a later version has besides changes nothing.
    """
    replace = msgspec.structs.replace
    fairness = config.fairness.for_training
    learned = replace(config, guardrails={}, fairness=fairness, sessions=None, simulators=None)
    chosen = _chosen(msgspec.to_builtins(learned), msgspec.to_builtins(_FIRST_DEFAULTS))
    return hashlib.sha256(msgspec.json.encode(chosen, order="deterministic")).hexdigest()


def _chosen(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings that aren't the defaults, at any depth."""
    found = {}
    for name, value in settings.items():
        default = defaults.get(name, _UNSET)
        if isinstance(value, dict) and isinstance(default, dict):
            within = _chosen(value, default)
            if within or value.keys() != default.keys():
                found[name] = within
        elif value != default:
            found[name] = value
    return found


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


def _earliest(learned: pl.DataFrame, started: Provenance | None) -> int | None:
    """When the first decision was made that was learned from, now or by the champion."""
    times = [learned["ts"].dt.epoch("us").min(), started.learned_from_us if started else None]
    return min((each for each in times if isinstance(each, int)), default=None)


def budget_of(config: LoopConfig, learned: Callable[[], pl.DataFrame], oracle: Oracle) -> float:
    """What a new generation may spend, see :class:`~croupier.policy.generation.Provenance`.

    Parameters
    ----------
    config
        Of the loop.
    learned
        Reads the rows that the oracle learned from, if it takes them.
    oracle
        Of the generation.
    """
    if _imitates(config):
        # Once its loop is online its estimates are no rewards, and nothing may be bet on them.
        return -1.0 if isinstance(config.exploration, Conservative) else 0.0
    if not has_budget(config):
        return 0.0
    return decision_budget(learned(), oracle, config)


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
    memory
        How fast rows count less with their age; None if they don't.
    """

    rows: Sequence[TrainingRow]
    count: int
    ratio: float = 1.0
    memory: Memory | None = None


def _afresh(
    loop: str, config: LoopConfig, seed: int, learned: pl.DataFrame, spread: Spread | None
) -> tuple[int, Oracle, tuple[int, int] | None, Memory | None]:
    """How many interactions were learned from, an oracle that learned nothing else, and how."""
    try:
        return _learned(loop, config, seed, learned, spread)
    except InvalidInputError:
        return _learned(loop, config, seed, _encodable(loop, config, learned), spread)


def _learned(
    loop: str, config: LoopConfig, seed: int, rows: pl.DataFrame, spread: Spread | None
) -> tuple[int, Oracle, tuple[int, int] | None, Memory | None]:
    """The same of rows that are expected to be encodable, all of them."""
    lessons = _lessons(config, rows, seed)
    require_lessons(loop, lessons.count)
    oracle: EncodedOracle = make_oracle(config.oracle, random_state=seed)
    merging = _fit(oracle, lessons, spread)
    if lessons.ratio != 1.0:
        oracle.calibration_ = (PriorCorrection(ratio=lessons.ratio),)
    return lessons.count, oracle, merging, lessons.memory


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
    return None if merging is None else learn_merged(oracle, rows, merging, spread.engine)


def _continued(
    loop: str,
    config: LoopConfig,
    champion: Generation,
    learned: pl.DataFrame,
    spread: Spread | None,
) -> tuple[int, Oracle, tuple[int, int] | None]:
    """How many interactions were joined since, the champion's oracle after them, and how."""
    lessons = _lessons(config, _encodable(loop, config, learned), seed=0)
    if not lessons.count:
        raise NotEnoughDataError(
            f"loop {loop!r} has nothing to learn that generation {champion.number} hasn't learned"
        )
    oracle = champion.oracle
    assert isinstance(oracle, EncodedOracle), "one that can be taught was asked for"
    merging = _merged(oracle, lessons, spread)
    if merging is None:
        cast("OnlineOracle", oracle).partial_fit(lessons.rows)
    oracle.settle()
    # A champion that can't go on stays as it is.
    oracle.calibration_ = ()
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


def _lessons(config: LoopConfig, learned: pl.DataFrame, seed: int) -> _Lessons:
    """What every interaction teaches: one row, or several of a baseline that is imitated."""
    if _imitates(config):
        imitated = list(imitation_lessons(learned))
        return _Lessons([row for lesson in imitated for row in lesson], len(imitated))
    weights = training_weights(config.training, learned, config.oracle.encoder)
    memory = None
    if config.training.memory == "adaptive":
        memory = adaptive_memory(config, learned, weights, seed=seed)
    if memory is not None:
        weights = effective(weights * memory.kept ** ages_in_blocks(learned))
    ratio = 1.0
    if config.training.class_weight != "none":
        rewards = learned["reward"].to_numpy()
        ratio = balancing_ratio(rewards, weights)
        weights = effective(np.where(rewards == 1.0, ratio, 1.0) * weights)
    return _Lessons(LoggedRows(learned, weights), len(learned), ratio, memory)


def _calibrate(config: LoopConfig, oracle: EncodedOracle, held: pl.DataFrame) -> None:
    """Calibrate an oracle's estimates by rows that were held out for it."""
    training = config.training
    # Weights that tilt rewards are what is to be made up for, and so are not applied here.
    even = training.weighting in ("ips", "mtr")
    plain = training if even else msgspec.structs.replace(training, weighting="none")
    weights = training_weights(plain, held, config.oracle.encoder)
    curve = fit_curve(training.calibration, asked(oracle, LoggedRows(held, weights)))
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
