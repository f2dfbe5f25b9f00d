"""Groups of decisions by audit attributes, crossed or not, of which small ones are not shown."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from croupier.offline.grouped import MOST_LEVELS, words_at
from croupier.policy.errors import InvalidInputError
from croupier.policy.fairness.groups import parts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

__all__ = (
    "TOGETHER",
    "Cell",
    "Coded",
    "Shown",
    "code_rows",
    "label",
    "require_few",
    "shown_groups",
    "suppressed",
)

Cell: TypeAlias = tuple[str, ...]
"""A group: what it has for each of the attributes that are crossed, one if none are."""

TOGETHER = r"^\(\d+ others\)$"
"""Labels of groups that are taken together, as a regular expression."""

_BETWEEN = " × "


@dataclass(frozen=True, eq=False)
class Coded:
    """Which group every row is in.

    Attributes
    ----------
    cells
        The groups, in ascending order.
    codes
        Index into them of every row, shape (n,).
    """

    cells: tuple[Cell, ...]
    codes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shown:
    """Which groups are shown, and how.

    Attributes
    ----------
    groups
        By label, the cells of each; large ones first, what is taken together last.
    hidden
        Cells of which no number is shown.
    """

    groups: dict[str, tuple[Cell, ...]]
    hidden: tuple[Cell, ...]


def code_rows(interactions: pl.DataFrame, attribute: str) -> Coded:
    """Divide rows by an attribute, or by several that are crossed.

    Parameters
    ----------
    interactions
        Rows of the decisions or the interactions table.
    attribute
        As in :class:`~croupier.policy.fairness.groups.FairnessConfig`. A row without it is in a
        group of its own.

    Raises
    ------
    InvalidInputError
        If it is not a category: a list, an object, or more than 200 groups.
    """
    words = zip(*(words_at(interactions, part) for part in parts_of(attribute)), strict=True)
    rows: list[Cell] = list(words)
    cells = sorted(set(rows))
    require_few(attribute, cells)
    place = {cell: code for code, cell in enumerate(cells)}
    codes = np.array([place[cell] for cell in rows], dtype=np.int64)
    return Coded(tuple(cells), codes)


def require_few(attribute: str, cells: Sequence[Cell]) -> None:
    """Refuse what is an identifier or a measurement.

    Raises
    ------
    InvalidInputError
        If there are more than 200 groups.
    """
    if len(cells) > MOST_LEVELS:
        raise InvalidInputError(
            "attributes",
            f"expected at most {MOST_LEVELS} groups of {attribute!r}, got {len(cells):,}",
        )


def shown_groups(counts: Mapping[Cell, int], *, least: int, most: int) -> Shown:
    """Choose what is shown: large groups by themselves, further ones together, small ones not.

    Parameters
    ----------
    counts
        Decisions by cell.
    least
        Fewest decisions of a group that is shown.
    most
        Groups that are shown by themselves.
    """
    hidden = suppressed(counts, least)
    open_ = sorted(counts.keys() - hidden, key=lambda cell: (-counts[cell], cell))
    alone = open_ if len(open_) <= most + 1 else open_[:most]
    groups: dict[str, tuple[Cell, ...]] = {label(cell): (cell,) for cell in alone}
    rest = tuple(open_[len(alone) :])
    if rest:
        groups[f"({len(rest)} others)"] = rest
    return Shown(groups, tuple(sorted(hidden)))


def suppressed(counts: Mapping[Cell, int], least: int) -> set[Cell]:
    """Cells that are not shown, so that no number of a small one can be worked out.

    A cell with fewer than `least` decisions is not shown. As totals are known, also of the
    attributes that are crossed, it would be the total less the others: so in every line of the
    table, in which all attributes but one are fixed, smallest cells are left out besides until at
    least two are, which have `least` decisions together (complementary suppression, Cox,
    "Suppression Methodology and Statistical Disclosure Control", JASA 1980; here greedily, line by
    line, until nothing changes).

    Parameters
    ----------
    counts
        Decisions by cell.
    least
        At least 1.
    """
    hidden = {cell for cell, count in counts.items() if count < least}
    lines = list(_lines(counts))
    changed = bool(hidden)
    while changed:
        changed = False
        for line in lines:
            inside = [cell for cell in line if cell in hidden]
            others = sorted(set(line) - hidden, key=lambda cell: (counts[cell], cell))
            while others and inside and not _is_safe(inside, counts, least):
                inside.append(others.pop(0))
                hidden.add(inside[-1])
                changed = True
    return hidden


def label(cell: Cell) -> str:
    """A group as people read it."""
    return _BETWEEN.join(cell)


def _is_safe(hidden: Sequence[Cell], counts: Mapping[Cell, int], least: int) -> bool:
    return len(hidden) > 1 and sum(counts[cell] for cell in hidden) >= least


def _lines(cells: Iterable[Cell]) -> Iterable[list[Cell]]:
    lines: dict[tuple[int, Cell], list[Cell]] = defaultdict(list)
    for cell in cells:
        for axis in range(len(cell)):
            lines[axis, cell[:axis] + cell[axis + 1 :]].append(cell)
    return lines.values()
