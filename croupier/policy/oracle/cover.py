"""Online cover: an ensemble whose members are trained to like what those before them leave out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from croupier.policy.encoding import EncoderConfig
from croupier.policy.estimates import Estimates
from croupier.policy.exploration.base import share_of_best
from croupier.policy.exploration.ensembles import cover_floor
from croupier.policy.oracle.base import OracleConfigBase, check_rows, not_online, require
from croupier.policy.oracle.tables import EnsembleOracle
from croupier.policy.oracle.vowpal_wabbit import (
    BanditLearner,
    CostLearner,
    VowpalWabbitConfig,
    action_examples,
    lesson_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from croupier.policy.encoding import EncodedDecision
    from croupier.policy.estimates import Uncertainty
    from croupier.policy.oracle.base import TrainingRow

__all__ = ("CoverConfig", "CoverOracle", "cover_rewards")

_OFFERS: Uncertainty = frozenset({"members"})


class CoverConfig(OracleConfigBase, frozen=True, tag="cover"):
    """Parameters of :class:`CoverOracle`.

    Attributes
    ----------
    members
        How many there are, the ordinary regression among them, 1 to 1000.
    psi
        Size ≥ 0 of the bonus for actions that the members before leave out; 0 is none.
    epsilon
        That of the exploration of kind ``cover`` that is to play it: it sets the smallest
        probability that the bonus is reckoned with.
    learning_rate
        Positive.
    encoder
        How features become indices.
    """

    members: int = 5
    psi: float = 1.0
    epsilon: float | None = None
    learning_rate: float = 0.5
    encoder: EncoderConfig = EncoderConfig()

    @property
    def offers(self) -> Uncertainty:
        """The members; how far they are apart is their purpose, and no error."""
        return _OFFERS

    @property
    def learns_online(self) -> bool:
        """It learns nothing but online."""
        return True

    @property
    def weighs_propensities(self) -> bool:
        """All members see rewards that are corrected for them."""
        return True

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require("members", 1 <= self.members <= 1000, "in [1, 1000]", self.members)
        require("psi", 0 <= self.psi < math.inf, "at least 0", self.psi)
        require("learning_rate", 0 < rate < math.inf, "positive", rate)
        if self.epsilon is not None:
            require("epsilon", 0 <= self.epsilon <= 1, "in [0, 1]", self.epsilon)


class CoverOracle(EnsembleOracle):
    """Policies that together cover the actions that may be best, learned in one pass.

    The first member is the regression of a ``vowpal_wabbit`` oracle (``mtr``), and is the mean.
    Every further one learns by regression, under the rewards of :func:`cover_rewards`, what each
    action of a decision is worth. All members score a row before any of them learns it. The scores
    of the further members hold bonuses: they say which action a member prefers, not how much reward
    it expects.

    References
    ----------
    Agarwal, Hsu, Kale, Langford, Li and Schapire, "Taming the Monster: A Fast and Simple Algorithm
    for Contextual Bandits", 2014, Algorithm 3 (online cover).
    """

    config: CoverConfig
    _first: BanditLearner | None = None
    _others: tuple[CostLearner, ...] = ()
    _seen: int = 0

    def fit(self, rows: Sequence[TrainingRow]) -> CoverOracle:
        """Learn from interactions in the given order.

        Raises
        ------
        NotEnoughDataError
            If there are no rows.
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            If the weights grew without bound.
        """
        check_rows(rows)
        encoded = self._encoded(rows)
        self.weights_ = None
        self._start({})
        self._learn(encoded)
        return self

    def partial_fit(self, rows: Sequence[TrainingRow]) -> CoverOracle:
        """Learn from further interactions, as :meth:`fit` would have gone on.

        With no rows, an oracle that was not fitted starts with scores of 0.

        Raises
        ------
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            If the weights grew without bound, or the oracle was loaded.
        """
        check_rows(rows, some=False)
        encoded = self._encoded(rows)
        if self._first is None:
            if self.weights_ is not None and not self._kept_learners:
                raise not_online("it was loaded without its learners")
            self._start(self._kept_learners)
        self._learn(encoded)
        return self

    def score_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """As :meth:`score`, for features that are encoded already."""
        return np.asarray(self.members_encoded(decision)[0])

    def estimate_encoded(
        self, decision: EncodedDecision, needs: Uncertainty = frozenset()
    ) -> Estimates:
        """As :meth:`estimate`, for features that are encoded already."""
        members = self.members_encoded(decision)
        return Estimates(members[0], members=members if "members" in needs else None)

    def learners(self) -> Mapping[str, bytes]:
        """The members' learners and the number of rows they saw."""
        if self._first is None:
            return self._kept_learners
        members = {f"member {i}": each.serialize() for i, each in enumerate(self._others, 1)}
        return members | {
            "first": self._first.serialize(),
            "seen": str(self._seen).encode(),
        }

    def _size(self) -> int:
        return self.config.members

    def _encoded(self, rows: Sequence[TrainingRow]) -> list[tuple[TrainingRow, EncodedDecision]]:
        return [(row, self._encoder.encode(row.context, row.actions)) for row in rows]

    def _start(self, kept: Mapping[str, bytes]) -> None:
        """From nothing, or from the learners that were kept."""
        config, seed = self.config, self.random_state
        self._first = BanditLearner(_first_config(config), seed, kept.get("first"))
        self._others = tuple(
            CostLearner(config.encoder, config.learning_rate, seed, kept.get(f"member {i}"))
            for i in range(1, config.members)
        )
        self._seen = int(kept.get("seen", b"0"))
        if self.weights_ is None:
            self.weights_ = np.zeros((1 << config.encoder.bits, config.members), dtype=np.float32)

    def _learn(self, encoded: Sequence[tuple[TrainingRow, EncodedDecision]]) -> None:
        assert self._first is not None, "learning has started"
        for row, decision in encoded:
            scores = self.members_encoded(decision)
            rewards = cover_rewards(self.config, scores, row, self._seen)
            lesson = lesson_of(_first_config(self.config), self._encoder, row)
            self._first.learn(lesson, row.weight)
            self._put(0, lesson.changed, self._first.weights(lesson.changed))
            examples, changed = action_examples(decision), self._encoder.indices_of(decision)
            for member, (learner, each) in enumerate(zip(self._others, rewards, strict=True), 1):
                learner.learn(examples, each, row.weight)
                self._put(member, changed, learner.weights(changed))
            self._seen += 1


def cover_rewards(
    config: CoverConfig, scores: NDArray[np.float64], row: TrainingRow, seen: int
) -> NDArray[np.float64]:
    """What every action is worth to the members after the first, shape (B - 1, K).

    The doubly robust estimate of its reward by the first member f, and a bonus that is the larger
    the fewer of the members before member i = 1, 2, … vote for it, ``f(a) + [a chosen]
    (r - f(a)) / p + psi · μ / (max(v_i(a), μ) / Σ_b max(v_i(b), μ))``, where every member has 1/B
    of the votes v and μ is the smallest probability that the exploration would leave an action.

    Parameters
    ----------
    config
        With psi and epsilon.
    scores
        Of all members before they learn the row, shape (B, K).
    row
        What was chosen, with which probability, and what came of it.
    seen
        Rows that the members have learned from.
    """
    members, actions = scores.shape
    rewards = scores[0].copy()
    rewards[row.chosen] += (row.reward - rewards[row.chosen]) / row.propensity
    floor = cover_floor(actions, seen, config.epsilon)
    votes = np.cumsum(share_of_best(scores[:-1]), axis=0) / members
    probabilities = np.maximum(votes, floor)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    # A floor of 0 stands for no bonus, also where nobody votes.
    bonus = np.divide(
        config.psi * floor, probabilities, out=np.zeros_like(votes), where=probabilities > 0.0
    )
    return np.asarray(rewards + bonus)


def _first_config(config: CoverConfig) -> VowpalWabbitConfig:
    """The ordinary regression that is the first member."""
    return VowpalWabbitConfig(learning_rate=config.learning_rate, encoder=config.encoder)
