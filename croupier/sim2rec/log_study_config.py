"""What ``croupier simulate log`` does, and its budgets; free of JAX, which takes long to import."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from croupier.policy.errors import InvalidInputError
from croupier.sim2rec.learning_config import ActorConfig, PPOConfig, SADAEConfig
from croupier.sim2rec.lts import LTSConfig, clickbait_scores
from croupier.sim2rec.user_model_config import SimulatorsConfig, UserModelConfig

__all__ = (
    "BASE",
    "LOG_BUDGETS",
    "VARIANTS",
    "LogStudyConfig",
    "LogWorldConfig",
    "PolicyConfig",
    "Variant",
)


class LogWorldConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The hidden population, and how long a bandit serves it.

    Attributes
    ----------
    groups
        Mean engagement with clickbait, mu_c, of each group; at least one.
    users
        Of each group that the loop serves, at least 2; every one of them has a session a night.
    nights
        Sessions of everyone, at least 2: in the first the cold start serves, and after each all
        that was logged is learned from.
    documents, horizon
        Actions D, and steps of a session T.
    signal_sd, kale_noise, reward_sd
        What is unlike in users of the same group: the noise of their signal of mu_c, the half-width
        of what kale is worth to them, drawn for every session, and the noise of a reward.
    """

    groups: tuple[float, ...] = (8.0, 10.0, 12.0, 16.0, 18.0, 28.0)
    users: int = 100
    nights: int = 4
    documents: int = 10
    horizon: int = 20
    signal_sd: float = 3.0
    kale_noise: float = 2.0
    reward_sd: float = 0.5

    def __post_init__(self) -> None:
        if not self.groups:
            raise InvalidInputError("groups", "expected at least one")
        for field in ("users", "nights"):
            if getattr(self, field) < 2:
                raise InvalidInputError(field, f"expected at least 2, got {getattr(self, field)}")
        self.environment(self.groups[0])

    def environment(self, mu_c: float) -> LTSConfig:
        """One group of users."""
        return LTSConfig(
            mu_c=mu_c,
            sd_c=self.reward_sd,
            sd_k=self.reward_sd,
            horizon=self.horizon,
            documents=self.documents,
            signal_sd=self.signal_sd,
            kale_noise=self.kale_noise,
        )


class PolicyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a policy is learned from logged sessions, by way of simulators.

    Attributes
    ----------
    judge_share
        Share of the users, in (0, 1), whose sessions nothing is learned from: they evaluate.
    models
        The ensemble of user models.
    used
        Members of it that are trained in, the first ones; all of them if None.
    simulators
        What is done about their errors.
    actor, ppo, sadae
        The policy, its training, and the auto-encoder that tells it of its group where the actor
        has a code.
    held_out
        Groups that choose the auto-encoder's steps, at least 1.
    every
        Iterations between checkpoints; divides those of `ppo`.
    """

    judge_share: float = 0.3
    models: UserModelConfig = UserModelConfig()
    used: int | None = None
    simulators: SimulatorsConfig = SimulatorsConfig()
    actor: ActorConfig = ActorConfig()
    ppo: PPOConfig = PPOConfig()
    sadae: SADAEConfig = SADAEConfig()
    held_out: int = 1
    every: int = 20

    def __post_init__(self) -> None:
        if not 0.0 < self.judge_share < 1.0:
            raise InvalidInputError("judge_share", f"expected in (0, 1), got {self.judge_share}")
        if self.used is not None and not 1 <= self.used <= self.models.members:
            raise InvalidInputError(
                "used", f"expected 1 to {self.models.members} members, got {self.used}"
            )
        if self.held_out < 1:
            raise InvalidInputError("held_out", f"expected at least 1, got {self.held_out}")
        if self.every < 1 or self.ppo.iterations % self.every:
            raise InvalidInputError(
                "every", f"expected to divide ppo.iterations, {self.ppo.iterations}"
            )

    def fitted_to(self, *, horizon: int, columns: int, groups: int) -> PolicyConfig:
        """The same for sessions of so many steps, columns of the state, and groups of users.

        Roll-outs are as long as sessions unless they are truncated. A code takes groups to learn
        from beside those that are held out.
        """
        users, actor = self.simulators, self.actor
        steps = horizon if users.starts == "first" else min(users.horizon, horizon)
        users = msgspec.structs.replace(users, horizon=steps)
        several = groups >= self.held_out + 2
        return msgspec.structs.replace(
            self,
            simulators=msgspec.structs.replace(users, by_group=users.by_group and several),
            actor=msgspec.structs.replace(
                actor, sees=tuple(range(columns)), code=actor.code if several else 0
            ),
        )


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """The study with one switch of the gap's handling turned.

    Attributes
    ----------
    name
        Of it.
    switch
        Which one; None for the study as it is.
    on
        Whether the switch is on here, and off in the study as it is.
    """

    name: str
    switch: str | None = None
    on: bool = False


BASE: Final = Variant(name="as it is")

VARIANTS: Final = (
    BASE,
    Variant(name="no penalty", switch="uncertainty penalty"),
    Variant(name="truncated", switch="truncated roll-outs", on=True),
    Variant(name="trend filter", switch="trend filter", on=True),
    Variant(name="execution filter", switch="execution filter", on=True),
    Variant(name="no code", switch="SADAE code"),
    Variant(name="one member", switch="ensemble of five"),
)
"""One for each switch, beside the study as it is."""


class LogStudyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The study of a hidden population.

    Attributes
    ----------
    world
        The population, and how it was served before.
    policy
        How a policy is learned from that log.
    fresh
        Users of each group that policies are deployed to, at least 2.
    truncated, support
        Steps of a truncated roll-out, and the share that an action needs in the log, where these
        switches are on.
    """

    world: LogWorldConfig = LogWorldConfig()
    policy: PolicyConfig = PolicyConfig()
    fresh: int = 100
    truncated: int = 5
    support: float = 0.05

    def __post_init__(self) -> None:
        if self.fresh < 2:
            raise InvalidInputError("fresh", f"expected at least 2, got {self.fresh}")

    def for_loop(self) -> LogStudyConfig:
        """The same for a loop's own actions, whose order nobody has told."""
        actor = msgspec.structs.replace(self.policy.actor, head="categorical")
        return msgspec.structs.replace(
            self, policy=msgspec.structs.replace(self.policy, actor=actor)
        )

    def variant(self, variant: Variant) -> PolicyConfig:
        """How a policy is learned with a switch turned."""
        policy = self.policy
        changed = msgspec.structs.replace
        match variant.switch:
            case "uncertainty penalty":
                return _with(policy, penalty=0.0)
            case "truncated roll-outs":
                # As many steps in an iteration as with whole sessions.
                users = policy.ppo.users * max(1, self.world.horizon // self.truncated)
                policy = changed(policy, ppo=changed(policy.ppo, users=users))
                return _with(policy, starts="any", horizon=self.truncated)
            case "trend filter":
                scores = clickbait_scores(self.world.documents)
                return _with(policy, trend=tuple(scores.tolist()))
            case "execution filter":
                return _with(policy, support=self.support)
            case "SADAE code":
                return changed(policy, actor=changed(policy.actor, code=0))
            case "ensemble of five":
                return changed(policy, used=1)
            case _:
                return policy


def _with(policy: PolicyConfig, **changes: Any) -> PolicyConfig:
    users = msgspec.structs.replace(policy.simulators, **changes)
    return msgspec.structs.replace(policy, simulators=users)


LOG_BUDGETS: Final = {
    "reduced": LogStudyConfig(
        policy=PolicyConfig(
            simulators=SimulatorsConfig(users=200, by_group=True, penalty=1.0),
            actor=ActorConfig(code=5, floor=0.02),
            ppo=PPOConfig(iterations=160, users=240),
        )
    ),
    "full": LogStudyConfig(
        world=LogWorldConfig(users=400, nights=8),
        policy=PolicyConfig(
            models=UserModelConfig(memory=64, hidden=128, steps=6000, every=200, sessions=128),
            simulators=SimulatorsConfig(users=1000, by_group=True, penalty=1.0),
            actor=ActorConfig(memory=64, hidden=64, code=5, floor=0.02),
            ppo=PPOConfig(iterations=800, users=1200, minibatches=8, actor_rate=1e-3),
            every=50,
        ),
        fresh=400,
    ),
}
"""By name: one for some minutes on two cores, and one for a GPU or a night."""
