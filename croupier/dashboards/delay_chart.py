"""The chart of the delays page: the share of the outcomes that have come by a delay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import altair as alt
import polars as pl

from croupier.dashboards.data import INTERVAL_LEVEL
from croupier.dashboards.formatting import duration, share
from croupier.dashboards.generation_charts import BLUE, plain

if TYPE_CHECKING:
    from croupier.offline.delays import DelayCurve

__all__ = ("delay_chart",)

# In seconds: where the axis of delays has its marks.
_MARKS: Final = (0, 1, 10, 60, 600, 3600, 21_600, 86_400, 604_800, 2_592_000, 7_776_000)


def delay_chart(curve: DelayCurve) -> alt.LayerChart:
    """The share of outcomes that have come, over their delay: a line within its interval.

    Parameters
    ----------
    curve
        With at least one delay.
    """
    rows = pl.DataFrame(
        {
            "delay": curve.delays_s,
            "share": curve.share,
            "lower": curve.lower,
            "upper": curve.upper,
            "by": [duration(each) for each in curve.delays_s],
            "shown": [share(each) for each in curve.share],
            "interval": [
                f"{share(lower)} to {share(upper)}"
                for lower, upper in zip(curve.lower, curve.upper, strict=True)
            ],
        }
    )
    base = alt.Chart(rows).encode(x=_delay_axis(curve.delays_s[-1]))
    per_cent = alt.Axis(format="%", titleFontWeight="normal")
    y = alt.Y("share:Q", title="Share", scale=alt.Scale(domain=[0, 1]), axis=per_cent)
    band = base.mark_area(interpolate="step-after", opacity=0.25, color=BLUE)
    line = base.mark_line(interpolate="step-after", strokeWidth=2, color=BLUE)
    points = base.mark_point(filled=True, size=60, opacity=0.001, color=BLUE).encode(
        y=y,
        tooltip=[
            alt.Tooltip("by:N", title="Delay"),
            alt.Tooltip("shown:N", title="Have come"),
            alt.Tooltip("interval:N", title=f"{INTERVAL_LEVEL} interval"),
        ],
    )
    return plain(
        [band.encode(y=alt.Y("lower:Q", title="Share"), y2="upper:Q"), line.encode(y=y), points]
    )


def _delay_axis(longest_s: float) -> alt.X:
    """Delays from a second to months have to be told apart, and there are some of 0."""
    marks = [each for each in _MARKS if each <= longest_s]
    words = {each: duration(each) for each in marks}
    label = "".join(f"datum.value === {each} ? '{word}' : " for each, word in words.items()) + "''"
    axis = alt.Axis(values=marks, labelExpr=label, labelOverlap=True, labelSeparation=6, grid=False)
    scale = alt.Scale(type="symlog", constant=1, domain=[0, max(longest_s, 1.0)])
    return alt.X("delay:Q", title="Delay of the outcome", scale=scale, axis=axis)
