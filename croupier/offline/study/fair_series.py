"""One series of the fairness study: a learner's rounds in a world, with regret and violations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from croupier.offline.study.fair_comparator import FairComparator
from croupier.offline.study.fair_learners import hypotheses_of
from croupier.policy.fairness.protocol import Play, Violation, audit, play_round

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.offline.study.fair_learners import FairArm
    from croupier.offline.study.fair_world import FairWorld

__all__ = ("FAIR_SERIES_SCHEMA", "checkpoints", "run_fair_series")

FAIR_SERIES_SCHEMA = pl.Schema(
    {
        "rounds": pl.Int64(),
        "error": pl.Float64(),
        "fair_error": pl.Float64(),
        "best_error": pl.Float64(),
        "violations": pl.Int64(),
        "excess": pl.Float64(),
        "approved": pl.Float64(),
    }
)
"""A row for each checkpoint T.

`error` is Σ_t Error(π_t) / k up to T, `fair_error` that of the mixture of the explicit class with
the fewest errors in hindsight among those that no panel could have objected to, and `best_error`
that of the best hypothesis. `violations` are the rounds with a reported pair; `excess` sums up by
how much these were beyond d + α. `approved` is the share of the instances that were approved.
"""


def run_fair_series(
    world: FairWorld, arm: FairArm, *, rounds: int, instances: int, seed: int
) -> pl.DataFrame:
    """Play rounds.

    Who comes, with which label, and the panels are the same for all arms of a seed.

    Parameters
    ----------
    world, arm
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
    hypotheses = hypotheses_of(world, seed)
    decisions = hypotheses.decide(world.contexts)
    comparator = FairComparator(decisions, world.strictest + world.alpha)
    nature, luck = (np.random.default_rng((seed, stream)) for stream in (10, 11))
    learner = arm.make(world, hypotheses, np.random.default_rng((seed, 12)))
    # How often each context came with either label: all errors of the class follow from it.
    came = np.zeros((len(world.contexts), 2))
    error = excess = approved = 0.0
    violations, rows = 0, []
    due = set(checkpoints(rounds))
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
            errors = decisions @ (came[:, 0] - came[:, 1]) + came[:, 1].sum()
            rows.append(
                {
                    "rounds": number,
                    "error": error,
                    "fair_error": float(comparator.best(errors) @ errors),
                    "best_error": float(errors.min()),
                    "violations": violations,
                    "excess": excess,
                    "approved": approved / number,
                }
            )
    return pl.DataFrame(rows, schema=FAIR_SERIES_SCHEMA)


def checkpoints(rounds: int) -> list[int]:
    """Rounds that are looked at: T, and one in every factor of √2 below it down to 16."""
    steps = int(2.0 * math.log2(max(rounds / 16.0, 1.0)))
    return sorted({round(rounds / 2.0 ** (step / 2.0)) for step in range(steps + 1)})
