"""Small problems whose truth is known: logs of any policy, and exact values by enumeration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from croupier.offline.join import fold_of
from croupier.offline.lake import SCHEMAS
from croupier.offline.sink import decision_row
from croupier.policy.decision import Circumstances, DecisionRequest, decide, eligibility
from croupier.policy.events import Action
from croupier.policy.generation import Generation, Provenance
from croupier.policy.oracle import SklearnConfig, SklearnOracle, TrainingRow
from croupier.policy.traffic import Plan
from tests.offline.logs import EPOCH_US

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.policy.exploration import Exploration

SECOND = 1_000_000


@dataclass(frozen=True, eq=False)
class World:
    """Contexts are equally likely; rewards are 0 or 1.

    Attributes
    ----------
    rewards
        Probability of a reward by context and action, shape (contexts, actions).
    excluded
        Action that may not be chosen in a context; None if all may.
    """

    rewards: NDArray[np.float64]
    excluded: tuple[int | None, ...] = ()

    def request(self, context: int, decision_id: str | None = None) -> DecisionRequest:
        """What an application asks in a context."""
        barred = self.excluded[context] if self.excluded else None
        return DecisionRequest(
            actions=[Action(f"a{each}") for each in range(self.rewards.shape[1])],
            context={"x": f"x{context}"},
            excluded=[] if barred is None else [f"a{barred}"],
            decision_id=decision_id,
        )

    def pmf(self, policy: Generation, context: int) -> NDArray[np.float64]:
        """Probabilities of a policy in a context."""
        request = self.request(context)
        return policy.pmf(request.context, request.actions, eligibility(request))[0]

    def value(self, policy: Generation) -> float:
        """Exact mean reward of a policy."""
        each = [self.pmf(policy, x) @ row for x, row in enumerate(self.rewards)]
        return float(np.mean(each))

    def generation(
        self, number: int, exploration: Exploration, believed: NDArray[np.float64] | None = None
    ) -> Generation:
        """A policy whose oracle believes these rewards; the true ones if None."""
        beliefs = self.rewards if believed is None else believed
        rows = [
            TrainingRow(
                context={"x": f"x{context}"},
                actions=[Action(f"a{each}") for each in range(len(row))],
                chosen=action,
                propensity=1.0,
                reward=reward,
            )
            for context, row in enumerate(beliefs.tolist())
            for action, reward in enumerate(row)
        ]
        oracle = SklearnOracle(SklearnConfig(params={"alpha": 1e-6})).fit(rows)
        provenance = Provenance(
            parent=0,
            lake_version=0,
            code_version="",
            loop_config="",
            seed=0,
            training_rows=len(rows),
            created_us=EPOCH_US,
        )
        return Generation("shop", number, exploration, oracle, provenance)

    def log(
        self,
        policy: Generation | Plan,
        count: int,
        seed: int,
        *,
        first: int = 0,
        uniform: float = 0.0,
    ) -> pl.DataFrame:
        """Interactions of a policy or of a plan, every one a real decision."""
        plan = policy if isinstance(policy, Plan) else Plan(policy)
        rng = np.random.default_rng(seed)
        rows = []
        for number in range(first, first + count):
            context = int(rng.integers(len(self.rewards)))
            drawn = decide(
                self.request(context),
                plan,
                Circumstances(f"{seed}-{number}", EPOCH_US + number * SECOND, uniform=uniform),
            )
            reward = float(rng.random() < self.rewards[context, drawn.chosen])
            rows.append(
                decision_row(drawn, number + 1)
                | {
                    "reward": reward,
                    "reward_source": "observed",
                    "outcomes": 1,
                    "delay_s": 0.0,
                    "fold": fold_of(drawn.decision_id),
                }
            )
        return pl.DataFrame(rows, schema=SCHEMAS["interactions"])


def random_world(contexts: int, actions: int, seed: int) -> World:
    """Rewards between 0.1 and 0.9."""
    return World(np.random.default_rng(seed).uniform(0.1, 0.9, (contexts, actions)))


def concat(logs: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """One log after the other."""
    return pl.concat(logs)
