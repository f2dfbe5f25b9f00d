"""The scorer over Kafka: requests from a topic, answers to another one, each exactly once.

What is consumed, what is logged and what is told go into one transaction: the decisions, the
replies and the offsets of the requests are all seen by those who read what is committed, or none of
them. A scorer that dies leaves its requests to the others of its group; one that only seemed dead
has lost its place in the group meanwhile, and the brokers refuse what it has yet to commit.
"""

from __future__ import annotations

import fcntl
import logging
import socket
import threading
import time
import uuid
from contextlib import closing, contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.errors import (
    CommitFailedError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
)

from croupier.eventlog.kafka.connection import (
    client_settings,
    ensure_topics,
    milliseconds,
    open_client,
    reason,
)
from croupier.eventlog.kafka.membership import Member
from croupier.eventlog.kafka.topics import KIND_HEADER, LOGGED, REPLIES, REQUESTS, topic
from croupier.eventlog.kafka.writer import message_of
from croupier.policy.errors import LogUnavailableError
from croupier.policy.events import Activation, Decision, Judgement
from croupier.service.desk import DECIDE, Desk, Reply
from croupier.service.refusals import Refusal
from croupier.service.setup import DRAIN_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from kafka import ConsumerGroupMetadata
    from kafka.consumer.fetcher import ConsumerRecord

    from croupier.eventlog.kafka.config import KafkaConfig
    from croupier.service.logs import RequestLog
    from croupier.service.metrics import Metrics
    from croupier.service.setup import ServiceParts, ServiceSetup
    from croupier.service.stream_config import StreamConfig

__all__ = ("STATUS_HEADER", "RequestStream", "running_stream")

_log = logging.getLogger(__name__)

STATUS_HEADER = "status"
"""Header of a reply: what the status of an answer over HTTP would be."""

_LATENCY = "stream"
_POLL_MS = 200
_LOOK_EVERY_S = 5.0
_LOOK_TIMEOUT_MS = 2000
# The brokers are asked again this soon whether they have finished the transaction before.
_RETRY_BACKOFF_MS = 5
_METADATA_MAX_AGE_MS = 5000
_FIRST_PAUSE_S = 0.1
_LAST_PAUSE_S = 5.0


class _Answered(NamedTuple):
    """A message and what it is answered with."""

    message: ConsumerRecord
    reply: Reply


class RequestStream:
    """Answers the requests of its loops' topics from a thread of its own.

    Parameters
    ----------
    desk
        Answers.
    kafka, config
        The cluster, and how it is worked with.
    loops
        Whose requests.
    transactional_id
        Of this process and no other.
    metrics, requests
        Where answers are counted, and refusals logged.
    """

    def __init__(
        self,
        desk: Desk,
        kafka: KafkaConfig,
        config: StreamConfig,
        *,
        loops: Iterable[str],
        transactional_id: str,
        metrics: Metrics,
        requests: RequestLog,
    ) -> None:
        self._desk = desk
        self._kafka = kafka
        self._config = config
        self._loops = {topic(kafka.topic_prefix, loop, REQUESTS): loop for loop in loops}
        self._transactional_id = transactional_id
        self._metrics = metrics
        self._requests = requests
        self._last_error: Exception | None = None
        self._asked: float | None = None
        self._looked = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-stream", daemon=True)

    @property
    def last_error(self) -> Exception | None:
        """Why requests can't be answered at the moment; None if they can."""
        asked = self._asked
        waited_s = 0.0 if asked is None else time.monotonic() - asked
        if waited_s > self._kafka.delivery_timeout_s:
            # A transaction that was begun is ended, however long the brokers are away.
            return LogUnavailableError(f"Kafka has not answered for {waited_s:.0f} s")
        return self._last_error

    def start(self) -> None:
        """Join the group and answer, until told to stop."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Finish the transaction in progress and leave the group.

        What takes longer than that is given up: it is not committed, and others answer it.
        """
        self._stopping.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                ensure_topics(self._kafka, self._loops.values(), (*LOGGED, REQUESTS, REPLIES))
                with closing(self._joined()) as exchange:
                    self._follow(exchange)
            except Exception as error:  # noqa: BLE001 - whatever it was, requests go on coming
                self._note(error)
            if time.monotonic() - started > _LAST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    def _joined(self) -> _Exchange:
        return _Exchange(self._kafka, self._config, self._loops, self._transactional_id)

    def _follow(self, exchange: _Exchange) -> None:
        while not self._stopping.is_set():
            batch = exchange.poll(self._config.max_batch)
            if batch:
                self._answer(exchange, batch)
            self._look(exchange)

    def _answer(self, exchange: _Exchange, batch: Sequence[ConsumerRecord]) -> None:
        started = time.perf_counter()
        answered = [_Answered(message, self._reply(message)) for message in batch]
        self._asked = time.monotonic()
        try:
            exchange.commit(answered)
        except MessageSizeTooLargeError:
            exchange.abort()
            self._answer_singly(exchange, answered)
        except KafkaError as error:
            # Nothing of it is seen. Whoever has the partitions now answers anew.
            self._note(error)
            exchange.abort()
            exchange.rewind()
        else:
            self._desk.settle()
            self._count(answered, time.perf_counter() - started)
        finally:
            self._desk.forget()
            self._asked = None

    def _answer_singly(self, exchange: _Exchange, answered: Sequence[_Answered]) -> None:
        """Find out which of them a topic has no room for, and refuse it."""
        for each in answered:
            started = time.perf_counter()
            one = [each]
            try:
                exchange.commit(one)
            except MessageSizeTooLargeError:
                exchange.abort()
                refusal = Refusal(413, "expected what the log's topics have room for")
                one = [_Answered(each.message, Reply.refusing(refusal))]
                exchange.commit(one)
            self._count(one, time.perf_counter() - started)

    def _reply(self, message: ConsumerRecord) -> Reply:
        route = _header(message.headers, KIND_HEADER) or DECIDE
        loop = self._loops[message.topic]
        return self._desk.answer(loop, route, message.key, message.value)

    def _count(self, answered: Sequence[_Answered], duration_s: float) -> None:
        self._recovered()
        latency = self._metrics.latency[_LATENCY]
        for message, reply in answered:
            counts = self._metrics.streamed[self._loops[message.topic]]
            if reply.refusal is not None:
                self._refused(message, reply.refusal, duration_s)
                continue
            latency.observe(duration_s)
            for event in reply.events:
                if isinstance(event, Decision):
                    counts.decisions += 1
                    counts.propensity.observe(event.propensity)
                elif isinstance(event, Activation):
                    counts.activations += 1
                elif isinstance(event, Judgement):
                    counts.judgements += 1
                else:
                    counts.outcomes += 1

    def _refused(self, message: ConsumerRecord, refusal: Refusal, duration_s: float) -> None:
        self._metrics.errors.labels(str(refusal.status), refusal.code).inc()
        route = _header(message.headers, KIND_HEADER) or DECIDE
        place = {"path": f"/v1/loops/{self._loops[message.topic]}/{route}", "raw_path": b""}
        self._requests.refused(refusal, place, duration_s)

    def _look(self, exchange: _Exchange) -> None:
        """See now and then how much waits, and with it whether the brokers are there."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        try:
            self._metrics.stream_lag.set(exchange.lag())
        except KafkaError as error:
            self._note(error)
        else:
            self._recovered()

    def _note(self, error: Exception) -> None:
        if self._last_error is None or str(self._last_error) != str(error):
            _log.warning(
                "requests can't be answered, trying again: %s",
                reason(error),
                extra={"event": "stream_interrupted"},
            )
        self._last_error = error

    def _recovered(self) -> None:
        if self._last_error is not None:
            _log.info("requests are answered again", extra={"event": "stream_resumed"})
            self._last_error = None


class _Exchange:
    """A member of the group, and its transactions.

    Parameters
    ----------
    kafka, config
        The cluster, and how it is worked with.
    topics
        Of the requests.
    transactional_id
        Of this process and no other.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        config: StreamConfig,
        topics: Iterable[str],
        transactional_id: str,
    ) -> None:
        self._kafka = kafka
        self._config = config
        self._transactional_id = transactional_id
        self._producer = self._new_producer()
        try:
            self._consumer = self._new_consumer(topics)
        except BaseException:
            _discard(self._producer)
            raise
        self._membership: ConsumerGroupMetadata | None = None

    def poll(self, limit: int) -> list[ConsumerRecord]:
        """Messages that have come, partition by partition; perhaps none, after a while."""
        found = self._consumer.poll(timeout_ms=_POLL_MS, max_records=limit)
        before, now = self._membership, self._consumer.group_metadata()
        if before is None or _place(before) != _place(now):
            # The client may go on where it was before others had its partitions for a while, as
            # after it was suspended. Brokers wouldn't refuse what it does in its new place.
            self._membership = now if self.rewind() else None
            return []
        return [message for messages in found.values() for message in messages]

    def commit(self, answered: Sequence[_Answered]) -> None:
        """Log, tell and be done with what :meth:`poll` gave, all of it or nothing.

        Raises
        ------
        KafkaError
            If it isn't known to be done: :meth:`abort` and :meth:`rewind` have to follow.
        """
        membership = self._membership
        if membership is None or membership.generation_id < 0 or not membership.member_id:
            # As nobody's commit it would not be refused.
            raise CommitFailedError("this member has lost its place in the group")
        self._producer.begin_transaction()
        sent = [future for each in answered for future in self._send(each)]
        self._producer.send_offsets_to_transaction(_offsets(answered), membership)
        self._producer.flush()
        for future in sent:
            if future.failed():
                raise future.exception
        self._producer.commit_transaction()

    def abort(self) -> None:
        """Have nothing of a transaction be seen, unless it was committed after all.

        Raises
        ------
        KafkaError
            If the brokers don't take part.
        """
        # A producer that goes on after an abort can't be trusted: kafka-python 3.0.12 keeps offsets
        # that the group refused, and commits them with the transaction that comes next, so that
        # their requests would never be answered. A new one's first act is to end what this began.
        _discard(self._producer)
        self._producer = self._new_producer()

    def rewind(self) -> bool:
        """Go back to what the group has done: the next poll gives again what was not committed.

        Returns
        -------
        bool
            Whether that is known. Until a transaction that somebody else has begun is ended, it
            isn't, and :meth:`poll` gives nothing.
        """
        self._membership = None
        for partition in self._consumer.assignment():
            try:
                # What came too late for an earlier question is given out as the answer to the next.
                self._consumer.committed(partition, timeout_ms=_LOOK_TIMEOUT_MS)
                done = self._consumer.committed(partition, timeout_ms=_LOOK_TIMEOUT_MS)
            except KafkaTimeoutError:
                return False
            if done is None:
                self._consumer.seek_to_beginning(partition)
            else:
                self._consumer.seek(partition, done)
        return True

    def lag(self) -> int:
        """How many messages wait in the partitions that this member has."""
        mine = list(self._consumer.assignment())
        ends = self._consumer.end_offsets(mine, timeout_ms=_LOOK_TIMEOUT_MS)
        return sum(
            max(0, ends[each] - self._consumer.position(each, timeout_ms=_LOOK_TIMEOUT_MS))
            for each in mine
        )

    def close(self) -> None:
        """Leave the group, so that the others need not wait for this one to be missed."""
        self._consumer.close(autocommit=False, timeout_ms=_LOOK_TIMEOUT_MS)
        _discard(self._producer)

    def _send(self, answered: _Answered) -> Iterator[Any]:
        message, reply = answered
        for record in reply.records:
            logged = message_of(record, self._kafka.topic_prefix)
            yield self._producer.send(logged.topic, logged.value, logged.key, logged.headers)
        replies = message.topic.removesuffix(REQUESTS) + REPLIES
        status = [(STATUS_HEADER, b"%d" % reply.status)]
        # Whoever asks in one partition listens to one. There may be fewer of them.
        same = message.partition in self._producer.partitions_for(replies)
        partition = message.partition if same else None
        yield self._producer.send(replies, reply.body, message.key, status, partition)

    def _new_producer(self) -> KafkaProducer:
        kafka, config = self._kafka, self._config
        delivery_ms = milliseconds(kafka.delivery_timeout_s)
        producer = open_client(
            KafkaProducer,
            transactional_id=self._transactional_id,
            transaction_timeout_ms=config.session_timeout_ms,
            allow_auto_create_topics=False,
            bootstrap_timeout_ms=delivery_ms,
            max_block_ms=delivery_ms,
            delivery_timeout_ms=delivery_ms,
            request_timeout_ms=max(1, delivery_ms - kafka.linger_ms),
            retry_backoff_ms=_RETRY_BACKOFF_MS,
            linger_ms=kafka.linger_ms,
            batch_size=kafka.batch_bytes,
            max_request_size=kafka.max_message_bytes,
            compression_type=None if kafka.compression == "none" else kafka.compression,
            metrics_enabled=False,
            **client_settings(kafka),
        )
        try:
            # Ends what an earlier process of this id has left behind.
            producer.init_transactions()
        except BaseException:
            _discard(producer)
            raise
        return producer

    def _new_consumer(self, topics: Iterable[str]) -> Member:
        config = self._config
        consumer: Member = open_client(
            Member,
            group_id=config.group or f"{self._kafka.topic_prefix}-stream",
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            # Every rebalance begins with nobody having anything. Nobody can keep a partition that
            # is another one's by then, which a commit would not be refused for.
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
            session_timeout_ms=config.session_timeout_ms,
            heartbeat_interval_ms=config.session_timeout_ms // 5,
            allow_auto_create_topics=False,
            # What a member doesn't know of when it shares partitions out, such as those of a topic
            # that was made just now, nobody gets before it looks again.
            metadata_max_age_ms=_METADATA_MAX_AGE_MS,
            bootstrap_timeout_ms=milliseconds(self._kafka.delivery_timeout_s),
            metrics_enabled=False,
            **client_settings(self._kafka),
        )
        for name in topics:
            consumer.partitions_for_topic(name)
        consumer.subscribe(list(topics))
        return consumer


@contextmanager
def running_stream(
    setup: ServiceSetup, parts: ServiceParts, requests: RequestLog
) -> Iterator[RequestStream]:
    """Have requests from Kafka answered until the block ends.

    Parameters
    ----------
    setup, parts
        Of the service that it is a part of.
    requests
        Where refusals are logged.
    """
    service, kafka = setup.service, setup.log.kafka
    desk = Desk(
        parts.scorer,
        parts.features,
        max_body_bytes=service.max_body_bytes,
        max_payload_bytes=parts.log.max_payload_bytes,
        remembered=service.remembered_decisions,
    )
    with _own_id(setup.stream_dir) as own:
        stream = RequestStream(
            desk,
            kafka,
            service.stream,
            loops=setup.loops,
            transactional_id=f"{kafka.topic_prefix}-stream-{socket.gethostname()}-{own}",
            metrics=parts.metrics,
            requests=requests,
        )
        stream.start()
        try:
            yield stream
        finally:
            stream.stop(DRAIN_S)


@contextmanager
def _own_id(directory: Path) -> Iterator[str]:
    """An id that no other process has while the block lasts, and that is used again after it.

    So a process that takes the place of one that was killed ends what that one has left unfinished
    at once, instead of having everybody wait for the brokers to miss it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        with (directory / f"{number}.id").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            file.seek(0)
            own = file.read().strip()
            if not own:
                own = uuid.uuid4().hex
                file.write(own)
                file.flush()
            yield own
            return


def _discard(producer: KafkaProducer) -> None:
    """Close a producer, whatever it has begun."""
    try:
        producer.close(timeout=0)
    except KafkaTimeoutError:
        # It doesn't close while records are under way.
        producer._sender.force_close()  # noqa: SLF001 - there is no other way
        producer.close(timeout=_LOOK_TIMEOUT_MS / 1000)


def _place(membership: ConsumerGroupMetadata) -> tuple[int, str]:
    """Which member of which of the group's generations it is."""
    return membership.generation_id, membership.member_id


def _offsets(answered: Sequence[_Answered]) -> dict[TopicPartition, OffsetAndMetadata]:
    """Where the group is to go on, in every partition."""
    return {
        TopicPartition(message.topic, message.partition): OffsetAndMetadata(
            message.offset + 1, "", -1
        )
        for message, _ in answered
    }


def _header(headers: Iterable[tuple[str, bytes]], name: str) -> str | None:
    """The last header of a name, if there is one."""
    found = [value for key, value in headers if key == name]
    return found[-1].decode(errors="replace") if found and found[-1] is not None else None
