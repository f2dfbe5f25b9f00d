"""The group's code: closed forms, and that it tells groups that were not fitted."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy

from croupier.policy.errors import InvalidInputError
from croupier.sim2rec.environment import key_of
from croupier.sim2rec.learning_config import SADAEConfig
from croupier.sim2rec.lts import LTSConfig, UserPopulation
from croupier.sim2rec.lts_groups import LTSGroups, draw_groups
from croupier.sim2rec.networks import Scaling
from croupier.sim2rec.sadae import SADAE, elbo, fit_sadae

MEANS = (6.0, 7.0, 8.0, 9.0, 19.0, 20.0, 21.0)
SMALL = SADAEConfig(code=3, hidden=16, users=32, steps=400, every=100, rate=3e-3)


def groups_of(means: tuple[float, ...], users: int, seed: int) -> LTSGroups:
    rng = np.random.default_rng(seed)
    return draw_groups(
        [LTSConfig(mu_c=each) for each in means],
        [UserPopulation.draw(users, rng) for _ in means],
    )


def softplus(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0.0, x))


@pytest.mark.parametrize("actions", [0, 4])
def test_code_and_bound_equal_their_formulas(actions: int) -> None:
    rng = np.random.default_rng(1)
    config = SADAEConfig(code=3, hidden=8, actions=actions, users=5)
    sadae = SADAE(
        config, Scaling(jnp.array([1.0, -1.0]), jnp.array([2.0, 0.5])), np.random.default_rng(2)
    )
    states = rng.normal(size=(2, 5, 2))
    acted = rng.integers(0, 4, (2, 5))
    items = np.concatenate([states, acted[..., None]], axis=-1) if actions else states
    noise = rng.normal(size=(2, 3))

    scaled = (states - [1.0, -1.0]) / [2.0, 0.5]
    seen = np.concatenate([scaled, np.eye(4)[acted]], axis=-1) if actions else scaled
    out = np.asarray(sadae.encoder(jnp.asarray(seen)), np.float64)
    variance = softplus(out[..., 3:]) ** 2
    together = 1.0 / (1.0 / variance).sum(axis=1)
    mean = together * (out[..., :3] / variance).sum(axis=1)
    code = sadae.encode(jnp.asarray(items))
    np.testing.assert_allclose(code.mean, mean, rtol=1e-4)
    np.testing.assert_allclose(code.deviation, np.sqrt(together), rtol=1e-4)

    drawn = mean + np.sqrt(together) * noise
    decoded = np.asarray(sadae.state_decoder(jnp.asarray(drawn)), np.float64)
    scale = softplus(decoded[:, None, 2:]) + 1e-3
    density = scipy.stats.norm.logpdf(scaled, decoded[:, None, :2], scale)
    likelihood = np.asarray(density).sum(axis=-1)
    if actions:
        assert sadae.action_decoder is not None
        told = np.concatenate([np.repeat(drawn[:, None], 5, axis=1), scaled], axis=-1)
        scores = np.asarray(sadae.action_decoder(jnp.asarray(told)), np.float64)
        chosen = np.take_along_axis(scores, acted[..., None], axis=-1)[..., 0]
        likelihood += chosen - scipy.special.logsumexp(scores, axis=-1)
    divergence = 0.5 * (together + mean**2 - 1.0 - np.log(together)).sum(axis=-1)
    expected = likelihood.mean(axis=1) - divergence / 5
    np.testing.assert_allclose(
        elbo(sadae, jnp.asarray(items), jnp.asarray(noise)), expected, rtol=1e-4
    )


def test_the_code_tells_groups_apart_that_were_never_fitted() -> None:
    found = fit_sadae(SMALL, groups_of(MEANS, 400, 3), [3, 4], 4)
    assert found.steps in range(100, 401, 100)
    assert len(found.fitted) == len(found.held_out) == 4
    assert found.steps == 100 * (1 + int(np.argmax(found.held_out)))
    # Knowing the group, a signal has the density of N(mu_c, 3), in units of the fitted groups' own
    # deviation; not knowing it, that of their mixture. The bound lies between them.
    groups = groups_of(tuple(float(each) for each in range(6, 22)), 400, 5)
    _, observation = groups.reset(key_of(6))
    codes = np.asarray(found.sadae.encode(groups.group_items(observation)).mean)
    # Along the line from the lowest to the highest group, codes stand in the order of the groups.
    along = codes @ (codes[-1] - codes[0])
    assert scipy.stats.spearmanr(along, np.arange(16)).statistic > 0.95


def test_bad_input_names_the_field() -> None:
    groups = groups_of((6.0, 20.0), 10, 1)
    for held_out in ([], [0, 1]):
        with pytest.raises(InvalidInputError, match=r"^held_out"):
            fit_sadae(SMALL, groups, held_out, 0)
