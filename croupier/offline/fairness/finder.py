"""Pairs that violate, among many decisions, without comparing all of them.

A pair can only violate if the two are nearer to each other than they are treated differently, less
α. So decisions are put into cells by their treatment, every auditor's metric has a k-d tree of each
cell, and a decision only asks the cells that are treated differently enough, for neighbours that
are near enough. What is found was compared exactly: no pair is reported that doesn't violate.
Whether one was missed is known too, by the triangle inequality: all of a cell's decisions that
weren't compared are at least as far away as the farthest that was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np
import scipy
from numpy.typing import NDArray

from croupier.offline.fairness.violation_rate import pair_blocks
from croupier.policy.fairness.auditors import (
    FloatArray,
    JudgedPairs,
    Metric,
    gap_of,
    required_votes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from croupier.policy.fairness.auditors import NamedGap, Panel

    _Tree: TypeAlias = scipy.spatial.cKDTree[Any, Any]

__all__ = ("EXACT_UP_TO", "Found", "all_partners", "indexed_partners", "worst_partners")

EXACT_UP_TO = 20_000
"""So many decisions and fewer are compared pair by pair."""

_NEIGHBOURS = (1, 4, 16, 64)
_CELLS = 24
_AT_ONCE = 50_000
_REFINED = 2000


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """For every decision, a partner with whom it violates.

    Attributes
    ----------
    partner
        Its row, shape (n,); -1 where none was found.
    excess
        ``|π(x) - π(x')| - d(x, x') - α`` of the two, above 0; minus infinity where none was found.
        Shape (n,).
    settled
        Whether it is certain that a decision has a violating partner, or has none; shape (n,).
    compared
        Pairs whose distance was looked at.
    exact
        Whether all pairs were compared, so that all partners are those of the largest excess. With
        an index, those of the worst 2,000 are looked for once more.
    """

    partner: NDArray[np.int64]
    excess: FloatArray
    settled: NDArray[np.bool_]
    compared: int
    exact: bool

    @property
    def violators(self) -> int:
        """Decisions that have a violating partner."""
        return int((self.partner >= 0).sum())

    def worst(self, count: int) -> list[tuple[int, int, float]]:
        """The worst pairs (row, partner, excess), no decision in more than one of them."""
        pairs: list[tuple[int, int, float]] = []
        taken: set[int] = set()
        for row in np.argsort(-self.excess, kind="stable").tolist():
            partner = int(self.partner[row])
            if partner < 0 or len(pairs) == count:
                break
            if row not in taken and partner not in taken:
                pairs.append((row, partner, float(self.excess[row])))
                taken |= {row, partner}
        return pairs


def worst_partners(
    panel: Panel,
    treatments: FloatArray,
    *,
    alpha: float,
    gap: NamedGap = "any",
    exact_up_to: int = EXACT_UP_TO,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Find for every decision a partner with whom it violates, if it has one.

    Parameters
    ----------
    panel
        Over the decisions, by their rows.
    treatments
        Probabilities of K actions, shape (n, K).
    alpha
        Slack in [0, 1).
    gap
        How treatments are compared, see :func:`~croupier.policy.fairness.auditors.gap_of`.
    exact_up_to
        Of how many decisions all pairs are compared; of more, an index is used.
    progress
        Called with steps done and in all.
    """
    if len(treatments) <= exact_up_to:
        return all_partners(panel, treatments, alpha=alpha, gap=gap, progress=progress)
    return indexed_partners(panel, treatments, alpha=alpha, gap=gap, progress=progress)


def all_partners(
    panel: Panel,
    treatments: FloatArray,
    *,
    alpha: float,
    gap: NamedGap = "any",
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """The same by comparing all pairs; parameters as of :func:`worst_partners`."""
    n = len(treatments)
    partner, excess = np.full(n, -1, dtype=np.int64), np.full(n, -np.inf)
    for rows, gaps, distances in pair_blocks(panel, treatments, gap):
        over = gaps - distances - alpha
        over[np.arange(len(rows)), rows] = -np.inf
        best = over.argmax(axis=1)
        most = over[np.arange(len(rows)), best]
        bad = most > 0.0
        partner[rows[bad]], excess[rows[bad]] = best[bad], most[bad]
        if progress is not None:
            progress(int(rows[-1]) + 1, n)
    return Found(
        partner=partner,
        excess=excess,
        settled=np.ones(n, dtype=np.bool_),
        compared=n * (n - 1) // 2,
        exact=True,
    )


def indexed_partners(
    panel: Panel,
    treatments: FloatArray,
    *,
    alpha: float,
    gap: NamedGap = "any",
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """The same with an index, see the module; parameters as of :func:`worst_partners`.

    A panel's distance is the k-th smallest of its auditors', which is at least the smallest of any
    m - k + 1 of them, since one of these is among the k. So the trees are those of the m - k + 1
    metrics first named, and what none of them has near is far for the panel.

    With people in the panel of a pair, the pair was judged, and all such pairs are compared.
    """
    metrics = [each for each in panel.auditors if isinstance(each, Metric)]
    judged = _judged_partners(panel, treatments, alpha, gap)
    if not metrics:
        # People have judged what they have judged, and all of that is known.
        return judged
    votes = required_votes(panel.gamma, len(metrics))
    search = _Search(
        panel=panel,
        metrics=metrics[: len(metrics) - votes + 1],
        treatments=treatments,
        cells=_cells(treatments, gap),
        alpha=alpha,
        gap=gap,
    )
    found = search.run(progress)
    better = judged.excess > found.excess
    return Found(
        partner=np.where(better, judged.partner, found.partner),
        excess=np.where(better, judged.excess, found.excess),
        settled=found.settled | better,
        compared=found.compared + judged.compared,
        exact=False,
    )


@dataclass(frozen=True, slots=True)
class _Cells:
    """Decisions by their treatment: k-centre clusters (Gonzalez, 1985)."""

    of: NDArray[np.int64]
    centres: FloatArray
    radii: FloatArray
    members: list[NDArray[np.int64]]


@dataclass(slots=True)
class _Search:
    """Asks every cell for near neighbours of the decisions that it may hold a partner of."""

    panel: Panel
    metrics: list[Metric]
    treatments: FloatArray
    cells: _Cells
    alpha: float
    gap: NamedGap
    partner: NDArray[np.int64] = field(init=False)
    excess: FloatArray = field(init=False)
    compared: int = 0

    def run(self, progress: Callable[[int, int], None] | None) -> Found:
        n = len(self.treatments)
        self.partner = np.full(n, -1, dtype=np.int64)
        self.excess = np.full(n, -np.inf)
        open_ = np.arange(n)
        trees = [
            [scipy.spatial.cKDTree(metric.places[members]) for members in self.cells.members]
            for metric in self.metrics
        ]
        cells = range(len(self.cells.members))
        steps = len(_NEIGHBOURS) * len(cells)
        for number, neighbours in enumerate(_NEIGHBOURS):
            unsure = np.zeros(n, dtype=np.bool_)
            for cell in cells:
                # What has a partner is settled; a nearer neighbour could only make it worse.
                still = open_[self.partner[open_] < 0]
                self._ask(still, cell, [each[cell] for each in trees], neighbours, unsure)
                if progress is not None:
                    progress(number * len(cells) + cell + 1, steps)
            open_ = np.flatnonzero(unsure & (self.partner < 0))
            if not len(open_):
                break
        worst = np.argsort(-self.excess, kind="stable")[:_REFINED]
        worst = worst[self.partner[worst] >= 0]
        for cell in cells:
            trees_of = [each[cell] for each in trees]
            self._ask(worst, cell, trees_of, _NEIGHBOURS[1], np.zeros(n, dtype=np.bool_))
        if progress is not None:
            progress(steps, steps)
        settled = np.ones(n, dtype=np.bool_)
        settled[open_] = False
        return Found(
            partner=self.partner,
            excess=self.excess,
            settled=settled,
            compared=self.compared,
            exact=False,
        )

    def _ask(
        self,
        rows: NDArray[np.int64],
        cell: int,
        trees: Sequence[_Tree],
        neighbours: int,
        unsure: NDArray[np.bool_],
    ) -> None:
        """Compare decisions with their nearest neighbours in a cell."""
        for start in range(0, len(rows), _AT_ONCE):
            some = rows[start : start + _AT_ONCE]
            most = self._largest_gap(some, cell) - self.alpha
            # Nothing in the cell is treated differently enough, or worse than what is known.
            asking = (most > 0.0) & (most > self.excess[some])
            some, most = some[asking], most[asking]
            if len(some):
                unsure[some] |= self._compare(some, most, cell, trees, neighbours)

    def _compare(
        self,
        rows: NDArray[np.int64],
        most: FloatArray,
        cell: int,
        trees: Sequence[_Tree],
        neighbours: int,
    ) -> NDArray[np.bool_]:
        """Whether the cell may still hold a partner that wasn't compared; of every row."""
        members = self.cells.members[cell]
        k = min(neighbours, len(members))
        nearest = np.full(len(rows), np.inf)
        for metric, tree in zip(self.metrics, trees, strict=True):
            answer = tree.query(
                metric.places[rows], k=k, distance_upper_bound=float(most.max()), workers=-1
            )
            away, at = (np.asarray(each).reshape(len(rows), k) for each in answer)
            for place in range(k):
                there = np.isfinite(away[:, place]) & (away[:, place] < most)
                if there.any():
                    self._note(rows[there], members[at[there, place]])
            # Those that weren't compared are no nearer than the last that was.
            beyond = np.where(np.isfinite(away[:, -1]), away[:, -1], np.inf)
            nearest = np.minimum(nearest, beyond)
        if k == len(members):
            return np.zeros(len(rows), dtype=np.bool_)
        return np.asarray(nearest < most)

    def _note(self, rows: NDArray[np.int64], partners: NDArray[np.int64]) -> None:
        gaps = gap_of(self.gap)(self.treatments[rows], self.treatments[partners])
        over = gaps - self.panel.distances(rows, partners) - self.alpha
        self.compared += len(rows)
        better = (over > 0.0) & (over > self.excess[rows]) & (rows != partners)
        self.excess[rows[better]] = over[better]
        self.partner[rows[better]] = partners[better]

    def _largest_gap(self, rows: NDArray[np.int64], cell: int) -> FloatArray:
        centre = self.cells.centres[cell][None, :]
        away = gap_of(self.gap)(self.treatments[rows], centre)
        return np.asarray(np.minimum(away + self.cells.radii[cell], 1.0))


def _cells(treatments: FloatArray, gap: NamedGap) -> _Cells:
    """Farthest-first clusters, whose radii are at most twice the smallest possible."""
    measure = gap_of(gap)
    centres = [treatments[0]]
    of = np.zeros(len(treatments), dtype=np.int64)
    away = measure(treatments, treatments[0])
    while len(centres) < _CELLS and away.max() > 0.0:
        centres.append(treatments[int(away.argmax())])
        nearer = measure(treatments, centres[-1])
        closer = nearer < away
        of[closer] = len(centres) - 1
        away = np.minimum(away, nearer)
    members = [np.flatnonzero(of == cell) for cell in range(len(centres))]
    radii = np.array([away[rows].max() if len(rows) else 0.0 for rows in members])
    return _Cells(of, np.array(centres), radii, members)


def _judged_partners(panel: Panel, treatments: FloatArray, alpha: float, gap: NamedGap) -> Found:
    """Of the pairs that people have judged."""
    n = len(treatments)
    partner, excess, compared = np.full(n, -1, dtype=np.int64), np.full(n, -np.inf), 0
    for person in panel.auditors:
        if not isinstance(person, JudgedPairs):
            continue
        first, second = person.pairs
        over = gap_of(gap)(treatments[first], treatments[second])
        over = over - panel.distances(first, second) - alpha
        compared += len(first)
        for one, two in ((first, second), (second, first)):
            for row in np.argsort(over).tolist():
                if over[row] > 0.0 and over[row] > excess[one[row]]:
                    excess[one[row]], partner[one[row]] = over[row], two[row]
    return Found(
        partner=partner,
        excess=excess,
        settled=np.ones(n, dtype=np.bool_),
        compared=compared,
        exact=False,
    )
