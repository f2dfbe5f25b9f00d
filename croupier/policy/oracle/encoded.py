"""Oracles that estimate encoded decisions: what all kinds share, whatever they have learned."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np

from croupier.policy.calibration import CalibrationStep, calibrated
from croupier.policy.encoding import FeatureEncoder
from croupier.policy.errors import GenerationError
from croupier.policy.estimates import Estimates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Self

    from numpy.typing import NDArray

    from croupier.policy.encoding import EncodedDecision
    from croupier.policy.estimates import Uncertainty
    from croupier.policy.events import Action, Features
    from croupier.policy.oracle.base import OracleConfigBase, TrainingRow

__all__ = ("CONFIG_FILE", "EncodedOracle", "Link", "SavedOracle", "not_fitted")

Link: TypeAlias = Literal["identity", "logistic"]
ConfigT = TypeVar("ConfigT")

CONFIG_FILE = "oracle.json"
_LEARNERS_FILE = "learners.npz"


class SavedOracle(msgspec.Struct, Generic[ConfigT], frozen=True, kw_only=True):
    """What is saved beside that which was learned."""

    config: ConfigT
    link: Link
    random_state: int
    calibration: tuple[CalibrationStep, ...] = ()


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
    calibration_
        Curves that estimates go through, one after the other, before anybody sees them.
        Whoever fits them sets them, and a fit of the oracle leaves them as they are.
    """

    def __init__(self, config: OracleConfigBase, *, random_state: int = 0) -> None:
        self.config = config
        self.random_state = random_state
        self._encoder = FeatureEncoder(config.encoder)
        self.link_: Link = "identity"
        self.calibration_: tuple[CalibrationStep, ...] = ()
        self._kept_learners: Mapping[str, bytes] = {}

    @abstractmethod
    def fit(self, rows: Sequence[TrainingRow]) -> Self:
        """Learn from interactions in the given order, forgetting earlier ones."""

    @abstractmethod
    def score_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """As :meth:`score`, for features that are encoded already, before any calibration."""

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

    def settle(self) -> None:  # noqa: B027 - most have nothing to do
        """Get ready to be asked often, once there is nothing to learn for the time being."""

    def do_without_kernel(self) -> None:
        """Encode and score in Python alone from now on, to see what the kernel is worth."""
        self._encoder = FeatureEncoder(self.config.encoder, compiled=False)

    def score(self, context: Features, actions: Sequence[Action]) -> NDArray[np.float64]:
        """Reward estimate of every action, shape (K,).

        Raises
        ------
        GenerationError
            If the oracle was never fitted.
        """
        scores = self.score_encoded(self._encoder.encode(context, actions))
        return calibrated(self.calibration_, scores) if self.calibration_ else scores

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
            offer stays None. A calibrated oracle offers none: the curve is one of rewards, and says
            nothing of their errors.

        Raises
        ------
        GenerationError
            If the oracle was never fitted.
        """
        decision = self._encoder.encode(context, actions)
        if self.calibration_:
            return Estimates(calibrated(self.calibration_, self.score_encoded(decision)))
        return self.estimate_encoded(decision, needs)

    def estimate_encoded(
        self,
        decision: EncodedDecision,
        needs: Uncertainty = frozenset(),  # noqa: ARG002
    ) -> Estimates:
        """As :meth:`estimate`, for features that are encoded already, before any calibration."""
        return Estimates(self.score_encoded(decision))

    def learners(self) -> Mapping[str, bytes]:
        """What it takes, besides the tables, to learn on from here; nothing if it can't.

        Of an oracle that was loaded and has learned nothing since, what was read.
        """
        return self._kept_learners

    def read_learners(self, directory: Path) -> None:
        """Read the learners that were saved, if any were, to go on from them if need be."""
        if not (directory / _LEARNERS_FILE).exists():
            return
        # Vowpal Wabbit doesn't expect damage: the archive's checksums are looked at first.
        stored = io.BytesIO((directory / _LEARNERS_FILE).read_bytes())
        with np.load(stored, allow_pickle=False) as arrays:
            self._kept_learners = {name: arrays[name].tobytes() for name in arrays.files}

    def save(self, directory: Path) -> None:
        """Write the configuration and what was learned into an existing directory.

        Raises
        ------
        GenerationError
            If the oracle was never fitted.
        """
        self.write(directory)
        learners = self.learners()
        if learners:
            arrays = {name: np.frombuffer(each, dtype=np.uint8) for name, each in learners.items()}
            np.savez_compressed(directory / _LEARNERS_FILE, **arrays)  # type: ignore[arg-type]
        saved = SavedOracle(
            config=self.config,
            link=self.link_,
            random_state=self.random_state,
            calibration=self.calibration_,
        )
        (directory / CONFIG_FILE).write_bytes(msgspec.json.encode(saved))


def not_fitted() -> GenerationError:
    """The error for an oracle that is asked too early."""
    return GenerationError("the oracle was not fitted")
