"""The arms of the transfer study and its budgets; free of JAX, which takes long to import."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from croupier.policy.errors import InvalidInputError
from croupier.sim2rec.learning_config import ActorConfig, PPOConfig, SADAEConfig
from croupier.sim2rec.lts import (
    TEST_GROUP_MEAN,
    LTSConfig,
    evaluation_config,
    training_configs,
)

__all__ = ("ARMS", "BUDGETS", "UPPER_BOUND", "Arm", "TransferConfig", "training_groups")

_Grounds: TypeAlias = Literal["one", "all", "truth"]


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """A way of training a policy.

    Attributes
    ----------
    name
        Of the method (Chen et al., 2023).
    trains_in
        ``one`` simulator, whose clickbait mean is wrong by a level and 1; ``all`` simulators of the
        level; or the ``truth``, the test group, with users that nobody is tested on.
    remembers
        Whether the policy has a recurrent state.
    sees_signal
        Whether the policy sees its user's own signal of the group.
    coded
        Whether the policy is told its group's code.
    """

    name: str
    trains_in: _Grounds = "all"
    remembers: bool = True
    sees_signal: bool = True
    coded: bool = False


UPPER_BOUND: Final = "upper bound"
"""Name of the arm that is trained in the truth."""

ARMS: Final = (
    Arm(name="DIRECT", trains_in="one", remembers=False, sees_signal=False),
    Arm(name="DR-UNI", remembers=False),
    Arm(name="DR-OSI"),
    Arm(name="Sim2Rec", coded=True),
    Arm(name=UPPER_BOUND, trains_in="truth"),
)
"""From the one that knows least to the one that knows most."""


class TransferConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How arms are trained and tested.

    Attributes
    ----------
    environment
        Everything of the groups but their clickbait mean.
    users
        Users of each training simulator, at least 2; each iteration plays with some of them.
    memory, hidden, floor
        Of the policies, see :class:`~croupier.sim2rec.learning_config.ActorConfig`.
    ppo, sadae
        How they and the auto-encoder are trained.
    every
        Iterations between looks at the test group, for the learning curve alone; divides those of
        `ppo`.
    held_out
        Training groups, those nearest to the test group, that choose the auto-encoder's steps, at
        least 1.
    """

    environment: LTSConfig = LTSConfig()
    users: int = 1000
    memory: int = 32
    hidden: int = 32
    floor: float = 0.01
    ppo: PPOConfig = PPOConfig()
    sadae: SADAEConfig = SADAEConfig()
    every: int = 10
    held_out: int = 2

    def __post_init__(self) -> None:
        if self.users < 2:
            raise InvalidInputError("users", f"expected at least 2, got {self.users}")
        if self.ppo.users > self.users:
            # Some arms have a single simulator.
            raise InvalidInputError(
                "ppo.users", f"expected at most users, {self.users}, got {self.ppo.users}"
            )
        if self.every < 1 or self.ppo.iterations % self.every:
            raise InvalidInputError(
                "every", f"expected to divide ppo.iterations, {self.ppo.iterations}"
            )
        if self.held_out < 1:
            raise InvalidInputError("held_out", f"expected at least 1, got {self.held_out}")
        self.actor(ARMS[0])

    def actor(self, arm: Arm) -> ActorConfig:
        """The shape of an arm's policy."""
        return ActorConfig(
            memory=self.memory if arm.remembers else 0,
            hidden=self.hidden,
            sees=(0, 1, 2) if arm.sees_signal else (1, 2),
            code=self.sadae.code if arm.coded else 0,
            floor=self.floor,
        )


BUDGETS: Final = {
    "reduced": TransferConfig(),
    "full": TransferConfig(
        users=4096,
        memory=64,
        hidden=64,
        ppo=PPOConfig(
            iterations=1500,
            users=1024,
            minibatches=8,
            actor_rate=1e-3,
            critic_rate=1e-3,
            critic=128,
        ),
        every=50,
    ),
}
"""By name: one that is meant for half an hour on two cores a level, one for a GPU or a night."""


def training_groups(config: TransferConfig, arm: Arm, level: int) -> tuple[LTSConfig, ...]:
    """The groups that an arm is trained in.

    Raises
    ------
    InvalidInputError
        If there is no such level.
    """
    everyone = training_configs(level, config.environment)
    match arm.trains_in:
        case "one":
            wrong = TEST_GROUP_MEAN - level - 1
            return tuple(each for each in everyone if each.mu_c == wrong)
        case "truth":
            return (evaluation_config(config.environment),)
        case "all":
            return everyone
