"""How far a challenger plays otherwise than the champion, on the requests that judge it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.offline.finding import Finding, Section
from croupier.offline.shares import effective_rows, wilson_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ("Distance", "Stability", "distances", "stability_section")


class Distance(msgspec.Struct, frozen=True, kw_only=True):
    """A mean distance of two policies over requests, in [0, 1], with its Wilson interval."""

    value: float
    lower: float
    upper: float


class Stability(msgspec.Struct, frozen=True, kw_only=True):
    """How far two policies are apart, on average over requests.

    Attributes
    ----------
    rows
        Requests that both were asked about.
    confidence
        Of the intervals, in (0, 1).
    total_variation
        ``Σ_a |p_a - q_a| / 2``: the share of decisions that must come out differently.
    js_distance
        Root of the Jensen-Shannon divergence in bits (Endres & Schindelin, 2003): a metric.
    flip_rate
        Share of requests where the most probable action is another one; where several tie, the
        total variation of the even choices among them.
    """

    rows: int
    confidence: float
    total_variation: Distance
    js_distance: Distance
    flip_rate: Distance

    @classmethod
    def of(
        cls, found: NDArray[np.float64], weights: NDArray[np.float64], confidence: float
    ) -> Stability:
        """Mean distances.

        Parameters
        ----------
        found
            As :func:`distances` gives them, shape (3, n), n ≥ 1.
        weights
            How many decisions every request stands for, shape (n,), positive.
        confidence
            In (0, 1).
        """
        n = effective_rows(weights)
        means = np.clip(found @ weights / weights.sum(), 0.0, 1.0).tolist()
        variation, js, flips = (
            Distance(value=mean, lower=ends[0], upper=ends[1])
            for mean in means
            for ends in [wilson_interval(mean, n, confidence)]
        )
        return cls(
            rows=found.shape[1],
            confidence=confidence,
            total_variation=variation,
            js_distance=js,
            flip_rate=flips,
        )


def distances(
    first: Sequence[NDArray[np.float64]], second: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Total variation, Jensen-Shannon distance and flip of every request, shape (3, n).

    Parameters
    ----------
    first, second
        The two policies' pmfs of every request, n of shape (K_i,), K_i ≥ 1.
    """
    if not first:
        return np.zeros((3, 0))
    lengths = np.array([len(each) for each in first])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    p, q = np.concatenate(first), np.concatenate(second)

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.add.reduceat(values, starts), dtype=np.float64)

    def greedy(pmf: NDArray[np.float64]) -> NDArray[np.float64]:
        best = pmf == np.repeat(np.maximum.reduceat(pmf, starts), lengths)
        return np.asarray(best / np.repeat(total(best.astype(np.float64)), lengths))

    middle = (p + q) / 2.0
    divergence = (total(_information(p, middle)) + total(_information(q, middle))) / 2.0
    return np.stack(
        [
            total(np.abs(p - q)) / 2.0,
            np.sqrt(np.clip(divergence, 0.0, 1.0)),
            total(np.abs(greedy(p) - greedy(q))) / 2.0,
        ]
    )


def stability_section(
    stability: Stability | None,
    *,
    max_total_variation: float | None = None,
    max_flip_rate: float | None = None,
) -> Section:
    """The section of a report, with what speaks against the challenger.

    A limit is kept if the interval's upper end is: a change has to be shown to be small enough.

    Parameters
    ----------
    stability
        None if nothing was measured.
    max_total_variation, max_flip_rate
        Limits of the means, in [0, 1]; None for none.
    """
    if stability is None:
        return Section.unmeasured("stability")
    shown = f"{100 * stability.confidence:g} %"
    findings = [
        _held("total variation", stability.total_variation, max_total_variation, shown),
        _held("Jensen-Shannon distance", stability.js_distance, None, shown),
        _held("flip rate", stability.flip_rate, max_flip_rate, shown),
    ]
    note = f"Champion's pmf against the challenger's, on {stability.rows:,} judged interactions."
    return Section(name="stability", measured=True, note=note, findings=tuple(findings))


def _held(name: str, found: Distance, limit: float | None, shown: str) -> Finding:
    objection = None
    if limit is not None and found.upper > limit:
        objection = (
            f"{name} between champion and challenger is {found.value:.4f}, {shown} interval "
            f"[{found.lower:.4f}, {found.upper:.4f}]: not shown to be at most {limit:g}"
        )
    return Finding(
        name=name,
        value=found.value,
        lower=found.lower,
        upper=found.upper,
        limit=limit,
        objection=objection,
    )


def _information(pmf: NDArray[np.float64], middle: NDArray[np.float64]) -> NDArray[np.float64]:
    """``p log2(p / m)``, 0 where p is."""
    played = pmf > 0.0
    ratio = np.divide(pmf, middle, out=np.ones_like(pmf), where=played)
    return np.asarray(pmf * np.log2(ratio), dtype=np.float64)
