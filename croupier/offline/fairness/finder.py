"""Pairs that violate, among many decisions, without comparing all of them.

A decision searches a tree of boxes (:class:`~croupier.offline.fairness.box_tree.BoxTree`) for a
partner, by branch and bound: boxes that can't hold one are left out, and the most promising are
looked into first. What is found was compared exactly: no pair is reported that doesn't violate. A
decision whose search ends without a partner has none. One that has looked into very many boxes is
given up, and it is told that it isn't settled.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from croupier.offline.fairness.box_tree import BoxTree
from croupier.offline.fairness.partner_search import PartnerSearch
from croupier.offline.fairness.violation_rate import pair_blocks
from croupier.policy.fairness.auditors import (
    FloatArray,
    JudgedPairs,
    Metric,
    gap_of,
    required_votes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from croupier.policy.fairness.auditors import NamedGap, Panel

__all__ = ("EXACT_UP_TO", "Found", "all_partners", "indexed_partners", "worst_partners")

EXACT_UP_TO = 20_000
"""So many decisions and fewer are compared pair by pair."""

_MOST_VISITS = 10_000
_AT_ONCE = 32_768
_PARTS = 8
_WORST = 2000


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
        an index, those of the worst 2,000 are.
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
    most_visits: int = _MOST_VISITS,
    compiled: bool = True,
) -> Found:
    """The same with an index, see the module; parameters as of :func:`worst_partners`.

    With people in the panel of a pair, the pair was judged, and all such pairs are compared. The
    panel of all others are the metrics.

    Parameters
    ----------
    most_visits
        Boxes that a decision looks into before it is given up.
    compiled
        Whether to use what is compiled, if it is there.
    """
    metrics = [each for each in panel.auditors if isinstance(each, Metric)]
    judged = _judged_partners(panel, treatments, alpha, gap)
    if not metrics:
        # People have judged what they have judged, and all of that is known.
        return judged
    people = [each.keys for each in panel.auditors if isinstance(each, JudgedPairs)]
    search = PartnerSearch.of(
        BoxTree.of(metrics, required_votes(panel.gamma, len(metrics)), treatments, gap),
        len(treatments),
        np.concatenate([*people, np.zeros(0, dtype=np.int64)]),
        alpha=alpha,
        most_visits=most_visits,
        compiled=compiled,
    )
    finding = _Finding(panel, treatments, gap, search, judged.partner.copy(), judged.excess.copy())
    finding.find_any(progress)
    finding.find_worst()
    return Found(
        partner=finding.partner,
        excess=finding.excess,
        settled=~finding.given_up | (finding.partner >= 0),
        compared=finding.compared + judged.compared,
        exact=False,
    )


@dataclass(slots=True)
class _Finding:
    """Partners of all decisions, as they are found."""

    panel: Panel
    treatments: FloatArray
    gap: NamedGap
    search: PartnerSearch
    partner: NDArray[np.int64]
    excess: FloatArray
    given_up: NDArray[np.bool_] = field(init=False)
    compared: int = 0

    def __post_init__(self) -> None:
        self.given_up = np.zeros(len(self.treatments), dtype=np.bool_)

    def find_any(self, progress: Callable[[int, int], None] | None) -> None:
        """A partner for every decision that has one.

        One decision of each leaf is asked first, since what violates with it is likely to violate
        with the others of its leaf too, and is tried before they are asked.
        """
        first, size = self.search.tree.rows[:, 0], self.search.tree.rows.shape[1]
        # Those side by side look into the same boxes.
        everybody = np.argsort(self.search.places, kind="stable")
        asked = np.zeros(len(everybody), dtype=np.bool_)
        asked[first] = True
        one_each, others = everybody[asked[everybody]], everybody[~asked[everybody]]
        self._ask(one_each, any_=True)
        guess = self.partner[first[self.search.places[others] // size]]
        self._note(others[guess >= 0], guess[guess >= 0])
        self._ask(others, any_=True, progress=progress)

    def find_worst(self) -> None:
        """The worst partners: with τ the 2,000th largest excess found, all that are above it."""
        last = max(len(self.excess) - _WORST, 0)
        least = max(float(np.partition(self.excess, last)[last]), 0.0)
        everybody = np.argsort(self.search.places, kind="stable")
        self._ask(everybody[self.partner[everybody] >= 0], any_=False, least=least)

    def _ask(
        self,
        rows: NDArray[np.int64],
        *,
        any_: bool,
        least: float = 0.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Search for partners of some decisions; what is found doesn't depend on the threads."""
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for start in range(0, len(rows), _AT_ONCE):
                some = rows[start : start + _AT_ONCE]
                if any_:
                    # The others are somebody's partner by now.
                    some = some[self.partner[some] < 0]
                parts = np.array_split(some, _PARTS)
                floors = [np.maximum(self.excess[part], least) for part in parts]
                answers = threads.map(partial(self.search.find, any_=any_), parts, floors)
                for part, found in zip(parts, answers, strict=True):
                    there = found.partner >= 0
                    self._note(part[there], found.partner[there])
                    self.given_up[part] |= found.given_up
                    self.compared += found.compared
                if progress is not None:
                    progress(min(start + _AT_ONCE, len(rows)), len(rows))

    def _note(self, rows: NDArray[np.int64], partners: NDArray[np.int64]) -> None:
        """Keep pairs that violate, for both, where they are worse than what is known."""
        over = gap_of(self.gap)(self.treatments[rows], self.treatments[partners])
        over = over - self.panel.distances(rows, partners)
        over -= self.search.alpha
        worst_last = np.argsort(over, kind="stable")
        for one, two in ((rows, partners), (partners, rows)):
            mine, other, most = one[worst_last], two[worst_last], over[worst_last]
            better = (most > 0.0) & (most > self.excess[mine]) & (mine != other)
            self.excess[mine[better]] = most[better]
            self.partner[mine[better]] = other[better]


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
