"""Which rows of a loop learn, calibrate, measure and judge: a decision's fold says so for ever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from croupier.offline.rewards import FOLDS

if TYPE_CHECKING:
    from croupier.policy.generation import Generation
    from croupier.policy.training import TrainingConfig

__all__ = ("MIN_MEASURED_LOG", "LearnerFolds", "is_judged", "learner_folds", "unseen_by")

# Of fewer rows than a tenth of these, a measure says next to nothing.
MIN_MEASURED_LOG = 1000


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


def _in_slice() -> pl.Expr:
    sources = pl.col("mix").list.eval(pl.element().struct.field("source") == "uniform")
    return sources.list.any().fill_null(value=False)
