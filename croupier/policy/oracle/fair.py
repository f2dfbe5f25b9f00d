"""Fair approvals: a mixture of thresholds that was kept fair by auditors while it learned."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.estimates import Estimates
from croupier.policy.events import Action
from croupier.policy.fairness.auditors import Metric, Panel
from croupier.policy.fairness.config import (
    AlikeIfSame,
    IndividualFairness,
    WeightedDistance,
)
from croupier.policy.fairness.cost_oracles import LeastSquaresOracle
from croupier.policy.fairness.exp2 import Exp2, OpenDoor
from croupier.policy.fairness.features import AUDIT, FeatureTable
from croupier.policy.fairness.ftpl import ContextSemiBanditFTPL
from croupier.policy.fairness.hypotheses import thresholds_through
from croupier.policy.fairness.lagrangian import Penalty
from croupier.policy.fairness.protocol import Feedback, audit
from croupier.policy.oracle.base import OracleConfigBase, check_rows, require
from croupier.policy.oracle.encoded import EncodedOracle, not_fitted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.policy.encoding import EncodedDecision, EncodedFeatures
    from croupier.policy.estimates import Uncertainty
    from croupier.policy.oracle.base import TrainingRow

    FloatArray = NDArray[np.float64]

__all__ = ("FairConfig", "FairOracle")

_OFFERS: Uncertainty = frozenset({"members"})
_FILE = "thresholds.npz"
_RIDGE = 1.0
# Of the reward of what is not approved, before it was seen.
_NEUTRAL = 0.5


class FairConfig(OracleConfigBase, frozen=True, kw_only=True, tag="fair"):
    """Parameters of :class:`FairOracle`.

    Attributes
    ----------
    fairness
        The auditors, α, γ, and the action that is approval. Auditors of kind ``distance`` and
        ``alike_if_same``, on features of the context: a log that is learned from holds no other.
    learner
        ``exp2`` over as many random thresholds as `hypotheses` says, or ``ftpl`` with least squares
        for an oracle.
    hypotheses
        H, 10 to 5000; of ``exp2``.
    members
        B, whose votes are the policy, 10 to 1000.
    instances
        k, 10 to 1000: so many decisions of the log make one round.
    price
        Of a reported pair.
    max_columns
        Most columns of the context that thresholds look at, 1 to 1000: those that occur in most of
        the decisions.
    encoder
        How features become columns.
    """

    fairness: IndividualFairness
    learner: Literal["exp2", "ftpl"] = "exp2"
    hypotheses: int = 400
    members: int = 200
    instances: int = 100
    price: Penalty = Penalty()
    max_columns: int = 100
    encoder: EncoderConfig = EncoderConfig()

    @property
    def offers(self) -> Uncertainty:
        """The members, each of which approves or doesn't."""
        return _OFFERS

    @property
    def weighs_propensities(self) -> bool:
        """Labels of the approved count one over the probability of their approval."""
        return True

    @property
    def played_by(self) -> str | None:
        """The votes of the members are what was audited; nothing else plays that."""
        return "bagging"

    @property
    def approval(self) -> str:
        """Id of the action that is audited and learned about."""
        assert self.fairness.action is not None, "it was checked"
        return self.fairness.action

    def __post_init__(self) -> None:
        ranges = {
            "hypotheses": (10, 5000),
            "members": (10, 1000),
            "instances": (10, 1000),
            "max_columns": (1, 1000),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            require(name, least <= value <= most, f"in [{least}, {most}]", value)
        if self.fairness.action is None:
            raise ValueError("fairness.action must name the action that is approval")
        if not self.encoder.action_id:
            raise ValueError("encoder.action_id must be true: approval is known by its id")
        for name, auditor in self.fairness.auditors.items():
            paths = _paths(auditor)
            if not paths or any(path.startswith(AUDIT) for path in paths):
                raise ValueError(
                    f"fairness.auditors.{name} must be of kind distance or alike_if_same, on "
                    f"features of the context"
                )


class FairOracle(EncodedOracle):
    """Learns whom to approve from the approved alone, under auditors who object to pairs.

    The log is played again, k decisions a round in the order of the log. Each round the mixture
    that was learned so far is audited on the round's contexts, and the labels of those who were
    approved, whoever decided it, count one over the probability with which they were: this is
    unbiased whatever policy has made the log. A reward of 1 is a label of 1, and 1/2 is what
    declining is worth. See :mod:`croupier.policy.fairness.semi_bandit`.

    What is served is ``exp2``'s mean distribution over the later half of the rounds, in B equal
    votes, or the leaders that ``ftpl`` has come to: whoever plays the members' votes (exploration
    ``bagging``) approves with just the probability that is audited. Theory is about a learner that
    is asked anew in every round; between two generations this one stands still.

    ``mean`` is a ridge regression of the reward of approval, on the approved, and the mean reward
    of all else; evaluation may use it as any other oracle's.

    Attributes
    ----------
    thresholds_
        A row for each of the B members: weights on the constant and the columns, shape (B, 1 + m);
        None before :meth:`fit`.
    columns_
        Indices of the m columns, masked to the encoder's table, ascending.
    reward_
        Weights of the reward of approval, shape (1 + m,), and the mean reward of all else.
    reported_
        Share of the later half of the rounds in which a pair was reported; None in an oracle that
        was loaded.
    """

    config: FairConfig

    def __init__(self, config: OracleConfigBase, *, random_state: int = 0) -> None:
        super().__init__(config, random_state=random_state)
        self.thresholds_: FloatArray | None = None
        self.columns_: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.reward_: tuple[FloatArray, float] = (np.zeros(1), _NEUTRAL)
        self.reported_: float | None = None
        approval = self._encoder.encode_action(Action(id=self.config.approval))
        # The first of an action's features is its id.
        self._approval = int(approval.indices[0])

    def fit(self, rows: Sequence[TrainingRow]) -> FairOracle:
        """Learn from interactions in the given order.

        Raises
        ------
        NotEnoughDataError
            If there are no rows, or nobody was approved.
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be, a reward is outside
            [0, 1], or no row has a feature that an auditor looks at.
        """
        check_rows(rows)
        log = _Log.of(rows, self.config)
        if not log.approved.any():
            raise NotEnoughDataError(f"nobody was given {self.config.approval!r}; nothing is known")
        encoded = [self._encoder.encode_context(row.context) for row in rows]
        self.columns_ = self._commonest(encoded)
        contexts = np.vstack([self._row(each) for each in encoded])
        centre, scale = contexts.mean(axis=0), contexts.std(axis=0)
        scale[scale == 0.0] = 1.0
        centre[0] = 0.0
        standard = (contexts - centre) / scale
        members = self._learned(standard, log, _panel_of(self.config, rows))
        self.thresholds_ = _unscaled(members, centre, scale)
        seen, weights = standard[log.approved], log.weights[log.approved]
        gram = _RIDGE * np.eye(seen.shape[1]) + (seen * weights[:, None]).T @ seen
        solved = np.linalg.solve(gram, seen.T @ (weights * log.rewards[log.approved]))
        declined = log.rewards[~log.approved]
        self.reward_ = (
            _unscaled(solved[None, :], centre, scale)[0],
            float(declined.mean()) if declined.size else _NEUTRAL,
        )
        return self

    def score_encoded(self, decision: EncodedDecision) -> FloatArray:
        """As :meth:`score`, for features that are encoded already."""
        if self.thresholds_ is None:
            raise not_fitted()
        weights, otherwise = self.reward_
        expected = float(np.clip(self._row(decision.context) @ weights, 0.0, 1.0))
        return np.where(self._approves(decision), expected, otherwise)

    def estimate_encoded(
        self, decision: EncodedDecision, needs: Uncertainty = frozenset()
    ) -> Estimates:
        """As :meth:`estimate`, for features that are encoded already."""
        mean = self.score_encoded(decision)
        if "members" not in needs or self.thresholds_ is None:
            return Estimates(mean)
        votes = (self.thresholds_ @ self._row(decision.context) >= 0.0).astype(np.float64)
        approves = self._approves(decision)
        return Estimates(mean, members=np.where(approves, votes[:, None], 1.0 - votes[:, None]))

    def write(self, directory: Path) -> None:
        """Write thresholds, columns and the rewards' weights."""
        if self.thresholds_ is None:
            raise not_fitted()
        weights, otherwise = self.reward_
        np.savez(
            directory / _FILE,
            thresholds=self.thresholds_,
            columns=self.columns_,
            reward=np.append(weights, otherwise),
        )

    def read(self, directory: Path) -> None:
        """Take over what :meth:`write` has written."""
        with np.load(io.BytesIO((directory / _FILE).read_bytes()), allow_pickle=False) as arrays:
            thresholds, columns = arrays["thresholds"], arrays["columns"]
            reward = arrays["reward"]
        width = 1 + columns.size
        fits = thresholds.ndim == 2 and thresholds.shape[1] == width and reward.size == width + 1
        if not fits or not (np.diff(columns) > 0).all():
            raise ValueError("expected thresholds on ascending columns")
        if not (np.isfinite(thresholds).all() and np.isfinite(reward).all()):
            raise GenerationError("the oracle has weights that are not finite")
        self.thresholds_, self.columns_ = thresholds, columns
        self.reward_ = (reward[:-1], float(reward[-1]))

    def _learned(self, contexts: FloatArray, log: _Log, panel: Panel) -> FloatArray:
        """Play the log again; gives the members' weights on standardised contexts."""
        config, rng = self.config, np.random.default_rng(self.random_state)
        shut = OpenDoor(most=0.0)
        learner: Exp2 | ContextSemiBanditFTPL
        if config.learner == "exp2":
            columns = range(1, contexts.shape[1])
            hypotheses = thresholds_through(contexts, config.hypotheses, rng, columns=columns)
            learner = Exp2(hypotheses, penalty=config.price, door=shut)
        else:
            leaders = LeastSquaresOracle(contexts.shape[1], size=config.members)
            learner = ContextSemiBanditFTPL(leaders, penalty=config.price, door=shut)
        starts = range(0, len(contexts), config.instances)
        later, reported = len(starts) // 2, []
        total = np.zeros(config.hypotheses)
        for number, start in enumerate(starts):
            here = np.arange(start, min(start + config.instances, len(contexts)))
            played = learner.act(contexts[here], rng)
            first, second = np.meshgrid(here, here, indexing="ij")
            allowed = panel.distances(first.ravel(), second.ravel()).reshape(first.shape)
            violation = audit(played.chances, allowed, config.fairness.alpha)
            logged = replace(played, approved=log.approved[here], inverse=log.inverse[here])
            learner.learn(logged, Feedback(log.rewards[here], violation, log.weights[here]))
            if number >= later:
                reported.append(violation is not None)
                if isinstance(learner, Exp2):
                    total += learner.weights.distribution()
        self.reported_ = float(np.mean(reported))
        if isinstance(learner, Exp2):
            return hypotheses.weights[_votes(total, config.members)]
        mixture = leaders.leaders(rng)
        return mixture.weights

    def _commonest(self, encoded: Sequence[EncodedFeatures]) -> NDArray[np.int64]:
        """The context's columns that occur in most of the decisions, up to the limit."""
        # The first is the constant, which has a place of its own.
        masked = [
            np.unique(each.indices[1:][each.values[1:] != 0.0] & self._encoder.mask)
            for each in encoded
        ]
        columns, counts = np.unique(np.concatenate(masked).astype(np.int64), return_counts=True)
        kept = columns[np.argsort(-counts, kind="stable")[: self.config.max_columns]]
        return np.sort(kept)

    def _row(self, context: EncodedFeatures) -> FloatArray:
        """The constant and the columns of a context, shape (1 + m,)."""
        row = np.zeros(1 + self.columns_.size)
        row[0] = 1.0
        if self.columns_.size:
            indices = (context.indices[1:] & self._encoder.mask).astype(np.int64)
            at = np.minimum(np.searchsorted(self.columns_, indices), self.columns_.size - 1)
            known = self.columns_[at] == indices
            np.add.at(row, 1 + at[known], context.values[1:][known])
        return row

    def _approves(self, decision: EncodedDecision) -> NDArray[np.bool_]:
        """Which of the actions is approval, shape (K,)."""
        return np.array([int(each.indices[0]) == self._approval for each in decision.actions])


class _Log:
    """What the rows say of approvals: shape (n,) each."""

    def __init__(
        self,
        approved: NDArray[np.bool_],
        inverse: FloatArray,
        rewards: FloatArray,
        weights: FloatArray,
    ) -> None:
        self.approved, self.inverse = approved, inverse
        self.rewards, self.weights = rewards, weights

    @classmethod
    def of(cls, rows: Sequence[TrainingRow], config: FairConfig) -> _Log:
        rewards = np.array([row.reward for row in rows])
        outside = np.flatnonzero((rewards < 0.0) | (rewards > 1.0))
        if outside.size:
            place = int(outside[0])
            raise InvalidInputError(
                f"rows[{place}].reward", f"expected a number in [0, 1], got {rewards[place]:g}"
            )
        weights = np.array([row.weight for row in rows])
        return cls(
            np.array([row.actions[row.chosen].id == config.approval for row in rows]),
            1.0 / np.minimum([row.propensity for row in rows], 1.0),
            rewards,
            weights / weights.mean(),
        )


def _panel_of(config: FairConfig, rows: Sequence[TrainingRow]) -> Panel:
    """The auditors, on the contexts of the rows."""
    fairness = config.fairness
    auditors = list(fairness.auditors.values())
    paths = dict.fromkeys(path for each in auditors for path in _paths(each))
    table = FeatureTable.of(paths, [row.context for row in rows])
    metrics: list[Metric] = []
    for auditor in auditors:
        if isinstance(auditor, WeightedDistance):
            metrics.append(table.metric(auditor.weights))
        else:
            # Whoever differs in anything is as far away as can be.
            metrics.append(table.metric(dict.fromkeys(_paths(auditor), _FAR)))
    return Panel(metrics, fairness.gamma)


_FAR = 1e9


def _paths(auditor: Any) -> Sequence[str]:
    if isinstance(auditor, WeightedDistance):
        return tuple(auditor.weights)
    return tuple(auditor.features) if isinstance(auditor, AlikeIfSame) else ()


def _unscaled(weights: FloatArray, centre: FloatArray, scale: FloatArray) -> FloatArray:
    """Weights on contexts as they are, of weights on standardised ones, a row each."""
    raw = weights / scale
    raw[:, 0] -= raw @ centre
    return np.asarray(raw)


def _votes(distribution: FloatArray, members: int) -> NDArray[np.int64]:
    """B places that stand for a distribution: no run of hypotheses is off by more than 1/B."""
    cumulative = np.cumsum(distribution / distribution.sum())
    middles = (np.arange(members) + 0.5) / members
    return np.minimum(np.searchsorted(cumulative, middles), len(distribution) - 1)
