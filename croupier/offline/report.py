"""What is told of a training: measures on rows held out, and figures for those who look at them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from croupier.offline.calibrate import HeldOut, asked, measure, reliability
from croupier.offline.interactions import keep_weights, training_rows
from croupier.offline.learner_log import LearnerLog
from croupier.policy.oracle import EncodedOracle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from croupier.offline.lake import Lake
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

__all__ = ("TrainingReport", "report_on")

_SHOWN = ("action_id", "reward", "propensity", "keep_prob")
# More bars than these nobody can read.
_MOST_ACTIONS = 40
_NORMAL_95 = 1.959964


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """Measures and figures, by name; without any where nothing was held out.

    Attributes
    ----------
    metrics
        ``heldout_`` measures of :func:`~croupier.offline.calibrate.measure`, and what importance
        weights there are: the largest, and their effective share of the rows.
    figures
        ``calibration``, ``reward_by_action`` and ``weights``.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)


def report_on(
    lake: Lake, generation: Generation, config: LoopConfig, judge_share: float
) -> TrainingReport:
    """Measure a generation on the learner's rows that it has not learned from, and show the others.

    Everything is worked out from the lake's version and the folds that the generation names; the
    judge's rows are not looked at.

    Parameters
    ----------
    lake
        That it was trained on.
    generation
        As :func:`~croupier.offline.retrain.retrain` made it.
    config, judge_share
        That it was trained with.
    """
    origin = generation.provenance
    if origin is None or origin.learned_folds is None:
        return TrainingReport()
    log = LearnerLog(lake, generation.loop, config, judge_share, version=origin.lake_version)
    rows = log.rows(columns=_SHOWN)
    if rows.is_empty():
        return TrainingReport()
    inverse = 1.0 / rows["propensity"].to_numpy()
    metrics = {
        "weight_max": float(inverse.max()),
        "weight_effective_share": float(inverse.sum() ** 2 / (inverse @ inverse) / len(inverse)),
    }
    figures = {"reward_by_action": _reward_by_action(rows), "weights": _weights(rows)}
    oracle = generation.oracle
    # An apprentice's estimates are no rewards, and rewards can't measure them.
    if isinstance(oracle, EncodedOracle) and config.learning_mode != "apprentice":
        held = log.rows(pl.col("fold") < origin.learned_folds[0])
        seen = asked(oracle, training_rows(held))
    else:
        seen = None
    if seen is not None and len(seen.scores):
        metrics |= {f"heldout_{name}": value for name, value in measure(seen).items()}
        figures["calibration"] = _calibration(seen)
    return TrainingReport(metrics, figures)


def _calibration(rows: HeldOut) -> Figure:
    """Mean reward over mean score of rows with similar scores."""
    bins = reliability(rows)
    figure, axes = _axes("Calibration on held-out rows", "mean score", "mean reward")
    ends = [min(*bins.scores, *bins.rewards), max(*bins.scores, *bins.rewards)]
    axes.plot(ends, ends, color="grey", linewidth=1, label="calibrated")
    axes.plot(bins.scores, bins.rewards, marker="o", label="rows, as many in every bin")
    axes.legend()
    return figure


def _reward_by_action(rows: pl.DataFrame) -> Figure:
    """Mean reward of the actions that were played most, with normal 95 % intervals."""
    count = pl.len().alias("rows")
    means = (
        rows.group_by("action_id")
        .agg(pl.col("reward").mean(), pl.col("reward").std().fill_null(0.0).alias("spread"), count)
        .sort("rows", "action_id", descending=[True, False])
        .head(_MOST_ACTIONS)
    )
    half = _NORMAL_95 * (means["spread"] / means["rows"].sqrt()).to_numpy()
    figure, axes = _axes("Reward where an action was played", "", "mean reward")
    axes.bar(range(len(means)), means["reward"].to_numpy(), yerr=half, capsize=2)
    axes.set_xticks(range(len(means)), means["action_id"].to_list(), rotation=90)
    return figure


def _weights(rows: pl.DataFrame) -> Figure:
    """How many decisions were drawn with which inverse propensity."""
    inverse = 1.0 / rows["propensity"].to_numpy()
    edges = np.geomspace(1.0, max(float(inverse.max()), 1.0) * 1.0001, 40)
    figure, axes = _axes("Importance weights", "1 / propensity", "decisions")
    axes.hist(inverse, bins=edges, weights=keep_weights(rows))
    axes.set_xscale("log")
    axes.set_yscale("log")
    return figure


def _axes(title: str, x: str, y: str) -> tuple[Figure, Any]:
    # MLflow brings it along. Without pyplot, there is no state and no display.
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes
