"""The figure of the oscillation study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from croupier.offline.study.oscillation import OscillationStudy

__all__ = ("draw_study",)

_NORMAL_95 = 1.959964
_POINTS = 100.0


def draw_study(runs: pl.DataFrame, study: OscillationStudy, shown: Sequence[str]) -> Figure:
    """Draw one seed's generations, and what all seeds say of each arm.

    Parameters
    ----------
    runs
        Of :data:`~croupier.offline.study.runs.RUNS_SCHEMA`.
    study
        Their summary.
    shown
        Arms whose generations are drawn.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    figure = Figure(figsize=(11.0, 4.0 + 0.32 * len(study.arms)), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[3.5, 0.5 + 0.32 * len(study.arms)])
    _generations(figure.add_subplot(grid[0, :]), runs, shown)
    gain = figure.add_subplot(grid[1, 0])
    spread = figure.add_subplot(grid[1, 1])
    names = [each.arm for each in study.arms]
    _dots(gain, names, [(each.gain.value, each.gain.error) for each in study.arms])
    gain.set_title("gain over uniform, points")
    _dots(spread, names, [(each.spread.value, each.spread.error) for each in study.arms])
    spread.set_title("spread of changes, points")
    for axes in (gain, spread):
        axes.axvline(0.0, color="0.7", linewidth=0.8)
        axes.set_xlabel("mean over seeds, with its 95% interval")
    found = [each.test is not None and each.test.oscillates for each in study.arms]
    for label, oscillates in zip(gain.get_yticklabels(), found, strict=True):
        label.set_color("#b2182b" if oscillates else "black")
    return figure


def _generations(axes: Axes, runs: pl.DataFrame, shown: Sequence[str]) -> None:
    seed = int(runs["seed"].to_numpy().min())
    changed = (pl.col("value") - pl.col("carried_value")).fill_null(0.0)
    for name in shown:
        rows = runs.filter(arm=name, seed=seed).sort("generation")
        if len(rows):
            sums = rows.select(_POINTS * changed.cum_sum()).to_series()
            axes.plot(rows["generation"], sums, marker="o", markersize=3.5, label=name)
    axes.set_title(f"value as it would be in a world that stood still, points, seed {seed}")
    axes.set_xlabel("generation")
    axes.legend(loc="upper left", fontsize="small", ncols=2)


def _dots(axes: Axes, names: list[str], points: list[tuple[float, float | None]]) -> None:
    places = np.arange(len(names))
    errors = [_NORMAL_95 * _POINTS * (error or 0.0) for _, error in points]
    values = [_POINTS * value for value, _ in points]
    axes.errorbar(values, places, xerr=errors, fmt="o", markersize=4, capsize=2, color="#2166ac")
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=True, axis="x", linewidth=0.4)
