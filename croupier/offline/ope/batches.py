"""Rows of a log as the estimators take them: arrays, checked once, or a polars frame."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
import polars as pl

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

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

# Rows that are counted at once: ten columns of them fit a core's own cache.
_AT_ONCE = 16_384

_PMF_TOLERANCE = 1e-6

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

    @classmethod
    def of_pmfs(
        cls,
        *,
        reward: ArrayLike,
        action: ArrayLike,
        logging: ArrayLike,
        target: ArrayLike,
        q: ArrayLike | None = None,
    ) -> Iterator[LoggedBatch]:
        """Read a log that has both policies' whole pmfs over a fixed set of actions, in parts.

        The parts come one after the other, so that nothing as large as the log is made.

        Parameters
        ----------
        reward
            Shape (n,).
        action
            Which action was logged, integers in [0, k), shape (n,).
        logging, target
            Of the logging and the evaluated policy, shape (n, k); a row's sum is 1.
        q
            A reward model's predictions for every action, shape (n, k).

        Yields
        ------
        LoggedBatch
            Of some rows; those of all together are the log's.

        Raises
        ------
        InvalidInputError
            If an array has another shape, or holds what it can't.
        """
        pmfs = _matrices(logging=logging, target=target, q=q)
        n, k = pmfs["logging"].shape
        rewards, actions = np.asarray(reward), np.asarray(action)
        for name, array in (("reward", rewards), ("action", actions)):
            if array.shape != (n,):
                raise InvalidInputError(name, f"expected shape ({n},), got {array.shape}")
        if actions.dtype.kind not in "iu" or (n and not 0 <= actions.min() <= actions.max() < k):
            raise InvalidInputError("action", f"expected integers in [0, {k})")
        expected = pmfs.get("q")
        for start in range(0, n, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            chosen = np.arange(0, k * len(actions[part]), k) + actions[part]
            yield cls(
                reward=rewards[part],
                propensity=_checked_pmf("logging", pmfs["logging"][part]).take(chosen),
                target_probability=_checked_pmf("target", pmfs["target"][part]).take(chosen),
                q_logged=None if expected is None else expected[part].take(chosen),
                q_target=None
                if expected is None
                else np.einsum("ij,ij->i", pmfs["target"][part], expected[part]),
            )

    def __len__(self) -> int:
        return len(self.reward)

    def parts(self) -> Iterator[Self]:
        """The rows, so few at a time that what is computed of them stays near the processor."""
        for start in range(0, len(self), _AT_ONCE):
            part = object.__new__(type(self))
            for field in fields(self):
                value = getattr(self, field.name)
                cut = None if value is None else value[start : start + _AT_ONCE]
                # What was checked once isn't again.
                object.__setattr__(part, field.name, cut)
            yield part

    @cached_property
    def weight(self) -> FloatArray:
        """Importance weights ``target_probability / propensity``, shape (n,)."""
        return self.target_probability / self.propensity

    @cached_property
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

    def parts(self) -> Iterator[Self]:
        """The rows, some at a time."""
        for a, b in zip(self.a.parts(), self.b.parts(), strict=True):
            part = object.__new__(type(self))
            object.__setattr__(part, "a", a)
            object.__setattr__(part, "b", b)
            yield part


def _vector(name: str, value: object) -> FloatArray:
    """`value` as a float64 vector of finite numbers."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(name, f"expected numbers: {error}") from error
    if array.ndim != 1:
        raise InvalidInputError(name, f"expected shape (n,), got {array.shape}")
    if not _all_finite(array):
        raise InvalidInputError(name, "expected finite numbers only")
    return array


def _all_finite(array: FloatArray) -> bool:
    # Neither an infinity nor NaN hides from both, and no array of answers is made.
    return array.size == 0 or bool(np.isfinite(array.min()) and np.isfinite(array.max()))


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
    if len(array) == 0:
        return
    lowest = array.min()
    if (lowest > 0.0 if positive else lowest >= 0.0) and array.max() <= 1.0 + ROUNDING:
        return
    wrong = (array <= 0.0 if positive else array < 0.0) | (array > 1.0 + ROUNDING)
    row = int(np.argmax(wrong))
    interval = "(0, 1]" if positive else "[0, 1]"
    raise InvalidInputError(name, f"expected values in {interval}, got {array[row]} in row {row}")


def _matrices(**given: ArrayLike | None) -> dict[str, FloatArray]:
    """Matrices of one shape, finite."""
    found: dict[str, FloatArray] = {}
    for name, value in given.items():
        if value is None:
            continue
        try:
            array = np.ascontiguousarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(name, f"expected numbers: {error}") from error
        shape = found["logging"].shape if found else array.shape
        if array.ndim != 2 or array.shape != shape or array.shape[1] == 0:
            expected = shape if found else "(n, k)"
            raise InvalidInputError(name, f"expected shape {expected}, got {array.shape}")
        found[name] = array
    return found


def _checked_pmf(name: str, pmf: FloatArray) -> FloatArray:
    # A product with ones: numpy's own sums over short rows take five times as long.
    off = np.abs(pmf @ np.ones(pmf.shape[1]) - 1.0)
    if not off.max() <= _PMF_TOLERANCE:
        raise InvalidInputError(name, f"expected rows that sum to 1, one is off by {off.max():g}")
    if pmf.min() < 0.0:
        raise InvalidInputError(name, f"expected probabilities, got {pmf.min():g}")
    return pmf
