"""Simulators of a loop's users, as its configuration tells: how much the nights may trust them."""

from __future__ import annotations

import msgspec

__all__ = ("SimulatorsSection",)


class SimulatorsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """User simulators that are learned from a loop's sessions every night, to be measured.

    Attributes
    ----------
    sessions
        Latest sessions that they are learned from and held against, at least 100.
    members
        Models of an ensemble, at least 2.
    steps
        Gradient steps, at least 100 and a multiple of it.
    held_out
        Share of the users, in (0, 1), that nothing is learned from: their sessions are simulated.
    max_gap
        By what share of the realised return the simulators may be off before there is a signal,
        above 0.
    """

    sessions: int = 2000
    members: int = 3
    steps: int = 600
    held_out: float = 0.3
    max_gap: float = 0.1

    def __post_init__(self) -> None:
        for field, least in (("sessions", 100), ("members", 2), ("steps", 100)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} must be at least {least}, got {getattr(self, field)}")
        if self.steps % 100:
            raise ValueError(f"steps must be a multiple of 100, got {self.steps}")
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out must be in (0, 1), got {self.held_out}")
        if not self.max_gap > 0.0:
            raise ValueError(f"max_gap must be above 0, got {self.max_gap}")
