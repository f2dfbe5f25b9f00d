"""Bootstrap ensembles: copies of an oracle, each of which has seen the log a little differently."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from croupier.policy.errors import NotEnoughDataError
from croupier.policy.estimates import Estimates
from croupier.policy.oracle.base import OracleConfigBase, check_rows, not_online, require
from croupier.policy.oracle.design import design_of
from croupier.policy.oracle.scikit_learn import SklearnConfig, fit_linear
from croupier.policy.oracle.tables import EnsembleOracle
from croupier.policy.oracle.vowpal_wabbit import (
    READ_OUT_ROWS,
    BanditLearner,
    RegressionExample,
    VowpalWabbitConfig,
    lesson_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from croupier.policy.encoding import EncodedDecision, EncoderConfig
    from croupier.policy.estimates import Uncertainty
    from croupier.policy.oracle.base import TrainingRow
    from croupier.policy.oracle.vowpal_wabbit import Lesson

__all__ = ("BootstrapConfig", "BootstrapOracle", "poisson_weights")

_OFFERS: Uncertainty = frozenset({"deviation", "members"})

_BLOCK = 1024
# Larger counts have probability 5e-16 in all.
_LARGEST_COUNT = 17
_POISSON_CDF = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, *range(1, _LARGEST_COUNT)]))


class BootstrapConfig(OracleConfigBase, frozen=True, tag="bootstrap"):
    """Parameters of :class:`BootstrapOracle`.

    Attributes
    ----------
    base
        What every member is.
    members
        How many there are, 2 to 1000.
    """

    base: VowpalWabbitConfig | SklearnConfig = VowpalWabbitConfig()
    members: int = 10

    @property
    def offers(self) -> Uncertainty:
        """The members, and how far they are apart."""
        return _OFFERS

    @property
    def learns_online(self) -> bool:
        """If the base is one of Vowpal Wabbit's: members of the other kind are fitted at once."""
        return isinstance(self.base, VowpalWabbitConfig)

    @property
    def weighs_propensities(self) -> bool:
        """If the base does."""
        return self.base.weighs_propensities

    @property
    def encoder(self) -> EncoderConfig:
        """The base's."""
        return self.base.encoder

    def __post_init__(self) -> None:
        require("members", 2 <= self.members <= 1000, "in [2, 1000]", self.members)


class BootstrapOracle(EnsembleOracle):
    """An ensemble whose members count every row a Poisson(1) number of times.

    ``mean`` is the members' mean and ``deviation`` their sample standard deviation (B - 1 in the
    denominator), which estimates the standard error of one fit to the log, the noise included: it
    is in units of the reward, where a ridge regression's is in units of the noise. Before any rows
    all members agree on 0.

    A row that a member counts 0 times is passed over by it. How often is a function of
    `random_state`, the member and the row's place in the order of learning, so that the same rows
    give the same ensemble, in one go or bit by bit, and more members leave the others as they are.

    References
    ----------
    Oza and Russell, "Online Bagging and Boosting", 2001; Eckles and Kaptein, "Thompson Sampling
    with the Online Bootstrap", 2014.
    """

    config: BootstrapConfig
    _learners: list[BanditLearner] | None = None
    _seen: int = 0
    _block: tuple[int, NDArray[np.int64]] | None = None

    def fit(self, rows: Sequence[TrainingRow]) -> BootstrapOracle:
        """Learn from interactions in the given order.

        Raises
        ------
        NotEnoughDataError
            If there are no rows, or a member that classifies sees only one kind of reward.
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            As the base raises it.
        """
        check_rows(rows)
        if isinstance(self.config.base, SklearnConfig):
            self._fit_estimators(self.config.base, rows)
            return self
        base = self.config.base
        learners, slate = self._new_learners(base), RegressionExample()
        for _ in range(base.passes):
            for position, row in enumerate(rows):
                self._teach(learners, position, lesson_of(base, self._encoder, row, slate))
        self._learners, self._seen = learners, len(rows)
        self._read_out(learners)
        return self

    def partial_fit(self, rows: Sequence[TrainingRow]) -> BootstrapOracle:
        """Learn from further interactions, each of them in one pass.

        With no rows, an oracle that was not fitted starts with scores of 0.

        Raises
        ------
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            If the weights grew without bound, the oracle was loaded, or its base learns only from
            all rows at once.
        """
        check_rows(rows, some=False)
        base = self.config.base
        if isinstance(base, SklearnConfig):
            raise not_online("scikit-learn's estimators are fitted to all rows at once")
        lessons = [lesson_of(base, self._encoder, row) for row in rows]
        if self._learners is None:
            if self.weights_ is None:
                self.weights_ = self._no_weights()
            elif not self._kept_learners:
                raise not_online("it was loaded without its learners")
            self._learners = self._new_learners(base, self._kept_learners)
            self._seen = int(self._kept_learners.get("seen", b"0"))
        at_once = len(rows) >= READ_OUT_ROWS or (base.l2 > 0 and len(rows) > 0)
        for lesson in lessons:
            taught = self._teach(self._learners, self._seen, lesson)
            self._seen += 1
            if not at_once:
                changed = lesson.changed
                for member in taught:
                    self._put(member, changed, self._learners[member].weights(changed))
        if at_once:
            self._read_out(self._learners)
        return self

    def score_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """As :meth:`score`, for features that are encoded already."""
        return np.asarray(self.members_encoded(decision).mean(axis=0))

    def estimate_encoded(
        self, decision: EncodedDecision, needs: Uncertainty = frozenset()
    ) -> Estimates:
        """As :meth:`estimate`, for features that are encoded already."""
        members = self.members_encoded(decision)
        return Estimates(
            members.mean(axis=0),
            members.std(axis=0, ddof=1) if "deviation" in needs else None,
            members=members if "members" in needs else None,
        )

    def learners(self) -> Mapping[str, bytes]:
        """The members' learners and the number of rows they saw, if they can be saved."""
        base = self.config.base
        if self._learners is None:
            return self._kept_learners
        if isinstance(base, SklearnConfig) or not base.resumes:
            return {}
        members = {f"member {i}": each.serialize() for i, each in enumerate(self._learners)}
        return members | {"seen": str(self._seen).encode()}

    def _size(self) -> int:
        return self.config.members

    def _no_weights(self) -> NDArray[np.float32]:
        return np.zeros((1 << self.config.encoder.bits, self.config.members), dtype=np.float32)

    def _new_learners(
        self, base: VowpalWabbitConfig, kept: Mapping[str, bytes] | None = None
    ) -> list[BanditLearner]:
        kept = {} if kept is None else kept
        return [
            BanditLearner(base, self.random_state, kept.get(f"member {i}"))
            for i in range(self.config.members)
        ]

    def _teach(self, learners: Sequence[BanditLearner], position: int, lesson: Lesson) -> list[int]:
        """Teach a row to the members that count it, and say which they are."""
        counts = self._counts(position)
        taught: list[int] = np.flatnonzero(counts).tolist()
        for member in taught:
            learners[member].learn(lesson, int(counts[member]) * lesson.row.weight)
        return taught

    def _counts(self, position: int) -> NDArray[np.int64]:
        """How often every member counts the row at this place, shape (B,)."""
        block, offset = divmod(position, _BLOCK)
        if self._block is None or self._block[0] != block:
            self._block = block, _poisson_block(self.random_state, self.config.members, block)
        return np.asarray(self._block[1][offset])

    def _read_out(self, learners: Sequence[BanditLearner]) -> None:
        self.weights_ = self._no_weights()
        for member, learner in enumerate(learners):
            self._put(member, None, learner.weights())

    def _fit_estimators(self, base: SklearnConfig, rows: Sequence[TrainingRow]) -> None:
        design = design_of(self._encoder, rows)
        counts = poisson_weights(self.random_state, self.config.members, len(rows))
        weights = self._no_weights()
        for member in range(self.config.members):
            seen = np.flatnonzero(counts[:, member])
            if not len(seen):
                raise NotEnoughDataError(f"member {member} of the ensemble got none of the rows")
            try:
                fitted = fit_linear(
                    base,
                    self.random_state,
                    design.matrix[seen],
                    design.rewards[seen],
                    design.weights[seen] * counts[seen, member],
                )
            except NotEnoughDataError as error:
                raise NotEnoughDataError(f"member {member} of the ensemble: {error}") from error
            weights[design.columns, member] = fitted.coefficients
            self.link_ = fitted.link
        self.weights_ = weights


def poisson_weights(random_state: int, members: int, rows: int) -> NDArray[np.int64]:
    """How often every member counts every row: Poisson(1), independent, shape (rows, members).

    Philox numbers turned into counts by the inverse of the distribution function, so that neither
    NumPy's version nor the numbers of rows and members changes what an entry is.

    Parameters
    ----------
    random_state
        Seed, at least 0.
    members, rows
        How many there are.
    """
    blocks = [_poisson_block(random_state, members, block) for block in range(-(-rows // _BLOCK))]
    return np.concatenate([np.empty((0, members), dtype=np.int64), *blocks])[:rows]


def _poisson_block(random_state: int, members: int, block: int) -> NDArray[np.int64]:
    """Counts of the rows of one block, shape (1024, members)."""
    return np.stack(list(_columns(random_state, members, block)), axis=1)


def _columns(random_state: int, members: int, block: int) -> Iterator[NDArray[np.int64]]:
    for member in range(members):
        seed = np.random.SeedSequence(random_state, spawn_key=(member, block))
        uniform = np.random.Philox(seed).random_raw(_BLOCK) / 2.0**64
        yield np.searchsorted(_POISSON_CDF, uniform, side="right")
