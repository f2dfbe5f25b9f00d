"""Sessions: decisions for the same user that follow each other, as a loop's configuration tells.

What belongs to a session is said here alone: scorers follow sessions by it while they decide, and
the batch side puts the log together by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from croupier.policy.durations import parse_duration
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Recall
from croupier.policy.paths import MISSING, value_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.policy.events import Features

__all__ = ("ONLY_GROUP", "SessionState", "SessionsConfig", "group_at", "numbers_at")

ONLY_GROUP = ""
"""The group of all users where there are no groups, and of those who have none."""


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

    @property
    def pause_us(self) -> int:
        """The longest pause within a session, in microseconds."""
        return parse_duration(self.pause)

    def check(self, context: Features) -> None:
        """Check what a context says of its user and of what is observed.

        Raises
        ------
        InvalidInputError
            Naming the path and what was expected: no session could be made of it.
        """
        self.user_of(context)
        numbers_at(context, self.state)

    def user_of(self, context: Features) -> str | None:
        """Whose request it is; None if it belongs to no session.

        Raises
        ------
        InvalidInputError
            If the user is neither a text nor a whole number.
        """
        value = value_at(context, self.user)
        if value is MISSING or value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InvalidInputError(
                f"context.{self.user}", f"expected a text or a whole number, got {value!r}"
            )
        return str(value)


class SessionState(msgspec.Struct, frozen=True, array_like=True):
    """How far a session has come: what its next step is decided with.

    Attributes
    ----------
    id
        That of the session's first decision.
    steps
        Decisions so far, at least 1.
    last_us
        When the latest of them was made, in microseconds since the Unix epoch.
    previous
        Id of the action that it took.
    recalls
        What generations with a memory know since.
    """

    id: str
    steps: int
    last_us: int
    previous: str
    recalls: list[Recall]

    def goes_on(self, now_us: int, config: SessionsConfig) -> bool:
        """Whether a decision of that user now is another step of it, or the first of another."""
        return now_us - self.last_us <= config.pause_us and self.steps < config.horizon


def numbers_at(context: Features, paths: Sequence[str]) -> list[float]:
    """The numbers at some paths of a context; 0 where there is nothing.

    Raises
    ------
    InvalidInputError
        If something else than a number, true or false is there.
    """
    return [_number(context, path) for path in paths]


def group_at(context: Features, path: str | None) -> str:
    """The group that a context names at a path, in words; :data:`ONLY_GROUP` if it names none."""
    if path is None:
        return ONLY_GROUP
    value = value_at(context, path)
    return ONLY_GROUP if value is MISSING or value is None else str(value)


def _number(context: Features, path: str) -> float:
    value = value_at(context, path)
    if value is MISSING or value is None:
        return 0.0
    if not isinstance(value, bool | int | float):
        raise InvalidInputError(f"context.{path}", f"expected a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise InvalidInputError(f"context.{path}", "expected a number of at most 64 bits") from None
