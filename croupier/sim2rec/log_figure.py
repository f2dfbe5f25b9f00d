"""The figure of the study from a log: what is said of a policy, what is true, and switches."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from croupier.offline.study.oscillation import Mean
    from croupier.sim2rec.log_study import LogStudy

__all__ = ("draw_log",)

_NORMAL_95 = 1.959964


def draw_log(study: LogStudy) -> Figure:
    """Draw the returns of a session, and what each switch has changed where any was turned."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    panels = 2 if study.ablations else 1
    figure = Figure(figsize=(2.0 + 5.5 * panels, 4.5), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _returns(axes[0], study)
    if study.ablations:
        _switches(axes[1], study)
    return figure


def _returns(axes: Axes, study: LogStudy) -> None:
    rows: list[tuple[str, float, float | None, float | None]] = []

    def add(label: str, mean: Mean) -> None:
        wide = None if mean.error is None else _NORMAL_95 * mean.error
        low, high = (None, None) if wide is None else (mean.value - wide, mean.value + wide)
        rows.append((label, mean.value, low, high))

    if study.logged is not None:
        add("logged, latest generation", study.logged)
    truths = study.truths
    if truths is not None:
        for label in ("greedy", "champion", "constant", "policy", "optimum"):
            add(f"true: {label}", getattr(truths, label))
    add("policy, by the simulators", study.simulated)
    rows += [
        (f"policy, by {e.estimator}", e.value, e.lower, e.upper)
        for e in (study.unseen, *study.estimates)
    ]
    _dots(axes, rows)
    axes.set_xlabel("return of a session, with 95% intervals")


def _switches(axes: Axes, study: LogStudy) -> None:
    _dots(
        axes,
        [(e.switch, e.gain.value, e.gain.lower, e.gain.upper) for e in study.ablations],
    )
    axes.axvline(0.0, color="0.6", linewidth=0.8, linestyle="--")
    axes.set_xlabel("true return with the switch on less that with it off, 95% interval")


def _dots(axes: Axes, rows: list[tuple[str, float, float | None, float | None]]) -> None:
    places = range(len(rows))
    for place, (_, value, lower, upper) in zip(places, rows, strict=True):
        if lower is not None and upper is not None:
            axes.plot([lower, upper], [place, place], color="C0", linewidth=1.6)
        axes.plot([value], [place], "o", color="C0", markersize=4)
    axes.set_yticks(list(places), [label for label, *_ in rows])
    axes.invert_yaxis()
