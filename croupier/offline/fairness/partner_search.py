"""Branch and bound for partners of many decisions, in a tree of boxes.

A decision looks into the most promising box first, and leaves out those that can't hold a partner.
Compiled (``_partners.c``) if that was built; else here, many decisions side by side. Both look into
the same boxes in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from croupier.policy.kernel import KERNEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.offline.fairness.box_tree import BoxTree
    from croupier.policy.fairness.auditors import FloatArray

__all__ = ("COMPILED", "PartnerSearch", "Partners")


def _compiled() -> Any:
    """Whatever does without the kernel does without this."""
    if KERNEL is None:
        return None
    try:
        return import_module("croupier.offline.fairness._partners")
    except ImportError:
        return None


COMPILED: Any = _compiled()
"""The compiled module; None if it wasn't built."""

# Of the boxes and the metrics of a tree, the most that is compiled.
_MOST_METRICS = 64


@dataclass(frozen=True, slots=True)
class Partners:
    """What some decisions have found.

    Attributes
    ----------
    partner
        Rows, shape (b,); -1 where none was found.
    over
        ``gap - d - α`` of the two; minus infinity where none was found. Shape (b,).
    given_up
        Whether a search ended before it was through, shape (b,).
    compared
        Pairs that were compared.
    """

    partner: NDArray[np.int64]
    over: FloatArray
    given_up: NDArray[np.bool_]
    compared: int


@dataclass(frozen=True, slots=True)
class PartnerSearch:
    """Searches of a tree.

    Attributes
    ----------
    tree
        Of the decisions.
    alpha
        Slack ≥ 0.
    judged
        Keys ``min(i, j) n + max(i, j)`` of pairs that are passed over, in order.
    places
        Of every decision, one of its places in the tree's leaves, shape (n,).
    most_visits
        Boxes that a decision looks into before it is given up.
    compiled
        Whether to use what is compiled, if it is there.
    """

    tree: BoxTree
    alpha: float
    judged: NDArray[np.int64]
    places: NDArray[np.int64]
    most_visits: int
    compiled: bool = True

    @classmethod
    def of(
        cls,
        tree: BoxTree,
        n: int,
        judged: NDArray[np.int64],
        *,
        alpha: float,
        most_visits: int,
        compiled: bool = True,
    ) -> PartnerSearch:
        """A search of n decisions' tree, see the class."""
        places = np.empty(n, dtype=np.int64)
        places[tree.rows.ravel()] = np.arange(tree.rows.size)
        return cls(tree, alpha, np.unique(judged), places, most_visits, compiled)

    def find(self, rows: NDArray[np.int64], floors: FloatArray, *, any_: bool) -> Partners:
        """Find partners whose excess is above a floor.

        Parameters
        ----------
        rows
            Decisions, each once, shape (b,).
        floors
            At least 0, shape (b,).
        any_
            Whether a decision stops at the first box with a partner, and not at the worst partner.
        """
        if self.compiled and COMPILED is not None and len(self.tree.parts) <= _MOST_METRICS:
            return self._compiled(rows, floors, any_=any_)
        return self._walked(rows, floors, any_=any_)

    def _compiled(self, rows: NDArray[np.int64], floors: FloatArray, *, any_: bool) -> Partners:
        tree, b = self.tree, len(rows)
        found = Partners(np.empty(b, np.int64), np.empty(b), np.empty(b, np.bool_), 0)
        compared = COMPILED.search(
            tree.low,
            tree.high,
            tree.points,
            tree.rows,
            np.array([end for _, end in tree.parts], dtype=np.int64),
            self.judged,
            self.places[rows],
            np.ascontiguousarray(floors, dtype=np.float64),
            found.partner,
            found.over,
            found.given_up,
            (
                *tree.points.shape,
                len(self.places),
                tree.votes,
                int(tree.gap == "total_variation"),
            ),
            self.alpha,
            any_,
            self.most_visits,
        )
        return Partners(found.partner, found.over, found.given_up, compared)

    def _walked(self, rows: NDArray[np.int64], floors: FloatArray, *, any_: bool) -> Partners:
        walks = _Walks(self, rows, floors)
        while (at := np.flatnonzero(walks.top > 0)).size:
            walks.step(at, any_=any_)
        return Partners(walks.partner, walks.over, walks.given_up, walks.compared)


class _Walks:
    """Searches that go on side by side, each with a stack of boxes, the most promising on top."""

    def __init__(self, search: PartnerSearch, rows: NDArray[np.int64], floors: FloatArray) -> None:
        b, tree = len(rows), search.tree
        self._search, self._rows, self._floor = search, rows, floors.copy()
        self._points = tree.points.reshape(-1, tree.points.shape[-1])[search.places[rows]]
        self._stack = np.ones((b, tree.depth + 2), dtype=np.int64)
        self._bounds = np.full(self._stack.shape, np.inf)
        self._visits = np.zeros(b, dtype=np.int64)
        self.top = np.ones(b, dtype=np.int64)
        self.partner, self.over = np.full(b, -1, dtype=np.int64), np.full(b, -np.inf)
        self.given_up = np.zeros(b, dtype=np.bool_)
        self.compared = 0

    def step(self, at: NDArray[np.int64], *, any_: bool) -> None:
        """Look into one more box in each of some walks."""
        self.top[at] -= 1
        useful = self._bounds[at, self.top[at]] > self._floor[at]
        at = at[useful]
        tired = self._visits[at] == self._search.most_visits
        self.given_up[at[tired]] = True
        self.top[at[tired]] = 0
        at = at[~tired]
        nodes = self._stack[at, self.top[at]]
        self._visits[at] += 1
        leaf = nodes >= self._search.tree.leaves
        self._branch(at[~leaf], nodes[~leaf])
        self._compare(at[leaf], nodes[leaf] - self._search.tree.leaves)
        if any_:
            self.top[at[self.partner[at] >= 0]] = 0

    def _branch(self, at: NDArray[np.int64], nodes: NDArray[np.int64]) -> None:
        bounds = self._search.tree.bounds(self._points[at], nodes) - self._search.alpha
        second = (bounds[:, 1] > bounds[:, 0]).astype(np.int64)
        for which in (1 - second, second):
            bound = bounds[np.arange(len(at)), which]
            kept = bound > self._floor[at]
            there = at[kept]
            self._stack[there, self.top[there]] = (2 * nodes + which)[kept]
            self._bounds[there, self.top[there]] = bound[kept]
            self.top[there] += 1

    def _compare(self, at: NDArray[np.int64], leaves: NDArray[np.int64]) -> None:
        rows, members = self._rows[at], self._search.tree.rows[leaves]
        over = self._search.tree.excesses(self._points[at], leaves) - self._search.alpha
        over[members == rows[:, None]] = -np.inf
        self.compared += over.size
        if self._search.judged.size:
            who, where = np.nonzero(over > self._floor[at, None])
            one, two = rows[who], members[who, where]
            keys = np.minimum(one, two) * len(self._search.places) + np.maximum(one, two)
            judged = np.isin(keys, self._search.judged)
            over[who[judged], where[judged]] = -np.inf
        best = over.argmax(axis=1)
        most = over[np.arange(len(at)), best]
        better = most > self._floor[at]
        there = at[better]
        self.partner[there] = members[better, best[better]]
        self.over[there] = self._floor[there] = most[better]
