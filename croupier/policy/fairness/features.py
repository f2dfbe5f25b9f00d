"""What auditors see of a decision: its features, path by path, in one encoding.

Every path is encoded by :class:`~croupier.policy.encoding.FeatureEncoder`, as an oracle sees it,
and is a block of columns. ``Δ_k²`` is the squared distance of two decisions in block k, so scaled
that it is the squared difference of a number, and 1 for two different words.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import InvalidInputError
from croupier.policy.fairness.auditors import FloatArray, Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from croupier.policy.events import Features

__all__ = ("AUDIT", "FeatureTable")

AUDIT = "audit."
"""Begins the path of one of a decision's audit attributes."""

# More words than these are no property of individuals, but their names.
_MOST_COLUMNS = 200


class FeatureTable:
    """Features of n decisions, a block of columns for each of K paths.

    Parameters
    ----------
    paths
        Of the features, with dots, in the order of the blocks.
    blocks
        Of shape (n, D_k).
    """

    def __init__(self, paths: Sequence[str], blocks: Sequence[FloatArray]) -> None:
        self.paths = tuple(paths)
        self.blocks = tuple(blocks)

    @classmethod
    def of(
        cls,
        paths: Iterable[str],
        contexts: Sequence[Features],
        audits: Sequence[Features] | None = None,
    ) -> FeatureTable:
        """Encode what stands at some paths.

        Parameters
        ----------
        paths
            Of the features; one that starts with ``audit.`` is looked for among audit attributes.
        contexts, audits
            Of the decisions, n each; no audit attributes if None. A number that is missing counts
            as 0, as it does to an oracle; a missing word is another one than all others.

        Raises
        ------
        InvalidInputError
            If no decision has a feature, one can't be encoded, or it has too many different words.
        """
        encoder = FeatureEncoder(EncoderConfig())
        given = tuple(dict.fromkeys(paths))
        blocks = []
        for path in given:
            if path.startswith(AUDIT):
                values = [_at(each, path.removeprefix(AUDIT)) for each in audits or ()]
            else:
                values = [_at(each, path) for each in contexts]
            if contexts and all(value is None for value in values):
                raise InvalidInputError(
                    f"features.{path}", "expected a feature that at least one decision has"
                )
            blocks.append(_block(encoder, path, values))
        return cls(given, blocks)

    def rows(self, chosen: NDArray[np.int64]) -> FeatureTable:
        """The same of some decisions, given by their rows."""
        return FeatureTable(self.paths, [each[chosen] for each in self.blocks])

    def metric(self, weights: Mapping[str, float]) -> Metric:
        """The distance ``min(1, sqrt(Σ_k (w_k Δ_k)²))`` with weights by path; 0 unless named."""
        weighted = [
            weights[path] * block
            for path, block in zip(self.paths, self.blocks, strict=True)
            if weights.get(path, 0.0) != 0.0
        ]
        size = len(self.blocks[0])
        return Metric(np.hstack(weighted) if weighted else np.zeros((size, 1)))

    def squares(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> FloatArray:
        """``Δ_k²`` of pairs of decisions, shape (m, K)."""
        parts = [
            ((block[first] - block[second]) ** 2).sum(axis=-1, keepdims=True)
            for block in self.blocks
        ]
        return np.concatenate(parts, axis=-1)

    def scales(self) -> dict[str, float]:
        """By path, the root mean square of Δ_k over random pairs; 0 where all are the same."""
        return {
            path: math.sqrt(2.0 * float(block.var(axis=0).sum()))
            for path, block in zip(self.paths, self.blocks, strict=True)
        }


def _at(features: Features, path: str) -> Any:
    """What stands at a path; None if nothing does."""
    if path in features:
        return features[path]
    head, _, rest = path.partition(".")
    below = features.get(head)
    return _at(below, rest) if rest and isinstance(below, dict) else None


def _block(encoder: FeatureEncoder, path: str, values: Sequence[Any]) -> FloatArray:
    words = any(_is_words(value) for value in values)
    columns: dict[int | None, int] = {}
    rows, places, entries = [], [], []
    known: dict[Any, list[tuple[int, float]]] = {}
    for row, value in enumerate(values):
        key = value if isinstance(value, str | bool | int | float) else None
        found = known.get((type(value), key)) if key is not None else None
        if found is None:
            found = _encoded(encoder, path, value, columns, words=words)
            if key is not None and words:
                known[type(value), key] = found
        for column, entry in found:
            rows.append(row)
            places.append(column)
            entries.append(entry)
    block = np.zeros((len(values), max(len(columns), 1)))
    block[rows, places] = entries
    return block


def _encoded(
    encoder: FeatureEncoder,
    path: str,
    value: Any,
    columns: dict[int | None, int],
    *,
    words: bool,
) -> list[tuple[int, float]]:
    """Columns of a value and what stands there, new columns being given to new features."""
    scale = math.sqrt(0.5) if words else 1.0
    if value is None:
        return [(_column(path, columns, None), scale)] if words else []
    found = encoder.encode_context({path: value})
    # The first is the constant.
    return [
        (_column(path, columns, index), scale * entry)
        for index, entry in zip(found.indices[1:].tolist(), found.values[1:].tolist(), strict=True)
    ]


def _column(path: str, columns: dict[int | None, int], index: int | None) -> int:
    if index not in columns and len(columns) == _MOST_COLUMNS:
        raise InvalidInputError(
            f"features.{path}", f"expected at most {_MOST_COLUMNS} different words or entries"
        )
    return columns.setdefault(index, len(columns))


def _is_words(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and any(isinstance(each, str) for each in value)
    )
