"""Sessions out of the lake: interactions of one user that follow each other, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from croupier.offline.interactions import logged_requests
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.sessions import group_at, numbers_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.policy.sessions import SessionsConfig

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

__all__ = ("LoggedSessions", "logged_sessions")


@dataclass(frozen=True, eq=False, kw_only=True)
class LoggedSessions:
    """n sessions of up to T steps, over the K actions that the log has; 0 beyond a session's end.

    Attributes
    ----------
    interactions
        The rows of all steps, session by session; what belongs to none is left out.
    row
        Which of them a step is, shape (n, T); -1 beyond the end.
    steps
        How many each session has, shape (n,).
    user
        Whose session, shape (n,).
    group
        Index into `groups`, of the user's group when the session began, shape (n,).
    groups
        Their names.
    actions
        Ids, in order.
    state
        What was observed before a step's decision, shape (n, T, d).
    action
        Index into `actions` of what was done, shape (n, T).
    eligible
        What could have been done, shape (n, T, K).
    propensity, reward
        Of what was done, shape (n, T).
    """

    interactions: pl.DataFrame
    row: IntArray
    steps: IntArray
    user: NDArray[np.str_]
    group: IntArray
    groups: tuple[str, ...]
    actions: tuple[str, ...]
    state: FloatArray
    action: IntArray
    eligible: NDArray[np.bool_]
    propensity: FloatArray
    reward: FloatArray

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def live(self) -> NDArray[np.bool_]:
        """Which steps there are, shape (n, T)."""
        return self.row >= 0

    def of_rows(self, values: FloatArray, beyond: float = 0.0) -> FloatArray:
        """What rows have, (rows, ...), where the steps are, (n, T, ...)."""
        return _of_steps(self.row, values, beyond)

    def only(self, kept: NDArray[np.bool_]) -> LoggedSessions:
        """Those of the sessions that are to be kept, shape (n,).

        Raises
        ------
        NotEnoughDataError
            If none are.
        """
        if not kept.any():
            raise NotEnoughDataError("expected at least one session, got none")
        rows = self.row[kept]
        # Rows stand session by session, so what is kept keeps its order.
        wanted = rows[rows >= 0]
        place = np.full(len(self.interactions), -1)
        place[wanted] = np.arange(len(wanted))
        return LoggedSessions(
            interactions=self.interactions[wanted],
            row=np.where(rows >= 0, place[rows], -1),
            steps=self.steps[kept],
            user=self.user[kept],
            group=self.group[kept],
            groups=self.groups,
            actions=self.actions,
            state=self.state[kept],
            action=self.action[kept],
            eligible=self.eligible[kept],
            propensity=self.propensity[kept],
            reward=self.reward[kept],
        )


def logged_sessions(interactions: pl.DataFrame, config: SessionsConfig) -> LoggedSessions:
    """Put interactions together to sessions.

    Parameters
    ----------
    interactions
        Rows of the interactions table, of one loop. Slots and slates belong to no session.
    config
        What makes a session.

    Raises
    ------
    InvalidInputError
        If a user is neither a text nor a whole number, or a state is not a number.
    NotEnoughDataError
        If there is no session.
    """
    single = interactions.filter(pl.col("slot").is_null(), pl.col("slate_size").is_null())
    requests = list(logged_requests(single))
    users = [config.user_of(request.context) for request in requests]
    known = np.array([each is not None for each in users], dtype=np.bool_)
    if not known.any():
        raise NotEnoughDataError(
            f"expected decisions with {config.user} in their context, got none in {len(known):,}"
        )
    order = _order(single, users, known)
    rows = single[order]
    names = np.array([users[i] for i in order], dtype=np.str_)
    starts = _starts(names, rows["ts"].cast(pl.Int64).to_numpy(), config)
    steps = np.diff(np.append(starts, len(rows)))
    within = np.arange(steps.max()) < steps[:, None]
    row = np.where(within, starts[:, None] + np.arange(steps.max()), -1)
    asked = [requests[i] for i in order]
    actions = tuple(rows["action_ids"].explode().unique().sort().to_list())
    place = {action: k for k, action in enumerate(actions)}
    eligible = np.zeros((len(rows), len(actions)), dtype=np.bool_)
    for i, request in enumerate(asked):
        for k, action in enumerate(request.actions):
            if request.eligible is None or request.eligible[k]:
                eligible[i, place[action.id]] = True
    state = np.array(
        [numbers_at(request.context, config.state) for request in asked],
        dtype=np.float64,
    ).reshape(len(rows), len(config.state))
    named = [group_at(asked[start].context, config.group) for start in starts]
    groups = tuple(sorted(set(named)))

    chosen = np.array([place[each] for each in rows["action_id"]], dtype=np.int64)
    return LoggedSessions(
        interactions=rows,
        row=row,
        steps=steps,
        user=names[starts],
        group=np.array([groups.index(each) for each in named], dtype=np.int64),
        groups=groups,
        actions=actions,
        state=_of_steps(row, state),
        action=_of_steps(row, chosen),
        eligible=_of_steps(row, eligible),
        propensity=_of_steps(row, rows["propensity"].to_numpy()),
        reward=_of_steps(row, rows["reward"].to_numpy()),
    )


def _of_steps(row: IntArray, values: NDArray[Any], beyond: float = 0.0) -> NDArray[Any]:
    """What rows have, (rows, ...), at the steps, (n, T, ...), in the values' type."""
    live = (row >= 0).reshape(row.shape + (1,) * (values.ndim - 1))
    return np.where(live, values[row], np.asarray(beyond, dtype=values.dtype))


def _order(
    interactions: pl.DataFrame, users: Sequence[str | None], known: NDArray[np.bool_]
) -> IntArray:
    """Which rows there are, user by user and in the order of time."""
    keyed = interactions.select("ts", "offset", "decision_id").with_columns(
        user=pl.Series(users, dtype=pl.String), place=pl.int_range(pl.len())
    )
    kept = keyed.filter(pl.Series(known)).sort("user", "ts", "offset", "decision_id")
    return kept["place"].to_numpy()


def _starts(names: NDArray[np.str_], ts: IntArray, config: SessionsConfig) -> IntArray:
    """Where sessions begin: another user, a long pause, or more steps than a session has."""
    fresh = np.ones(len(names), dtype=np.bool_)
    fresh[1:] = (names[1:] != names[:-1]) | (np.diff(ts) > config.pause_us)
    begun = np.flatnonzero(fresh)
    ends = pairwise([*begun.tolist(), len(names)])
    return np.array(
        [start for first, end in ends for start in range(first, end, config.horizon)],
        dtype=np.int64,
    )
