"""The figure of the transfer study: learning curves of all arms, level by level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from croupier.sim2rec.transfer_config import ARMS, UPPER_BOUND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ("draw_transfer",)

_NORMAL_95 = 1.959964
_YARDSTICKS = ("best constant", "best constant per user", "optimum")


def draw_transfer(runs: pl.DataFrame, yardsticks: pl.DataFrame, levels: Sequence[int]) -> Figure:
    """Draw what policies are worth in the test group while they learn from simulators.

    Parameters
    ----------
    runs
        Of :data:`~croupier.sim2rec.transfer_runs.RUNS_SCHEMA`.
    yardsticks
        Of :data:`~croupier.sim2rec.study.STUDY_SCHEMA`.
    levels
        A panel for each.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    figure = Figure(figsize=(1.5 + 4.5 * len(levels), 4.5), layout="constrained")
    panels = figure.subplots(1, len(levels), sharey=True, squeeze=False)[0]
    for axes, level in zip(panels, levels, strict=True):
        _curves(axes, runs, level)
        for name in _YARDSTICKS:
            value = yardsticks.filter(policy=name)["mean_return"].item()
            axes.axhline(value, color="0.6", linewidth=0.8, linestyle="--")
            axes.annotate(name, (0.0, value), fontsize="x-small", color="0.4", va="bottom")
        axes.set_title(f"level {level}")
        axes.set_xlabel("iterations")
    panels[0].set_ylabel("return of a test user, mean over seeds with its 95% interval")
    panels[0].legend(loc="lower right", fontsize="small")
    return figure


def _curves(axes: Axes, runs: pl.DataFrame, level: int) -> None:
    for arm in ARMS:
        rows = runs.filter(arm=arm.name, level=0 if arm.name == UPPER_BOUND else level)
        points = (
            rows.group_by("iteration")
            .agg(
                pl.col("test_return").mean().alias("mean"),
                (pl.col("test_return").std() / pl.len().sqrt()).fill_null(0.0).alias("error"),
            )
            .sort("iteration")
        )
        mean, error = points["mean"].to_numpy(), _NORMAL_95 * points["error"].to_numpy()
        (line,) = axes.plot(points["iteration"], mean, label=arm.name, linewidth=1.4)
        axes.fill_between(
            np.asarray(points["iteration"]),
            mean - error,
            mean + error,
            color=line.get_color(),
            alpha=0.2,
            linewidth=0.0,
        )
