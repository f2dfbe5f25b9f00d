"""Logs of rankings, slots and slates in a small world, every draw a real one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import polars as pl

from croupier.offline.join import fold_of
from croupier.offline.lake import SCHEMAS
from croupier.offline.sink import decision_row
from croupier.policy.decision import Circumstances, decide
from croupier.policy.ranking import RankRequest, rank, scored_once
from croupier.policy.slates import SlateRequest, decide_slate
from croupier.policy.slots import Slot, SlotsRequest, fill_slots
from croupier.policy.traffic import Plan
from tests.offline.logs import EPOCH_US
from tests.offline.worlds import SECOND

if TYPE_CHECKING:
    from croupier.policy.events import Decision, LearningMode
    from croupier.policy.generation import Generation
    from tests.offline.worlds import World

Shape: TypeAlias = Literal["ranking", "slots", "slate"]
SHAPES: tuple[Shape, ...] = get_args(Shape)

BASELINE = "a2"


def decided(
    world: World,
    policy: Generation,
    shape: Shape,
    context: int,
    decision_id: str,
    *,
    size: int = 2,
    mode: LearningMode = "online",
) -> list[Decision]:
    """One request in a context, for so many actions."""
    asked = world.request(context)
    circumstances = Circumstances(decision_id, EPOCH_US + context * SECOND, mode)
    choose = partial(decide, plan=scored_once(Plan(policy)), circumstances=circumstances)
    fields = {name: getattr(asked, name) for name in asked.__struct_fields__}
    fields["baseline"] = BASELINE
    match shape:
        case "ranking":
            return rank(RankRequest(**fields, depth=size), choose).decisions
        case "slate":
            return decide_slate(SlateRequest(**fields, size=size), Plan(policy), circumstances)
        case "slots":
            # Scores are those of a slot's own context.
            choose = partial(decide, plan=Plan(policy), circumstances=circumstances)
            slots = [
                Slot(id=f"s{place}", excluded=asked.excluded, baseline=BASELINE)
                for place in range(size)
            ]
            return fill_slots(
                SlotsRequest(actions=asked.actions, slots=slots, context=asked.context), choose
            )


def log_of(
    world: World,
    policy: Generation,
    shape: Shape,
    count: int,
    seed: int,
    *,
    size: int = 2,
    mode: LearningMode = "online",
) -> pl.DataFrame:
    """Interactions of so many requests, with a reward for every place."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        context = int(rng.integers(len(world.rewards)))
        name = f"{shape}-{seed}-{number}"
        for each in decided(world, policy, shape, context, name, size=size, mode=mode):
            rows.append(
                decision_row(each, len(rows) + 1)
                | {
                    "reward": float(rng.random() < world.rewards[context, each.chosen]),
                    "reward_source": "observed",
                    "outcomes": 1,
                    "delay_s": 0.0,
                    "fold": fold_of(each.decision_id),
                }
            )
    return pl.DataFrame(rows, schema=SCHEMAS["interactions"])
