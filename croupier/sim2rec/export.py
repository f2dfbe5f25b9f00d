"""From a trained policy to one that can be served without JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from croupier.policy.errors import InvalidInputError
from croupier.policy.recurrent import RecurrentConfig, RecurrentPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import jax
    from numpy.typing import NDArray

    from croupier.offline.sessions import LoggedSessions
    from croupier.policy.recurrent import TrainingNotes
    from croupier.policy.sessions import SessionsConfig
    from croupier.sim2rec.actor import Actor
    from croupier.sim2rec.networks import Perceptron
    from croupier.sim2rec.sadae import SADAE

__all__ = ("exported", "group_codes")


def exported(
    actor: Actor,
    *,
    actions: Sequence[str],
    sessions: SessionsConfig,
    horizon: int,
    training: TrainingNotes,
    codes: Mapping[str, Sequence[float]] | None = None,
) -> RecurrentPolicy:
    """What a trained policy is served as.

    Parameters
    ----------
    actor
        The trained policy.
    actions
        Ids of its actions, in their order.
    sessions
        Of the loop: paths of what it observes, in the order of its columns, and of the group.
    horizon
        Steps of an episode in training.
    training
        How it was trained.
    codes
        The code of each group, for a policy that is told one.

    Raises
    ------
    InvalidInputError
        If there are not as many actions, columns or numbers of a code as the policy has, or it has
        no floor.
    """
    config = actor.config
    columns = actor.scaling.mean.shape[0]
    if len(actions) != actor.actions:
        raise InvalidInputError("actions", f"expected {actor.actions}, got {len(actions)}")
    if len(sessions.state) != columns:
        raise InvalidInputError(
            "sessions.state", f"expected {columns} paths, got {len(sessions.state)}"
        )
    told = {group: tuple(map(float, code)) for group, code in (codes or {}).items()}
    if any(len(code) != config.code for code in told.values()) or bool(told) != bool(config.code):
        raise InvalidInputError("codes", f"expected {config.code} numbers for each group")
    arrays = {"mean": actor.scaling.mean, "deviation": actor.scaling.deviation}
    arrays |= _layers("before", actor.before) | _layers("after", actor.after)
    if actor.recurrent is not None:
        arrays["inputs_weight"] = actor.recurrent.inputs.weight
        arrays["inputs_bias"] = actor.recurrent.inputs.bias
        arrays["recurrent_weight"] = actor.recurrent.weight
    shape = RecurrentConfig(
        actions=tuple(actions),
        observation=sessions.state,
        sees=config.sees,
        horizon=horizon,
        memory=config.memory,
        hidden=config.hidden,
        head=config.head,
        floor=config.floor,
        training=training,
        group=sessions.group if told else None,
        codes=told,
    )
    return RecurrentPolicy(
        shape, {name: np.asarray(each, dtype=np.float32) for name, each in arrays.items()}
    )


def group_codes(
    extractor: SADAE, sessions: LoggedSessions, telling: Sequence[int]
) -> dict[str, tuple[float, ...]]:
    """The code of each group that sessions are of, told by how these begin.

    It is worked out once, here, and stands in what is served: a group's code changes when a policy
    is exported anew, and never between two requests.

    Parameters
    ----------
    extractor
        Of the training.
    sessions
        Of a log.
    telling
        Columns of a first observation that the extractor sees, as
        :attr:`~croupier.sim2rec.learned_users.LearnedUsers.telling` names them.
    """
    first = sessions.state[:, 0, list(telling)]
    codes = {}
    for place in np.unique(sessions.group):
        group = sessions.groups[place]
        rows: NDArray[np.float64] = first[sessions.group == place]
        found = extractor.encode(jnp.asarray(rows[None], jnp.float32))
        codes[group] = tuple(np.asarray(found.mean[0], dtype=np.float64).tolist())
    return codes


def _layers(name: str, perceptron: Perceptron) -> dict[str, jax.Array]:
    return {
        f"{name}_{place}_{part}": getattr(layer, part)
        for place, layer in enumerate(perceptron.layers)
        for part in ("weight", "bias")
    }
