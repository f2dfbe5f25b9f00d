"""A training that writes checkpoints, as a process that a test can kill: directory, then seed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from croupier.sim2rec.learning_config import PPOConfig, SADAEConfig
from croupier.sim2rec.lts import LTSConfig, UserPopulation
from croupier.sim2rec.transfer import Trained, train_arm
from croupier.sim2rec.transfer_config import ARMS, TransferConfig

CONFIG = TransferConfig(
    environment=LTSConfig(horizon=6, documents=5),
    users=32,
    memory=4,
    hidden=4,
    ppo=PPOConfig(iterations=6, users=28, epochs=1, minibatches=2, critic=4),
    sadae=SADAEConfig(code=2, hidden=4, users=8, steps=4, every=2),
    every=1,
)


def train(checkpoint: Path | None) -> Trained:
    """Train Sim2Rec for a moment."""
    arm = next(arm for arm in ARMS if arm.coded)
    users = UserPopulation.draw(10, np.random.default_rng(1))
    return train_arm(CONFIG, arm, 4, 0, users, checkpoint=checkpoint)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
