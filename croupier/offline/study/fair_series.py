"""Series of the fairness study: learners' rounds in a world, with regret and violations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from croupier.offline.study.fair_comparator import FairComparator
from croupier.offline.study.fair_learners import hypotheses_of
from croupier.policy.fairness.protocol import Play, Violation, audit, play_round

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from croupier.offline.study.fair_learners import FairArm
    from croupier.offline.study.fair_world import FairWorld
    from croupier.policy.fairness.hypotheses import Thresholds

    FloatArray = NDArray[np.float64]

__all__ = ("FAIR_SERIES_SCHEMA", "checkpoints", "run_fair_series")

FAIR_SERIES_SCHEMA = pl.Schema(
    {
        "arm": pl.String(),
        "rounds": pl.Int64(),
        "error": pl.Float64(),
        "fair_error": pl.Float64(),
        "best_error": pl.Float64(),
        "violations": pl.Int64(),
        "excess": pl.Float64(),
        "approved": pl.Float64(),
    }
)
"""A row for each arm and checkpoint T.

`error` is Σ_t Error(π_t) / k up to T, `fair_error` that of the mixture of the explicit class with
the fewest errors in hindsight among those that no panel could have objected to, and `best_error`
that of the best hypothesis. `violations` are the rounds with a reported pair; `excess` sums up by
how much these were beyond d + α. `approved` is the share of the instances that were approved.
"""


def run_fair_series(
    world: FairWorld, arms: Sequence[FairArm], *, rounds: int, instances: int, seed: int
) -> pl.DataFrame:
    """Play rounds with one arm after the other.

    Who comes, with which label, and the panels are the same for all arms of a seed.

    Parameters
    ----------
    world, arms
        Who plays where.
    rounds, instances
        T and k.
    seed
        Of everything random.

    Returns
    -------
    series
        Of :data:`FAIR_SERIES_SCHEMA`.
    """
    benchmark = _Benchmark(world, hypotheses_of(world, seed))
    rows = [
        row
        for arm in arms
        for row in _played(world, arm, benchmark, rounds=rounds, instances=instances, seed=seed)
    ]
    return pl.DataFrame(rows, schema=FAIR_SERIES_SCHEMA)


def _played(
    world: FairWorld,
    arm: FairArm,
    benchmark: _Benchmark,
    *,
    rounds: int,
    instances: int,
    seed: int,
) -> Iterator[dict[str, object]]:
    nature, luck = (np.random.default_rng((seed, stream)) for stream in (10, 11))
    learner = arm.make(world, benchmark.hypotheses, np.random.default_rng((seed, 12)))
    # How often each context came with either label: all errors of the class follow from it.
    came = np.zeros((len(world.contexts), 2))
    error = excess = approved = 0.0
    violations, due = 0, set(checkpoints(rounds))
    for number in range(1, rounds + 1):
        who, labels = world.come(instances, nature)
        allowed = world.panels[int(nature.integers(len(world.panels)))][np.ix_(who, who)]

        def panel(play: Play, allowed: NDArray[np.float32] = allowed) -> Violation | None:
            return audit(play.chances, allowed, world.alpha)

        outcome = play_round(
            learner,
            world.contexts[who],
            labels,
            panel,
            luck,
            full_information=arm.full_information,
        )
        np.add.at(came, (who, labels.astype(np.int64)), 1.0 / instances)
        error += outcome.error / instances
        approved += float(outcome.play.approved.mean())
        if outcome.violation is not None:
            violations += 1
            excess += outcome.violation.excess
        if number in due:
            fair_error, best_error = benchmark.errors(number, came)
            yield {
                "arm": arm.name,
                "rounds": number,
                "error": error,
                "fair_error": fair_error,
                "best_error": best_error,
                "violations": violations,
                "excess": excess,
                "approved": approved / number,
            }


class _Benchmark:
    """Errors of the best mixtures of the class, which are those of all arms of a seed."""

    def __init__(self, world: FairWorld, hypotheses: Thresholds) -> None:
        self.hypotheses = hypotheses
        self._decisions = hypotheses.decide(world.contexts)
        self._comparator = FairComparator(self._decisions, world.strictest + world.alpha)
        self._known: dict[int, tuple[float, float]] = {}

    def errors(self, rounds: int, came: FloatArray) -> tuple[float, float]:
        """Of the best fair mixture and of the best hypothesis after some rounds."""
        if rounds not in self._known:
            errors = self._decisions @ (came[:, 0] - came[:, 1]) + came[:, 1].sum()
            mixture = self._comparator.best(errors)
            self._known[rounds] = float(mixture @ errors), float(errors.min())
        return self._known[rounds]


def checkpoints(rounds: int) -> list[int]:
    """Rounds that are looked at: T, and one in every factor of √2 below it, down to T / 64."""
    return sorted({round(rounds / 2.0 ** (step / 2.0)) for step in range(13)})
