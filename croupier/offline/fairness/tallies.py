"""Sums over decisions by generation and group, from which all figures of an audit are made.

They are added up frame by frame, so that a log of any length takes no more room than a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import polars as pl

from croupier.offline.fairness.groups import code_rows
from croupier.offline.interactions import keep_weights
from croupier.offline.realised import Moments

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from croupier.offline.fairness.groups import Cell

    FloatArray: TypeAlias = NDArray[np.float64]

__all__ = ("COLUMNS", "Tally", "tally_groups", "together")

COLUMNS = (
    *("generation", "context", "audit", "action_ids", "pmf", "chosen", "propensity"),
    *("keep_prob", "reward"),
)
"""What is read of the interactions."""


@dataclass(frozen=True, eq=False, slots=True)
class Tally:
    """Sums over a group's decisions, each of which counts c = 1 / keep_prob times.

    Attributes
    ----------
    rows, weight, square
        Their number, ``sum c`` and ``sum c²``.
    reward
        ``sum c r``, ``sum c² r`` and ``sum c² r²``, shape (3,).
    exposure
        By action, the same of its probability, 0 where it could not be chosen; shape (3,).
    drawn
        By action, ``sum c`` and ``sum c p`` of the decisions that chose it, with the propensity p;
        shape (2,).
    """

    rows: int
    weight: float
    square: float
    reward: FloatArray
    exposure: Mapping[str, FloatArray]
    drawn: Mapping[str, FloatArray]

    def __add__(self, other: Tally) -> Tally:
        """Of the decisions of both."""
        return Tally(
            self.rows + other.rows,
            self.weight + other.weight,
            self.square + other.square,
            self.reward + other.reward,
            _sum(self.exposure, other.exposure),
            _sum(self.drawn, other.drawn),
        )

    def reward_moments(self) -> Moments:
        """Of the rewards."""
        return self._moments(self.reward)

    def exposure_moments(self, action: str) -> Moments:
        """Of an action's probability; it had none where it wasn't among the actions."""
        return self._moments(self.exposure.get(action, np.zeros(3)))

    def share(self, action: str) -> float:
        """Share of the decisions that chose an action, in [0, 1]."""
        return float(self.drawn[action][0] / self.weight) if action in self.drawn else 0.0

    def propensity(self, action: str) -> float | None:
        """Mean propensity of an action where it was chosen; None if it never was."""
        if action not in self.drawn or self.drawn[action][0] <= 0.0:
            return None
        weight, total = self.drawn[action]
        return float(total / weight)

    def _moments(self, sums: FloatArray) -> Moments:
        total, squared, squares = sums.tolist()
        mean = total / self.weight
        off = squared - mean * self.square
        about = squares - 2.0 * mean * squared + mean * mean * self.square
        centred = (self.square, off, max(about, 0.0))
        return Moments(rows=self.rows, weight=self.weight, mean=mean, squares=centred)


def tally_groups(
    frames: Iterable[pl.DataFrame], attributes: Sequence[str]
) -> dict[str, dict[int, dict[Cell, Tally]]]:
    """Add up decisions by attribute, generation and group.

    Parameters
    ----------
    frames
        Of the interactions table, with :data:`COLUMNS`. Rows without a generation or without a pmf,
        which are imported, are passed over.
    attributes
        As in :class:`~croupier.policy.fairness.groups.FairnessConfig`.

    Raises
    ------
    InvalidInputError
        If an attribute is not a category, see :func:`~croupier.offline.fairness.groups.code_rows`.
    """
    found: dict[str, dict[int, dict[Cell, Tally]]] = {name: {} for name in attributes}
    for frame in frames:
        known = pl.col("generation").is_not_null() & pl.col("pmf").is_not_null()
        # Of a row that contradicts itself nothing can be said; the audit of propensities counts it.
        fits = pl.col("pmf").list.len() == pl.col("action_ids").list.len()
        rows = frame.filter(known & fits & (pl.col("pmf").list.len() > 0))
        if rows.is_empty():
            continue
        entries = _Entries.of(rows)
        for attribute in attributes:
            coded = code_rows(rows, attribute)
            of_attribute = found[attribute]
            for (number, code), tally in entries.tallies(coded.codes, len(coded.cells)).items():
                cells = of_attribute.setdefault(number, {})
                cell = coded.cells[code]
                cells[cell] = cells[cell] + tally if cell in cells else tally
    return found


def together(tallies: Iterable[Tally]) -> Tally:
    """Of all decisions of some groups, at least one."""
    first, *others = tallies
    for each in others:
        first = first + each
    return first


@dataclass(frozen=True, eq=False, slots=True)
class _Entries:
    """A frame as arrays: a number for every decision, or for every action of every decision."""

    generations: NDArray[np.int64]
    generation: NDArray[np.int64]
    keep: FloatArray
    reward: FloatArray
    propensity: FloatArray
    chosen: NDArray[np.int64]
    actions: list[str]
    action: NDArray[np.int64]
    row: NDArray[np.int64]
    probability: FloatArray

    @classmethod
    def of(cls, rows: pl.DataFrame) -> _Entries:
        generations, generation = np.unique(rows["generation"].to_numpy(), return_inverse=True)
        exploded = rows["action_ids"].explode()
        ids = exploded.unique().sort()
        lengths = rows["pmf"].list.len().to_numpy().astype(np.int64)
        action = exploded.cast(pl.Enum(ids)).to_physical().to_numpy().astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        chosen = np.clip(rows["chosen"].to_numpy(), 0, lengths - 1)
        return cls(
            generations=generations,
            generation=generation.astype(np.int64),
            keep=keep_weights(rows),
            reward=rows["reward"].to_numpy(),
            propensity=rows["propensity"].to_numpy(),
            chosen=action[starts + chosen],
            actions=ids.to_list(),
            action=action,
            row=np.repeat(np.arange(len(rows)), lengths),
            probability=rows["pmf"].explode().to_numpy(),
        )

    def tallies(self, codes: NDArray[np.int64], groups: int) -> dict[tuple[int, int], Tally]:
        """By generation and code of the group."""
        count = len(self.actions)
        place = self.generation * groups + codes
        size = len(self.generations) * groups
        keep, square = self.keep, self.keep**2
        of_rows = _sums(place, size, (keep, square, keep * self.reward))
        rewards = _sums(place, size, (square * self.reward, square * self.reward**2))
        p = self.probability
        entry = place[self.row] * count + self.action
        exposure = np.stack(
            _sums(
                *(entry, size * count),
                (keep[self.row] * p, square[self.row] * p, square[self.row] * p * p),
            ),
            axis=1,
        )
        drawn = np.stack(
            _sums(place * count + self.chosen, size * count, (keep, keep * self.propensity)), axis=1
        )
        offered = np.bincount(entry, minlength=size * count)
        rows = np.bincount(place, minlength=size)
        found = {}
        for each in np.flatnonzero(rows).tolist():
            first = each * count
            there = [a for a in range(count) if offered[first + a]]
            found[int(self.generations[each // groups]), each % groups] = Tally(
                rows=int(rows[each]),
                weight=float(of_rows[0][each]),
                square=float(of_rows[1][each]),
                reward=np.array([of_rows[2][each], rewards[0][each], rewards[1][each]]),
                exposure={self.actions[a]: exposure[first + a] for a in there},
                drawn={self.actions[a]: drawn[first + a] for a in there if drawn[first + a][0]},
            )
        return found


def _sums(
    place: NDArray[np.int64], size: int, columns: Sequence[FloatArray]
) -> tuple[FloatArray, ...]:
    sums = (np.bincount(place, weights=each, minlength=size) for each in columns)
    return tuple(np.asarray(each, dtype=np.float64) for each in sums)


def _sum(one: Mapping[str, FloatArray], other: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    found = dict(one)
    for name, sums in other.items():
        found[name] = found[name] + sums if name in found else sums
    return found
