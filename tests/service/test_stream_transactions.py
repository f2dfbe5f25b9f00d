"""One member of the group and its transactions, against those who have taken its place."""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from kafka import TopicPartition
from kafka.errors import CommitFailedError

from croupier.eventlog.log import Record
from croupier.service.desk import Reply
from croupier.service.stream import _Answered, _Exchange, _offsets
from croupier.service.stream_config import StreamConfig
from tests.service.running import PATIENCE_S
from tests.service.streaming import LOOP, Asker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kafka.consumer.fetcher import ConsumerRecord

    from croupier.eventlog.kafka.config import KafkaConfig


@pytest.fixture
def asker(kafka_config: KafkaConfig) -> Iterator[Asker]:
    with Asker(kafka_config) as asker:
        for number in range(30):
            asker.ask(f"id-{number}")
        asker.sent()
        yield asker


def member(kafka: KafkaConfig, asker: Asker, name: str) -> _Exchange:
    config = StreamConfig(session_timeout="60 s")
    return _Exchange(kafka, config, [asker.topic("requests")], kafka.topic_prefix + name)


def answers(messages: Sequence[ConsumerRecord], said: bytes) -> list[_Answered]:
    return [
        _Answered(each, Reply(200, said, [Record(LOOP, "decision", each.key.decode(), said)]))
        for each in messages
    ]


def polled(exchange: _Exchange, count: int) -> list[ConsumerRecord]:
    """So many messages and no more, however long they take; after a rebalance they come again."""
    found: dict[tuple[int, int], ConsumerRecord] = {}
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} messages of {count}"
        found |= {(each.partition, each.offset): each for each in exchange.poll(500)}
    assert len(found) == count
    return list(found.values())


@contextmanager
def kept_up(exchange: _Exchange) -> Iterator[None]:
    """Have a member come to every rebalance, as others wait for it there."""
    stopped = threading.Event()

    def poll() -> None:
        while not stopped.is_set():
            exchange._consumer.poll(100)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def share_with(first: _Exchange, second: _Exchange) -> None:
    """Wait until a second member has partitions that were the first one's."""
    deadline = time.monotonic() + PATIENCE_S
    with kept_up(first):
        while not second._consumer.assignment():
            assert time.monotonic() < deadline
            second._consumer.poll(100)


def seen(asker: Asker) -> tuple[list[bytes], list[bytes]]:
    """What has been told and logged, for all to see."""
    return (
        [each.value for each in asker.committed("replies")],
        [each.value for each in asker.committed("decisions")],
    )


def test_who_has_lost_its_place_can_not_commit(kafka_config: KafkaConfig, asker: Asker) -> None:
    with closing(member(kafka_config, asker, "first")) as first:
        messages = polled(first, 30)
        before = first._membership
        with closing(member(kafka_config, asker, "second")) as second:
            share_with(first, second)
            # As if all this had happened since it has polled.
            first._membership = before
            with pytest.raises(CommitFailedError, match="IllegalGeneration"):
                first.commit(answers(messages, b"stale"))
            first.abort()
            assert before is not None
            first._membership = before._replace(generation_id=-1, member_id="")
            with pytest.raises(CommitFailedError, match="lost its place"):
                first.commit(answers(messages, b"nobody's"))
            assert seen(asker) == ([], [])
    # Both have left.
    with closing(member(kafka_config, asker, "third")) as third:
        third.commit(answers(polled(third, 30), b"right"))
    assert seen(asker) == ([b"right"] * 30, [b"right"] * 30)


def test_what_was_refused_is_not_committed_with_what_comes_next(
    kafka_config: KafkaConfig, asker: Asker
) -> None:
    """As kafka-python does, with the offsets, if the same producer goes on."""
    with closing(member(kafka_config, asker, "first")) as first:
        messages = polled(first, 30)
        stale = first._membership
        with closing(member(kafka_config, asker, "second")) as second:
            share_with(first, second)
            first._membership = stale
            with pytest.raises(CommitFailedError, match="IllegalGeneration"):
                first.commit(answers(messages, b"stale"))
            first.abort()
            deadline = time.monotonic() + PATIENCE_S
            with kept_up(second):
                while not (found := first.poll(500)):
                    assert time.monotonic() < deadline
            first.commit(answers(found[:1], b"right"))
    with closing(member(kafka_config, asker, "third")) as third:
        third.commit(answers(polled(third, 29), b"right"))
    assert seen(asker) == ([b"right"] * 30, [b"right"] * 30)


def test_who_takes_a_place_waits_for_what_is_about_to_be_committed(
    kafka_config: KafkaConfig, asker: Asker
) -> None:
    with closing(member(kafka_config, asker, "first")) as first:
        messages = answers(polled(first, 30), b"first")
        first._producer.begin_transaction()
        sent = [future for each in messages for future in first._send(each)]
        first._producer.send_offsets_to_transaction(_offsets(messages), first._membership)
        # Its place is free, and all that is missing of its transaction is the end.
        first._consumer.close(autocommit=False)
        with closing(member(kafka_config, asker, "second")) as second:
            until = time.monotonic() + 3.0
            while time.monotonic() < until:
                assert second.poll(500) == []
            assert second._consumer.assignment()
            first._producer.commit_transaction()
            assert all(future.succeeded() for future in sent)
            asker.ask("one-more")
            asker.sent()
            second.commit(answers(polled(second, 1), b"second"))
    once = [b"first"] * 30 + [b"second"]
    assert [sorted(each) for each in seen(asker)] == [once, once]


def test_a_successor_ends_what_was_left_unfinished_and_it_is_given_again(
    kafka_config: KafkaConfig, asker: Asker
) -> None:
    first = member(kafka_config, asker, "same")
    messages = answers(polled(first, 30), b"first")
    first._producer.begin_transaction()
    for each in messages:
        list(first._send(each))
    first._producer.send_offsets_to_transaction(_offsets(messages), first._membership)
    first._producer.flush()
    first._consumer.close(autocommit=False)
    started = time.monotonic()
    with closing(member(kafka_config, asker, "same")) as successor:
        # The brokers would have waited for the transaction's 60 seconds.
        again = polled(successor, 30)
        assert time.monotonic() - started < 40.0
        successor.commit(answers(again, b"second"))
    assert seen(asker) == ([b"second"] * 30, [b"second"] * 30)
    with pytest.raises(Exception, match="Fenced"):
        first._producer.commit_transaction()
    first._producer.close(timeout=0)


def test_what_was_not_committed_is_given_again(kafka_config: KafkaConfig, asker: Asker) -> None:
    with closing(member(kafka_config, asker, "one")) as one:
        messages = polled(one, 30)
        one.commit(answers(messages[:10], b"first"))
        one.rewind()
        # Of one partition, the first offsets are done.
        rest = [each.key for each in messages[10:]]
        assert sorted(each.key for each in polled(one, 20)) == sorted(rest)
        assert one.lag() == 0
        done = one._consumer.committed(TopicPartition(messages[0].topic, messages[0].partition))
        assert done is not None
