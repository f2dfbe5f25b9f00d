from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import pytest

from croupier.eventlog.appender import Appender
from croupier.eventlog.log import Durability, LogConfig, Record
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.policy.errors import InvalidInputError, LogUnavailableError
from tests.eventlog.helpers import keys, locked, read_all, record, records, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class WatchedLog(SqliteEventLog):
    """A log that counts its appends, and can be held up before one."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, busy_timeout_s=0.05, **options)
        self.batches: list[list[str]] = []
        self.attempts = 0
        self.gate = threading.Event()
        self.gate.set()

    def append(self, records: Sequence[Record]) -> int:
        self.attempts += 1
        assert self.gate.wait(60)
        end = super().append(records)
        self.batches.append([record.key for record in records])
        return end

    def fails(self, error: Exception) -> None:
        """Let the next append find a fault of ours instead of trouble with the disk."""

        def fail(records: Sequence[Record]) -> int:  # noqa: ARG001
            del self.__dict__["append"]
            raise error

        self.__dict__["append"] = fail


@pytest.fixture
def log(directory: Path) -> Iterator[WatchedLog]:
    with WatchedLog(directory) as log:
        yield log


def start(
    log: WatchedLog,
    durability: Durability = "commit",
    *,
    max_batch: int = 100,
    max_pending: int = 1000,
    max_pending_bytes: int = 10_000_000,
) -> Appender:
    return Appender(
        log,
        max_batch=max_batch,
        max_pending=max_pending,
        max_pending_bytes=max_pending_bytes,
        durability=durability,
    )


def hold(log: WatchedLog, appender: Appender) -> Future[None]:
    """Keep the thread busy with a first record, so that all that follows has to wait."""
    log.gate.clear()
    attempts = log.attempts
    future = appender.submit(Record("checkout", "decision", "first", b""))
    wait_until(lambda: log.attempts > attempts)
    return future


def test_a_resolved_future_means_durable(log: WatchedLog, directory: Path) -> None:
    with start(log) as appender:
        for number in range(20):
            assert appender.submit(record(number)).result(60) is None
            with SqliteEventLog(directory) as other:
                assert other.end() == number + 2
        assert (appender.depth, appender.last_error) == (0, None)


def test_a_configuration_starts_an_appender(log: WatchedLog) -> None:
    with Appender.open(log, LogConfig(max_batch=2, max_pending=2)) as appender:
        hold(log, appender)
        appender.submit(record(0))
        with pytest.raises(LogUnavailableError):
            appender.submit(record(1))
        log.gate.set()
    with Appender.open(log) as appender:
        appender.submit(record(2)).result(60)
    assert keys(read_all(log)) == ["first", "d0", "d2"]


@pytest.mark.parametrize(
    ("max_batch", "max_pending", "max_pending_bytes"), [(0, 10, 10), (10, 9, 10), (1, 1, 0)]
)
def test_limits_out_of_range_are_refused(
    log: WatchedLog, max_batch: int, max_pending: int, max_pending_bytes: int
) -> None:
    with pytest.raises(InvalidInputError):
        start(
            log,
            max_batch=max_batch,
            max_pending=max_pending,
            max_pending_bytes=max_pending_bytes,
        )


@pytest.mark.parametrize("durability", ["commit", "buffered"])
def test_waiting_records_are_limited_in_bytes_too(log: WatchedLog, durability: Durability) -> None:
    with start(log, durability, max_pending_bytes=1000) as appender:
        hold(log, appender)
        appender.submit_many([record(1, 400), record(2, 500)])
        with pytest.raises(LogUnavailableError, match="900 bytes are waiting, at most 1000 may"):
            appender.submit(record(3, 101))
        last = appender.submit(record(4, 100))
        log.gate.set()
        wait_until(lambda: appender.depth == 0)
        assert last.result(60) is None
        # With nothing else waiting, one may be larger than all may be together.
        appender.submit(record(5, 5000)).result(60)
    assert keys(read_all(log)) == ["first", "d1", "d2", "d4", "d5"]


@pytest.mark.parametrize("fault", [True, False])
def test_records_that_failed_do_not_count_as_waiting(log: WatchedLog, fault: bool) -> None:
    with start(log, max_pending_bytes=1000) as appender:
        for number in range(5):
            if fault:
                log.fails(ValueError("a fault of ours"))
                with pytest.raises(LogUnavailableError):
                    appender.submit(record(number, 900)).result(60)
            else:
                appender.submit(record(number, 900)).result(60)
        wait_until(lambda: appender.depth == 0)
        appender.submit(record(9, 900)).result(60)


def test_what_waits_is_written_together(log: WatchedLog) -> None:
    with start(log) as appender:
        futures = [hold(log, appender), *map(appender.submit, records(0, 30))]
        assert appender.depth == 31
        assert not any(future.done() for future in futures)
        log.gate.set()
        wait(futures, timeout=60)
        assert appender.depth == 0
    assert log.batches == [["first"], [f"d{number}" for number in range(30)]]


def test_batches_are_limited_and_submissions_are_whole(log: WatchedLog) -> None:
    with start(log, max_batch=5) as appender:
        hold(log, appender)
        for first, count in ((0, 3), (3, 2), (5, 4), (9, 2), (11, 7), (18, 1)):
            appender.submit_many(records(first, count))
        log.gate.set()
    assert [len(batch) for batch in log.batches] == [1, 5, 4, 2, 7, 1]
    assert keys(read_all(log)) == ["first", *(f"d{number}" for number in range(19))]


def test_concurrent_submitters_need_fewer_appends_than_records(log: WatchedLog) -> None:
    writers, count = 8, 100
    with start(log) as appender, ThreadPoolExecutor(writers) as pool:

        def write(writer: int) -> None:
            for number in range(count):
                appender.submit(Record("checkout", str(writer), str(number), b"x")).result(60)

        for done in [pool.submit(write, writer) for writer in range(writers)]:
            done.result()
    entries = read_all(log)
    assert len(log.batches) < len(entries) == writers * count
    for writer in range(writers):
        assert [entry.key for entry in entries if entry.kind == str(writer)] == [
            str(number) for number in range(count)
        ]


@pytest.mark.parametrize("durability", ["commit", "buffered"])
def test_more_than_may_wait_are_refused_at_once(log: WatchedLog, durability: Durability) -> None:
    with start(log, durability, max_batch=5, max_pending=10) as appender:
        hold(log, appender)
        appender.submit_many(records(0, 8))
        with pytest.raises(LogUnavailableError, match="9 records are waiting, at most 10"):
            appender.submit_many(records(8, 2))
        appender.submit(record(8))
        with pytest.raises(LogUnavailableError, match="can't keep up"):
            appender.submit(record(9))
        assert appender.depth == 10
        log.gate.set()
        wait_until(lambda: appender.depth == 0)
        appender.submit(record(10))
    assert keys(read_all(log)) == ["first", *(f"d{number}" for number in range(9)), "d10"]


def test_a_submission_that_could_never_wait_is_a_mistake(log: WatchedLog) -> None:
    with start(log, max_batch=5, max_pending=10) as appender:
        with pytest.raises(InvalidInputError) as caught:
            appender.submit_many(records(0, 11))
        assert caught.value.field == "records"
        assert appender.submit_many([]).done()
    assert log.attempts == 0


def test_an_oversized_payload_is_refused_alone(log: WatchedLog) -> None:
    with start(log) as appender:
        hold(log, appender)
        future = appender.submit(record(0))
        with pytest.raises(InvalidInputError) as caught:
            appender.submit(Record("checkout", "decision", "big", bytes(2**26 + 1)))
        assert caught.value.field == "record.payload"
        log.gate.set()
        future.result(60)
    assert keys(read_all(log)) == ["first", "d0"]


def test_a_failed_append_fails_its_batch_and_no_other(log: WatchedLog, directory: Path) -> None:
    with start(log) as appender:
        appender.submit(record(0)).result(60)
        (segment,) = directory.glob("*.db")
        with locked(segment):
            future = appender.submit_many(records(1, 3))
            with pytest.raises(LogUnavailableError, match="SQLITE_BUSY"):
                future.result(60)
            assert "SQLITE_BUSY" in str(appender.last_error)
            assert appender.depth == 0
        appender.submit(record(4)).result(60)
        assert appender.last_error is None
    assert keys(read_all(log)) == ["d0", "d4"]


def test_the_log_is_tried_again_even_if_nobody_submits(log: WatchedLog, directory: Path) -> None:
    """Or a service that isn't ready, and so isn't asked, would never be ready again."""
    with start(log) as appender:
        appender.submit(record(0)).result(60)
        (segment,) = directory.glob("*.db")
        with locked(segment), pytest.raises(LogUnavailableError):
            appender.submit(record(1)).result(60)
        wait_until(lambda: appender.last_error is None)
    assert keys(read_all(log)) == ["d0"]


def test_the_thread_outlives_a_fault_of_ours(
    log: WatchedLog, caplog: pytest.LogCaptureFixture
) -> None:
    with start(log) as appender:
        log.fails(KeyError("a bug"))
        with pytest.raises(LogUnavailableError, match="a bug"):
            appender.submit(record(0)).result(60)
        appender.submit(record(1)).result(60)
    assert "KeyError" in caplog.text
    assert keys(read_all(log)) == ["d1"]


def test_one_waiter_who_gives_up_does_not_speak_for_all(log: WatchedLog) -> None:
    with start(log) as appender:
        hold(log, appender)
        future, other = map(appender.submit, records(0, 2))
        assert not future.cancel()
        log.gate.set()
        other.result(60)
        future.result(60)
    assert keys(read_all(log)) == ["first", "d0", "d1"]


def test_a_cancelled_coroutine_does_not_disturb_the_others(log: WatchedLog) -> None:
    async def run(appender: Appender) -> None:
        hold(log, appender)

        async def write(number: int) -> None:
            await asyncio.wrap_future(appender.submit(record(number)))

        tasks = [asyncio.create_task(write(number)) for number in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        log.gate.set()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        assert results[0] is results[2] is None
        assert isinstance(results[1], asyncio.CancelledError)

    with start(log) as appender:
        asyncio.run(run(appender))
    assert keys(read_all(log)) == ["first", "d0", "d1", "d2"]


def test_closing_writes_what_waits(log: WatchedLog) -> None:
    appender = start(log, max_batch=7)
    futures = [hold(log, appender), *map(appender.submit, records(0, 50))]
    closer = threading.Thread(target=appender.close)
    closer.start()
    wait_until(lambda: appender._closed)
    with pytest.raises(LogUnavailableError, match="closed"):
        appender.submit(record(50))
    log.gate.set()
    closer.join()
    assert all(future.done() for future in futures)
    appender.close()
    assert keys(read_all(log)) == ["first", *(f"d{number}" for number in range(50))]


def test_closing_in_time_fails_what_is_left(log: WatchedLog) -> None:
    appender = start(log)
    first = hold(log, appender)
    future = appender.submit_many(records(0, 3))
    with pytest.raises(LogUnavailableError, match="closed with 4 records unwritten"):
        appender.close(timeout=0.0)
    with pytest.raises(LogUnavailableError, match="unwritten"):
        future.result(60)
    # The append that was under way is not stopped, and says itself how it went.
    log.gate.set()
    first.result(60)
    appender.close()
    assert keys(read_all(log)) == ["first"]


def test_buffered_records_are_acknowledged_before_they_are_written(log: WatchedLog) -> None:
    with start(log, "buffered") as appender:
        assert hold(log, appender).done()
        assert all(appender.submit(one).done() for one in records(0, 20))
        assert appender.depth == 21
        log.gate.set()
    assert keys(read_all(log)) == ["first", *(f"d{number}" for number in range(20))]


def test_buffered_records_outlast_a_log_that_fails(log: WatchedLog, directory: Path) -> None:
    appender = start(log, "buffered")
    appender.submit(record(0))
    wait_until(lambda: appender.depth == 0)
    (segment,) = directory.glob("*.db")
    with locked(segment):
        appender.submit_many(records(1, 3))
        wait_until(lambda: log.attempts >= 4)
        assert "SQLITE_BUSY" in str(appender.last_error)
        appender.submit_many(records(4, 3))
        assert appender.depth == 6
    appender.close(timeout=60)
    assert (appender.depth, appender.last_error) == (0, None)
    assert keys(read_all(log)) == [f"d{number}" for number in range(7)]


def test_buffered_records_outlast_a_fault_of_ours(log: WatchedLog) -> None:
    with start(log, "buffered") as appender:
        log.fails(KeyError("a bug"))
        appender.submit(record(0))
    assert keys(read_all(log)) == ["d0"]


def test_closing_says_which_buffered_records_are_lost(log: WatchedLog, directory: Path) -> None:
    appender = start(log, "buffered", max_batch=2)
    appender.submit(record(0))
    wait_until(lambda: appender.depth == 0)
    (segment,) = directory.glob("*.db")
    with locked(segment):
        appender.submit_many(records(1, 5))
        appender.submit_many(records(6, 2))
        with pytest.raises(LogUnavailableError, match=r"closed with 7 records unwritten: .*BUSY"):
            appender.close(timeout=0.3)
        appender._thread.join()
    assert keys(read_all(log)) == ["d0"]
    assert appender.depth == 0
