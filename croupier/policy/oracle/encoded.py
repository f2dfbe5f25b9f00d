"""Oracles that estimate encoded decisions: what all kinds share, whatever they have learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

import msgspec

from croupier.policy.encoding import FeatureEncoder
from croupier.policy.errors import GenerationError
from croupier.policy.estimates import Estimates

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

    from croupier.policy.encoding import EncodedDecision
    from croupier.policy.estimates import Uncertainty
    from croupier.policy.events import Action, Features
    from croupier.policy.oracle.base import OracleConfigBase, TrainingRow

__all__ = ("CONFIG_FILE", "EncodedOracle", "Link", "SavedOracle", "not_fitted")

Link: TypeAlias = Literal["identity", "logistic"]
ConfigT = TypeVar("ConfigT")

CONFIG_FILE = "oracle.json"


class SavedOracle(msgspec.Struct, Generic[ConfigT], frozen=True, kw_only=True):
    """What is saved beside that which was learned."""

    config: ConfigT
    link: Link
    random_state: int


class EncodedOracle(ABC):
    """An oracle on the features that the encoder makes of a request.

    Parameters
    ----------
    config
        The configuration it is fitted under.
    random_state
        Seed of everything random in :meth:`fit`.

    Attributes
    ----------
    link_
        ``identity``, or ``logistic`` for a table that models log-odds.
    """

    def __init__(self, config: OracleConfigBase, *, random_state: int = 0) -> None:
        self.config = config
        self.random_state = random_state
        self._encoder = FeatureEncoder(config.encoder)
        self.link_: Link = "identity"

    @abstractmethod
    def fit(self, rows: Sequence[TrainingRow]) -> Self:
        """Learn from interactions in the given order, forgetting earlier ones."""

    @abstractmethod
    def score_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """As :meth:`score`, for features that are encoded already."""

    @abstractmethod
    def write(self, directory: Path) -> None:
        """Write what was learned into an existing directory.

        Raises
        ------
        GenerationError
            If the oracle was never fitted.
        """

    @abstractmethod
    def read(self, directory: Path) -> None:
        """Take over what :meth:`write` has written.

        Raises
        ------
        GenerationError
            If it can't be used.
        LookupError, OSError, TypeError, ValueError
            If files are missing, damaged or don't fit together.
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
        """Write the configuration and what was learned into an existing directory.

        Raises
        ------
        GenerationError
            If the oracle was never fitted.
        """
        self.write(directory)
        saved = SavedOracle(config=self.config, link=self.link_, random_state=self.random_state)
        (directory / CONFIG_FILE).write_bytes(msgspec.json.encode(saved))


def not_fitted() -> GenerationError:
    """The error for an oracle that is asked too early."""
    return GenerationError("the oracle was not fitted")
