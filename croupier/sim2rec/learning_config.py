"""Settings of policy, training and auto-encoder; free of JAX, which takes long to import."""

from __future__ import annotations

import msgspec

from croupier.policy.errors import InvalidInputError
from croupier.policy.recurrent import Head

__all__ = ("ActorConfig", "Head", "PPOConfig", "SADAEConfig")


class ActorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of a policy.

    Attributes
    ----------
    memory
        Numbers in the recurrent state; 0 for a policy without memory, which sees the previous
        action and nothing of what was before.
    hidden
        Units of the layer before the state and of the one after it, at least 1.
    sees
        Columns of the observation that it sees.
    code
        Numbers in the group's code; 0 for a policy that isn't told of its group.
    head
        ``ordered``: ``p_k ∝ exp(-(k - mu)² / 2 s²)``, for actions whose order means something;
        ``categorical``: a score of its own for each action.
    floor
        Share of the uniform policy in the pmf, in [0, 1): every action has at least `floor` / D.
    """

    memory: int = 32
    hidden: int = 32
    sees: tuple[int, ...] = (0, 1, 2)
    code: int = 0
    head: Head = "ordered"
    floor: float = 0.01

    def __post_init__(self) -> None:
        for field, low in (("memory", 0), ("hidden", 1), ("code", 0)):
            value = getattr(self, field)
            if value < low:
                raise InvalidInputError(
                    field, f"expected an integer of at least {low}, got {value}"
                )
        if not self.sees:
            raise InvalidInputError("sees", "expected at least one column")
        if not 0.0 <= self.floor < 1.0:
            raise InvalidInputError("floor", f"expected a number in [0, 1), got {self.floor}")


class PPOConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a policy is trained.

    Attributes
    ----------
    iterations
        Episodes played and learned from, at least 1.
    users
        Users of an iteration, over all simulators, at least as many as minibatches.
    epochs, minibatches
        How often an iteration's episodes are gone through, and in how many parts.
    discount, trace
        gamma and lambda of the advantages, in [0, 1].
    clip
        How far the ratio of probabilities is followed, above 0.
    entropy
        Weight of the entropy at the beginning, at least 0; it falls to 0 linearly.
    actor_rate, critic_rate
        Learning rates at the beginning, above 0; they fall linearly to a twentieth.
    max_norm
        Gradients are shortened to it, above 0.
    critic
        Units of the critic's two layers.
    """

    iterations: int = 240
    users: int = 128
    epochs: int = 3
    minibatches: int = 4
    discount: float = 0.99
    trace: float = 0.95
    clip: float = 0.2
    entropy: float = 0.003
    actor_rate: float = 2e-3
    critic_rate: float = 2e-3
    max_norm: float = 0.5
    critic: int = 64

    def __post_init__(self) -> None:
        _require_counts(self, "iterations", "users", "epochs", "minibatches", "critic")
        for field in ("discount", "trace"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise InvalidInputError(
                    field, f"expected a number in [0, 1], got {getattr(self, field)}"
                )
        for field in ("clip", "actor_rate", "critic_rate", "max_norm"):
            if not getattr(self, field) > 0.0:
                raise InvalidInputError(
                    field, f"expected a number above 0, got {getattr(self, field)}"
                )
        if not self.entropy >= 0.0:
            raise InvalidInputError(
                "entropy", f"expected a number of at least 0, got {self.entropy}"
            )


class SADAEConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of an auto-encoder and how it is fitted.

    Attributes
    ----------
    code
        Numbers in a code, at least 1.
    hidden
        Units of both layers of encoder and decoder, at least 1.
    actions
        Number of actions D if items have the action done, as the last column; 0 if they don't.
    users
        Members of a group that are seen at a step, at least 1.
    steps
        Gradient steps, at least 1.
    every
        Steps between looks at the groups held out, at least 1.
    rate
        Learning rate of Adam, above 0.
    """

    code: int = 5
    hidden: int = 32
    actions: int = 0
    users: int = 64
    steps: int = 1000
    every: int = 100
    rate: float = 1e-3

    def __post_init__(self) -> None:
        _require_counts(self, "code", "hidden", "users", "steps", "every")
        if self.steps % self.every:
            raise InvalidInputError("every", f"expected to divide steps, {self.steps}")
        if self.actions == 1 or self.actions < 0:
            raise InvalidInputError("actions", f"expected 0 or at least 2, got {self.actions}")
        if not self.rate > 0.0:
            raise InvalidInputError("rate", f"expected a number above 0, got {self.rate}")


def _require_counts(config: msgspec.Struct, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInputError(field, f"expected an integer of at least 1, got {value!r}")
