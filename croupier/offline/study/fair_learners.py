"""Whom the fairness study compares: fair learners, and what is done without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from croupier.policy.fairness.cost_oracles import EnumeratingOracle, LeastSquaresOracle
from croupier.policy.fairness.exp2 import Exp2
from croupier.policy.fairness.ftpl import ContextSemiBanditFTPL
from croupier.policy.fairness.hypotheses import thresholds_through
from croupier.policy.fairness.lagrangian import Penalty
from croupier.policy.fairness.protocol import FairLearner, Feedback, Play

if TYPE_CHECKING:
    from collections.abc import Callable

    from croupier.offline.study.fair_world import FairWorld
    from croupier.policy.fairness.hypotheses import Thresholds

__all__ = (
    "ALL_LABELS",
    "EXP2",
    "FAIR_ARMS",
    "FairArm",
    "GreedyApproval",
    "GroupParity",
    "hypotheses_of",
)

FloatArray: TypeAlias = NDArray[np.float64]

_Make: TypeAlias = "Callable[[FairWorld, Thresholds, np.random.Generator], FairLearner]"

_HYPOTHESES = 400
_SEPARATOR = 40


@dataclass(frozen=True, slots=True)
class FairArm:
    """A learner under a name.

    Attributes
    ----------
    name
        Of the arm.
    make
        Makes the learner for a world and its explicit class, with a generator for what is random in
        making it.
    full_information
        Whether it sees all labels.
    """

    name: str
    make: _Make
    full_information: bool = False


def hypotheses_of(world: FairWorld, seed: int) -> Thresholds:
    """The explicit class of a world, which regret is measured against."""
    rng = np.random.default_rng((seed, 3))
    columns = list(range(1, world.contexts.shape[1]))
    return thresholds_through(world.contexts, _HYPOTHESES, rng, columns=columns)


class GreedyApproval:
    """Approves whom least squares on those approved so far thinks good, and others at random.

    ``π(x) = 1`` where the prediction is at least 1/2, else ε. It knows nothing of pairs.

    Parameters
    ----------
    width
        d, of the contexts.
    epsilon
        Share of the others, in (0, 1).
    """

    def __init__(self, width: int, epsilon: float = 0.05) -> None:
        self._gram = np.eye(width)
        self._moment = np.zeros(width)
        self._epsilon = epsilon
        self._started = False

    def act(self, contexts: FloatArray, rng: np.random.Generator) -> Play:
        """Decide on each instance by itself; on everybody, before there were labels."""
        good = contexts @ np.linalg.solve(self._gram, self._moment) >= 0.5
        chances = np.where(good | (not self._started), 1.0, self._epsilon)
        return Play(contexts, chances, rng.random(len(contexts)) < chances, 1.0 / chances)

    def learn(self, play: Play, feedback: Feedback) -> None:
        """Add those who were approved."""
        seen = play.contexts[play.approved]
        self._gram += seen.T @ seen
        self._moment += feedback.labels[play.approved] @ seen
        self._started = True


class GroupParity:
    """Fairlearn's ThresholdOptimizer: thresholds for each group that approve the same share of all.

    Logistic regression on those approved so far, and demographic parity by Fairlearn's
    post-processing of it (Hardt, Price and Srebro, 2016), both fitted anew whenever the rounds have
    doubled; those whom it declines are approved with probability ε all the same.

    Parameters
    ----------
    group
        Column of the contexts that says the group.
    epsilon
        Share of the others, in (0, 1).
    """

    def __init__(self, group: int, epsilon: float = 0.05) -> None:
        self._group = group
        self._epsilon = epsilon
        self._contexts: list[FloatArray] = []
        self._labels: list[FloatArray] = []
        self._fitted: Any = None
        self._known: dict[bytes, float] = {}
        self._due = 8

    def act(self, contexts: FloatArray, rng: np.random.Generator) -> Play:
        """Decide on each instance by itself; on everybody, before anything was fitted."""
        chances = np.ones(len(contexts))
        if self._fitted is not None:
            chances = self._epsilon + (1.0 - self._epsilon) * self._inside(contexts)
        return Play(contexts, chances, rng.random(len(contexts)) < chances, 1.0 / chances)

    def learn(self, play: Play, feedback: Feedback) -> None:
        """Keep those who were approved, and fit if that is due."""
        self._contexts.append(play.contexts[play.approved])
        self._labels.append(feedback.labels[play.approved])
        if len(self._labels) >= self._due:
            self._fit()
            self._due *= 2

    def _inside(self, contexts: FloatArray) -> FloatArray:
        """The probabilities that its own predict draws from; the same contexts come often."""
        keys = [row.tobytes() for row in contexts]
        unknown = [place for place, key in enumerate(keys) if key not in self._known]
        if unknown:
            asked = contexts[unknown]
            pmf = self._fitted._pmf_predict(  # noqa: SLF001
                asked, sensitive_features=asked[:, self._group]
            )
            found = np.clip(pmf[:, 1], 0.0, 1.0).tolist()
            self._known |= dict(zip([keys[place] for place in unknown], found, strict=True))
        return np.array([self._known[key] for key in keys])

    def _fit(self) -> None:
        from fairlearn.postprocessing import ThresholdOptimizer  # noqa: PLC0415 - slow to import
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - slow to import

        contexts, labels = np.concatenate(self._contexts), np.concatenate(self._labels)
        groups = contexts[:, self._group]
        kinds = {(group, label) for group, label in zip(groups, labels, strict=True)}
        if len(kinds) < 2 * len(set(groups.tolist())):
            return
        self._known = {}
        self._fitted = ThresholdOptimizer(
            estimator=LogisticRegression(max_iter=500),
            constraints="demographic_parity",
            predict_method="predict_proba",
        ).fit(contexts, labels.astype(np.int64), sensitive_features=groups)


def _exp2(price: float) -> _Make:
    return lambda _, hypotheses, __: Exp2(hypotheses, penalty=Penalty(scale=price))


def _ftpl(world: FairWorld, hypotheses: Thresholds, rng: np.random.Generator) -> FairLearner:
    separator = world.contexts[rng.permutation(len(world.contexts))[:_SEPARATOR]]
    return ContextSemiBanditFTPL(EnumeratingOracle(hypotheses, separator))


def _least_squares(world: FairWorld, _: Thresholds, __: np.random.Generator) -> FairLearner:
    return ContextSemiBanditFTPL(LeastSquaresOracle(world.contexts.shape[1]))


EXP2, ALL_LABELS = "exp2", "exp2, all labels"
"""Names of the arms whose difference is what one-sided feedback costs."""

FAIR_ARMS = (
    FairArm(EXP2, _exp2(1.0)),
    FairArm(ALL_LABELS, _exp2(1.0), full_information=True),
    FairArm("ftpl", _ftpl),
    FairArm("ftpl, least squares", _least_squares),
    FairArm("unconstrained", _exp2(0.0)),
    FairArm("epsilon greedy", lambda world, _, __: GreedyApproval(world.contexts.shape[1])),
    FairArm("group parity", lambda world, _, __: GroupParity(world.group)),
)
"""All arms, in the order of the tables: fair ones, and what they are compared with."""
