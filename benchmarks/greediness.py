"""What γ earns, and what it leaves to judge other policies by.

``python -m benchmarks.greediness`` (``--json`` for programs) has inverse gap weighting with
optimism on the oracle ``auto`` under several values of ``gamma_scale``, and without optimism on
``auto`` and on ``vowpal_wabbit``, go through the streams of :mod:`benchmarks.learning_streams`:
once taught every decision, once trained afresh on all of them after every hundred, as a night does.
What is reported is the mean reward from the first decision on and the geometric mean, over
decisions, orders and data sets, of the probability of the rarest action.

``--folder`` names a folder that :mod:`benchmarks.learning_quality` has worked in: then it is the
data sets of other packages too, and not scikit-learn's alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.learning_ours import Learner, play
from benchmarks.learning_streams import BUNDLED, DATA, load, stream
from croupier.cli.output import Output
from croupier.policy.exploration import SquareCB
from croupier.policy.oracle import AutoConfig, VowpalWabbitConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ("LEARNERS", "Found", "measure")

LEARNERS = {
    f"gamma_scale {scale:g}, optimism 0.01, auto": Learner(
        SquareCB(gamma_scale=scale, optimism=0.01), AutoConfig()
    )
    for scale in (100.0, 30.0, 10.0)
} | {
    "gamma_scale 10, auto": Learner(SquareCB(), AutoConfig()),
    "gamma_scale 10, vowpal_wabbit": Learner(SquareCB(), VowpalWabbitConfig()),
}
_NIGHT = 100
# Where an action can't be played at all, a logarithm is taken of this.
_LEAST = 1e-300


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a learner earned and left.

    Attributes
    ----------
    learner
        Its name.
    every
        After how many decisions it was trained afresh; 0 of one that learned every decision.
    reward
        Mean over decisions, orders and data sets.
    rarest
        Geometric mean of the rarest action's probability.
    """

    learner: str
    every: int
    reward: float
    rarest: float


def measure(
    data: Sequence[str], seeds: Sequence[int], rows: int, exported: Path | None = None
) -> Iterator[Found]:
    """Have all learners go through all streams, in both ways.

    Parameters
    ----------
    data, seeds
        Which streams.
    rows
        At most how many decisions each.
    exported
        Where the data sets of other packages are.
    """
    for every in (0, _NIGHT):
        for name, learner in LEARNERS.items():
            rewards, logs = [], []
            for source in data:
                given = load(source, exported)
                for seed in seeds:
                    played = list(play(learner, stream(given, seed, rows), seed, every=every))
                    rewards.append(np.mean([each.reward for each in played]))
                    rarest = np.array([each.rarest for each in played])
                    logs.append(np.log(np.maximum(rarest, _LEAST)).mean())
            yield Found(
                learner=name,
                every=every,
                reward=float(np.mean(rewards)),
                rarest=float(np.exp(np.mean(logs))),
            )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="that learning_quality has worked in")
    parser.add_argument("--data", nargs="+", choices=DATA)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    given: Any = parser.parse_args()
    output = Output(json=given.json)
    data = given.data or (BUNDLED if given.folder is None else DATA)
    exported = None if given.folder is None else given.folder / "exported"
    found = []
    with threadpool_limits(1), output.progress("learners") as note:
        for each in measure(data, given.seeds, given.rows, exported):
            found.append(each)
            note(len(found), 2 * len(LEARNERS))
    title = f"{len(data)} data sets, {len(given.seeds)} orders, at most {given.rows} decisions each"
    output.result(
        found,
        lambda: output.table(
            title,
            ["learner", "trained", "mean reward", "rarest action"],
            [
                [
                    each.learner,
                    f"afresh every {each.every}" if each.every else "by every decision",
                    f"{each.reward:.3f}",
                    f"{each.rarest:.2g}",
                ]
                for each in found
            ],
        ),
    )


if __name__ == "__main__":
    main()
