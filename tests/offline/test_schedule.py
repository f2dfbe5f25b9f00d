"""When nights begin, with a made clock."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from croupier.offline.schedule import Schedule, keep_schedule
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from croupier.offline.schedule import NightTold

MINUTE = 60_000_000
HOUR = 60 * MINUTE
MOMENTS = st.integers(0, 2**52)


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


def test_the_first_night_is_at_once() -> None:
    schedule = Schedule.parse("24 h")
    now = at("2026-11-26 18:00")
    assert schedule.first(now) == now
    assert schedule.after(now, now + 5 * MINUTE) == now + 24 * HOUR


@pytest.mark.parametrize(
    ("every", "now", "first"),
    [
        ("1 d", "2026-11-26 02:29", "2026-11-26 02:30"),
        ("1 d", "2026-11-26 02:30", "2026-11-26 02:30"),
        ("1 d", "2026-11-26 02:31", "2026-11-27 02:30"),
        ("6 h", "2026-11-26 18:13", "2026-11-26 20:30"),
        ("6 h", "2026-12-31 21:00", "2027-01-01 02:30"),
    ],
)
def test_a_time_of_the_day_is_waited_for(every: str, now: str, first: str) -> None:
    schedule = Schedule.parse(every, "02:30")
    assert schedule.first(at(now)) == at(first)
    assert schedule.after(at(first), at(first) + 1) == at(first) + schedule.every_us


@given(
    begun=MOMENTS,
    lasted=st.integers(0, 10**13),
    every=st.integers(1, 10**12),
)
def test_the_next_night_is_the_first_time_that_has_not_passed(
    begun: int, lasted: int, every: int
) -> None:
    ended = begun + lasted
    following = Schedule(every).after(begun, ended)
    assert ended < following <= ended + every
    assert (following - begun) % every == 0


@given(now=MOMENTS, divisor=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24, 48, 96]), minute=st.data())
def test_times_of_the_day_are_the_same_every_day(
    now: int, divisor: int, minute: st.DataObject
) -> None:
    of_day = minute.draw(st.integers(0, 1439)) * MINUTE
    schedule = Schedule(24 * HOUR // divisor, of_day)
    first = schedule.first(now)
    assert now <= first < now + schedule.every_us
    later = first
    for _ in range(divisor):
        later = schedule.after(later, later)
    assert later == first + 24 * HOUR
    assert any(
        (first + n * schedule.every_us) % (24 * HOUR) == of_day % (24 * HOUR)
        for n in range(divisor)
    )


def test_a_clock_that_was_set_back_repeats_no_night() -> None:
    begun = at("2026-11-26 02:30")
    assert Schedule.parse("1 d", "02:30").after(begun, begun - HOUR) == begun + 24 * HOUR
    assert Schedule.parse("1 d").after(begun, begun - HOUR) == begun + 24 * HOUR


@pytest.mark.parametrize(
    ("every", "time", "said"),
    [
        ("soon", None, "every: a duration is a number and one of"),
        ("0 s", None, "every: expected a positive duration, got '0 s'"),
        ("1 d", "25:00", "at: expected a time in UTC such as 02:30, got '25:00'"),
        ("1 d", "2:30", "at: expected a time"),
        ("7 h", "02:30", "every: expected a duration that divides a day with --at, got '7 h'"),
        ("2 d", "02:30", "every: expected a duration that divides a day"),
    ],
)
def test_what_is_no_schedule_is_refused(every: str, time: str | None, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        Schedule.parse(every, time)


class Nights:
    """A clock that only waiting and nights move, and what was told."""

    def __init__(self, failures: list[str | None], lasting: int = MINUTE) -> None:
        self.now = at("2026-11-26 18:13")
        self.begun: list[int] = []
        self.told: list[NightTold] = []
        self.stopped = False
        self._failures = failures
        self._lasting = lasting

    def wait(self, seconds: float) -> bool:
        self.now += round(seconds * 1e6)
        return self.stopped

    def night(self) -> str | None:
        self.begun.append(self.now)
        self.now += self._lasting
        return self._failures[len(self.begun) - 1]

    def tell(self, told: NightTold) -> None:
        self.told.append(told)
        self.stopped = len(self.told) == len(self._failures)

    def keep(self, schedule: Schedule) -> None:
        keep_schedule(schedule, self.night, clock=lambda: self.now, wait=self.wait, tell=self.tell)


def test_nights_that_fail_are_counted_and_the_next_is_tried() -> None:
    nights = Nights(["no", "no", None, "no"])
    nights.keep(Schedule.parse("1 d", "02:30"))
    times = ["2026-11-27 02:30", "2026-11-28 02:30", "2026-11-29 02:30", "2026-11-30 02:30"]
    assert nights.begun == [at(each) for each in times]
    assert [(told.failure, told.failures) for told in nights.told] == [
        ("no", 1),
        ("no", 2),
        (None, 0),
        ("no", 1),
    ]
    assert [told.next_us for told in nights.told] == [each + 24 * HOUR for each in nights.begun]


def test_a_night_that_takes_too_long_leaves_times_out() -> None:
    nights = Nights([None] * 3, lasting=150 * MINUTE)
    start = nights.now
    nights.keep(Schedule.parse("1 h"))
    assert nights.begun == [start, start + 3 * HOUR, start + 6 * HOUR]


def test_a_stop_ends_the_waiting_and_tells_of_no_night() -> None:
    nights = Nights([None])
    nights.stopped = True
    nights.keep(Schedule.parse("1 d", "02:30"))
    assert (nights.begun, nights.told) == ([], [])
    # Within a night, the night is the last.
    nights.keep(Schedule.parse("1 d"))
    assert (len(nights.begun), nights.told) == (1, [])
