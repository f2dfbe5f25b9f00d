"""What the nights have last said of a loop's generations: whether they oscillate or grow unfair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("Signal", "latest_signals", "latest_told")

_SAYS = {
    "oscillates": (
        "what the latest generations earned goes up and down more than chance does",
        "alternation_p_value",
    ),
    "disparity_rises": ("a disparity between groups has risen", "disparity_p_value"),
    "violations_rise": (
        "pairs that are alike are treated differently more often",
        "violation_p_value",
    ),
    "simulators_err": (
        "simulators of its users are off by more than their max_gap in what it earns in a session",
        "simulator_p_value",
    ),
}


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """One of a loop's signals, as it was last tested.

    Attributes
    ----------
    name
        Column of the generations table: ``oscillates``, ``disparity_rises``, ``violations_rise``,
        ``simulators_err``.
    generation
        The last generation of those that were tested.
    raised
        Whether there is one.
    p_value
        Of the test; None if it wasn't kept.
    says
        What it says if it is raised.
    """

    name: str
    generation: int
    raised: bool
    p_value: float | None
    says: str


def latest_signals(rows: Mapping[int, Mapping[str, Any]]) -> list[Signal]:
    """The signals of a loop, of the latest generation that tells anything of each.

    Parameters
    ----------
    rows
        Of the generations table, by number, as
        :func:`~croupier.offline.generations.generation_rows` gives them.
    """
    found = []
    for name, (says, p_value) in _SAYS.items():
        number = latest_told(rows, name)
        if number is not None:
            found.append(
                Signal(
                    name=name,
                    generation=number,
                    raised=rows[number][name],
                    p_value=rows[number][p_value],
                    says=says,
                )
            )
    return found


def latest_told(rows: Mapping[int, Mapping[str, Any]], column: str) -> int | None:
    """The latest generation of which a column tells anything; None if there is none."""
    return max((number for number, row in rows.items() if row[column] is not None), default=None)
