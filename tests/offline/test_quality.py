"""Coverage of states and actions against closed forms, by hand and by drawing."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from croupier.offline.quality import coverage, quality, request_states
from croupier.policy.errors import InvalidInputError
from croupier.policy.exploration import EpsilonGreedy, Greedy
from croupier.policy.generation import cold_start
from tests.offline.worlds import World, random_world


@pytest.fixture(scope="module")
def world() -> World:
    return World(random_world(3, 4, seed=3).rewards, excluded=(None, 2, None))


def test_expected_pairs_by_hand() -> None:
    """Two rows of one state with three actions, and one of another with a single eligible one."""
    rows = pl.DataFrame(
        {
            "action_id": ["a", "a", "b"],
            "action_ids": [["a", "b", "c"], ["a", "b", "c"], ["a", "b"]],
            "excluded": [[], None, ["a"]],
        },
        schema_overrides={"excluded": pl.List(pl.String)},
    )
    found = coverage(rows, np.array([0, 0, 1]))
    assert (found.states, found.pairs, found.eligible) == (2, 2, 4)
    assert found.expected == pytest.approx(3 * (1 - (2 / 3) ** 2) + 1)
    assert found.saco == pytest.approx(2 / (3 * 5 / 9 + 1))
    with pytest.raises(InvalidInputError, match="states: expected shape"):
        coverage(rows, np.array([0, 0]))


def test_uniform_draws_cover_what_is_expected(world: World) -> None:
    """The mean SACo of 60 uniform logs is 1 within 4 standard errors: a false alarm in 1e-4."""
    found = []
    for seed in range(60):
        log = world.log(cold_start("shop"), 12, seed=seed)
        kind, states = request_states(log)
        assert kind == "context"
        found.append(coverage(log, states).saco)
    error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert error > 0.0
    assert abs(np.mean(found) - 1.0) < 4 * error


def test_a_greedy_log_covers_one_action_of_every_context(world: World) -> None:
    log = world.log(world.generation(1, Greedy()), 500, seed=1)
    found = coverage(log, request_states(log)[1])
    assert (found.states, found.pairs, found.eligible) == (3, 3, 11)
    assert found.expected == pytest.approx(11.0, abs=1e-6)
    more = world.log(world.generation(1, EpsilonGreedy(epsilon=0.05)), 500, seed=1)
    assert found.saco < coverage(more, request_states(more)[1]).saco


def test_contexts_that_hardly_come_back_are_clustered(world: World) -> None:
    """Two clouds of points are two clusters, at the least."""
    log = world.log(cold_start("shop"), 300, seed=1)
    rng = np.random.default_rng(0)
    side = np.arange(300) % 2
    places = rng.normal(size=(300, 2)) * 0.01 + side[:, None]
    contexts = [f'{{"p":{x:.9f},"q":{y:.9f}}}' for x, y in places]
    kind, states = request_states(log.with_columns(context=pl.Series(contexts)))
    assert kind == "cluster"
    assert not set(states[side == 0].tolist()) & set(states[side == 1].tolist())
    again = request_states(log.with_columns(context=pl.Series(contexts)))[1]
    assert states.tolist() == again.tolist()


def test_trajectory_quality() -> None:
    """By hand: (0.5 - 0.2) / (0.8 - 0.2)."""
    covered = coverage(
        pl.DataFrame({"action_id": ["a"], "action_ids": [["a"]], "excluded": [["b"]]}),
        np.array([0]),
    )
    found = quality("context", covered, 10, {"logged": 0.5, "new": 0.8, "old": 0.6}, 0.2)
    assert found.tq == pytest.approx(0.5)
    assert found.best_policy == "new"
    assert quality("context", covered, 10, {"logged": 0.5, "new": 0.4}, 0.2).tq == 1.0
    assert quality("context", covered, 10, {"logged": 0.2, "new": 0.2}, 0.2).tq is None
    assert quality("context", covered, 10, {"logged": 0.2}, None).uniform is None
