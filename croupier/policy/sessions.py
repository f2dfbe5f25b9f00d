"""Sessions: decisions for the same user that follow each other, as a loop's configuration tells."""

from __future__ import annotations

import msgspec

__all__ = ("SessionsConfig",)


class SessionsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes decisions a session, and what of a request says in which state its user is.

    Attributes
    ----------
    user
        Path in the context, such as ``user.id``, of what tells users apart: a text or a whole
        number. Decisions without it belong to no session.
    pause
        After how long without a decision a session has ended: a duration. An outcome that comes
        later still counts.
    horizon
        Most steps of a session, at least 1; a longer one is cut into several.
    state
        Paths in the context of the numbers (or true and false) that a step is observed by, in their
        order. A step that lacks one has 0 there.
    group
        Path in the context of what groups users, a city for example; None if all are one group.
    discount
        What a reward one step later is worth, in (0, 1].
    """

    user: str
    pause: str = "30 min"
    horizon: int = 100
    state: tuple[str, ...] = ()
    group: str | None = None
    discount: float = 1.0

    def __post_init__(self) -> None:
        paths = (self.user, *self.state, *(() if self.group is None else (self.group,)))
        for path in paths:
            if not all(part.strip() == part and part for part in path.split(".")):
                raise ValueError(
                    f"user, state and group must be names or dotted paths, got {path!r}"
                )
        if len(set(self.state)) < len(self.state):
            raise ValueError(f"state must be different paths, got {list(self.state)}")
        if self.horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {self.horizon}")
        if not 0.0 < self.discount <= 1.0:
            raise ValueError(f"discount must be in (0, 1], got {self.discount}")
