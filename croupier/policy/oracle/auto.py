"""An oracle that chooses by size: ridge regression while it has room, Vowpal Wabbit's beyond."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import GenerationError
from croupier.policy.oracle.base import OracleConfigBase, check_rows
from croupier.policy.oracle.encoded import EncodedOracle, not_fitted
from croupier.policy.oracle.ridge import RidgeConfig, RidgeOracle
from croupier.policy.oracle.tables import require_way
from croupier.policy.oracle.vowpal_wabbit import VowpalWabbitConfig, VowpalWabbitOracle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from croupier.policy.encoding import EncodedDecision
    from croupier.policy.estimates import Estimates, Uncertainty
    from croupier.policy.events import Action, Features
    from croupier.policy.kernel import Chosen
    from croupier.policy.oracle.base import Dampable, TrainingRow
    from croupier.policy.oracle.moments import Moments
    from croupier.policy.oracle.vowpal_wabbit import BanditLearner

__all__ = ("AutoConfig", "AutoOracle", "Became", "OutgrownError")

_BECAME_FILE = "became.json"
# A hundred features of a size of 3, or one of 30.
_LARGEST_NORM = 1000.0


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
    def can_be_damped(self) -> bool:
        """Between two that became the same."""
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


class OutgrownError(GenerationError):
    """What is learned is not for a ridge regression any more, and nothing else has learned along.

    Only a fit of all rows can go beyond.
    """


class AutoOracle(EncodedOracle):
    """Ridge regression as long as few columns occur, and Vowpal Wabbit's regression from then on.

    A ridge regression makes the most of every row and knows how sure it is, but takes memory with
    the square of its columns and time with their third power; Vowpal Wabbit's takes what comes. So
    deviations are estimated as long as it is the former: for explorations that want them, and don't
    need them. Features must be of about the same size for a ridge regression: beside an income, a
    flag would be taken for nothing. Vowpal Wabbit's takes them in any units.

    What is estimated is that of a :class:`~croupier.policy.oracle.RidgeOracle` taught the same rows
    if at most `max_columns` columns occur in them, and features that are small (a mean squared norm
    of up to 1000, of the context's and of the action's), and otherwise that of a
    :class:`~croupier.policy.oracle.VowpalWabbitOracle`, which knows nothing of the other. Of what
    is fitted at once only the one learns; from nothing and taught row by row, Vowpal Wabbit's
    learns along from the first row on.

    Attributes
    ----------
    became_, estimator_
        What it is, and the oracle that this is; None before :meth:`fit`.
    """

    config: AutoConfig

    def __init__(self, config: AutoConfig, *, random_state: int = 0) -> None:
        super().__init__(config, random_state=random_state)
        self._ridge: RidgeOracle | None = None
        self._beyond = self._new_beyond()

    @property
    def became_(self) -> Became | None:
        """What it is by now."""
        if self._ridge is not None:
            return Became(kind="ridge", columns=len(self._ridge.columns_))
        return None if self.estimator_ is None else Became(kind="vowpal_wabbit")

    @property
    def estimator_(self) -> RidgeOracle | VowpalWabbitOracle | None:
        """What estimates by now."""
        if self._ridge is not None:
            return self._ridge
        return None if self._beyond.weights_ is None else self._beyond

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
        fitted: RidgeOracle | VowpalWabbitOracle
        try:
            fitted = self._new_ridge().fit(rows)
            _require_even(fitted)
        except GenerationError:
            # Whatever a ridge regression can't, the other one may.
            fitted = self._new_beyond().fit(rows)
        self._become(fitted)
        return self

    def fit_moments(self, moments: Moments) -> bool:
        """As :meth:`~croupier.policy.oracle.RidgeOracle.fit_moments`, to be a ridge regression.

        Raises
        ------
        GenerationError
            If it is to be Vowpal Wabbit's.
        """
        ridge = self._new_ridge()
        fitted = ridge.fit_moments(moments)
        if fitted:
            _require_even(ridge)
            self._become(ridge)
        return fitted

    def adopt(self, learner: BanditLearner) -> AutoOracle:
        """As :meth:`~croupier.policy.oracle.VowpalWabbitOracle.adopt`, to be what is beyond."""
        self._become(self._new_beyond().adopt(learner))
        return self

    def partial_fit(self, rows: Sequence[TrainingRow]) -> AutoOracle:
        """Learn from further interactions, each of them once.

        With no rows, an oracle that was not fitted starts as a ridge regression from its prior.
        Once more columns have occurred than that has room for, or large features, it is dropped
        for good.

        Raises
        ------
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        OutgrownError
            If there is no room, and a ridge regression was fitted alone.
        GenerationError
            As the two regressions raise it.
        """
        check_rows(rows, some=False)
        if self.became_ is None:
            self._ridge = self._new_ridge().partial_fit([])
            self._beyond.partial_fit([])
        ridge, along = self._ridge, self._has_learner
        if ridge is not None:
            try:
                ridge.partial_fit(rows)
                _require_even(ridge)
            except GenerationError as error:
                if not along:
                    raise OutgrownError(f"{error}, or fit it anew") from error
                ridge = None
        if ridge is None or along:
            self._beyond.partial_fit(rows)
        self._ridge = ridge
        return self

    def settle(self) -> None:
        """Get ready as what it has become."""
        if self.estimator_ is not None:
            self.estimator_.settle()

    def do_without_kernel(self) -> None:
        """Encode and score in Python alone from now on, whatever it has become."""
        super().do_without_kernel()
        if self.estimator_ is not None:
            self.estimator_.do_without_kernel()

    def goes_with(self, other: object) -> bool:
        """Whether both are fitted, with one configuration, and became the same."""
        if not isinstance(other, AutoOracle) or self.config != other.config:
            return False
        estimator = self.estimator_
        return estimator is not None and estimator.goes_with(other.estimator_)

    def towards(self, other: AutoOracle, step: float) -> AutoOracle:
        """As :meth:`~croupier.policy.oracle.Dampable.towards`."""
        require_way(self, other)
        between = AutoOracle(self.config, random_state=other.random_state)
        estimator: Dampable | None = self.estimator_
        assert estimator is not None, "there is a way"
        fitted = estimator.towards(other.estimator_, step)
        assert isinstance(fitted, RidgeOracle | VowpalWabbitOracle), "as the two are"
        between._become(fitted)
        return between

    def choose(
        self, context: Features, actions: Sequence[Action], gamma: float, number: float
    ) -> Chosen | None:
        """As :meth:`~croupier.policy.oracle.LinearOracle.choose`, once it tells but the mean."""
        if self._ridge is not None or self.calibration_:
            return None
        return self._beyond.choose(context, actions, gamma, number)

    def score_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """As :meth:`score`, for features that are encoded already."""
        return self._fitted().score_encoded(decision)

    def estimate_encoded(
        self, decision: EncodedDecision, needs: Uncertainty = frozenset()
    ) -> Estimates:
        """As :meth:`estimate`, for features that are encoded already."""
        return self._fitted().estimate_encoded(decision, needs)

    def learners(self) -> Mapping[str, bytes]:
        """That of Vowpal Wabbit's regression, if it has learned, whichever estimates."""
        return self._beyond.learners()

    def read_learners(self, directory: Path) -> None:
        """Read the learner that was saved, if it was."""
        self._beyond.read_learners(directory)

    def write(self, directory: Path) -> None:
        """Write what estimates, and what it is."""
        self._fitted().write(directory)
        (directory / _BECAME_FILE).write_bytes(msgspec.json.encode(self.became_))

    def read(self, directory: Path) -> None:
        """Take over what :meth:`write` has written."""
        became = msgspec.json.decode((directory / _BECAME_FILE).read_bytes(), type=Became)
        read = self._new_ridge() if became.kind == "ridge" else self._new_beyond()
        read.read(directory)
        self._become(read)

    @property
    def _has_learner(self) -> bool:
        """Whether Vowpal Wabbit's regression has learned here, or what it had learned was read."""
        return self._beyond.weights_ is not None or bool(self._beyond.learners())

    def _fitted(self) -> RidgeOracle | VowpalWabbitOracle:
        estimator = self.estimator_
        if estimator is None:
            raise not_fitted()
        return estimator

    def _become(self, fitted: RidgeOracle | VowpalWabbitOracle) -> None:
        """Be what was fitted, and nothing else."""
        if isinstance(fitted, RidgeOracle):
            self._ridge, self._beyond = fitted, self._new_beyond()
        else:
            self._ridge, self._beyond = None, fitted

    def _new_ridge(self) -> RidgeOracle:
        return RidgeOracle(self.config.ridge, random_state=self.random_state)

    def _new_beyond(self) -> VowpalWabbitOracle:
        return VowpalWabbitOracle(self.config.vowpal_wabbit, random_state=self.random_state)


def _require_even(ridge: RidgeOracle) -> None:
    """Refuse a ridge regression of large features, beside which small ones are taken for nothing.

    Where features are of one size and many, there are too many columns as well.

    Raises
    ------
    GenerationError
        If the mean squared norm of the context's features or the action's is large.
    """
    norm = float(ridge.norms_[1:3].max())
    # Written so that NaN is large.
    if not norm <= _LARGEST_NORM:
        raise GenerationError(
            f"expected features of about the same size, with a mean squared norm of at most "
            f"{_LARGEST_NORM:g}, got {norm:g}; scale them down"
        )
