"""Oracles as tables of weights over the encoder's columns: scored, saved and restored in one way.

A subclass says how the tables are learned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np

from croupier.policy.encoding import FeatureEncoder
from croupier.policy.errors import GenerationError
from croupier.policy.estimates import Estimates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Self

    from numpy.typing import NDArray

    from croupier.policy.encoding import EncodedDecision, IndexArray
    from croupier.policy.estimates import Uncertainty
    from croupier.policy.events import Action, Features
    from croupier.policy.oracle.base import OracleConfigBase, TrainingRow

__all__ = (
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "EnsembleOracle",
    "LinearOracle",
    "Link",
    "SavedOracle",
    "TableOracle",
    "linked",
    "not_fitted",
    "require_usable",
)

Link: TypeAlias = Literal["identity", "logistic"]
ConfigT = TypeVar("ConfigT")

CONFIG_FILE = "oracle.json"
WEIGHTS_FILE = "weights.npz"


class SavedOracle(msgspec.Struct, Generic[ConfigT], frozen=True, kw_only=True):
    """What is saved beside the weights."""

    config: ConfigT
    link: Link
    random_state: int


class TableOracle(ABC):
    """An oracle whose estimates come from tables of weights over the encoder's columns.

    Parameters
    ----------
    config
        The configuration it is fitted under.
    random_state
        Seed of everything random in :meth:`fit`.

    Attributes
    ----------
    weights_
        The fitted table or tables, the first axis being the 2**bits columns; None before
        :meth:`fit`.
    link_
        ``identity``, or ``logistic`` for a model of log-odds.
    """

    def __init__(self, config: OracleConfigBase, *, random_state: int = 0) -> None:
        self.config = config
        self.random_state = random_state
        self._encoder = FeatureEncoder(config.encoder)
        self.weights_: NDArray[Any] | None = None
        self.link_: Link = "identity"

    def do_without_kernel(self) -> None:
        """Encode and score in Python alone from now on, to see what the kernel is worth."""
        self._encoder = FeatureEncoder(self.config.encoder, compiled=False)

    @abstractmethod
    def fit(self, rows: Sequence[TrainingRow]) -> Self:
        """Learn from interactions in the given order, forgetting earlier ones."""

    @abstractmethod
    def score_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """As :meth:`score`, for features that are encoded already."""

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

    def score(self, context: Features, actions: Sequence[Action]) -> NDArray[np.float64]:
        """Reward estimate of every action, shape (K,).

        Raises
        ------
        GenerationError
            If the oracle was never fitted.
        """
        return self.score_encoded(self._encoder.encode(context, actions))

    def estimate(
        self, context: Features, actions: Sequence[Action], needs: Uncertainty = frozenset()
    ) -> Estimates:
        """Reward estimates with as much of their uncertainty as is needed and offered.

        Parameters
        ----------
        context, actions
            The request.
        needs
            Fields of :class:`Estimates` that are wanted beside the mean; what the oracle doesn't
            offer stays None.

        Raises
        ------
        GenerationError
            If the oracle was never fitted.
        """
        return self.estimate_encoded(self._encoder.encode(context, actions), needs)

    def estimate_encoded(
        self,
        decision: EncodedDecision,
        needs: Uncertainty = frozenset(),  # noqa: ARG002
    ) -> Estimates:
        """As :meth:`estimate`, for features that are encoded already."""
        return Estimates(self.score_encoded(decision))

    def save(self, directory: Path) -> None:
        """Write the configuration and the fitted tables into an existing directory.

        Raises
        ------
        GenerationError
            If the oracle was never fitted.
        """
        np.savez(directory / WEIGHTS_FILE, **dict(self.arrays()))  # type: ignore[arg-type]
        saved = SavedOracle(config=self.config, link=self.link_, random_state=self.random_state)
        (directory / CONFIG_FILE).write_bytes(msgspec.json.encode(saved))


class LinearOracle(TableOracle):
    """One table of weights, shape (2**bits,), float32: ``f(x, a) = link(Σ w[i] v[i])``."""

    weights_: NDArray[np.float32] | None

    def score_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """As :meth:`score`, for features that are encoded already."""
        if self.weights_ is None:
            raise not_fitted()
        return linked(self._encoder.linear_scores(self.weights_, decision), self.link_)

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


def not_fitted() -> GenerationError:
    """The error for an oracle that is asked too early."""
    return GenerationError("the oracle was not fitted")


def require_usable(weights: NDArray[Any], whose: str) -> NDArray[np.float32]:
    """The weights as float32; a generation that can't score must not be made."""
    # Written so that NaN fails the comparison.
    if weights.size and not np.abs(weights).max() <= np.finfo(np.float32).max:
        raise GenerationError(
            f"{whose} has weights that are not finite; were the features or rewards very large, "
            f"or the learning rate?"
        )
    return weights.astype(np.float32, copy=False)
