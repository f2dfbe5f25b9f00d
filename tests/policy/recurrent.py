"""Recurrent policies that nobody has trained, with pmfs that depend on all that they see."""

from __future__ import annotations

import numpy as np

from croupier.policy.generation import Generation
from croupier.policy.recurrent import Head, RecurrentConfig, RecurrentPolicy, TrainingNotes

ACTIONS = ("calm", "news", "fun", "bait", "ads")
OBSERVATION = ("signal", "mood.now", "engagement")


def random_policy(
    seed: int = 0,
    *,
    memory: int = 8,
    head: Head = "categorical",
    actions: tuple[str, ...] = ACTIONS,
    observation: tuple[str, ...] = OBSERVATION,
    horizon: int = 6,
    sharpness: float = 1.0,
) -> RecurrentPolicy:
    """A policy with random weights; the less sharp, the nearer to uniform."""
    config = RecurrentConfig(
        actions=actions,
        observation=observation,
        sees=tuple(range(len(observation))),
        horizon=horizon,
        memory=memory,
        hidden=16,
        head=head,
        floor=0.05,
        group="city",
        codes={"delft": (1.0, -1.0), "leiden": (-0.5, 0.5)},
        training=TrainingNotes(seed=seed),
    )
    rng = np.random.default_rng(seed)
    arrays = {
        name: rng.normal(0.0, 2.5 / np.sqrt(shape[0]), shape).astype(np.float32)
        for name, shape in config.shapes.items()
    }
    arrays["deviation"] = np.array([2.0, 1.0, 4.0], dtype=np.float32)[: len(observation)]
    arrays["after_1_weight"] *= np.float32(sharpness)
    arrays["after_1_bias"] *= np.float32(sharpness)
    return RecurrentPolicy(config, arrays)


def recurrent_generation(
    loop: str, number: int, policy: RecurrentPolicy | None = None
) -> Generation:
    """A generation of one; of another number it is another policy."""
    policy = random_policy(number) if policy is None else policy
    return Generation(loop, number, policy.config.exploration, None, None, recurrent=policy)
