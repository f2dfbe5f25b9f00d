"""What the scorers are asked when they are measured, and what they have learned before."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import msgspec

from croupier import __version__
from croupier.policy.events import Action, Features
from croupier.policy.generation import Generation, Provenance
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import TrainingRow, make_oracle

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = (
    "LARGE",
    "SMALL",
    "Body",
    "Workload",
    "bodies",
    "fresh_bodies",
    "trained_generation",
    "training_rows",
)

_CONTEXT_FEATURES = 20
_CATALOGUE = 4
"""Actions to choose candidates from, as a multiple of the candidates."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a request.

    Attributes
    ----------
    actions
        Candidates of a request.
    features
        Of every candidate; the context has 20.
    """

    actions: int
    features: int


SMALL = Workload(actions=10, features=5)
LARGE = Workload(actions=50, features=20)


class Body(msgspec.Struct, frozen=True):
    """A request as all servers understand it; without an id, so that none repeats another."""

    context: Features
    actions: list[Action]


def bodies(workload: Workload, count: int, seed: int = 0) -> list[Body]:
    """Different requests with candidates from one catalogue.

    Six in ten features are numbers with three decimals, the others one of some ten words.
    """
    items = random.Random(f"catalogue of {workload.actions} x {workload.features}")
    catalogue = [
        Action(f"item-{number}", _features(items, workload.features))
        for number in range(_CATALOGUE * workload.actions)
    ]
    requests = random.Random(f"requests {seed}")
    return [
        Body(
            _features(requests, _CONTEXT_FEATURES),
            requests.sample(catalogue, workload.actions),
        )
        for _ in range(count)
    ]


def fresh_bodies(workload: Workload, count: int) -> list[Body]:
    """Requests no two of which share an action's features."""
    rng = random.Random("fresh")
    return [
        Body(
            _features(rng, _CONTEXT_FEATURES),
            [
                Action(f"item-{place}", _features(rng, workload.features) | {"n0": rng.random()})
                for place in range(workload.actions)
            ],
        )
        for _ in range(count)
    ]


def training_rows(workload: Workload, count: int) -> list[TrainingRow]:
    """Uniformly played requests, none of those with seed 0, whose rewards depend on features."""
    rng = random.Random(1)
    rows = []
    for body in bodies(workload, count, seed=1):
        chosen = rng.randrange(workload.actions)
        taste = 4.0 * (body.context["n0"] - 0.5) * (body.actions[chosen].features["n0"] - 0.5)
        rows.append(
            TrainingRow(
                context=body.context,
                actions=body.actions,
                chosen=chosen,
                propensity=1.0 / workload.actions,
                reward=float(rng.random() < 1.0 / (1.0 + math.exp(-taste))),
            )
        )
    return rows


def trained_generation(loop: str, number: int, rows: Sequence[TrainingRow]) -> Generation:
    """A generation as the nightly job makes one with the defaults.

    Requests of these workloads have too many columns for a ridge regression, so that ``auto`` is
    Vowpal Wabbit's regression, under inverse gap weighting.
    """
    provenance = Provenance(
        parent=0,
        lake_version=0,
        code_version=__version__,
        loop_config="",
        seed=0,
        training_rows=len(rows),
        created_us=0,
    )
    config = LoopConfig()
    oracle = make_oracle(config.oracle, random_state=0).fit(rows)
    return Generation(loop, number, config.exploration, oracle, provenance)


def _features(rng: random.Random, count: int) -> dict[str, Any]:
    numbers = -(-6 * count // 10)
    values: dict[str, Any] = {f"n{place}": round(rng.random(), 3) for place in range(numbers)}
    values.update((f"s{place}", f"word{rng.randrange(10)}") for place in range(count - numbers))
    return values
