"""What policies are worth over whole sessions, by the log of other ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from croupier.offline.evaluate import UNSEEN
from croupier.offline.interactions import logged_requests
from croupier.offline.ope import (
    SESSION_ESTIMATORS,
    Estimate,
    SessionBatch,
    SessionEstimator,
    SessionLog,
    fit_critic,
    fit_state_weights,
    folds_of,
)
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.generation import Generation
from croupier.policy.stepping import Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from croupier.offline.counterfactual import Policy
    from croupier.offline.interactions import LoggedRequest
    from croupier.offline.sessions import LoggedSessions

    FloatArray = NDArray[np.float64]

__all__ = (
    "SessionComparison",
    "SessionPolicy",
    "SessionValue",
    "compare_over_sessions",
    "history_features",
    "pmfs_along",
    "session_batch",
)

_FOLDS = 3
_LEAST_SESSIONS = 10
_LEAST_LEAF = 20


class SessionValue(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy would have earned in a session.

    Attributes
    ----------
    name
        Of the policy.
    left_out
        Sessions that say nothing about it: it may take something there that could not have been
        drawn, or a request can't be encoded.
    estimates
        Sums of discounted rewards, an estimate for each estimator.
    """

    name: str
    left_out: int
    estimates: list[Estimate]


class SessionComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Policies on the same sessions.

    Attributes
    ----------
    sessions, decisions
        How many there are.
    horizon, discount
        How many steps of a session count, and what a reward one step later is worth.
    policies
        In the order asked for.
    """

    sessions: int
    decisions: int
    horizon: int
    discount: float
    policies: list[SessionValue]


@runtime_checkable
class SessionPolicy(Protocol):
    """A policy that looks at what has happened in a session."""

    def pmfs(self, sessions: LoggedSessions) -> FloatArray:
        """What it would have done at every logged step, shape (n, T, K), over their actions.

        Where it can't tell, and beyond a session's end, all probabilities are 0.
        """
        ...


def compare_over_sessions(
    sessions: LoggedSessions,
    policies: Mapping[str, Generation | Policy | SessionPolicy | None],
    *,
    discount: float = 1.0,
    estimators: Sequence[str] = tuple(SESSION_ESTIMATORS),
    confidence: float = 0.95,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SessionComparison:
    """Estimate what policies would have earned over sessions.

    Critics and state weights are histograms of gradient-boosted trees on :func:`history_features`,
    fitted in three folds of sessions.

    Parameters
    ----------
    sessions
        That none of the policies has learned from.
    policies
        By name; None is whatever made the log, whose estimate is its sessions' mean return.
    discount
        In (0, 1].
    estimators
        Names of :data:`~croupier.offline.ope.SESSION_ESTIMATORS`.
    confidence
        Of the intervals, in (0, 1).
    seed
        Of the folds and the trees.
    progress
        Called with the policies that are done and that there are.

    Raises
    ------
    InvalidInputError
        If there is no such estimator.
    NotEnoughDataError
        If fewer than 10 sessions say something about a policy.
    """
    unknown = [each for each in estimators if each not in SESSION_ESTIMATORS]
    if unknown:
        expected = ", ".join(SESSION_ESTIMATORS)
        raise InvalidInputError("estimator", f"expected one of {expected}, got {unknown[0]!r}")
    horizon = sessions.row.shape[1]
    found = []
    for done, (name, policy) in enumerate(policies.items()):
        if progress is not None:
            progress(done, len(policies))
        counters = [
            SessionEstimator.named(each, horizon=horizon, discount=discount) for each in estimators
        ]
        if policy is None:
            plain = SessionEstimator.named("pdis", horizon=horizon, discount=discount)
            logged = plain.add(_as_it_was(sessions)).result(confidence)
            found.append(SessionValue(name=name, left_out=0, estimates=[logged]))
            continue
        batch = _asked(name, policy, sessions, counters, seed)
        found.append(
            SessionValue(
                name=name,
                left_out=len(sessions) - len(batch),
                estimates=[each.add(batch).result(confidence) for each in counters],
            )
        )
    if progress is not None:
        progress(len(policies), len(policies))
    return SessionComparison(
        sessions=len(sessions),
        decisions=int(sessions.steps.sum()),
        horizon=horizon,
        discount=discount,
        policies=found,
    )


def history_features(sessions: LoggedSessions) -> FloatArray:
    """What is known of a session before each of its decisions, shape (n, T, d + K + 3).

    The step's own state, the action before as one indicator for each, the reward before, the mean
    of all rewards so far and the number of steps so far. Whether that tells all that the future
    depends on is for whoever chooses the state to say.
    """
    n, length = sessions.row.shape
    before = np.zeros((n, length, len(sessions.actions)))
    rewards = np.zeros((n, length, 3))
    taken = np.eye(len(sessions.actions))[sessions.action]
    before[:, 1:] = taken[:, :-1]
    rewards[:, 1:, 0] = sessions.reward[:, :-1]
    so_far = np.arange(1, length)
    rewards[:, 1:, 1] = sessions.reward.cumsum(axis=1)[:, :-1] / so_far
    rewards[:, 1:, 2] = so_far
    whole = np.concatenate((sessions.state, before, rewards), axis=2)
    return np.where(sessions.live[:, :, None], whole, 0.0)


def _as_it_was(sessions: LoggedSessions) -> SessionBatch:
    ones = np.ones_like(sessions.reward)
    return SessionBatch(
        reward=sessions.reward, propensity=ones, target_probability=ones, steps=sessions.steps
    )


def _asked(
    name: str,
    policy: Generation | Policy | SessionPolicy,
    sessions: LoggedSessions,
    counters: Sequence[SessionEstimator],
    seed: int,
) -> SessionBatch:
    """The sessions that tell of a policy, as estimators take them, with what those need."""
    pmfs, told = pmfs_along(sessions, policy)
    if told.sum() < _LEAST_SESSIONS:
        raise NotEnoughDataError(
            f"{name}: expected {_LEAST_SESSIONS} sessions of which every step tells of it, "
            f"got {int(told.sum())} of {len(sessions)}"
        )
    return session_batch(sessions.only(told), sessions.of_rows(pmfs)[told], counters, seed)


def session_batch(
    sessions: LoggedSessions,
    targets: FloatArray,
    counters: Sequence[SessionEstimator],
    seed: int = 0,
) -> SessionBatch:
    """Sessions as estimators take them, with what those need that is learned from the log.

    Parameters
    ----------
    sessions
        That tell of the policy.
    targets
        Its pmf at every step, shape (n, T, K).
    counters
        The estimators.
    seed
        Of the folds and the trees.
    """
    log = SessionLog(
        state=history_features(sessions),
        action=sessions.action,
        target=targets,
        reward=sessions.reward,
        propensity=sessions.propensity,
        steps=sessions.steps,
    )
    fold = folds_of(len(sessions), _FOLDS, np.random.default_rng(seed))
    critic = weight = None
    # Made before threads are limited: what is loaded later isn't.
    of_values, of_weights = _trees("squared_error", seed), _trees("poisson", seed)
    # Many small fits, for which threads are more work than help.
    with threadpool_limits(limits=1):
        if any(each.control for each in counters):
            critic = fit_critic(log, of_values, fold=fold, discount=counters[0].discount)
        if any(each.weights == "marginal" for each in counters):
            weight = fit_state_weights(log, of_weights, fold=fold)
    return log.batch(critic, weight)


def _trees(loss: str, seed: int) -> object:
    from sklearn.ensemble import HistGradientBoostingRegressor  # noqa: PLC0415 - slow to import

    return HistGradientBoostingRegressor(
        loss=loss,
        max_iter=60,
        max_leaf_nodes=15,
        min_samples_leaf=_LEAST_LEAF,
        early_stopping=False,
        random_state=seed,
    )


def pmfs_along(
    sessions: LoggedSessions, policy: Generation | Policy | SessionPolicy
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """What a policy would have done at every step of logged sessions.

    A generation that remembers follows each session from its first step, seeing what the log's
    policy did.

    Returns
    -------
    pmfs
        Of every row of the sessions' interactions, (rows, K).
    told
        Which sessions tell what the policy is worth: at no step it may take what could not have
        been drawn, shape (n,).
    """
    if isinstance(policy, SessionPolicy):
        pmfs = np.zeros((len(sessions.interactions), len(sessions.actions)))
        pmfs[sessions.row[sessions.live]] = policy.pmfs(sessions)[sessions.live]
    else:
        pmfs = _row_by_row(sessions, policy)
    unseen = np.where(_drawable(sessions), 0.0, pmfs).sum(axis=1)
    usable = (pmfs.sum(axis=1) > 0.0) & (unseen <= UNSEEN)
    told: NDArray[np.bool_] = np.logical_and.reduce(usable[sessions.row] | ~sessions.live, axis=1)
    return pmfs, told


def _row_by_row(sessions: LoggedSessions, policy: Generation | Policy) -> FloatArray:
    """What is answered to one request after the other; nothing where there is no answer."""
    rows = sessions.interactions
    place = {action: k for k, action in enumerate(sessions.actions)}
    pmfs = np.zeros((len(rows), len(place)))
    first = set(sessions.row[:, 0].tolist())
    walk: Walk | None = None
    pmf: FloatArray | None
    # Rows stand session by session, step by step.
    for i, request in enumerate(logged_requests(rows)):
        try:
            if not isinstance(policy, Generation):
                pmf = policy(request)
            else:
                walk = Walk(policy) if i in first else walk
                pmf = _step(walk, request)
        except InvalidInputError:
            # No oracle can encode it; scorers refuse such a request as soon as they serve one.
            continue
        if pmf is not None:
            for k, action in enumerate(request.actions):
                pmfs[i, place[action.id]] += pmf[k]
    return pmfs


def _drawable(sessions: LoggedSessions) -> NDArray[np.bool_]:
    """Which actions could have been drawn in every row, (rows, K); all that it doesn't tell of."""
    rows = sessions.interactions
    place = {action: k for k, action in enumerate(sessions.actions)}
    drawable = np.ones((len(rows), len(place)), dtype=np.bool_)
    logged = rows.select("action_ids", "pmf").iter_rows()
    for i, (actions, pmf) in enumerate(logged):
        if pmf is not None:
            drawable[i] = False
            for action, probability in zip(actions, pmf, strict=True):
                drawable[i, place[action]] |= probability > 0.0
    return drawable


def _step(walk: Walk | None, request: LoggedRequest) -> FloatArray:
    assert walk is not None, "every session has a first row"
    question = (request.context, request.actions, request.eligible, request.baseline)
    pmf, _ = walk.at(request.context).pmf(*question)
    walk.take(request.actions[request.chosen].id)
    return pmf
