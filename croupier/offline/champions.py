"""Who was champion when: what a rollback goes back to, and which evidence counts after one.

A generation became champion when it was promoted, or last restored by a rollback. A rollback goes
back in the order of promotions; a generation that was rolled back is no aim of another one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = (
    "ROLLBACK_COLUMNS",
    "Rollback",
    "earlier_champions",
    "evidence_since",
    "interrupted_rollback",
    "rollback_target",
)

ROLLBACK_COLUMNS = ("rolled_back", "rolled_back_by", "rolled_back_to", "rollback_reason")
"""Columns of the generation that was rolled back."""

_EVER = datetime.min.replace(tzinfo=UTC)


class Rollback(msgspec.Struct, frozen=True, kw_only=True):
    """A champion that was taken back.

    Attributes
    ----------
    loop
        Whose.
    left, restored
        Numbers of the champion before and of the one after; 0 is the cold start.
    by, reason
        Who did it, and why.
    """

    loop: str
    left: int
    restored: int
    by: str
    reason: str


def rollback_target(
    rows: Mapping[int, Mapping[str, Any]], loop: str, champion: int, to: int | None
) -> int:
    """Which generation a rollback goes back to.

    Parameters
    ----------
    rows
        Of the generations table, by number.
    loop, champion
        The loop, and its champion now.
    to
        The generation that was asked for; the champion before if None.

    Raises
    ------
    InvalidInputError
        If there was no earlier champion, or the one that was asked for is none.
    """
    earlier = earlier_champions(rows, champion)
    if not earlier:
        present = "the cold start" if champion == 0 else f"generation {champion}"
        raise InvalidInputError(
            "loop", f"expected one with an earlier champion; {loop} has none before {present}"
        )
    if to is None:
        return earlier[0]
    if to not in earlier:
        known = ", ".join(str(each) for each in sorted(earlier))
        raise InvalidInputError(
            "to",
            f"expected an earlier champion of {loop} ({known}), got {to}; any other takes "
            "croupier promote --override",
        )
    return to


def interrupted_rollback(
    rows: Mapping[int, Mapping[str, Any]], recorded: int, champion: int
) -> str | None:
    """Whether a rollback that was recorded is only half done.

    Parameters
    ----------
    rows
        Of the generations table, by number.
    recorded, champion
        The champion by the table, and by the registry.

    Returns
    -------
    str or None
        ``finish`` if the registry has gone back and the table hasn't, ``forget`` if it never did.
    """
    row = rows.get(recorded)
    if row is None or not _is_back(row):
        return None
    if champion == recorded:
        return "forget"
    return "finish" if row["rolled_back_to"] == champion else None


def evidence_since(rows: Mapping[int, Mapping[str, Any]], number: int) -> datetime | None:
    """From when on decisions count as evidence for a challenger; None for all.

    What was rolled back had passed the gate. So the evidence of that time doesn't count again, for
    that generation or for one that was learned from nearly the same rows: after a rollback only
    what was decided since counts, until a generation is promoted. A generation that was rolled back
    itself is only ever judged on what came later.

    Parameters
    ----------
    rows
        Of the generations table, by number.
    number
        The challenger's.
    """
    back = [each["rolled_back"] for each in rows.values() if each["rolled_back"] is not None]
    promoted = max((each["promoted"] or _EVER for each in rows.values()), default=_EVER)
    moments = [each for each in back if each > promoted]
    own = rows.get(number)
    if own is not None and _is_back(own):
        moments.append(own["rolled_back"])
    return max(moments, default=None)


def earlier_champions(rows: Mapping[int, Mapping[str, Any]], champion: int) -> list[int]:
    """Numbers of those that a rollback can go back to, the latest first.

    Parameters
    ----------
    rows
        Of the generations table, by number.
    champion
        Now.
    """
    until = (rows.get(champion) or {}).get("promoted") or _EVER
    found = [
        (_since(row), number)
        for number, row in rows.items()
        if number not in {champion, 0}
        and row["promoted"] is not None
        and row["promoted"] < until
        and not _is_back(row)
    ]
    if champion != 0:
        # It comes before all others, and again where the loop was reset to it.
        cold = _since(rows[0]) if 0 in rows else _EVER
        found.append((cold if cold < until else _EVER, 0))
    return [number for _, number in sorted(found, reverse=True)]


def _since(row: Mapping[str, Any]) -> datetime:
    """When a generation last became champion."""
    return max(row["promoted"] or _EVER, row["restored"] or _EVER)


def _is_back(row: Mapping[str, Any]) -> bool:
    """Whether a generation was rolled back, and not made champion since."""
    return row["rolled_back"] is not None and row["rolled_back"] > _since(row)
