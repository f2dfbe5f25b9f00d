"""What is lost by learning in partitions that are merged, on real digits.

``python -m benchmarks.merging`` shows images of digits (scikit-learn's) to a policy that names any
of the ten at random, each image several times, and learns from the rewards (1 for the right digit)
by one learner and by partitions that are merged, with several numbers of partitions and of rounds.
The images that were held out judge: by the mean squared error of the estimates of all actions,
clipped to the range of the rewards, and by what a policy earns that takes the best action.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
from sklearn.datasets import load_digits

from croupier.cli.output import Output
from croupier.offline.engine import LOCAL
from croupier.offline.interactions import LoggedRows
from croupier.offline.join import fold_of
from croupier.offline.merged_training import learn_merged
from croupier.policy.events import Action
from croupier.policy.oracle import VowpalWabbitConfig, VowpalWabbitOracle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ("Digits", "Loss", "compare")

ACTIONS = [Action(str(digit)) for digit in range(10)]
HELD_OUT = 400
SEEDS, SHOWN = 3, 10
PARTITIONS, ROUNDS = (2, 4, 8), (1, 4, 16)


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """What was learned, in the mean of some seeds.

    Attributes
    ----------
    rows
        Interactions that were learned from.
    partitions, rounds
        That learned side by side, and after which they were merged; 1 and 0 of a single learner.
    error
        Mean squared error of the clipped estimates.
    value
        What the best action earns.
    worst_error, worst_value
        Of any seed: the error as a multiple of the single learner's, and the value less its.
    """

    rows: int
    partitions: int
    rounds: int
    error: float
    value: float
    worst_error: float
    worst_value: float


class Digits:
    """Digits that are shown and digits that are held out.

    Parameters
    ----------
    seed
        Of the division, of what is named and of the learners.
    shown
        How often every image is shown.
    """

    def __init__(self, seed: int, shown: int) -> None:
        images, labels = load_digits(return_X_y=True)
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(labels))
        held = order[:HELD_OUT]
        self.seed = seed
        self._images, self._labels = images[held], labels[held]
        taught = np.concatenate([rng.permutation(order[HELD_OUT:]) for _ in range(shown)])
        named = rng.integers(len(ACTIONS), size=len(taught))
        contexts = {image: msgspec.json.encode(_context(images[image])).decode() for image in order}
        self.rows = LoggedRows(
            pl.DataFrame(
                {
                    "context": [contexts[image] for image in taught],
                    "actions": msgspec.json.encode(ACTIONS).decode(),
                    "chosen": named,
                    "propensity": 1.0 / len(ACTIONS),
                    "reward": (named == labels[taught]).astype(np.float64),
                    "keep_prob": 1.0,
                    "fold": [fold_of(f"{seed}-{number}") for number in range(len(taught))],
                }
            )
        )

    def learned(self, merging: tuple[int, int] | None) -> tuple[float, float]:
        """Error and value of what is learned, by partitions or by a single learner."""
        oracle = VowpalWabbitOracle(VowpalWabbitConfig(), random_state=self.seed)
        if merging is None:
            oracle.fit(self.rows)
        else:
            learn_merged(oracle, self.rows, merging, LOCAL)
        scores = np.array([oracle.score(_context(image), ACTIONS) for image in self._images])
        right = np.eye(len(ACTIONS))[self._labels]
        best = scores.argmax(axis=1) == self._labels
        return float(((scores.clip(0.0, 1.0) - right) ** 2).mean()), float(best.mean())


def compare(seeds: int, shown: int, partitions: Sequence[int], rounds: Sequence[int]) -> list[Loss]:
    """The single learner first, then every number of partitions with every number of rounds."""
    worlds = [Digits(seed, shown) for seed in range(seeds)]
    asked: list[tuple[int, int] | None] = [None]
    asked += [(parts, times) for parts in partitions for times in rounds]
    found = {each: np.array([world.learned(each) for world in worlds]) for each in asked}
    single = found[None]
    return [_loss(each, len(worlds[0].rows), measured, single) for each, measured in found.items()]


def _loss(
    merging: tuple[int, int] | None,
    rows: int,
    found: NDArray[np.float64],
    single: NDArray[np.float64],
) -> Loss:
    partitions, rounds = (1, 0) if merging is None else merging
    return Loss(
        rows=rows,
        partitions=partitions,
        rounds=rounds,
        error=float(found[:, 0].mean()),
        value=float(found[:, 1].mean()),
        worst_error=float((found[:, 0] / single[:, 0]).max()),
        worst_value=float((found[:, 1] - single[:, 1]).min()),
    )


def _context(image: NDArray[np.float64]) -> dict[str, float]:
    return {f"p{place}": value / 16.0 for place, value in enumerate(image.tolist()) if value}


def main() -> None:
    """Measure, and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--shown", type=int, default=SHOWN, help="how often an image is shown")
    parser.add_argument("--json", action="store_true", help="write JSON")
    arguments = parser.parse_args()
    found = compare(arguments.seeds, arguments.shown, PARTITIONS, ROUNDS)
    output = Output(json=arguments.json)
    columns = [*Loss.__struct_fields__]
    output.result(
        found,
        lambda: output.table(
            f"Held-out losses, in the mean of {arguments.seeds} seeds",
            columns,
            [[getattr(each, name) for name in columns] for each in found],
        ),
    )


if __name__ == "__main__":
    main()
