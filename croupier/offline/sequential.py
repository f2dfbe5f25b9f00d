"""Generations of policies that were trained in simulators: what they are registered as."""

from __future__ import annotations

from typing import TYPE_CHECKING

from croupier import __version__
from croupier.offline.retrain import config_digest
from croupier.policy.errors import InvalidInputError
from croupier.policy.generation import Generation, Provenance

if TYPE_CHECKING:
    from croupier.policy.loop import LoopConfig
    from croupier.policy.recurrent import RecurrentPolicy

__all__ = ("sequential_generation",)


def sequential_generation(
    policy: RecurrentPolicy,
    loop: str,
    config: LoopConfig,
    *,
    number: int,
    parent: int,
    created_us: int,
) -> Generation:
    """Make a generation of a policy, with its floor and where it comes from.

    Parameters
    ----------
    policy
        As it was exported.
    loop, config
        Whose generation it becomes.
    number, parent
        Its number, and the champion's.
    created_us
        Now, in microseconds since the epoch. Only sessions that begin later judge it.

    Raises
    ------
    InvalidInputError
        If the loop has no sessions, or they don't tell what the policy sees.
    """
    sessions, seen = config.sessions, policy.config
    if sessions is None:
        raise InvalidInputError("loop", f"expected one with a section sessions, got {loop!r}")
    unknown = [path for path in seen.observation if path not in sessions.state]
    if unknown:
        raise InvalidInputError(
            f"loops.{loop}.sessions.state",
            f"expected the paths that the policy sees, {', '.join(unknown)} too",
        )
    if seen.group is not None and seen.group != sessions.group:
        raise InvalidInputError(
            f"loops.{loop}.sessions.group",
            f"expected the policy's, {seen.group!r}, got {sessions.group!r}",
        )
    origin = Provenance(
        parent=parent,
        lake_version=seen.training.lake_version,
        code_version=__version__,
        loop_config=config_digest(config),
        seed=seen.training.seed,
        training_rows=seen.training.rows,
        created_us=created_us,
    )
    return Generation(loop, number, seen.exploration, None, origin, recurrent=policy)
