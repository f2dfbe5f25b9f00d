"""Dividing the rows of a log into groups: days, generations, values in a context or an audit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Features
from croupier.policy.paths import MISSING, value_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import polars as pl
    from numpy.typing import NDArray

__all__ = (
    "DAY",
    "GENERATION",
    "MOST_LEVELS",
    "NOTHING",
    "Grouping",
    "group_by",
    "words_at",
)

DAY = "day"
GENERATION = "generation"
MOST_LEVELS = 200
"""What has more values than these in a log is an identifier or a measurement, not a category."""

NOTHING = "(none)"
"""The group of rows that have no value."""

_AUDIT, _CONTEXT = "audit.", "context."
_decoder = msgspec.json.Decoder(Features)


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which group every row is in.

    Attributes
    ----------
    by
        What groups were made of.
    keys
        Of the groups, in the order in which they are shown.
    codes
        Index into the keys, shape (n,).
    """

    by: str
    keys: tuple[str, ...]
    codes: NDArray[np.int64]

    def parts(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Every key with the rows that have it, shape (n,)."""
        for code, key in enumerate(self.keys):
            yield key, self.codes == code


def group_by(interactions: pl.DataFrame, by: str, *, most: int = 8) -> Grouping:
    """Divide rows by something that was known before the action was drawn.

    Days and generations are in ascending order, and all of them are shown. Categories are in the
    order of their number of rows; those beyond the first `most` are taken together.

    Parameters
    ----------
    interactions
        Rows of the interactions table.
    by
        ``day`` (UTC), ``generation``, ``audit.<name>``, or a path in the context such as
        ``user.country``. A path that no context has is looked for among the audit attributes.
    most
        Largest number of categories that are shown by themselves, at least 1.

    Raises
    ------
    InvalidInputError
        If no row has it, or it is not a category: a list, an object, or more than 200 values.
    """
    if by in {DAY, GENERATION}:
        column = interactions["date" if by == DAY else GENERATION]
        values = sorted(column.unique().drop_nulls().to_list())
        ordered = [str(each) for each in values]
        words = [NOTHING if each is None else str(each) for each in column.to_list()]
        return _grouped(by, words, ordered + [NOTHING] * (NOTHING in words))
    words = [_word(by, value) for value in _values(interactions, by)]
    levels = Counter(words).most_common()
    if len(levels) > MOST_LEVELS:
        raise InvalidInputError(
            "by", f"expected at most {MOST_LEVELS} values of {by!r}, got {len(levels):,}"
        )
    levels.sort(key=lambda each: (-each[1], each[0]))
    shown = [key for key, _ in levels]
    if len(shown) > most:
        rest = f"({len(shown) - most} others)"
        known = set(shown[:most])
        words = [word if word in known else rest for word in words]
        shown = [*shown[:most], rest]
    return _grouped(by, words, shown)


def words_at(interactions: pl.DataFrame, by: str) -> list[str]:
    """What every row has there, in words; :data:`NOTHING` where it has nothing.

    Parameters
    ----------
    interactions
        Rows of the decisions or the interactions table.
    by
        ``context.<path>``; anything else is an audit attribute, ``audit.<name>`` or its name alone.

    Raises
    ------
    InvalidInputError
        If a row has a list or an object there, or the rows have more than 200 values.
    """
    in_context = by.startswith(_CONTEXT)
    column = interactions["context" if in_context else "audit"]
    path = by.removeprefix(_CONTEXT if in_context else _AUDIT)
    # Texts repeat, those of audits above all.
    known = {text: _word(by, value_at(_decoded(text), path)) for text in column.unique().to_list()}
    levels = len(set(known.values()))
    if levels > MOST_LEVELS:
        raise InvalidInputError(
            "by", f"expected at most {MOST_LEVELS} values of {by!r}, got {levels:,}"
        )
    return [known[text] for text in column.to_list()]


def _grouped(by: str, words: Sequence[str], keys: Sequence[str]) -> Grouping:
    place = {key: code for code, key in enumerate(keys)}
    codes = np.array([place[word] for word in words], dtype=np.int64)
    return Grouping(by, tuple(keys), codes)


def _values(interactions: pl.DataFrame, by: str) -> list[Any]:
    """What every row has there."""
    if by.startswith(_AUDIT):
        places = [("audit", by.removeprefix(_AUDIT))]
    else:
        path = by.removeprefix(_CONTEXT)
        places = [("context", path), ("audit", path)]
    for column, path in places:
        found = [value_at(_decoded(text), path) for text in interactions[column].to_list()]
        if any(value is not MISSING for value in found):
            return found
    raise InvalidInputError(
        "by", f"expected {DAY}, {GENERATION}, or what some context or audit has, got {by!r}"
    )


def _decoded(text: str | None) -> Features:
    return {} if text is None else _decoder.decode(text)


def _word(by: str, value: Any) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"{value:g}"
        case None:
            return NOTHING
    if value is MISSING:
        return NOTHING
    kind = "a list" if isinstance(value, list) else "an object"
    raise InvalidInputError("by", f"expected one value at {by!r}, got {kind}")
