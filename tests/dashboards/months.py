"""A loop of several days, decided by the real scorer and learned from by the real nightly job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.eventlog.log import Record
from croupier.offline.nightly import NightlyConfig
from croupier.policy.decision import DecisionRequest
from croupier.policy.events import Action, Judgement, Outcome
from croupier.policy.exploration import SquareCB
from croupier.policy.fairness.config import AlikeIfSame, IndividualFairness, WeightedDistance
from croupier.policy.fairness.groups import FairnessConfig
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import SklearnConfig
from tests.offline.shop import Shop
from tests.offline.worlds import World

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.policy.events import Event

__all__ = ("ACTIONS", "FAIRNESS", "LOOP", "Town")

LOOP = "offers"
ACTIONS = ("bundle", "discount", "none", "upgrade")
_DAY = 86_400_000_000
_HOUR = _DAY // 24

FAIRNESS = IndividualFairness(
    action="discount",
    auditors={
        "board": WeightedDistance(weights={"visits": 0.05}),
        "rule": AlikeIfSame(features=("visits",)),
    },
)

_CONFIG = LoopConfig(
    exploration=SquareCB(gamma_scale=4.0, floor=0.02),
    oracle=SklearnConfig(),
    attribution_window="2 h",
    fairness=FairnessConfig(attributes=("plan",)),
    individual_fairness=FAIRNESS,
)


class Town(Shop):
    """A loop whose visitors come from two cities, with outcomes of all kinds.

    Parameters
    ----------
    root
        The data directory.
    now
        When the first day begins, in microseconds since the epoch.
    """

    def __init__(self, root: Path, *, now: int) -> None:
        rewards = np.array([[0.10, 0.30, 0.05, 0.18], [0.22, 0.12, 0.06, 0.34]])
        super().__init__(
            root,
            World(rewards),
            loops={LOOP: _CONFIG},
            config=NightlyConfig(segments={LOOP: ("context.city",)}),
            now=now,
        )

    def day(self, decisions: int, loop: str = LOOP) -> None:
        """A day's visitors, more of them at noon; the newest action comes on the fourth day."""
        events: list[Event] = []
        start, rng = self.now, self.rng
        # As many as a bell around noon has by each hour.
        moments = np.sort(np.clip(rng.normal(13.0, 4.5, decisions), 0.0, 23.9))
        for moment in moments:
            self.now = start + round(moment * _HOUR)
            self.count += 1
            city = int(rng.integers(2))
            offered = ACTIONS if self.count > 3 * decisions else ACTIONS[:3]
            made = self.scorer.decide(
                loop,
                DecisionRequest(
                    actions=[Action(each) for each in offered],
                    context={
                        "city": ("Bern", "Zürich")[city],
                        "visits": int(rng.integers(1, 9)),
                    },
                    audit={"plan": ("free", "pro")[int(rng.random() < 0.3 + 0.3 * city)]},
                    decision_id=f"visit-{self.count:06}",
                ),
            )
            events.append(made)
            events += self._outcomes(loop, made.decision_id, city, made.chosen)
        with self.log() as log:
            log.append([Record.of(event) for event in events])
        self.now = start + _DAY

    def judge(self, loop: str = LOOP) -> None:
        """Two people judge the same few pairs, and don't agree on all."""
        events: list[Event] = []
        for number in range(6):
            for person, distance in (("ada", 0.1 * number), ("ben", 0.2 * number)):
                events.append(
                    Judgement(
                        judgement_id=f"{person}-{number}",
                        loop=loop,
                        decision_id=f"visit-{2 * number + 1:06}",
                        other_decision_id=f"visit-{2 * number + 2:06}",
                        auditor=person,
                        distance=distance,
                        ts=self.now,
                    )
                )
        with self.log() as log:
            log.append([Record.of(event) for event in events])

    def _outcomes(self, loop: str, decision_id: str, city: int, chosen: int) -> list[Outcome]:
        rng = self.rng
        found = []
        if rng.random() < self.world.rewards[city, chosen]:
            delay = int(rng.exponential(0.6 * _HOUR))
            first = Outcome(
                decision_id=decision_id,
                loop=loop,
                outcome_id=f"{decision_id}/click",
                reward=1.0,
                ts=self.now + delay,
            )
            found.append(first)
            if rng.random() < 0.1:
                again = f"{decision_id}/again"
                found.append(msgspec.structs.replace(first, outcome_id=again, ts=first.ts + _HOUR))
        if rng.random() < 0.01:
            found.append(
                Outcome(
                    decision_id=f"of-nobody-{decision_id}",
                    loop=loop,
                    outcome_id=f"{decision_id}/orphan",
                    reward=1.0,
                    ts=self.now,
                )
            )
        return found
