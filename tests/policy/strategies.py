"""What the property tests of this folder draw from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from croupier.policy.estimates import Estimates
from croupier.policy.events import Action
from croupier.policy.exploration import (
    Bagging,
    Conservative,
    Cover,
    EpsilonGreedy,
    Exploration,
    Falcon,
    FastCB,
    Greedy,
    RegCB,
    Softmax,
    SquareCB,
    Thompson,
    Uniform,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROBABILITIES = st.floats(0.0, 1.0)

FLOORS = st.one_of(st.just(0.0), PROBABILITIES)
METHODS = st.sampled_from(["project", "mix"])

EXPLORATIONS: st.SearchStrategy[Exploration] = st.one_of(
    st.builds(Uniform, floor=FLOORS, floor_method=METHODS),
    st.builds(Greedy, floor=FLOORS, floor_method=METHODS),
    st.builds(EpsilonGreedy, epsilon=PROBABILITIES, floor=FLOORS, floor_method=METHODS),
    st.builds(Softmax, temperature=st.floats(1e-300, 1e300), floor=FLOORS, floor_method=METHODS),
    st.builds(
        SquareCB,
        gamma_scale=st.floats(0.0, 1e300),
        gamma_exponent=PROBABILITIES,
        floor=FLOORS,
        floor_method=METHODS,
    ),
    st.builds(
        Falcon,
        scale=st.floats(1e-300, 1e300),
        log_class_size=st.floats(0.0, 1e300),
        delta=st.floats(0.0, 1.0, exclude_min=True, exclude_max=True),
        floor=FLOORS,
        floor_method=METHODS,
    ),
    st.builds(
        FastCB,
        gamma=st.none() | st.floats(1e-300, 1e300),
        loss_floor=st.floats(0.0, 1.0, exclude_min=True),
        reward_min=st.sampled_from([-1.0, 0.0]),
        reward_max=st.sampled_from([0.5, 1.0, 1e100]),
        floor=FLOORS,
        floor_method=METHODS,
    ),
)

# Reward-like numbers, ties, and everything else that is a finite number.
SCORES = st.one_of(
    st.floats(0.0, 1.0),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.floats(allow_nan=False, allow_infinity=False),
)


@st.composite
def score_arrays(
    draw: st.DrawFn, elements: st.SearchStrategy[float] = SCORES, max_size: int = 30
) -> NDArray[np.float64]:
    return np.array(draw(st.lists(elements, min_size=1, max_size=max_size)), dtype=np.float64)


@st.composite
def masks(draw: st.DrawFn, size: int) -> NDArray[np.bool_]:
    """Which of `size` actions are eligible; at least one is."""
    mask = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    mask[draw(st.integers(0, size - 1))] = True
    return mask


@st.composite
def pmfs(draw: st.DrawFn) -> NDArray[np.float64]:
    """Probabilities of a few actions, many of them 0 or very small."""
    weights = st.one_of(st.just(0.0), st.floats(1e-18, 1.0))
    odds = np.array(draw(st.lists(weights, min_size=1, max_size=12)), dtype=np.float64)
    odds[draw(st.integers(0, odds.size - 1))] = 1.0
    return np.asarray(odds / odds.sum())


TEXT = st.text(max_size=8)

FINITE = st.floats(allow_nan=False, allow_infinity=False)

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), FINITE, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)

JSON_OBJECTS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(TEXT, JSON_VALUES, max_size=4)

# What the encoder accepts: shallower, and within the range of float32.
_SMALL = st.floats(-1e6, 1e6, width=32)

FEATURES: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    TEXT,
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-1000, 1000), _SMALL, TEXT),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=4,
).filter(lambda features: _depth(features) <= 6)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


@st.composite
def action_lists(draw: st.DrawFn, max_size: int = 5) -> list[Action]:
    ids = st.text(min_size=1, max_size=12)
    names = draw(st.lists(ids, min_size=1, max_size=max_size, unique=True))
    return [Action(name, draw(FEATURES)) for name in names]


@st.composite
def estimates(draw: st.DrawFn, max_size: int = 8) -> Estimates:
    """Reward-like estimates with every kind of uncertainty; ties and certainty among them."""
    mean = draw(score_arrays(st.sampled_from([0.0, 0.25, 1.0]) | st.floats(-2.0, 2.0), max_size))
    size = mean.size
    spread = st.sampled_from([0.0, 0.1]) | st.floats(0.0, 3.0)
    deviation = np.array(draw(st.lists(spread, min_size=size, max_size=size)))
    loading = np.array(draw(st.lists(st.floats(-1.0, 1.0), min_size=size, max_size=size)))
    correlation = np.outer(loading, loading)
    np.fill_diagonal(correlation, 1.0)
    seed, count = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 6))
    noise = np.random.default_rng(seed).normal(size=(count, size))
    return Estimates(
        mean,
        deviation,
        correlation * np.outer(deviation, deviation),
        mean + np.round(noise, 1) * deviation,
    )


_KEPT: dict[str, Any] = {"floor": FLOORS, "floor_method": METHODS}

OPTIMISTIC: st.SearchStrategy[SquareCB] = st.builds(
    SquareCB,
    gamma_scale=st.floats(0.0, 1e300),
    gamma_exponent=PROBABILITIES,
    optimism=st.floats(0.0, 1e300),
    reward_min=st.sampled_from([-1.0, 0.0]),
    reward_max=st.sampled_from([0.5, 1.0, 1e100]),
    **_KEPT,
)

UNCERTAIN: st.SearchStrategy[Exploration] = st.one_of(
    OPTIMISTIC,
    st.builds(
        RegCB,
        variant=st.sampled_from(["elimination", "optimistic"]),
        mellowness=st.floats(0.0, 1e300),
        reward_min=st.sampled_from([-1.0, 0.0]),
        reward_max=st.sampled_from([0.5, 1.0, 1e100]),
        **_KEPT,
    ),
    st.builds(Bagging, **_KEPT),
    st.builds(Cover, epsilon=st.none() | PROBABILITIES, **_KEPT),
    st.builds(
        Thompson,
        scale=st.floats(0.0, 1e3),
        correlated=st.booleans(),
        samples=st.just(200),
        seed=st.integers(0, 3),
        **_KEPT,
    ),
)

CONSERVATIVE: st.SearchStrategy[Conservative] = st.builds(
    Conservative,
    inner=EXPLORATIONS | UNCERTAIN,
    alpha=PROBABILITIES,
    radius=st.sampled_from([0.0, 1.0]) | st.floats(0.0, 100.0),
    reward_min=st.sampled_from([-2.0, 0.0]),
    **_KEPT,
)
