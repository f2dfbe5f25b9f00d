"""Time from scores to a pmf, for every exploration beside the uniform one as yardstick.

Run with ``python -m benchmarks.exploration`` (``--json`` for programs). Every figure is the best of
several rounds in this one process, so compare columns and ratios, not machines.
"""

from __future__ import annotations

import argparse
import sys
import timeit

import msgspec
import numpy as np

from croupier.cli.output import Output
from croupier.policy.exploration import (
    EpsilonGreedy,
    Exploration,
    Falcon,
    FastCB,
    Softmax,
    SquareCB,
    Uniform,
)

ACTIONS = (10, 100, 1000)
ROUNDS, CALLS = 7, 500
EXPLORATIONS: tuple[Exploration, ...] = (
    Uniform(),
    EpsilonGreedy(),
    Softmax(),
    SquareCB(),
    SquareCB(floor=0.0005),
    Falcon(),
    FastCB(),
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
        scores = rng.random(actions)
        seconds = [_seconds(exploration, scores) for exploration in EXPLORATIONS]
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


def _seconds(exploration: Exploration, scores: np.typing.NDArray[np.float64]) -> float:
    def call() -> None:
        exploration.pmf(scores, training_rows=1000)

    return min(timeit.repeat(call, repeat=ROUNDS, number=CALLS)) / CALLS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    output = Output(json=parser.parse_args().json)
    timings = measure()
    output.result(
        timings,
        lambda: output.table(
            f"Scores to pmf, best of {ROUNDS} x {CALLS} calls, Python {sys.version.split()[0]}, "
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
