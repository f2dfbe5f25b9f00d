"""Time from estimates to a pmf, for every exploration beside the uniform one as yardstick.

Run with ``python -m benchmarks.exploration`` (``--json`` for programs). Every figure is the best of
several rounds in this one process, so compare columns and ratios, not machines. Ensembles have ten
members; posteriors have errors that the actions share in part.
"""

from __future__ import annotations

import argparse
import sys
import timeit

import msgspec
import numpy as np

from croupier.cli.output import Output
from croupier.policy.estimates import Estimates
from croupier.policy.exploration import (
    Bagging,
    Conservative,
    Cover,
    EpsilonGreedy,
    Exploration,
    Falcon,
    FastCB,
    RegCB,
    Softmax,
    SquareCB,
    Thompson,
    Uniform,
)

ACTIONS = (10, 100, 1000)
ROUNDS, ROUND_S, MEMBERS = 5, 0.05, 10
EXPLORATIONS: tuple[Exploration, ...] = (
    Uniform(),
    EpsilonGreedy(),
    Softmax(),
    SquareCB(),
    SquareCB(floor=0.0005),
    SquareCB(optimism=0.01),
    Falcon(),
    FastCB(),
    RegCB(),
    Bagging(),
    Cover(),
    Thompson(correlated=False),
    Thompson(),
    Conservative(inner=SquareCB()),
)


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds per pmf, and how many times as long as uniform that is."""

    exploration: str
    actions: int
    microseconds: float
    times_uniform: float


def measure(seed: int = 0) -> list[Timing]:
    """Time every exploration at every number of actions."""
    rng = np.random.default_rng(seed)
    timings: list[Timing] = []
    for actions in ACTIONS:
        believed = _estimates(rng, actions)
        seconds = [_seconds(exploration, believed) for exploration in EXPLORATIONS]
        timings.extend(
            Timing(
                exploration=exploration.describe(),
                actions=actions,
                microseconds=1e6 * taken,
                times_uniform=taken / seconds[0],
            )
            for exploration, taken in zip(EXPLORATIONS, seconds, strict=True)
        )
    return timings


def _estimates(rng: np.random.Generator, actions: int) -> Estimates:
    mean, causes = rng.random(actions), 0.1 * rng.normal(size=(actions, 5))
    covariance = causes @ causes.T + np.diag(rng.uniform(0.01, 0.1, actions) ** 2)
    deviation = np.sqrt(np.diag(covariance))
    members = mean + deviation * rng.normal(size=(MEMBERS, actions))
    return Estimates(mean, deviation, covariance, members)


def _seconds(exploration: Exploration, believed: Estimates) -> float:
    given = believed if exploration.wants else believed.mean

    def call() -> None:
        exploration.pmf(given, training_rows=1000, baseline=0)

    timer = timeit.Timer(call)
    calls = 1
    while (taken := timer.timeit(calls)) < ROUND_S:
        calls = max(calls + 1, round(1.2 * calls * ROUND_S / max(taken, 1e-7)))
    return min(timer.repeat(ROUNDS, calls)) / calls


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    output = Output(json=parser.parse_args().json)
    timings = measure()
    output.result(
        timings,
        lambda: output.table(
            f"Estimates to pmf, best of {ROUNDS} rounds, Python {sys.version.split()[0]}, "
            f"NumPy {np.__version__}",
            ["exploration", "actions", "microseconds", "times uniform"],
            [
                [each.exploration, each.actions, round(each.microseconds, 1), each.times_uniform]
                for each in timings
            ],
        ),
    )


if __name__ == "__main__":
    main()
