"""A policy is served as it was trained: NumPy's pmfs are those of JAX, along whole sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import polars as pl
import pytest

from croupier.offline.sessions import logged_sessions
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action
from croupier.policy.generation import Generation, cold_start
from croupier.policy.recurrent import RecurrentPolicy, TrainingNotes
from croupier.policy.sessions import SessionsConfig
from croupier.policy.stepping import Walk
from croupier.sim2rec.actor import Actor, Seen
from croupier.sim2rec.export import exported, group_codes
from croupier.sim2rec.learning_config import ActorConfig, Head, SADAEConfig
from croupier.sim2rec.networks import Scaling
from croupier.sim2rec.sadae import SADAE
from tests.sim2rec.lts_sessions import SESSIONS as LOGGED
from tests.sim2rec.lts_sessions import LTSSessions

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEPS, USERS, D = 140, 6, 30
IDS = tuple(f"d{place}" for place in range(D))
SESSIONS = SessionsConfig(user="user", state=("x", "deep.y", "z"), group="city")
CODES = {"delft": (0.5, -1.0), "leiden": (-0.25, 2.0)}
NOTES = TrainingNotes(seed=3, settings='{"budget":"reduced"}')


def actor_of(**settings: Any) -> Actor:
    """An actor whose pmf depends on what it sees."""
    scaling = Scaling(mean=jnp.array([10.0, 0.5, 5.0]), deviation=jnp.array([5.0, 1.0, 2.0]))
    config = ActorConfig(hidden=16, **settings)
    actor = Actor(config, D, scaling, np.random.default_rng(1))
    factor = 60.0 if config.head == "ordered" else 300.0
    # The last layer is made small; without it all pmfs are nearly the same.
    sharper: Actor = eqx.tree_at(
        lambda each: each.after.layers[1].weight, actor, replace_fn=lambda w: factor * w
    )
    return sharper


def policy_of(actor: Actor) -> RecurrentPolicy:
    return exported(
        actor,
        actions=IDS,
        sessions=SESSIONS,
        horizon=STEPS,
        training=NOTES,
        codes=CODES if actor.config.code else None,
    )


def jax_pmfs(actor: Actor, seen: NDArray[np.float64], taken: NDArray[np.int64]) -> Any:
    """Of whole sessions, at once, shape (T, U, D)."""
    before = np.concatenate([np.full((1, USERS), -1), taken[:-1]])
    kind = actor.scaling.mean.dtype
    code = np.array(CODES["leiden"] if actor.config.code else ())
    return eqx.filter_jit(Actor.pmfs)(
        actor,
        Seen(
            observation=jnp.asarray(seen, kind),
            previous=jnp.asarray(before),
            left=jnp.asarray((np.arange(STEPS, 0, -1) / STEPS)[:, None], kind),
            code=jnp.asarray(np.broadcast_to(code, (1, 1, len(code))), kind),
        ),
    )


@pytest.mark.parametrize("head", ["ordered", "categorical"])
@pytest.mark.parametrize(("memory", "code"), [(8, 2), (0, 0)])
def test_pmfs_are_those_of_the_trained_policy(head: Head, memory: int, code: int) -> None:
    actor = actor_of(head=head, memory=memory, code=code, sees=(0, 2), floor=0.03)
    rng = np.random.default_rng(2)
    seen = rng.normal(8.0, 4.0, (STEPS, USERS, 3)).astype(np.float32).astype(np.float64)
    taken = rng.integers(0, D, (STEPS, USERS))
    policy = policy_of(actor)
    served = Generation("feed", 1, policy.config.exploration, None, None, recurrent=policy)
    actions = [Action(each) for each in IDS]
    found = np.empty((STEPS, USERS, D))
    for user in range(USERS):
        walk = Walk(served)
        for step in range(STEPS):
            x, y, z = seen[step, user].tolist()
            context = {"x": x, "deep": {"y": y}, "z": z, "city": "leiden"}
            found[step, user] = walk.at(context).pmf(context, actions)[0]
            walk.take(IDS[taken[step, user]])
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, rtol=0.0, atol=1e-9)
    assert found.min() >= 0.03 / D - 1e-15
    # Sessions are told apart, and the policy is no flat one.
    assert found.max() > 0.2
    assert np.ptp(found[:, :, 0], axis=(0, 1)) > 0.05
    with jax.enable_x64(True):
        exact = jax.tree.map(
            lambda each: jnp.asarray(np.asarray(each), jnp.float64), eqx.filter(actor, eqx.is_array)
        )
        doubled = eqx.combine(exact, actor)
        theirs = np.asarray(jax_pmfs(doubled, seen, taken))
    np.testing.assert_allclose(found, theirs, rtol=0.0, atol=1e-6)


def test_groups_are_told_apart_by_codes_that_are_worked_out_once() -> None:
    told = LTSSessions(12, seed=1).log(cold_start("feed"), 0)
    cities = [
        msgspec.json.decode(text) | {"city": "delft" if place % 2 else "leiden"}
        for place, text in enumerate(told["context"])
    ]
    texts = [msgspec.json.encode(each).decode() for each in cities]
    sessions = logged_sessions(told.with_columns(context=pl.Series(texts)), LOGGED)
    scaling = Scaling(mean=jnp.array([10.0, 5.0]), deviation=jnp.array([5.0, 2.0]))
    extractor = SADAE(SADAEConfig(code=2), scaling, np.random.default_rng(4))
    codes = group_codes(extractor, sessions, (0, 1))
    # Groups of which there is no session have none.
    assert list(group_codes(extractor, sessions.only(sessions.group == 1), (0, 1))) == ["leiden"]
    assert sorted(codes) == ["delft", "leiden"]
    plain = policy_of(actor_of(code=2))
    policy = RecurrentPolicy(msgspec.structs.replace(plain.config, codes=codes), plain.arrays)

    def preferences(city: str | None) -> NDArray[np.float64]:
        context = {"x": 12.0} | ({} if city is None else {"city": city})
        return policy.at_step(context, memory=None, previous=None, steps=0).preferences

    assert np.abs(preferences("delft") - preferences("leiden")).max() > 1e-3
    # Whoever is of no group that was there is told of as the mean of all.
    assert preferences("paris").tobytes() == preferences(None).tobytes()
    assert np.abs(preferences("paris") - preferences("delft")).max() > 1e-4


def test_what_does_not_fit_the_policy_is_refused() -> None:
    actor = actor_of(code=2)
    fine: dict[str, Any] = {
        "actions": IDS,
        "sessions": SESSIONS,
        "horizon": 5,
        "training": NOTES,
        "codes": CODES,
    }
    for name, value, field in (
        ("actions", IDS[1:], "actions"),
        ("actions", (*IDS[1:], IDS[1]), "actions"),
        ("sessions", SessionsConfig(user="user", state=("x",)), "sessions.state"),
        ("codes", {"delft": (1.0,)}, "codes"),
        ("codes", None, "codes"),
        ("horizon", 0, "horizon"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            exported(actor, **fine | {name: value})
        assert caught.value.field == field
    with pytest.raises(InvalidInputError, match=r"floor: expected a number in \(0, 1\)"):
        policy_of(actor_of(floor=0.0))
