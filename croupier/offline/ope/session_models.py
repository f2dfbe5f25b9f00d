"""What sequential evaluation learns from a log: a critic, and how often states are met.

Both are fitted with the other folds' sessions for every session, step by step, by regressors of
scikit-learn's kind: a critic from the last step to the first, state weights from the first to the
last. ``croupier.offline.ope.sessions`` says what they are for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from croupier.offline.ope.sessions import SessionBatch
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.offline.ope.intervals import FloatArray

__all__ = ("Critic", "SessionLog", "fit_critic", "fit_state_weights")

_PMF_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False, kw_only=True)
class SessionLog:
    """Logged sessions with what their steps looked like; what is beyond a session's end is ignored.

    Attributes
    ----------
    state
        Features of every step, before its decision, shape (n, T, d). For marginal weights and for
        the critic to be right, they have to tell all that the future depends on.
    action
        Which one was taken, integers in [0, K), shape (n, T).
    target
        The evaluated policy's pmf at every step, shape (n, T, K).
    reward, propensity
        Of the steps, shape (n, T).
    steps
        How many each session has, in 1 to T, shape (n,).

    Raises
    ------
    InvalidInputError
        If an array has another shape or holds what it can't; it names the field.
    """

    state: FloatArray
    action: NDArray[np.int64]
    target: FloatArray
    reward: FloatArray
    propensity: FloatArray
    steps: NDArray[np.int64]

    def __post_init__(self) -> None:
        n, length = np.shape(self.reward)
        for name, extra in (("state", 1), ("target", 1), ("action", 0)):
            array = np.asarray(getattr(self, name))
            if array.shape[:2] != (n, length) or array.ndim != 2 + extra:
                expected = f"({n}, {length}{', k' * extra})"
                raise InvalidInputError(name, f"expected shape {expected}, got {array.shape}")
            object.__setattr__(self, name, array)
        live = self.live
        taken = self.action[live]
        if taken.dtype.kind not in "iu" or (
            len(taken) and not 0 <= taken.min() <= taken.max() < self.target.shape[2]
        ):
            raise InvalidInputError("action", f"expected integers in [0, {self.target.shape[2]})")
        pmf = self.target[live]
        if not (pmf.min(initial=0.0) >= 0.0 and np.allclose(pmf.sum(-1), 1.0, atol=_PMF_TOLERANCE)):
            raise InvalidInputError("target", "expected pmfs that sum to 1")
        if not np.isfinite(self.state[live]).all():
            raise InvalidInputError("state", "expected finite numbers")
        self.batch()

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def live(self) -> NDArray[np.bool_]:
        """Which steps there are, shape (n, T)."""
        within: NDArray[np.bool_] = np.arange(self.reward.shape[1]) < self.steps[:, None]
        return within

    @property
    def target_probability(self) -> FloatArray:
        """Of the logged actions, shape (n, T)."""
        taken = np.where(self.live, self.action, 0)
        return np.take_along_axis(self.target, taken[:, :, None], axis=2)[:, :, 0]

    def batch(
        self, critic: Critic | None = None, state_weight: FloatArray | None = None
    ) -> SessionBatch:
        """As estimators take it, with what was learned.

        Parameters
        ----------
        critic
            Of :func:`fit_critic`.
        state_weight
            Of :func:`fit_state_weights`.
        """
        return SessionBatch(
            reward=self.reward,
            propensity=self.propensity,
            target_probability=self.target_probability,
            steps=self.steps,
            q_logged=None if critic is None else critic.q_logged,
            v_target=None if critic is None else critic.v_target,
            state_weight=state_weight,
        )


class Critic(NamedTuple):
    """Rewards that are expected from a step on, under the evaluated policy; each of shape (n, T).

    Attributes
    ----------
    q_logged
        With the logged action at that step.
    v_target
        Before it.
    """

    q_logged: FloatArray
    v_target: FloatArray


def fit_critic(
    log: SessionLog, model: Any, *, fold: NDArray[np.intp], discount: float = 1.0
) -> Critic:
    """Fitted Q evaluation, backwards, every session by models that haven't seen it.

    ``q_t(s, a)`` is fitted to ``r_t + d v_(t+1)(s')`` with ``v_t(s) = sum_a pi(a|s) q_t(s, a)``,
    and v = 0 after a session's end. Features of a row are the state's, followed by one indicator
    for each action.

    Source: Le, Voloshin & Yue, "Batch Policy Learning under Constraints", ICML 2019, for a finite
    horizon; cross-fitted as in Kallus & Uehara, JMLR 2020.

    Parameters
    ----------
    log
        The sessions.
    model
        Any regressor of scikit-learn's kind; it is cloned for every step and fold.
    fold
        Of every session, shape (n,), see :func:`~croupier.offline.ope.cross_fitting.folds_of`.
    discount
        d, in (0, 1].

    Raises
    ------
    NotEnoughDataError
        If a step's sessions are all in one fold.
    """
    n, length, k = log.target.shape
    q_logged, v_target = np.zeros((n, length)), np.zeros((n, length))
    indicators = np.eye(k)
    live = log.live
    for held_out in np.unique(fold):
        own = fold == held_out
        following = np.zeros(n)
        for step in reversed(range(length)):
            here = live[:, step]
            learned = here & ~own
            if not here.any():
                continue
            _require_rows(learned, step)
            state, action = log.state[:, step], log.action[:, step]
            fitted = _clone(model).fit(
                np.hstack((state[learned], indicators[action[learned]])),
                log.reward[learned, step] + discount * following[learned],
            )
            rows = np.repeat(state[here], k, axis=0)
            every = np.tile(indicators, (int(here.sum()), 1))
            q = np.asarray(fitted.predict(np.hstack((rows, every)))).reshape(-1, k)
            following = np.zeros(n)
            following[here] = (log.target[here, step] * q).sum(axis=1)
            wanted = here & own
            mine = own[here]
            q_logged[wanted, step] = q[mine, action[wanted]]
            v_target[wanted, step] = following[wanted]
    return Critic(q_logged, v_target)


def fit_state_weights(log: SessionLog, model: Any, *, fold: NDArray[np.intp]) -> FloatArray:
    """How much more often the evaluated policy is found in a step's state, shape (n, T).

    ``w_0 = 1`` and ``w_t(s) = E[w_(t-1)(s_(t-1)) rho_(t-1) | s_t = s]``, a regression on the state
    at every step, forwards; cut at 0 and scaled to have the mean of what it was fitted to.

    Source: the recursion of Xie, Ma & Wang, NeurIPS 2019, with a regression in place of their table
    of states.

    Parameters
    ----------
    log
        The sessions.
    model
        Any regressor of scikit-learn's kind; it is cloned for every step and fold. One that can't
        predict what is negative fits best.
    fold
        Of every session, shape (n,); the weights of a session are by models that haven't seen it.

    Raises
    ------
    NotEnoughDataError
        If a step's sessions are all in one fold.
    """
    n, length = log.reward.shape
    live = log.live
    ratio = log.target_probability / np.where(live, log.propensity, 1.0)
    weight = np.ones((n, length))
    for step in range(1, length):
        here = live[:, step]
        if not here.any():
            break
        arrived = weight[:, step - 1] * ratio[:, step - 1]
        for held_out in np.unique(fold):
            own = here & (fold == held_out)
            learned = here & (fold != held_out)
            if not own.any():
                continue
            _require_rows(learned, step)
            predicted = _regress(model, log.state[:, step], arrived, learned)(own)
            weight[own, step] = predicted
    return weight


def _regress(model: Any, state: FloatArray, arrived: FloatArray, learned: NDArray[np.bool_]) -> Any:
    """Predicts, for sessions that it is given a mask of, what arrives at their states."""
    total = float(arrived[learned].sum())
    if total <= 0.0:
        return lambda wanted: np.zeros(int(wanted.sum()))
    fitted = _clone(model).fit(state[learned], arrived[learned])
    cut = np.maximum(fitted.predict(state[learned]), 0.0)
    scale = total / float(cut.sum()) if cut.sum() > 0.0 else 0.0
    return lambda wanted: scale * np.maximum(fitted.predict(state[wanted]), 0.0)


def _require_rows(learned: NDArray[np.bool_], step: int) -> None:
    if not learned.any():
        raise NotEnoughDataError(f"step {step}: expected sessions in more than one fold")


def _clone(model: Any) -> Any:
    from sklearn.base import clone  # noqa: PLC0415 - slow to import

    return clone(model)
