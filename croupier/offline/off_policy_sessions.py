"""What one generation would have earned in a session, by the log of whatever has served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import scipy

from croupier.offline.ope import SessionEstimator
from croupier.offline.session_values import pmfs_along, session_batch
from croupier.policy.errors import NotEnoughDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.offline.sessions import LoggedSessions
    from croupier.policy.generation import Generation

    FloatArray = NDArray[np.float64]

__all__ = ("LEAST_SESSIONS", "LEAST_USERS", "OffPolicyValue", "clustered_error", "off_policy_value")

LEAST_SESSIONS = 30
LEAST_USERS = 10
"""Of fewer, a mean over sessions is too far from normal."""

# Weights of a generation's own sessions are 1, so that cumulative ones have support; marginal ones
# would need states that tell all that the future depends on.
_ESTIMATOR = "sdr"


class OffPolicyValue(msgspec.Struct, frozen=True, kw_only=True):
    """Of a session.

    Attributes
    ----------
    value, lower, upper
        The estimate, with its interval.
    sessions, ess
        How many there were, and how many they are worth: at least 30.
    """

    value: float
    lower: float
    upper: float
    sessions: int
    ess: float


def off_policy_value(
    sessions: LoggedSessions, generation: Generation, *, confidence: float, seed: int
) -> OffPolicyValue:
    """Estimate what a generation would have earned in a session.

    Sequential doubly robust (``sdr``, see :class:`~croupier.offline.ope.SessionEstimator`). The
    interval is a large-sample one, with standard errors clustered by user as
    :func:`clustered_error` has them.

    Parameters
    ----------
    sessions
        That the generation hasn't learned from, whoever has answered them.
    generation
        Whose value it is.
    confidence
        Of the interval, in (0, 1).
    seed
        Of the folds and the trees of critic and weights.

    Raises
    ------
    NotEnoughDataError
        If they are fewer than 30 of 10 users that say something of it, or worth fewer than 30.
    """
    pmfs, told = pmfs_along(sessions, generation)
    users = np.unique(sessions.user[told], return_inverse=True)[1]
    if told.sum() < LEAST_SESSIONS or users.max() + 1 < LEAST_USERS:
        raise NotEnoughDataError(
            f"expected {LEAST_SESSIONS} sessions of {LEAST_USERS} users that say something of "
            f"generation {generation.number}, got {int(told.sum())}"
        )
    estimator = SessionEstimator.named(_ESTIMATOR, horizon=sessions.row.shape[1])
    batch = session_batch(sessions.only(told), sessions.of_rows(pmfs)[told], [estimator], seed=seed)
    found = estimator.add(batch).result(confidence)
    if found.ess < LEAST_SESSIONS:
        raise NotEnoughDataError(
            f"expected sessions worth {LEAST_SESSIONS} of generation {generation.number}'s, "
            f"got {len(batch)} worth {found.ess:.1f}"
        )
    columns = estimator.columns(batch)
    mean = columns.mean(axis=0)
    value, gradient = estimator.point(mean)
    error = clustered_error((columns - mean) @ gradient, users)
    wide = float(scipy.stats.t.ppf(0.5 + confidence / 2.0, users.max())) * error
    return OffPolicyValue(
        value=value, lower=value - wide, upper=value + wide, sessions=len(batch), ess=found.ess
    )


def clustered_error(values: FloatArray, groups: NDArray[np.intp]) -> float:
    """Standard error of a mean of values that go together within each of G groups.

    ``se² = G / (G - 1) Σ_g (Σ_(i in g) (d_i - mean d))² / n²`` (Liang and Zeger, 1986).
    """
    sums = np.bincount(groups, values - values.mean())
    count = len(sums)
    return float(np.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values))
