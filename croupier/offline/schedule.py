"""When nights are done: at once and then at equal distances, or at times of the day."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from croupier.policy.errors import InvalidInputError
from croupier.policy.loop import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("NightTold", "Schedule", "keep_schedule")

_DAY_US = 24 * 3_600_000_000
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)", re.ASCII)
# Clocks are set, and machines sleep: whoever waits looks at the clock at least as often.
_LOOK_EVERY_US = 60_000_000


@dataclass(frozen=True, slots=True)
class Schedule:
    """Times at which nights begin.

    Attributes
    ----------
    every_us
        From one time to the next, in microseconds; positive.
    at_us
        The time of day of one of them in UTC, in microseconds since midnight; then `every_us`
        divides a day. None for a first night at once, and the others counted from it.
    """

    every_us: int
    at_us: int | None = None

    @classmethod
    def parse(cls, every: str, at: str | None = None) -> Schedule:
        """Read a schedule as it is given on the command line: ``24 h``, ``02:30``.

        Raises
        ------
        InvalidInputError
            If a duration or a time can't be read, or there is no time of day for such nights.
        """
        try:
            every_us = parse_duration(every)
        except ValueError as error:
            raise InvalidInputError("every", str(error)) from error
        if every_us <= 0:
            raise InvalidInputError("every", f"expected a positive duration, got {every!r}")
        if at is None:
            return cls(every_us)
        match = _TIME.fullmatch(at)
        if match is None:
            raise InvalidInputError("at", f"expected a time in UTC such as 02:30, got {at!r}")
        if _DAY_US % every_us:
            raise InvalidInputError(
                "every", f"expected a duration that divides a day with --at, got {every!r}"
            )
        return cls(every_us, (60 * int(match[1]) + int(match[2])) * 60_000_000)

    def first(self, now_us: int) -> int:
        """When the first night begins, in microseconds since the Unix epoch; now or later."""
        return now_us if self.at_us is None else self._next(self.at_us, now_us - 1)

    def after(self, begun_us: int, now_us: int) -> int:
        """When the next night begins; times that have passed meanwhile are left out.

        Parameters
        ----------
        begun_us
            When the one before was to begin.
        now_us
            When it has ended.
        """
        anchor = begun_us if self.at_us is None else self.at_us
        return self._next(anchor, max(begun_us, now_us))

    def _next(self, anchor_us: int, after_us: int) -> int:
        """The first time after a moment that is a multiple of the distance from an anchor."""
        return anchor_us + ((after_us - anchor_us) // self.every_us + 1) * self.every_us


@dataclass(frozen=True, slots=True)
class NightTold:
    """What is told after each night.

    Attributes
    ----------
    begun_us, next_us
        When it began, and when the next one will, in microseconds since the Unix epoch.
    failure
        Why it failed, in one line; None if it didn't.
    failures
        How many have failed in a row, this one included.
    """

    begun_us: int
    next_us: int
    failure: str | None
    failures: int


def keep_schedule(
    schedule: Schedule,
    night: Callable[[], str | None],
    *,
    clock: Callable[[], int],
    wait: Callable[[float], bool],
    tell: Callable[[NightTold], None],
) -> None:
    """Do a night whenever it is time, one after the other, until somebody says stop.

    Parameters
    ----------
    schedule
        When.
    night
        Does one; gives why it failed in one line, and None if it didn't.
    clock
        Now, in microseconds since the Unix epoch.
    wait
        Waits for so many seconds, or less if somebody says stop; gives whether somebody has.
    tell
        Called after each night.
    """
    due, failures = schedule.first(clock()), 0
    while True:
        while (left := due - clock()) > 0:
            if wait(min(left, _LOOK_EVERY_US) / 1e6):
                return
        begun = clock()
        failure = night()
        if wait(0.0):
            return
        failures = 0 if failure is None else failures + 1
        due = schedule.after(due, clock())
        tell(NightTold(begun, due, failure, failures))
