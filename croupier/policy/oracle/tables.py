"""Oracles as tables of weights over the encoder's columns: scored, saved and restored in one way.

A subclass says how the tables are learned.
"""

from __future__ import annotations

import io
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from croupier.policy.errors import GenerationError
from croupier.policy.oracle.encoded import EncodedOracle, not_fitted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Self

    from numpy.typing import NDArray

    from croupier.policy.encoding import EncodedDecision, IndexArray
    from croupier.policy.events import Action, Features
    from croupier.policy.kernel import Chosen
    from croupier.policy.oracle.base import Dampable, OracleConfigBase
    from croupier.policy.oracle.encoded import Link

__all__ = (
    "EnsembleOracle",
    "LinearOracle",
    "TableOracle",
    "linked",
    "require_usable",
    "require_way",
)

_WEIGHTS_FILE = "weights.npz"


class TableOracle(EncodedOracle):
    """An oracle whose estimates come from tables of weights over the encoder's columns.

    Attributes
    ----------
    weights_
        The fitted table or tables, the first axis being the 2**bits columns; None before
        :meth:`fit`.
    """

    def __init__(self, config: OracleConfigBase, *, random_state: int = 0) -> None:
        super().__init__(config, random_state=random_state)
        self.weights_: NDArray[Any] | None = None

    @abstractmethod
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """What :meth:`restore` needs to make this fitted oracle of a new one."""

    @abstractmethod
    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what :meth:`arrays` gave.

        Raises
        ------
        GenerationError
            If a number is not finite.
        LookupError, TypeError, ValueError
            If arrays are missing or don't fit together.
        """

    def write(self, directory: Path) -> None:
        """Write the fitted tables."""
        np.savez(directory / _WEIGHTS_FILE, **dict(self.arrays()))  # type: ignore[arg-type]

    def read(self, directory: Path) -> None:
        """Take over what :meth:`write` has written."""
        # Read here: given a path, NumPy leaves damaged files open.
        stored = io.BytesIO((directory / _WEIGHTS_FILE).read_bytes())
        with np.load(stored, allow_pickle=False) as arrays:
            self.restore(arrays)


class LinearOracle(TableOracle):
    """One table of weights, shape (2**bits,), float32: ``f(x, a) = link(Σ w[i] v[i])``."""

    weights_: NDArray[np.float32] | None

    def score_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """As :meth:`score`, for features that are encoded already."""
        if self.weights_ is None:
            raise not_fitted()
        return linked(self._encoder.linear_scores(self.weights_, decision), self.link_)

    def choose(
        self, context: Features, actions: Sequence[Action], gamma: float, number: float
    ) -> Chosen | None:
        """Draw from the inverse gap weights of the estimates, in one call of the kernel.

        Gives what :meth:`score`, inverse gap weighting and a draw at the number give one after the
        other; None without the kernel, and for what is left to these three.

        Parameters
        ----------
        context, actions
            The request; all actions are eligible.
        gamma
            Greediness ≥ 0.
        number
            In [0, 1), see :func:`~croupier.policy.sampling.uniform_of_key`.
        """
        if self.weights_ is None or self.link_ != "identity" or self.calibration_:
            return None
        return self._encoder.choose(self.weights_, context, actions, gamma, number)

    def goes_with(self, other: object) -> bool:
        """Whether weights of both mean the same, so that there is something between them."""
        return (
            isinstance(other, LinearOracle)
            and type(self) is type(other)
            and self.config == other.config
            and self.link_ == other.link_
            and self.weights_ is not None
            and other.weights_ is not None
        )

    def towards(self, other: LinearOracle, step: float) -> Self:
        """As :meth:`~croupier.policy.oracle.Dampable.towards`."""
        require_way(self, other)
        assert self.weights_ is not None, "both are fitted"
        assert other.weights_ is not None, "both are fitted"
        between = type(self)(self.config, random_state=other.random_state)
        between.link_ = self.link_
        between.weights_ = ((1.0 - step) * self.weights_ + step * other.weights_).astype(np.float32)
        return between

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """The weights that are not 0."""
        if self.weights_ is None:
            raise not_fitted()
        used = np.flatnonzero(self.weights_).astype(np.uint32)
        return {"index": used, "value": self.weights_[used]}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what :meth:`arrays` gave."""
        weights = np.zeros(1 << self.config.encoder.bits, dtype=np.float32)
        weights[arrays["index"]] = arrays["value"]
        self.weights_ = require_usable(weights, "the oracle")


class EnsembleOracle(TableOracle):
    """One table for each of B members, side by side: shape (2**bits, B), float32."""

    weights_: NDArray[np.float32] | None

    def members_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """Every member's scores, shape (B, K)."""
        if self.weights_ is None:
            raise not_fitted()
        return linked(self._encoder.member_scores(self.weights_, decision), self.link_)

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """The columns where some member's weight is not 0, and all members' weights there."""
        if self.weights_ is None:
            raise not_fitted()
        used = np.flatnonzero(self.weights_.any(axis=1)).astype(np.uint32)
        return {"index": used, "value": self.weights_[used]}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what :meth:`arrays` gave."""
        weights = np.zeros((1 << self.config.encoder.bits, self._size()), dtype=np.float32)
        index, value = arrays["index"], arrays["value"]
        if value.shape != (*index.shape, self._size()):
            raise ValueError(f"expected the weights of {self._size()} members")
        weights[index] = value
        self.weights_ = require_usable(weights, "the oracle")

    @abstractmethod
    def _size(self) -> int:
        """The number of members, B."""

    def _put(self, member: int, columns: IndexArray | None, weights: NDArray[np.float32]) -> None:
        """Put in place what a member has learned: some columns, or all of them if None."""
        assert self.weights_ is not None, "whoever learns has made the tables"
        self.weights_[slice(None) if columns is None else columns, member] = weights


def linked(linear: NDArray[np.float64], link: Link) -> NDArray[np.float64]:
    """The link's inverse, elementwise."""
    if link == "logistic":
        # tanh is the logistic function that doesn't overflow.
        return 0.5 * (1.0 + np.tanh(0.5 * linear))
    return linear


def require_way(one: Dampable, other: Dampable) -> None:
    """Refuse two oracles between which there is nothing."""
    if not one.goes_with(other):
        raise GenerationError("expected two fitted oracles of the same configuration")


def require_usable(weights: NDArray[Any], whose: str) -> NDArray[np.float32]:
    """The weights as float32; a generation that can't score must not be made."""
    # Written so that NaN fails the comparison.
    if weights.size and not np.abs(weights).max() <= np.finfo(np.float32).max:
        raise GenerationError(
            f"{whose} has weights that are not finite; were the features or rewards very large, "
            f"or the learning rate?"
        )
    return weights.astype(np.float32, copy=False)
