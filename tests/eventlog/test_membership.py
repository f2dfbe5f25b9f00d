"""Members of a group on a real broker: a join that takes its time is seen through to its end."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from croupier.eventlog.kafka.connection import admin, ensure_topics
from croupier.eventlog.kafka.membership import Membership
from croupier.eventlog.kafka.reading import KafkaLog
from croupier.eventlog.kafka.topics import topic
from tests.eventlog.helpers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from croupier.eventlog.kafka.config import KafkaConfig
    from croupier.eventlog.kafka.reading import KafkaPartition
    from croupier.eventlog.kafka.topics import Stream

LOOPS = ("shop", "mail")


class Polled:
    """A member that is polled by a thread of its own, now and then."""

    def __init__(self, log: KafkaLog, group: str, *, every_s: float) -> None:
        self.held: frozenset[KafkaPartition] = frozenset()
        self._membership = Membership(log, group, session_timeout_s=6.0)
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self.held = self._membership.poll(0.02)

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._membership.close()


@pytest.fixture
def log(kafka_config: KafkaConfig) -> Iterator[KafkaLog]:
    ensure_topics(kafka_config, LOOPS)
    with KafkaLog(kafka_config, LOOPS) as opened:
        yield opened


@pytest.mark.usefixtures("collected")
def test_a_join_that_outlasts_a_poll_is_not_forgotten(
    log: KafkaLog, kafka_config: KafkaConfig
) -> None:
    """Whoever notices that topics have changed has to wait for one who is seldom there."""
    with ExitStack() as stack:
        members = [
            stack.enter_context(closing(Polled(log, kafka_config.topic_prefix, every_s=every_s)))
            for every_s in (0.0, 0.0, 1.5)
        ]

        def shared_out() -> bool:
            held = [each.held for each in members]
            whole = frozenset(log.partitions())
            return frozenset.union(*held) == whole and sum(map(len, held)) == len(whole)

        wait_until(lambda: shared_out() and all(each.held for each in members))
        grown: list[tuple[Stream, int]] = [("decisions", 4), ("outcomes", 5), ("decisions", 6)]
        for stream, count in grown:
            name = topic(kafka_config.topic_prefix, "shop", stream)
            with closing(admin(kafka_config)) as client:
                client.create_partitions({name: count})
            wait_until(shared_out)
            time.sleep(0.5)
