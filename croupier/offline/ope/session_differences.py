"""Two policies over the same sessions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from croupier.offline.ope.accumulators import Accumulator, Doubt, Linear, Tally
from croupier.policy.errors import InvalidInputError, NoIntervalError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from croupier.offline.ope.intervals import FloatArray, IntervalMethod
    from croupier.offline.ope.sessions import SessionBatch, SessionEstimator

__all__ = ("PairedSessions", "SessionDifference")

_KEEP = 0


@dataclass(frozen=True, eq=False)
class PairedSessions:
    """The same sessions as two policies see them.

    Attributes
    ----------
    a, b
        Equal in rewards, propensities and steps.

    Raises
    ------
    InvalidInputError
        If they aren't; it names the field of `b`.
    """

    a: SessionBatch
    b: SessionBatch

    def __post_init__(self) -> None:
        for name in ("reward", "propensity", "steps", "keep_weight"):
            if not np.array_equal(getattr(self.a, name), getattr(self.b, name)):
                raise InvalidInputError(f"b.{name}", f"expected the same sessions as a.{name}")

    def __len__(self) -> int:
        return len(self.a)

    def parts(self) -> Iterator[Self]:
        """The sessions, some at a time."""
        for a, b in zip(self.a.parts(), self.b.parts(), strict=True):
            part = object.__new__(type(self))
            object.__setattr__(part, "a", a)
            object.__setattr__(part, "b", b)
            yield part


class SessionDifference(Accumulator[PairedSessions]):
    """Value of policy b over sessions less that of policy a, on the same sessions.

    What the sessions share cancels: the large-sample interval uses the variance of the difference
    of the two influence functions, ``var(psi_b - psi_a)``, which holds the covariance. As
    :class:`~croupier.offline.ope.Difference` is for single decisions.

    Parameters
    ----------
    estimator
        How both are evaluated, of which only the parameters are used.
    """

    def __init__(self, estimator: SessionEstimator) -> None:
        super().__init__()
        self.estimator = estimator
        self.interval: IntervalMethod = estimator.interval

    @property
    def name(self) -> str:
        """Goes into :class:`~croupier.offline.ope.Estimate`."""
        return f"{self.estimator.name}-difference"

    def parameters(self) -> tuple[object, ...]:
        """Those of the estimator."""
        return self.estimator.parameters()

    def columns(self, batch: PairedSessions) -> FloatArray:
        """Keep weight, the other columns of a, the other columns of b."""
        of_b = self.estimator.columns(batch.b)
        return np.concatenate((self.estimator.columns(batch.a), of_b[:, 1:]), axis=1)

    def point(self, mean: FloatArray) -> tuple[float, FloatArray]:
        """The value as a function of the columns' means, and its gradient there."""
        gradient = np.zeros(len(mean))
        of_a, of_b = self._places(len(mean))
        value_a, gradient_a = self.estimator.point(mean[of_a])
        value_b, gradient_b = self.estimator.point(mean[of_b])
        gradient[of_a] -= gradient_a
        gradient[of_b] += gradient_b
        return value_b - value_a, gradient

    def linear(self, tally: Tally) -> Linear:
        """Not for sessions: raises NoIntervalError."""
        del tally
        raise NoIntervalError("no range", "what sessions can earn has no range that is known")

    def doubts_of_its_own(self) -> tuple[Doubt, ...]:
        """Those of the estimator."""
        return self.estimator.doubts_of_its_own()

    def _places(self, columns: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the columns of either policy stand, both with the keep weight."""
        width = (columns + 1) // 2
        of_b = np.arange(width - 1, columns)
        of_b[0] = _KEEP
        return np.arange(width), of_b

    def _count(self, batch: PairedSessions) -> Tally:
        columns = self.columns(batch)
        keep = columns[:, _KEEP]
        weights = [columns[:, column] / keep for column, _ in self._weights_at(columns.shape[1])]
        rewards = np.abs(batch.a.reward[:, : self.estimator.horizon]).sum(axis=1)
        return Tally.of(
            columns=columns, tracked=(keep, *weights), nonzero=rewards * (weights[0] + weights[1])
        )

    def _weight_columns(self) -> tuple[tuple[int, int], ...]:
        assert self.tally_ is not None
        return self._weights_at(len(self.tally_.moments.mean))

    def _weights_at(self, columns: int) -> tuple[tuple[int, int], ...]:
        """Where the last weights of both stand in the columns, and in what is tracked."""
        return ((1, 1), ((columns + 1) // 2, 2))
