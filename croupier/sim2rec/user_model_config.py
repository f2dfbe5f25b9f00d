"""Settings of user simulators learned from a log; free of JAX, which is slow to import."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from croupier.policy.errors import InvalidInputError

__all__ = ("SimulatorsConfig", "UserModelConfig")


class UserModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of a user model and how an ensemble of them is fitted.

    Attributes
    ----------
    members
        Models of the ensemble, each fitted to users drawn with replacement, at least 2.
    memory
        Numbers in the recurrent state, at least 1.
    hidden
        Units of the layer between state and prediction, at least 1.
    steps
        Gradient steps, at least 1.
    every
        Steps between looks at the sessions held out; divides `steps`.
    sessions
        Sessions of a gradient step, at least 1.
    rate
        Learning rate of Adam at the beginning, above 0; it falls to a twentieth.
    held_out
        Share of the users, in (0, 1), that choose the number of steps and tell the errors.
    """

    members: int = 5
    memory: int = 32
    hidden: int = 64
    steps: int = 1500
    every: int = 100
    sessions: int = 64
    rate: float = 3e-3
    held_out: float = 0.2

    def __post_init__(self) -> None:
        for field, low in (
            *(("members", 2), ("memory", 1), ("hidden", 1)),
            *(("steps", 1), ("every", 1), ("sessions", 1)),
        ):
            if getattr(self, field) < low:
                raise InvalidInputError(
                    field, f"expected at least {low}, got {getattr(self, field)}"
                )
        if self.steps % self.every:
            raise InvalidInputError("every", f"expected to divide steps, {self.steps}")
        if not self.rate > 0.0:
            raise InvalidInputError("rate", f"expected a number above 0, got {self.rate}")
        if not 0.0 < self.held_out < 1.0:
            raise InvalidInputError("held_out", f"expected in (0, 1), got {self.held_out}")


class SimulatorsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How policies are trained in learned simulators: what is done about their errors.

    Attributes
    ----------
    users
        Of each simulator, at least 1.
    by_group
        Whether every member has a simulator of each group, instead of one of all users.
    horizon
        Steps of a roll-out, at least 1; less than those of a session for truncated ones.
    starts
        Where roll-outs begin: at ``first`` steps of logged sessions, or at ``any`` of which a
        roll-out's steps are left.
    penalty
        Weight of the members' disagreement on the reward, in rewards, at least 0; 0 switches the
        penalty off.
    trend
        A score for each action such that the immediate reward has to grow with it; users of whom a
        member expects the opposite are left out. None switches the filter off.
    support
        Smallest share of a group's logged steps that an action needs, in [0, 1); 0 switches the
        execution filter off.
    pessimism
        Which quantile of the logged rewards is earned for each step from an action on that has too
        little support, in [0, 1].
    """

    users: int = 1000
    by_group: bool = False
    horizon: int = 20
    starts: Literal["first", "any"] = "first"
    penalty: float = 0.0
    trend: tuple[float, ...] | None = None
    support: float = 0.0
    pessimism: float = 0.05

    def __post_init__(self) -> None:
        for field in ("users", "horizon"):
            if getattr(self, field) < 1:
                raise InvalidInputError(field, f"expected at least 1, got {getattr(self, field)}")
        if not 0.0 <= self.penalty < math.inf:
            raise InvalidInputError("penalty", f"expected at least 0, got {self.penalty}")
        if not 0.0 <= self.support < 1.0:
            raise InvalidInputError("support", f"expected in [0, 1), got {self.support}")
        if not 0.0 <= self.pessimism <= 1.0:
            raise InvalidInputError("pessimism", f"expected in [0, 1], got {self.pessimism}")
