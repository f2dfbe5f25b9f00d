"""An oracle that chooses by size: ridge regression while it has room, Vowpal Wabbit's beyond."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from croupier.policy.encoding import EncodedDecision, EncoderConfig
from croupier.policy.oracle.base import OracleConfigBase, check_rows, not_online
from croupier.policy.oracle.encoded import EncodedOracle, not_fitted
from croupier.policy.oracle.ridge import RidgeConfig, RidgeOracle
from croupier.policy.oracle.vowpal_wabbit import VowpalWabbitConfig, VowpalWabbitOracle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from croupier.policy.estimates import Estimates, Uncertainty
    from croupier.policy.oracle.base import TrainingRow

__all__ = ("AutoConfig", "AutoOracle", "Became")

_BECAME_FILE = "became.json"


class AutoConfig(OracleConfigBase, frozen=True, tag="auto"):
    """Parameters of :class:`AutoOracle`.

    Attributes
    ----------
    l2
        Of the ridge regression, whose prior is one of parts: precision of what each part of the
        columns contributes before any data, positive. The default suits rewards from 0 to 1.
    max_columns
        Most columns that may occur in training for a ridge regression, 1 to 20,000.
    beyond
        What learns where there are more. Its encoder is this one's, and is not given.
    encoder
        How features become columns, of both.
    """

    l2: float = 0.2
    max_columns: int = 1000
    beyond: VowpalWabbitConfig = VowpalWabbitConfig()
    encoder: EncoderConfig = EncoderConfig()

    @property
    def learns_online(self) -> bool:
        """Both do."""
        return True

    @property
    def weighs_propensities(self) -> bool:
        """Vowpal Wabbit's does: rows that were weighed for it already would count twice."""
        return True

    @property
    def ridge(self) -> RidgeConfig:
        """What learns while there is room."""
        return RidgeConfig(
            l2=self.l2, prior="parts", max_columns=self.max_columns, encoder=self.encoder
        )

    @property
    def vowpal_wabbit(self) -> VowpalWabbitConfig:
        """What learns beyond, with the encoder that both have."""
        return msgspec.structs.replace(self.beyond, encoder=self.encoder)

    def __post_init__(self) -> None:
        # Made, it refuses what a ridge regression can't be, by the same names.
        ridge = self.ridge
        if self.beyond.encoder not in {EncoderConfig(), ridge.encoder}:
            raise ValueError(
                "beyond.encoder must be left out: both regressions have the encoder of auto itself"
            )


class Became(msgspec.Struct, frozen=True, kw_only=True):
    """What an :class:`AutoOracle` is.

    Attributes
    ----------
    kind
        Of the oracle that estimates.
    columns
        How many occurred in training; None of what has more than a ridge regression may have.
    """

    kind: Literal["ridge", "vowpal_wabbit"]
    columns: int | None = None


class AutoOracle(EncodedOracle):
    """Ridge regression as long as few columns occur, and Vowpal Wabbit's regression from then on.

    A ridge regression makes the most of every row and knows how sure it is, but takes memory with
    the square of its columns and time with their third power; Vowpal Wabbit's takes what comes. So
    deviations are estimated as long as it is the former: for explorations that want them, and don't
    need them.

    Vowpal Wabbit's learns along from the first row on. What is estimated is thus that of a
    :class:`~croupier.policy.oracle.RidgeOracle` taught the same rows if at most `max_columns`
    columns occur in them, and otherwise that of a
    :class:`~croupier.policy.oracle.VowpalWabbitOracle`, which knows nothing of the other.

    Attributes
    ----------
    became_
        What it is; None before :meth:`fit`.
    """

    config: AutoConfig

    def __init__(self, config: AutoConfig, *, random_state: int = 0) -> None:
        super().__init__(config, random_state=random_state)
        self._ridge: RidgeOracle | None = None
        self._beyond = VowpalWabbitOracle(config.vowpal_wabbit, random_state=random_state)
        # Of the ridge regression; nobody counts beyond.
        self._columns: set[int] = set()

    @property
    def became_(self) -> Became | None:
        """What it is by now."""
        if self._ridge is not None:
            return Became(kind="ridge", columns=len(self._ridge.columns_))
        return None if self._beyond.weights_ is None else Became(kind="vowpal_wabbit")

    def fit(self, rows: Sequence[TrainingRow]) -> AutoOracle:
        """Learn from interactions in the given order, and decide anew what to be.

        Raises
        ------
        NotEnoughDataError
            If there are no rows.
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            As the two regressions raise it.
        """
        check_rows(rows)
        columns = self._columns_with(rows, set())
        ridge = None
        if columns is not None:
            ridge = RidgeOracle(self.config.ridge, random_state=self.random_state).fit(rows)
        self._beyond.fit(rows)
        self._ridge, self._columns = ridge, columns or set()
        return self

    def partial_fit(self, rows: Sequence[TrainingRow]) -> AutoOracle:
        """Learn from further interactions, each of them once.

        With no rows, an oracle that was not fitted starts as a ridge regression from its prior.
        Once more columns have occurred than that has room for, it is dropped for good.

        Raises
        ------
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            As the two regressions raise it, or if the oracle was loaded without the learner that
            goes on beyond.
        """
        check_rows(rows, some=False)
        ridge = self._ridge
        if self.became_ is None:
            ridge = RidgeOracle(self.config.ridge, random_state=self.random_state)
        elif ridge is not None and self._lacks_learner:
            raise not_online("it was loaded without its learner")
        columns = None if ridge is None else self._columns_with(rows, self._columns)
        # Whoever is first looks at all rows before it learns one.
        if ridge is None or columns is None:
            ridge, columns = None, set()
        else:
            ridge.partial_fit(rows)
        self._beyond.partial_fit(rows)
        self._ridge, self._columns = ridge, columns
        return self

    def score_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """As :meth:`score`, for features that are encoded already."""
        return self._estimator().score_encoded(decision)

    def estimate_encoded(
        self, decision: EncodedDecision, needs: Uncertainty = frozenset()
    ) -> Estimates:
        """As :meth:`estimate`, for features that are encoded already."""
        return self._estimator().estimate_encoded(decision, needs)

    def learners(self) -> Mapping[str, bytes]:
        """That of Vowpal Wabbit's regression, whichever estimates."""
        return self._beyond.learners()

    def read_learners(self, directory: Path) -> None:
        """Read the learner that was saved, if it was."""
        self._beyond.read_learners(directory)

    def write(self, directory: Path) -> None:
        """Write what estimates, and what it is."""
        self._estimator().write(directory)
        (directory / _BECAME_FILE).write_bytes(msgspec.json.encode(self.became_))

    def read(self, directory: Path) -> None:
        """Take over what :meth:`write` has written."""
        became = msgspec.json.decode((directory / _BECAME_FILE).read_bytes(), type=Became)
        if became.kind == "ridge":
            ridge = RidgeOracle(self.config.ridge, random_state=self.random_state)
            ridge.read(directory)
            self._ridge, self._columns = ridge, set(ridge.columns_.tolist())
        else:
            self._beyond.read(directory)

    @property
    def _lacks_learner(self) -> bool:
        """Whether Vowpal Wabbit's regression has neither learned here nor been read."""
        return self._beyond.weights_ is None and not self._beyond.learners()

    def _estimator(self) -> RidgeOracle | VowpalWabbitOracle:
        if self._ridge is not None:
            return self._ridge
        if self._beyond.weights_ is None:
            raise not_fitted()
        return self._beyond

    def _columns_with(self, rows: Sequence[TrainingRow], known: set[int]) -> set[int] | None:
        """The columns that are known or occur in rows; None as soon as they are too many."""
        encoder, columns = self._encoder, set(known)
        for row in rows:
            action = encoder.encode_action(row.actions[row.chosen])
            decision = EncodedDecision(encoder.encode_context(row.context), [action])
            columns.update(encoder.indices_of(decision).tolist())
            if len(columns) > self.config.max_columns:
                return None
        return columns
