"""The published protocols of off-policy evaluation, drawn as the Open Bandit Pipeline draws them.

Both come from the examples of the Open Bandit Pipeline (st-tech/zr-obp, ``examples/multiclass`` and
``examples/synthetic``, hyper-parameters ``conf/hyperparams.yaml``). Nothing of it is needed here:
draws come from NumPy's legacy generator in the same order, so with the same seed they are the same
numbers, and the models are scikit-learn's with the same parameters. Run i has the seed i; the folds
of the reward model have the seed 12345 in every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, softmax
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, train_test_split

from croupier.offline.ope import CrossFitted, LoggedBatch, cross_fit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]

__all__ = ("Draw", "digits", "fold_of", "logistic", "synthetic", "trees")

_FOLD_SEED = 12345
_FOLDS = 3


@dataclass(frozen=True, eq=False)
class Draw:
    """One log of a protocol, and what it is to be estimated from it.

    Attributes
    ----------
    context
        Shape (n, d).
    action
        Integers in [0, K), shape (n,).
    reward
        0 or 1, shape (n,).
    logging, target
        Both policies' pmfs, shape (n, K).
    fitted
        The protocol's reward model, cross-fitted in three folds.
    value
        The evaluated policy's value on these n contexts.
    """

    context: FloatArray
    action: IntArray
    reward: FloatArray
    logging: FloatArray
    target: FloatArray
    fitted: CrossFitted
    value: float

    def batch(self, fitted: CrossFitted | None = None) -> LoggedBatch:
        """The log as the estimators take it, with another reward model if given."""
        rows = np.arange(len(self.action))
        model = self.fitted if fitted is None else fitted
        q_logged, q_target = model.of(self.action, self.target)
        return LoggedBatch(
            reward=self.reward,
            propensity=self.logging[rows, self.action],
            target_probability=self.target[rows, self.action],
            q_logged=q_logged,
            q_target=q_target,
        )

    @property
    def largest_weight(self) -> float:
        """Largest weight that could have been logged."""
        return float((self.target / self.logging).max())


def logistic() -> LogisticRegression:
    """The pipeline's logistic regression."""
    return LogisticRegression(max_iter=10_000, C=100, random_state=_FOLD_SEED)


def trees() -> GradientBoostingClassifier:
    """What the pipeline's examples call lightgbm."""
    return GradientBoostingClassifier(
        n_estimators=30, learning_rate=0.01, max_depth=5, min_samples_leaf=10, random_state=12345
    )


def digits(run: int) -> Draw:
    """Handwritten digits as a bandit: ten actions, 1,258 rows, reward 1 for the right digit.

    Of the 1,797 digits, 70% are the log and the rest teach two classifiers. The logging policy
    takes the logistic regression's digit with probability 0.4 and else any, the evaluated one
    the random forest's with 0.9; the reward model is 30 boosted trees at a learning rate of 0.01.

    Parameters
    ----------
    run
        Number of the run, its seed.
    """
    table, label = load_digits(return_X_y=True)
    learn, context, its_label, truth = train_test_split(
        table, label, test_size=0.7, random_state=run
    )
    rows = np.arange(len(truth))
    policies = []
    forest = RandomForestClassifier(
        n_estimators=30, max_depth=5, min_samples_leaf=10, random_state=12345
    )
    for classifier, share in ((logistic(), 0.4), (forest, 0.9)):
        chosen = classifier.fit(learn, its_label).predict(context)
        pmf = np.full((len(truth), 10), (1.0 - share) / 10)
        pmf[rows, chosen] = share + (1.0 - share) / 10
        policies.append(pmf)
    logging, target = policies
    action = _drawn(logging, run)
    reward = (action == truth).astype(np.float64)
    fitted = _reward_model(trees(), context, action, reward, 10)
    value = float(target[rows, truth].mean())
    return Draw(context, action, reward, logging, target, fitted, value)


def synthetic(run: int, *, rounds: int = 10_000, actions: int = 30, beta: float = -3.0) -> Draw:
    """Logistic rewards of standard normal contexts in five dimensions.

    The reward's logit is ``x' M a + x' b + c_a``, every coefficient uniform in (-1, 1), to mean 0
    and variance 1 over the log, as in releases 0.5.2 to 0.5.5 (0.5.7 normalises otherwise, and its
    figures are other ones). The logging policy is ``softmax(beta q)``; the evaluated one the
    softmax of the probabilities of a logistic regression, learned by inverse propensity weighting
    on a log of the same size; the reward model is logistic in contexts and action indicators.

    Parameters
    ----------
    run
        Number of the run, its seed.
    rounds
        Rows of the log.
    actions
        K.
    beta
        Inverse temperature of the logging policy.
    """
    rng = np.random.RandomState(run)
    learn = _synthetic_log(rng, run, rounds, actions, beta)
    context, _, logging, action, reward = judge = _synthetic_log(rng, run, rounds, actions, beta)
    taken = learn[2][np.arange(rounds), learn[3]]
    policy = logistic().fit(learn[0], learn[3], sample_weight=learn[4] / taken)
    target = softmax(policy.predict_proba(context), axis=1)
    fitted = _reward_model(logistic(), context, action, reward, actions)
    value = float((judge[1] * target).sum(axis=1).mean())
    return Draw(context, action, reward, logging, target, fitted, value)


def fold_of(n: int) -> IntArray:
    """The fold of every row, shape (n,)."""
    fold = np.empty(n, dtype=np.intp)
    split = KFold(n_splits=_FOLDS, shuffle=True, random_state=_FOLD_SEED).split(np.empty((n, 1)))
    for number, (_, held) in enumerate(split):
        fold[held] = number
    return fold


def _synthetic_log(
    rng: np.random.RandomState, run: int, rounds: int, actions: int, beta: float
) -> tuple[FloatArray, FloatArray, FloatArray, IntArray, FloatArray]:
    """Contexts, expected rewards, logging pmfs, actions and rewards of one log."""
    context = rng.normal(size=(rounds, 5))
    # The coefficients are drawn anew from the run's seed, so both logs have the same ones; that
    # of the constant is there in each of the three.
    fresh = np.random.RandomState(run)
    features = np.column_stack((np.ones(rounds), context))
    of_action = np.column_stack((np.ones(actions), np.eye(actions)))
    b, c = fresh.uniform(-1, 1, size=6), fresh.uniform(-1, 1, size=actions + 1)
    both = fresh.uniform(-1, 1, size=(6, actions + 1))
    logit = (features @ b)[:, None] + of_action @ c + features @ both @ of_action.T
    expected = expit((logit - logit.mean()) / logit.std())
    logging = softmax(beta * expected, axis=1)
    action = _drawn(logging, run)
    reward = rng.binomial(n=1, p=expected[np.arange(rounds), action]).astype(np.float64)
    return context, expected, logging, action, reward


def _drawn(pmf: FloatArray, run: int) -> IntArray:
    """One action a row, by a generator of its own, shape (n,)."""
    uniform = np.random.RandomState(run).uniform(size=len(pmf))
    chosen: IntArray = (pmf.cumsum(axis=1) > uniform[:, None]).argmax(axis=1)
    return chosen


def _reward_model(
    model: Any, context: FloatArray, action: IntArray, reward: FloatArray, actions: int
) -> CrossFitted:
    return cross_fit(
        clone(model),
        context=context,
        action=action,
        reward=reward,
        fold=fold_of(len(context)),
        action_features=np.eye(actions),
    )
