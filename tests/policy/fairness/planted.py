"""A small world with a planted metric, which learners are tried in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from croupier.policy.fairness.hypotheses import Thresholds, thresholds_through
from croupier.policy.fairness.protocol import FairLearner, RoundOutcome, audit, play_round

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

ALPHA = 0.1


@dataclass(frozen=True)
class Planted:
    """Contexts (constant, merit, group), their chances of a label of 1, and the metric."""

    contexts: FloatArray
    positive: FloatArray
    distance: FloatArray

    def rounds(
        self,
        learner: FairLearner,
        rounds: int,
        *,
        instances: int = 20,
        seed: int = 0,
        full_information: bool = False,
    ) -> Iterator[tuple[NDArray[np.int64], FloatArray, RoundOutcome]]:
        """Who came, their labels, and what became of the round."""
        rng = np.random.default_rng(seed)
        for _ in range(rounds):
            who = rng.integers(len(self.contexts), size=instances)
            labels = (rng.random(instances) < self.positive[who]).astype(np.float64)
            allowed = self.distance[np.ix_(who, who)]
            outcome = play_round(
                learner,
                self.contexts[who],
                labels,
                lambda play, allowed=allowed: audit(play.chances, allowed, ALPHA),  # type: ignore[misc]
                rng,
                full_information=full_information,
            )
            yield who, labels, outcome

    def thresholds(self, size: int, seed: int = 0) -> Thresholds:
        """A class over merit and group."""
        rng = np.random.default_rng(seed)
        return thresholds_through(self.contexts, size, rng, columns=[1, 2])


def planted(size: int = 60, seed: int = 0) -> Planted:
    """Merit and group both predict the label; the metric knows of merit alone."""
    rng = np.random.default_rng(seed)
    merit, group = rng.normal(size=size), (rng.random(size) < 0.5).astype(np.float64)
    return Planted(
        np.column_stack([np.ones(size), merit, group]),
        1.0 / (1.0 + np.exp(-(1.5 * merit - 2.0 * group + 0.8))),
        np.minimum(1.0, 0.4 * np.abs(merit[:, None] - merit)),
    )
