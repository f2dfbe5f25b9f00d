"""What every event log has to do, tested through the interface alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from croupier.eventlog.log import FIRST_POSITION, LogEntry, Record
from croupier.policy.errors import InvalidInputError, LogUnavailableError
from tests.eventlog.helpers import keys, read_all, record, records

if TYPE_CHECKING:
    from croupier.eventlog.sqlite import SqliteEventLog


def test_an_empty_log_starts_and_ends_at_the_first_position(log: SqliteEventLog) -> None:
    assert (log.start(), log.end()) == (FIRST_POSITION, FIRST_POSITION)
    assert log.read(FIRST_POSITION, limit=10) == []
    assert log.release(100) == 0


def test_what_is_appended_is_read_back(log: SqliteEventLog) -> None:
    payload = bytes(range(256))
    assert log.append([Record("caf\u00e9", "outcome", "k\x00\U0001f3b2", payload)]) == 2
    assert log.read(1, limit=10) == [
        LogEntry(1, "caf\u00e9", "outcome", "k\x00\U0001f3b2", payload)
    ]
    assert log.end() == 2


def test_positions_continue_from_append_to_append(log: SqliteEventLog) -> None:
    assert log.append(records(0, 3)) == 4
    assert log.append(records(3, 1)) == 5
    assert log.append(records(4, 17)) == 22
    assert log.append(records(21, 1)) == 23
    assert keys(read_all(log)) == [f"d{number}" for number in range(22)]


@pytest.mark.parametrize("limit", [1, 2, 5, 7, 100, 2**80])
def test_any_limit_reads_the_same(log: SqliteEventLog, limit: int) -> None:
    for first in range(0, 24, 2):
        log.append(records(first, 2))
    assert len(log.read(1, limit=limit)) == min(limit, 24)
    assert keys(read_all(log, limit)) == [f"d{number}" for number in range(24)]


def test_reading_begins_where_it_is_told(log: SqliteEventLog) -> None:
    for number in range(12):
        log.append([record(number)])
    for position in range(1, 13):
        assert keys(log.read(position, limit=3)) == [
            f"d{number}" for number in range(position - 1, min(position + 2, 12))
        ]
    assert log.read(13, limit=3) == []
    assert log.read(2**80, limit=3) == []


@pytest.mark.parametrize("position", [0, -1])
def test_positions_begin_at_1(log: SqliteEventLog, position: int) -> None:
    with pytest.raises(InvalidInputError) as caught:
        log.read(position, limit=1)
    assert caught.value.field == "position"


def test_a_limit_is_at_least_1(log: SqliteEventLog) -> None:
    with pytest.raises(InvalidInputError) as caught:
        log.read(1, limit=0)
    assert caught.value.field == "limit"


def test_appending_nothing_writes_nothing(log: SqliteEventLog) -> None:
    assert log.append([]) == 1
    log.append(records(0, 2))
    assert log.append([]) == 3
    assert log.end() == 3


def test_a_payload_beyond_the_limit_is_refused_with_all_that_came_along(
    log: SqliteEventLog,
) -> None:
    oversized = Record("checkout", "decision", "big", bytes(log.max_payload_bytes + 1))
    with pytest.raises(InvalidInputError, match="at most"):
        log.append([record(0), oversized])
    assert log.end() == 1
    log.append([record(1)])
    assert keys(read_all(log)) == ["d1"]


def test_large_payloads_and_large_batches(log: SqliteEventLog) -> None:
    large = Record("checkout", "decision", "large", b"\x00\xff" * 8_000_000)
    batch = [record(number, 1500) for number in range(10_000)]
    log.append([large])
    assert log.append(batch) == 10_002
    entries = read_all(log)
    assert entries[0].payload == large.payload
    assert [entry.payload for entry in entries[1:]] == [record.payload for record in batch]


def test_release_lets_go_of_whole_segments_only(log: SqliteEventLog) -> None:
    for number in range(23):
        log.append([record(number)])
    assert log.release(1) == 0
    assert log.release(8) == 1
    assert log.start() == 6
    assert log.release(11) == 1
    assert log.start() == 11
    assert keys(read_all(log)) == [f"d{number}" for number in range(10, 23)]


def test_released_positions_cannot_be_read(log: SqliteEventLog) -> None:
    for number in range(12):
        log.append([record(number)])
    assert log.read(3, limit=1)
    log.release(6)
    for position in (1, 3, 5):
        with pytest.raises(InvalidInputError) as caught:
            log.read(position, limit=1)
        assert caught.value.field == "position"
        assert "at least 6" in caught.value.expected
    assert keys(log.read(6, limit=1)) == ["d5"]


def test_the_end_is_never_released(log: SqliteEventLog) -> None:
    for number in range(12):
        log.append([record(number)])
    log.release(2**80)
    assert log.end() == 13
    assert keys(read_all(log)) == ["d10", "d11"]
    assert log.append([record(12)]) == 14


def test_a_full_last_segment_is_kept_until_it_has_a_successor(log: SqliteEventLog) -> None:
    log.append(records(0, 5))
    assert log.release(100) == 0
    assert log.end() == 6
    log.append([record(5)])
    assert log.release(100) == 1
    assert log.start() == 6


def test_a_closed_log_says_so(log: SqliteEventLog) -> None:
    log.append([record(0)])
    log.close()
    log.close()
    for use in (
        log.start,
        log.end,
        lambda: log.append([record(1)]),
        lambda: log.read(1, limit=1),
        lambda: log.release(1),
    ):
        with pytest.raises(LogUnavailableError, match="closed"):
            use()


def test_threads_share_a_log(log: SqliteEventLog) -> None:
    """Writers keep their order, nothing is lost, and a reader sees a prefix at all times."""
    writers, appends = 4, 40
    done = threading.Event()

    def write(writer: int) -> None:
        for number in range(appends):
            log.append([Record("checkout", str(writer), f"{writer}-{number}", b"x")])

    def tail() -> list[LogEntry]:
        entries: list[LogEntry] = []
        while True:
            finished = done.is_set()
            found = log.read(len(entries) + 1, limit=7)
            entries += found
            if finished and not found:
                return entries

    with ThreadPoolExecutor(writers + 1) as pool:
        reader = pool.submit(tail)
        try:
            for future in [pool.submit(write, writer) for writer in range(writers)]:
                future.result()
        finally:
            done.set()
        tailed = reader.result()
    assert tailed == read_all(log)
    for writer in range(writers):
        assert keys([entry for entry in tailed if entry.kind == str(writer)]) == [
            f"{writer}-{number}" for number in range(appends)
        ]
