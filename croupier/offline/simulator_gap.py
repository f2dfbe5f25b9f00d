"""What simulators of users say of the generations that served, beside what these really earned.

Simulators are learned from some users' sessions. The sessions of all others that one generation
answered are then played again: each from its first observation and as many steps long, with that
generation's answers and the simulated user's. The difference of the two returns is the gap of the
simulators, a mean over sessions with an interval in which the sessions of one user count as one
observation.

Beside it stands what the log says of the generation over all held-out users' sessions since it was
made, whoever has answered them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import numpy as np
import polars as pl
import scipy

from croupier.offline.delays import settled_interactions
from croupier.offline.generations import generation_rows
from croupier.offline.off_policy_sessions import (
    LEAST_SESSIONS,
    LEAST_USERS,
    OffPolicyValue,
    clustered_error,
    off_policy_value,
)
from croupier.offline.sessions import LoggedSessions, logged_sessions
from croupier.policy.errors import NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from croupier.offline.lake import Lake
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig
    from croupier.policy.simulators import SimulatorsSection

    FloatArray = NDArray[np.float64]

__all__ = (
    "GenerationGap",
    "Simulate",
    "Simulated",
    "Simulation",
    "gap_of",
    "gap_rows",
    "measure_gaps",
)


class GenerationGap(msgspec.Struct, frozen=True, kw_only=True):
    """A generation in simulators and in truth, over the same held-out sessions.

    Attributes
    ----------
    generation
        Its number.
    sessions
        How many there were.
    value, lower, upper
        Mean return, with its interval.
    simulated
        Mean return in the simulators.
    gap, gap_lower, gap_upper
        Simulated less real, session by session, with its interval.
    p_value
        Of the gap being no larger than is allowed, one-sided.
    errs
        Whether the gap is shown to be larger than is allowed: its interval lies beyond.
    error
        Root mean square of simulated less real over sessions, in a session's return, at least 0;
        chance is part of it.
    disagreement
        Standard deviation of the simulators' mean returns, at least 0.
    off_policy
        What the log says of it over all held-out users' sessions since it was made; None if that is
        too little.
    unsupported
        Why it says too little; None if it doesn't.
    """

    generation: int
    sessions: int
    value: float
    lower: float
    upper: float
    simulated: float
    gap: float
    gap_lower: float
    gap_upper: float
    p_value: float
    errs: bool
    error: float
    disagreement: float
    off_policy: OffPolicyValue | None = None
    unsupported: str | None = None


class Simulate(Protocol):
    """Learns simulators from sessions and plays generations in them."""

    def __call__(
        self,
        sessions: LoggedSessions,
        answered: Mapping[int, NDArray[np.bool_]],
        generation: Callable[[int], Generation],
        section: SimulatorsSection,
        *,
        state: Sequence[str],
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> Simulation:
        """Simulated returns of held-out sessions.

        Parameters
        ----------
        sessions
            Of a loop.
        answered
            Which of them each generation answered, shape (n,).
        generation
            Reads one back.
        section
            How simulators are learned.
        state
            Paths of the state's columns in a request's context.
        seed
            Of everything random.
        progress
            Called with the parts done and those to be done.

        Raises
        ------
        NotEnoughDataError
            If there are too few users to learn from.
        """
        ...


class Simulation(NamedTuple):
    """What simulators say of generations.

    Attributes
    ----------
    held_out
        Which sessions nothing was learned from, shape (n,).
    simulated
        By generation, where some of them were answered by it.
    """

    held_out: NDArray[np.bool_]
    simulated: Mapping[int, Simulated]


class Simulated(NamedTuple):
    """Held-out sessions, and what they return in simulators.

    Attributes
    ----------
    session
        Places among the sessions, shape (m,).
    returns
        Of each in every simulator, shape (members, m).
    """

    session: NDArray[np.int64]
    returns: FloatArray


def measure_gaps(
    lake: Lake,
    loop: str,
    config: LoopConfig,
    generation: Callable[[int], Generation],
    simulate: Simulate,
    *,
    seed: int,
    confidence: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> list[GenerationGap]:
    """Measure the gap of a loop's simulators, if there are interactions that it wasn't measured on.

    Parameters
    ----------
    lake, loop, config
        Whose; with sections ``sessions`` and ``simulators``.
    generation
        Reads a generation back.
    simulate
        Learns simulators and plays in them.
    seed
        Of everything random.
    confidence
        Of the intervals, in (0, 1).
    progress
        Called with the parts done and those to be done.

    Returns
    -------
    gaps
        Of every generation that answered at least 30 sessions of at least 10 users that nothing was
        learned from; empty if nothing has come since.

    Raises
    ------
    NotEnoughDataError
        If no generation has, or there are too few users to learn from.
    """
    assert config.sessions is not None
    assert config.simulators is not None
    version = lake.version("interactions")
    measured = [row["simulated_version"] for row in generation_rows(lake, loop).values()]
    if version < 0 or version in measured:
        return []
    rows = settled_interactions(lake, loop, config, version=version).collect()
    sessions = _latest(logged_sessions(rows, config.sessions), config.simulators.sessions)
    answered = _answered(sessions)
    held_out, simulated = simulate(
        sessions,
        answered,
        generation,
        config.simulators,
        state=config.sessions.state,
        seed=seed,
        progress=progress,
    )
    found = []
    for number, told in simulated.items():
        users = sessions.user[told.session]
        if len(users) < LEAST_SESSIONS or len(set(users.tolist())) < LEAST_USERS:
            continue
        real = np.where(sessions.live, sessions.reward, 0.0).sum(axis=1)[told.session]
        gap = gap_of(
            number,
            real,
            told.returns,
            users,
            max_gap=config.simulators.max_gap,
            confidence=confidence,
        )
        found.append(
            _estimated(
                gap, sessions, held_out, generation(number), confidence=confidence, seed=seed
            )
        )
    if not found:
        raise NotEnoughDataError(
            f"expected {LEAST_SESSIONS} sessions of {LEAST_USERS} users held out that one "
            f"generation answered, got fewer of each in {len(sessions):,}"
        )
    return found


def gap_of(
    number: int,
    real: FloatArray,
    simulated: FloatArray,
    users: NDArray[np.str_],
    *,
    max_gap: float,
    confidence: float,
) -> GenerationGap:
    """A generation's gap, with intervals whose standard errors are clustered by user.

    They are those of :func:`~croupier.offline.off_policy_sessions.clustered_error` and of Student's
    distribution with G - 1 degrees of freedom, of G users.

    Parameters
    ----------
    number
        Of the generation.
    real
        Returns of its sessions, shape (n,).
    simulated
        Those in every simulator, shape (members, n).
    users
        Whose they are, shape (n,), at least two.
    max_gap
        By what share of the real return the simulators may be off.
    confidence
        Of the intervals, in (0, 1).
    """
    groups = np.unique(users, return_inverse=True)[1]
    disagreement, simulated = float(simulated.mean(axis=1).std()), simulated.mean(axis=0)
    wide = float(scipy.stats.t.ppf(0.5 + confidence / 2.0, groups.max()))
    value, error = float(real.mean()), clustered_error(real, groups)
    gap, gap_error = float((simulated - real).mean()), clustered_error(simulated - real, groups)
    allowed = max_gap * abs(value)
    beyond = abs(gap) - allowed
    beyond = beyond / gap_error if gap_error > 0.0 else math.copysign(math.inf, beyond)
    p_value = float(scipy.stats.t.sf(beyond, groups.max()))
    return GenerationGap(
        generation=number,
        sessions=len(real),
        value=value,
        lower=value - wide * error,
        upper=value + wide * error,
        simulated=float(simulated.mean()),
        gap=gap,
        gap_lower=gap - wide * gap_error,
        gap_upper=gap + wide * gap_error,
        p_value=p_value,
        errs=abs(gap) - wide * gap_error > allowed,
        error=float(np.sqrt(np.square(simulated - real).mean())),
        disagreement=disagreement,
    )


def gap_rows(loop: str, gaps: list[GenerationGap], version: int) -> list[dict[str, object]]:
    """What the rows of generations tell of their gaps, measured on a version of interactions."""
    return [
        {
            "loop": loop,
            "generation": each.generation,
            "session_value": each.value,
            "session_lower": each.lower,
            "session_upper": each.upper,
            "simulated_value": each.simulated,
            "simulated_sessions": each.sessions,
            "simulated_version": version,
            "simulator_gap": each.gap,
            "simulator_gap_lower": each.gap_lower,
            "simulator_gap_upper": each.gap_upper,
            "simulator_p_value": each.p_value,
            "simulators_err": each.errs,
            "simulator_error": each.error,
            "simulator_disagreement": each.disagreement,
        }
        | _off_policy_columns(each.off_policy)
        for each in gaps
    ]


def _off_policy_columns(found: OffPolicyValue | None) -> dict[str, object]:
    columns = ("value", "lower", "upper", "sessions", "ess")
    return {
        f"off_policy_{each}": None if found is None else getattr(found, each) for each in columns
    }


def _estimated(
    gap: GenerationGap,
    sessions: LoggedSessions,
    held_out: NDArray[np.bool_],
    generation: Generation,
    *,
    confidence: float,
    seed: int,
) -> GenerationGap:
    """With what the log says of the generation, or why it says too little."""
    # What was there when it was made it may have learned from.
    made = generation.provenance.created_us if generation.provenance is not None else 0
    since = held_out & (_begun(sessions) >= made)
    try:
        value = off_policy_value(sessions.only(since), generation, confidence=confidence, seed=seed)
    except NotEnoughDataError as reason:
        return msgspec.structs.replace(gap, unsupported=str(reason))
    return msgspec.structs.replace(gap, off_policy=value)


def _latest(sessions: LoggedSessions, most: int) -> LoggedSessions:
    kept = np.zeros(len(sessions), dtype=np.bool_)
    kept[np.argsort(_begun(sessions), kind="stable")[-most:]] = True
    return sessions.only(kept)


def _begun(sessions: LoggedSessions) -> NDArray[np.int64]:
    """When each session began, in µs, shape (n,)."""
    begun: NDArray[np.int64] = sessions.interactions["ts"].cast(pl.Int64).to_numpy()
    return begun[sessions.row[:, 0]]


def _answered(sessions: LoggedSessions) -> dict[int, NDArray[np.bool_]]:
    """Which sessions each generation answered alone, every step of them, by number."""
    rows = sessions.interactions
    numbers = rows["generation"].to_numpy()[sessions.row]
    alone = rows["mix"].list.len().fill_null(1).to_numpy()[sessions.row] <= 1
    first = numbers[:, :1]
    whole = ((alone & (numbers == first)) | ~sessions.live).all(axis=1)
    return {int(number): whole & (first[:, 0] == number) for number in np.unique(first[whole, 0])}
