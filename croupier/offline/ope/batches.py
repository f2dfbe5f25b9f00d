"""Rows of a log as the estimators take them: arrays, checked once, or a polars frame."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.offline.ope.intervals import FloatArray

__all__ = ("BATCH_SCHEMA", "ROUNDING", "LoggedBatch", "PairedBatch")

BATCH_SCHEMA: dict[str, pl.DataType] = {
    "reward": pl.Float64(),
    "propensity": pl.Float64(),
    "target_probability": pl.Float64(),
    "keep_prob": pl.Float64(),
    "q_logged": pl.Float64(),
    "q_target": pl.Float64(),
    "row_id": pl.UInt64(),
}
"""Columns of a frame that :meth:`LoggedBatch.from_frame` reads; the first three are needed."""

_NEEDED = 3

# Probabilities are sums of float64 numbers: this much above 1 is rounding, more is an error.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False, kw_only=True)
class LoggedBatch:
    """Rows of a log as one policy sees them; every array has shape (n,), n may be 0.

    Anything that numpy can turn into a float64 array is accepted and stored as one. Polars frames
    come in by :meth:`from_frame`.

    Attributes
    ----------
    reward
        Finite.
    propensity
        Probability with which the logged action was drawn, in (0, 1].
    target_probability
        Probability that the evaluated policy gives to the logged action, in [0, 1].
    keep_prob
        Probability with which the row was kept in the log, in (0, 1]; 1 if None.
    q_logged, q_target
        Reward model at the logged action, and its mean under the evaluated policy; finite. Both
        or neither; needed by :class:`DR`. The model must not have been fitted on these rows
        (cross-fitting), else the estimate flatters policies that share its errors.
    row_id
        Numbers in [0, 2**64) that tell the rows of the whole log apart, a hash of the decision id
        for example; needed by :class:`~croupier.offline.ope.bootstrap.Bootstrap` only.

    Raises
    ------
    InvalidInputError
        If a field holds something else; it names the field.
    """

    reward: FloatArray
    propensity: FloatArray
    target_probability: FloatArray
    keep_prob: FloatArray | None = None
    q_logged: FloatArray | None = None
    q_target: FloatArray | None = None
    row_id: NDArray[np.uint64] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                read = _row_ids if field.name == "row_id" else _vector
                object.__setattr__(self, field.name, read(field.name, value))
        n = len(self.reward)
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and len(value) != n:
                raise InvalidInputError(field.name, f"expected {n} rows, got {len(value)}")
        _require_probability("propensity", self.propensity, positive=True)
        _require_probability("target_probability", self.target_probability, positive=False)
        if self.keep_prob is not None:
            _require_probability("keep_prob", self.keep_prob, positive=True)
        if (self.q_logged is None) != (self.q_target is None):
            missing = "q_logged" if self.q_logged is None else "q_target"
            raise InvalidInputError(missing, "expected q_logged and q_target, or neither")

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> LoggedBatch:
        """Read the columns of :data:`BATCH_SCHEMA`; others are ignored.

        Parameters
        ----------
        frame
            Has the first three columns and any of the others, of that type or one that casts to
            it without loss, and no nulls in them.

        Raises
        ------
        InvalidInputError
            If a column is missing, has another type or a null, or a value out of range.
        """
        columns: dict[str, NDArray[np.float64]] = {}
        for position, (name, dtype) in enumerate(BATCH_SCHEMA.items()):
            if name not in frame.columns:
                if position < _NEEDED:
                    raise InvalidInputError(name, f"expected a column of type {dtype}, got none")
                continue
            column = frame[name]
            if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
                raise InvalidInputError(name, f"expected type {dtype}, got {column.dtype}")
            if column.null_count():
                raise InvalidInputError(name, f"expected no nulls, got {column.null_count()}")
            columns[name] = column.to_numpy()
        return cls(**columns)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def weight(self) -> FloatArray:
        """Importance weights ``target_probability / propensity``, shape (n,)."""
        return self.target_probability / self.propensity

    @property
    def keep_weight(self) -> FloatArray:
        """How many decisions of the stream a row stands for, ``1 / keep_prob``, shape (n,)."""
        return np.ones(len(self)) if self.keep_prob is None else 1.0 / self.keep_prob


@dataclass(frozen=True, eq=False, kw_only=True)
class PairedBatch:
    """The same rows as two policies see them.

    Attributes
    ----------
    a, b
        Equal in everything but `target_probability` and `q_target`.

    Raises
    ------
    InvalidInputError
        If the two differ in anything else; it names the field of `b`.
    """

    a: LoggedBatch
    b: LoggedBatch

    def __post_init__(self) -> None:
        for name in ("reward", "propensity", "keep_prob", "q_logged", "row_id"):
            first, second = getattr(self.a, name), getattr(self.b, name)
            same = first is second or (
                first is not None and second is not None and np.array_equal(first, second)
            )
            if not same:
                raise InvalidInputError(f"b.{name}", f"expected the same rows as a.{name}")

    def __len__(self) -> int:
        return len(self.a)


def _vector(name: str, value: object) -> FloatArray:
    """`value` as a float64 vector of finite numbers."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(name, f"expected numbers: {error}") from error
    if array.ndim != 1:
        raise InvalidInputError(name, f"expected shape (n,), got {array.shape}")
    if not np.isfinite(array).all():
        raise InvalidInputError(name, "expected finite numbers only")
    return array


def _row_ids(name: str, value: object) -> NDArray[np.uint64]:
    """`value` as a uint64 vector; a float can't hold all numbers up to 2**64."""
    array = np.asarray(value)
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        raise InvalidInputError(
            name, f"expected integers of shape (n,), got {array.dtype} of shape {array.shape}"
        )
    if array.dtype.kind == "i" and (array < 0).any():
        raise InvalidInputError(name, "expected numbers >= 0")
    return array.astype(np.uint64)


def _require_probability(name: str, array: FloatArray, *, positive: bool) -> None:
    too_low = array <= 0.0 if positive else array < 0.0
    wrong = too_low | (array > 1.0 + ROUNDING)
    if wrong.any():
        row = int(np.argmax(wrong))
        interval = "(0, 1]" if positive else "[0, 1]"
        raise InvalidInputError(
            name, f"expected values in {interval}, got {array[row]} in row {row}"
        )
