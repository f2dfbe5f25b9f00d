"""A lake of loan decisions of several generations, and judgements of some of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from croupier.eventlog.log import Record
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.lake import Lake
from croupier.offline.sink import sink
from croupier.policy.events import Action, Judgement
from tests.offline.logs import EPOCH_US, decision

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.policy.events import Decision, Event

LOOP = "shop"
ACTIONS = [Action("approve"), Action("decline")]
TRUTH = {"income": 0.4, "debt": 0.2}


def loans(generation: int, count: int, *, by_city: float, seed: int) -> list[Decision]:
    """Decisions that follow income, and the city as far as they are told to."""
    rng = np.random.default_rng([seed, generation])
    made = []
    for number in range(count):
        income, debt = (float(each) for each in rng.normal(size=2))
        north = bool(rng.random() < 0.5)
        score = 0.5 * income + by_city * (1.0 if north else -1.0)
        p = 0.5 if generation == 0 else 1.0 / (1.0 + math.exp(-score))
        chosen = 0 if rng.random() < p else 1
        context = {"income": income, "debt": debt, "city": "north" if north else "south"}
        name = f"g{generation}-{number}"
        made.append(
            decision(
                name,
                EPOCH_US + (generation * 10_000 + number) * 1_000_000,
                generation=generation,
                context=context,
                actions=ACTIONS,
                pmf=[p, 1.0 - p],
                chosen=chosen,
                propensity=[p, 1.0 - p][chosen],
            )
        )
    return made


def judged(one: Decision, two: Decision, judgement_id: str, *, auditor: str = "ada") -> Judgement:
    """What somebody says to whom the city makes no difference."""
    parts = [TRUTH[name] * (one.context[name] - two.context[name]) for name in TRUTH]
    return Judgement(
        judgement_id=judgement_id,
        loop=LOOP,
        decision_id=one.decision_id,
        other_decision_id=two.decision_id,
        auditor=auditor,
        distance=min(1.0, math.hypot(*parts)),
        ts=EPOCH_US + 10**12,
    )


def loan_lake(
    directory: Path, *, by_city: tuple[float, ...], count: int = 250, judgements: int = 0
) -> Lake:
    """A lake below a directory, with its log: one generation for every entry, from 1 on.

    Judgements are of decisions of the last.
    """
    decisions = loans(0, 60, by_city=0.0, seed=1)
    for number, weight in enumerate(by_city, start=1):
        decisions += loans(number, count, by_city=weight, seed=1)
    rng = np.random.default_rng(5)
    last = decisions[-count:]
    pairs = rng.choice(count, size=(judgements, 2), replace=True)
    told = [
        judged(last[one], last[two], f"j{number}")
        for number, (one, two) in enumerate(pairs.tolist())
        if one != two
    ]
    directory.mkdir(parents=True, exist_ok=True)
    lake = Lake(directory / "lake")
    with SqliteEventLog(directory / "log") as log, lake.lock():
        events: list[Event] = [*decisions, *told]
        log.append([Record.of(each) for each in events])
        sink(log, lake)
    return lake
