"""Plots of a promotion report, as SVG within the page: no script, no font, no other file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from croupier.offline.report_text import escaped, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ("Bars", "Whisker", "bar_plot", "deviation_plot", "whisker_plot")

_WIDTH, _LEFT, _RIGHT = 640, 190, 24
_ROW, _TOP, _BOTTOM = 30, 14, 40
_BAR_HEIGHT = 200
_SMALL_WIDTH, _SMALL_HEIGHT = 310, 170
_TICKS = 5
_POINT = 1e-9


@dataclass(frozen=True, slots=True)
class Whisker:
    """A value and its interval, which may be without an end.

    Attributes
    ----------
    label
        What it is of.
    value, lower, upper
        The interval's ends may be infinite.
    kind
        How it is drawn: ``first``, ``second`` or ``quiet``.
    """

    label: str
    value: float
    lower: float
    upper: float
    kind: str = "first"


@dataclass(frozen=True, slots=True)
class Bars:
    """A series of counts, one a bin."""

    label: str
    counts: Sequence[float]


def whisker_plot(
    whiskers: Sequence[Whisker], *, axis: str, described: str, marks: Sequence[tuple[float, str]]
) -> str:
    """Intervals below each other, against some marked values.

    Parameters
    ----------
    whiskers
        From top to bottom.
    axis
        What the values are.
    described
        The plot in words, for those who don't see it.
    marks
        Values at which a line stands, and what they are called.
    """
    shown = [value for value, _ in marks] + [
        end for each in whiskers for end in (each.value, each.lower, each.upper)
    ]
    scale = _Scale.of([each for each in shown if math.isfinite(each)], _LEFT, _WIDTH - _RIGHT)
    height = _TOP + _ROW * len(whiskers) + _BOTTOM
    floor = height - _BOTTOM
    parts = [*_x_axis(scale, floor, axis, top=_TOP)]
    for value, called in marks:
        x = scale.at(value)
        line = f'<line class="mark" x1="{x}" x2="{x}" y1="{_TOP - 4}" y2="{floor}"/>'
        parts.append(f"<g><title>{escaped(called)}</title>{line}</g>")
    for place, each in enumerate(whiskers):
        parts += _whisker(each, scale, _TOP + _ROW * place + _ROW / 2)
    return _svg(_WIDTH, height, described, parts)


def bar_plot(labels: Sequence[str], series: Sequence[Bars], *, axis: str, described: str) -> str:
    """Counts of several series by bin, side by side, as heights.

    Parameters
    ----------
    labels
        Of the bins.
    series
        Each with a count for every bin.
    axis
        What the bins are of.
    described
        The plot in words.
    """
    height, left = _BAR_HEIGHT + _TOP + _BOTTOM, 64
    floor, width = height - _BOTTOM, (_WIDTH - left - _RIGHT) / max(len(labels), 1)
    most = max((count for each in series for count in each.counts), default=0.0) or 1.0
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = floor - _BAR_HEIGHT * share
        parts.append(f'<line class="grid" x1="{left}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="end" x="{left - 8}" y="{y + 4}">{number(most * share)}</text>')
    thick = 0.8 * width / max(len(series), 1)
    for which, each in enumerate(series):
        for place, count in enumerate(each.counts):
            x, tall = left + width * (place + 0.1) + thick * which, _BAR_HEIGHT * count / most
            kind = ("first", "second")[which % 2]
            parts.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{floor - tall:.1f}" '
                f'width="{thick:.1f}" height="{tall:.1f}"><title>{escaped(each.label)}, '
                f"{escaped(labels[place])}: {number(count)}</title></rect>"
            )
    for place, label in enumerate(labels):
        if place % 2 == 0:
            x = left + width * (place + 0.5)
            parts.append(
                f'<text class="middle" x="{x:.1f}" y="{floor + 16}">{escaped(label)}</text>'
            )
    parts.append(
        f'<text class="middle" x="{(left + _WIDTH - _RIGHT) / 2}" y="{height - 6}">'
        f"{escaped(axis)}</text>"
    )
    return _svg(_WIDTH, height, described, parts)


def deviation_plot(
    title: str, labels: Sequence[str], deviations: Sequence[float], *, described: str
) -> str:
    """Standardised deviations bin by bin, with the band in which 95 % of them lie by chance.

    Parameters
    ----------
    title
        Above the plot.
    labels, deviations
        Of the bins.
    described
        The plot in words.
    """
    left, top, floor = 40, 26, _SMALL_HEIGHT - 34
    reach = max(3.0, *(abs(each) for each in deviations)) if deviations else 3.0
    scale = _Scale(-reach, reach, floor, top)
    parts = [f'<text x="{left}" y="16" class="strong">{escaped(title)}</text>']
    upper, lower = scale.at(1.96), scale.at(-1.96)
    parts.append(
        f'<rect class="band" x="{left}" y="{upper}" width="{_SMALL_WIDTH - left - 8}" '
        f'height="{round(lower - upper, 1)}"/>'
    )
    for value in (-reach, 0.0, reach):
        y = scale.at(value)
        parts.append(f'<line class="grid" x1="{left}" x2="{_SMALL_WIDTH - 8}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="end" x="{left - 6}" y="{y + 4}">{value:+.1f}</text>')
    step = (_SMALL_WIDTH - left - 8) / max(len(labels), 1)
    for place, (label, value) in enumerate(zip(labels, deviations, strict=True)):
        x = round(left + step * (place + 0.5), 1)
        parts.append(
            f'<circle class="first" cx="{x}" cy="{scale.at(value)}" r="4">'
            f"<title>{escaped(label)}: {value:+.2f} standard deviations</title></circle>"
        )
    if labels:
        y, right = floor + 16, _SMALL_WIDTH - 8
        parts.append(f'<text x="{left}" y="{y}">{escaped(labels[0])}</text>')
        parts.append(f'<text class="end" x="{right}" y="{y}">{escaped(labels[-1])}</text>')
    return _svg(_SMALL_WIDTH, _SMALL_HEIGHT, described, parts)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where values stand."""

    low: float
    high: float
    first: float
    last: float

    @classmethod
    def of(cls, values: Sequence[float], first: float, last: float) -> _Scale:
        low, high = min(values, default=0.0), max(values, default=1.0)
        # What is left of a subtraction is no range to be looked at.
        point = high - low <= _POINT * max(abs(low), abs(high), 1.0)
        spare = (0.1 * abs(high) or 1.0) if point else 0.05 * (high - low)
        return cls(low - spare, high + spare, first, last)

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.first + (self.last - self.first) * min(max(share, 0.0), 1.0), 1)

    def ticks(self) -> list[float]:
        """Round values that lie within."""
        rough = (self.high - self.low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough)
        first = math.ceil(self.low / step)
        return [step * place for place in range(first, math.floor(self.high / step) + 1)]


def _whisker(each: Whisker, scale: _Scale, y: float) -> Iterable[str]:
    lower, upper = (scale.at(end) for end in (max(each.lower, -1e300), min(each.upper, 1e300)))
    told = f"{each.label}: {number(each.value)} [{number(each.lower)}, {number(each.upper)}]"
    yield f'<text class="end" x="{_LEFT - 12}" y="{y + 4}">{escaped(each.label)}</text>'
    yield f'<g class="{each.kind}"><title>{escaped(told)}</title>'
    yield f'<line x1="{lower}" x2="{upper}" y1="{y}" y2="{y}"/>'
    for x, end in ((lower, each.lower), (upper, each.upper)):
        # An interval without an end runs out of the picture.
        if math.isfinite(end):
            yield f'<line x1="{x}" x2="{x}" y1="{y - 5}" y2="{y + 5}"/>'
    if each.kind == "second":
        yield f'<rect x="{scale.at(each.value) - 5}" y="{y - 5}" width="10" height="10"/></g>'
    else:
        yield f'<circle cx="{scale.at(each.value)}" cy="{y}" r="5"/></g>'


def _x_axis(scale: _Scale, floor: float, axis: str, *, top: float) -> Iterable[str]:
    for value in scale.ticks():
        x = scale.at(value)
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{floor}"/>'
        yield f'<text class="middle" x="{x}" y="{floor + 16}">{value:g}</text>'
    middle = (scale.first + scale.last) / 2
    yield f'<text class="middle" x="{middle}" y="{floor + 34}">{escaped(axis)}</text>'


def _svg(width: float, height: float, described: str, parts: Iterable[str]) -> str:
    drawn = (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escaped(described)}">{"".join(parts)}</svg>'
    )
    return drawn if width < _WIDTH else f'<div class="wide">{drawn}</div>'
