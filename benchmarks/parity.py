"""Our pmfs beside Vowpal Wabbit's, from the same estimates: the largest difference per policy.

Run with ``python -m benchmarks.parity`` (``--inputs`` to change how many, ``--json`` for programs).
Every policy sees random estimates of 2 to 50 actions under several settings, while Vowpal Wabbit's
count of interactions, and ours, goes up. The second table holds what Vowpal Wabbit gets wrong, with
the input that shows it.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.vowpal_wabbit import PinnedExplorer, regcb_intervals
from croupier.cli.output import Output
from croupier.policy.estimates import Estimates
from croupier.policy.exploration import (
    Bagging,
    Cover,
    EpsilonGreedy,
    RegCB,
    Softmax,
    SquareCB,
    optimists,
    survivors,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FloatArray: TypeAlias = NDArray[np.float64]

INPUTS = 10_000
_MELLOWNESS = 0.01
_RATE = 0.5


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """How far two implementations of a policy are apart.

    Attributes
    ----------
    policy
        Its kind.
    arguments
        The settings of Vowpal Wabbit that were compared.
    inputs
        Random inputs in all.
    largest_difference
        Between any two probabilities.
    unnormalized
        Inputs on which Vowpal Wabbit gives no distribution; its numbers are compared after they
        were divided by their sum.
    """

    policy: str
    arguments: list[str]
    inputs: int
    largest_difference: float
    unnormalized: int = 0


class Defect(msgspec.Struct, frozen=True, kw_only=True):
    """Something that Vowpal Wabbit gets wrong, and the input that shows it."""

    policy: str
    arguments: str
    costs: list[float]
    theirs: list[float]
    ours: list[float]
    why: str


@dataclass(frozen=True, slots=True)
class _Setting:
    """One way to run a policy in both implementations.

    Attributes
    ----------
    ours
        From costs (B, K), feature values (K,) and interactions to our pmf.
    members
        Places of the ensemble's members in Vowpal Wabbit.
    """

    policy: str
    arguments: str
    ours: Callable[[FloatArray, FloatArray, int], FloatArray]
    members: tuple[int, ...] = (0,)


def compare(inputs: int = INPUTS, seed: int = 0) -> list[Parity]:
    """Compare every policy on so many random inputs, divided among its settings."""
    settings = list(_settings())
    by_policy: dict[str, list[Parity]] = {}
    for setting in settings:
        share = -(-inputs // sum(each.policy == setting.policy for each in settings))
        by_policy.setdefault(setting.policy, []).append(_compare_one(setting, share, seed))
    return [
        Parity(
            policy=policy,
            arguments=[each.arguments[0] for each in parts],
            inputs=sum(each.inputs for each in parts),
            largest_difference=max(each.largest_difference for each in parts),
            unnormalized=sum(each.unnormalized for each in parts),
        )
        for policy, parts in by_policy.items()
    ]


def _compare_one(setting: _Setting, inputs: int, seed: int) -> Parity:
    rng = np.random.default_rng(seed)
    explorer = PinnedExplorer(setting.arguments, setting.members)
    largest, unnormalized, learned = 0.0, 0, 0
    for number in range(inputs):
        # From one interaction on: what comes before any is among the defects.
        if number % 10 == 0:
            explorer.learn()
            learned += 1
        actions = int(rng.integers(2, 51))
        costs = _random_costs(rng, len(setting.members), actions)
        values = rng.integers(1, 17, size=actions) / 16.0
        theirs = explorer.pmf(costs, values)
        total = theirs.sum()
        if abs(total - 1.0) > 1e-3:
            unnormalized += 1
            theirs /= total
        difference = np.abs(setting.ours(costs, values, learned) - theirs).max()
        largest = max(largest, float(difference))
    return Parity(
        policy=setting.policy,
        arguments=[setting.arguments],
        inputs=inputs,
        largest_difference=largest,
        unnormalized=unnormalized,
    )


def _random_costs(rng: np.random.Generator, members: int, actions: int) -> FloatArray:
    """Costs that float32 holds exactly, no two of a member's the same: ties have their own test."""
    steps = [rng.choice(1 << 12, size=actions, replace=False) for _ in range(members)]
    return np.array(steps, dtype=np.float64) / (1 << 12)


def _settings() -> Iterator[_Setting]:
    for epsilon in (0.0, 0.05, 0.5, 1.0):
        greedy = EpsilonGreedy(epsilon=epsilon)
        yield _Setting("epsilon_greedy", f"--epsilon {epsilon}", _by_scores(greedy))
    for strength in (1, 5, 50):
        softmax = Softmax(temperature=1.0 / strength)
        yield _Setting("softmax", f"--softmax --lambda {strength}", _by_scores(softmax))
    for scale, exponent in ((10, 0.5), (1, 0.5), (1000, 0.25), (100, 0.0), (3, 1.0)):
        yield _Setting(
            "squarecb",
            f"--squarecb --gamma_scale {scale} --gamma_exponent {exponent}",
            _by_scores(SquareCB(gamma_scale=scale, gamma_exponent=exponent)),
        )
    for members in (2, 5, 16):
        places = tuple(range(members))
        yield _Setting("bagging", f"--bag {members}", _by_votes(Bagging()), places)
    for members in (2, 5, 8):
        # The first member, then a model that Vowpal Wabbit keeps for itself, then the others.
        places = (0, *range(2, members + 1))
        yield _Setting("cover", f"--cover {members}", _by_votes(Cover()), places)
        fixed = _by_votes(Cover(epsilon=0.1))
        yield _Setting("cover", f"--cover {members} --epsilon 0.1", fixed, places)
    # Without adaptive rates an estimate moves by the rate times the square of the feature's value.
    plain = f"--sgd --power_t 0 --learning_rate {_RATE} --mellowness {_MELLOWNESS}"
    for variant, flags in (("elimination", "--regcb"), ("optimistic", "--regcb --regcbopt")):
        yield _Setting(f"regcb {variant}", f"{flags} {plain}", _by_their_intervals(variant))


def _by_scores(
    exploration: EpsilonGreedy | Softmax | SquareCB,
) -> Callable[[FloatArray, FloatArray, int], FloatArray]:
    return lambda costs, _, learned: exploration.pmf(-costs[0], training_rows=learned)


def _by_votes(
    exploration: Bagging | Cover,
) -> Callable[[FloatArray, FloatArray, int], FloatArray]:
    def ours(costs: FloatArray, values: FloatArray, learned: int) -> FloatArray:
        del values
        return exploration.pmf(Estimates(-costs[0], members=-costs), training_rows=learned)

    return ours


def _by_their_intervals(variant: str) -> Callable[[FloatArray, FloatArray, int], FloatArray]:
    def ours(costs: FloatArray, values: FloatArray, learned: int) -> FloatArray:
        delta = _MELLOWNESS * math.log(costs.shape[1] * learned)
        lower, upper = regcb_intervals(costs[0], _RATE * values**2, delta)
        return optimists(-lower) if variant == "optimistic" else survivors(-upper, -lower)

    return ours


def defects() -> list[Defect]:
    """Inputs on which Vowpal Wabbit is wrong."""
    return [_elimination(), _no_data(), _clipped_alike(), _nearly_tied()]


def _elimination() -> Defect:
    costs = np.array([0.100, 0.101, 0.102, 0.103])
    arguments = "--squarecb --gamma_scale 100 --gamma_exponent 0 --elim"
    explorer = PinnedExplorer(arguments)
    explorer.learn()
    return Defect(
        policy="squarecb --elim",
        arguments=arguments,
        costs=costs.tolist(),
        theirs=explorer.pmf(costs).tolist(),
        ours=SquareCB(gamma_scale=100.0, gamma_exponent=0.0).pmf(-costs).tolist(),
        why="survivors are counted only where a new least cost is met, so too few are",
    )


def _no_data() -> Defect:
    costs = np.array([0.3, 0.301, 0.5])
    estimates = Estimates(-costs, deviation=np.ones(3))
    return Defect(
        policy="regcb elimination",
        arguments="--regcb",
        costs=costs.tolist(),
        theirs=PinnedExplorer("--regcb").pmf(costs).tolist(),
        ours=RegCB().pmf(estimates, training_rows=0).tolist(),
        why="before any data ln(K t) is minus infinity, which leaves no width: greedy for nothing",
    )


def _clipped_alike() -> Defect:
    costs = np.array([0.01, 0.02, 0.9])
    arguments = "--regcb --regcbopt --sgd --power_t 0"
    explorer = PinnedExplorer(arguments)
    explorer.learn()
    estimates = Estimates(-costs, deviation=np.full(3, 0.4))
    ours = RegCB(variant="optimistic", reward_min=-1.0, reward_max=0.0)
    return Defect(
        policy="regcb optimistic",
        arguments=arguments,
        costs=costs.tolist(),
        theirs=explorer.pmf(costs).tolist(),
        ours=ours.pmf(estimates, training_rows=1).tolist(),
        why="actions whose bounds are clipped alike get 1 each: no distribution",
    )


def _nearly_tied() -> Defect:
    costs = np.array([0.5, 0.50005, 0.9])
    arguments = "--epsilon 0.1"
    return Defect(
        policy="epsilon_greedy",
        arguments=arguments,
        costs=costs.tolist(),
        theirs=PinnedExplorer(arguments).pmf(costs).tolist(),
        ours=EpsilonGreedy(epsilon=0.1).pmf(-costs).tolist(),
        why="costs that differ by less than about 1e-4 count as tied",
    )


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    output = Output(json=arguments.json)
    parities, wrong = compare(arguments.inputs), defects()

    def show() -> None:
        output.table(
            "Probabilities, ours against Vowpal Wabbit's",
            ["policy", "settings", "inputs", "not a distribution", "largest difference"],
            [
                [
                    each.policy,
                    len(each.arguments),
                    each.inputs,
                    each.unnormalized,
                    f"{each.largest_difference:.1e}",
                ]
                for each in parities
            ],
        )
        output.table(
            "What Vowpal Wabbit gets wrong",
            ["policy", "costs", "theirs", "ours", "why"],
            [
                [each.policy, *map(_rounded, (each.costs, each.theirs, each.ours)), each.why]
                for each in wrong
            ],
        )

    output.result({"parity": parities, "defects": wrong}, show)


def _rounded(numbers: list[float]) -> str:
    return ", ".join(f"{number:.5g}" for number in numbers)


if __name__ == "__main__":
    main()
