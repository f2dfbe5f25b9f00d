"""The figure of the fairness study: regret and violations against rounds, both logarithmic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from croupier.offline.study.fairness import FairArmSummary, FairnessStudy, Growth

__all__ = ("draw_fairness",)

_COLOURS = ("#2166ac", "#67a9cf", "#1b7837", "#7fbf7b", "#b2182b", "#ef8a62", "#762a83")


def draw_fairness(runs: pl.DataFrame, study: FairnessStudy) -> Figure:
    """Draw how regret (left) and violations (right) grow, a row for each world.

    Parameters
    ----------
    runs
        Of :data:`~croupier.offline.study.fair_runs.FAIR_RUNS_SCHEMA`.
    study
        Their summary, whose exponents stand in the legends.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    worlds = list(dict.fromkeys(each.world for each in study.arms))
    figure = Figure(figsize=(12.0, 4.8 * len(worlds)), layout="constrained")
    regret = (pl.col("error") - pl.col("fair_error")).alias("regret")
    for row, world in enumerate(worlds):
        arms = [each for each in study.arms if each.world == world]
        of_world = runs.filter(world=world).with_columns(regret)
        for place, name in enumerate(("regret", "violations")):
            axes = figure.add_subplot(len(worlds), 2, 2 * row + place + 1)
            _curves(axes, of_world, arms, name)
            axes.set_title(f"{world}: {name}")
            axes.axvline(study.fitted_from, color="0.85", linewidth=0.8)
    return figure


def _curves(axes: Axes, runs: pl.DataFrame, arms: list[FairArmSummary], name: str) -> None:
    for number, arm in enumerate(arms):
        rows = runs.filter(arm=arm.arm).sort("seed", "rounds")
        curves = rows[name].to_numpy().astype(np.float64).reshape(arm.seeds, -1)
        times = rows["rounds"].to_numpy()[: curves.shape[1]]
        mean = curves.mean(axis=0)
        error = curves.std(axis=0, ddof=1) / np.sqrt(arm.seeds) if arm.seeds > 1 else 0.0 * mean
        growth = arm.regret_growth if name == "regret" else arm.violations_growth
        colour = _COLOURS[number % len(_COLOURS)]
        drawn = mean > 0.0
        axes.plot(times[drawn], mean[drawn], color=colour, label=_label(arm.arm, growth))
        low = np.maximum(mean - error, mean / 10.0)
        axes.fill_between(
            times, low, mean + error, where=drawn.tolist(), color=colour, alpha=0.15, linewidth=0.0
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("rounds T")
    axes.grid(visible=True, linewidth=0.3)
    axes.legend(fontsize="x-small")


def _label(arm: str, growth: Growth | None) -> str:
    if growth is None:
        return arm
    return f"{arm}: T^{growth.exponent:.2f} [{growth.lower:.2f}, {growth.upper:.2f}]"
