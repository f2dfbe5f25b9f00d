"""Sharing the partitions of a log out among the members of a consumer group.

Kafka says who is responsible for which partition, and takes partitions from members that are no
longer heard of. It doesn't say from where to read: whoever brings records somewhere knows that
best from there. So a member fetches nothing by its membership. It tells Kafka how far it has come
only for those who watch the group's lag.
"""

from __future__ import annotations

from logging import getLogger
from typing import TYPE_CHECKING

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError

from croupier.eventlog.kafka.connection import client_settings, milliseconds, open_client, reason
from croupier.eventlog.kafka.topics import LOGGED, topic
from croupier.policy.errors import LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kafka import TopicPartition

    from croupier.eventlog.kafka.reading import KafkaLog, KafkaPartition

__all__ = ("Membership",)

# Topics and partitions that are made later are found within this.
_LOOK_AGAIN_MS = 10_000
_LEAVING_MS = 3_000

_logger = getLogger(__name__)


class Membership:
    """One member of a consumer group, for one thread.

    Partitions change hands cooperatively: those that stay where they are go on meanwhile.

    Parameters
    ----------
    log
        Whose partitions are shared out.
    group
        Name of the group.
    session_timeout_s
        A member that isn't heard of for so long loses its partitions to others, in seconds.

    Raises
    ------
    LogUnavailableError
        If the cluster can't be reached.
    """

    def __init__(self, log: KafkaLog, group: str, *, session_timeout_s: float = 15.0) -> None:
        prefix = log.config.topic_prefix
        self._parts = {
            topic(prefix, loop, stream): (loop, stream) for loop in log.loops for stream in LOGGED
        }
        self._log = log
        session_ms = milliseconds(session_timeout_s)
        self._consumer = open_client(
            KafkaConsumer,
            group_id=group,
            partition_assignment_strategy=[CooperativeStickyAssignor],
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            auto_offset_reset="earliest",
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=max(1, session_ms // 5),
            metadata_max_age_ms=_LOOK_AGAIN_MS,
            bootstrap_timeout_ms=milliseconds(log.config.delivery_timeout_s),
            metrics_enabled=False,
            **client_settings(log.config),
        )
        self._consumer.subscribe(list(self._parts), listener=_Pausing(self._consumer))

    def poll(self, timeout_s: float) -> frozenset[KafkaPartition]:
        """Keep up the membership, for at most so long; gives the partitions that are this one's.

        Raises
        ------
        LogUnavailableError
            If the group can't be kept up with now.
        """
        try:
            self._consumer.poll(milliseconds(timeout_s))
            assigned = self._consumer.assignment()
        except (KafkaError, OSError) as error:
            raise LogUnavailableError(f"taking part in a group failed: {reason(error)}") from error
        return frozenset(
            self._log.partition(*self._parts[place.topic], place.partition) for place in assigned
        )

    def note(self, positions: Mapping[KafkaPartition, int]) -> None:
        """Tell Kafka how far partitions were brought, without waiting for an answer."""
        offsets = {
            each.place: OffsetAndMetadata(position, "", -1) for each, position in positions.items()
        }
        if offsets:
            self._consumer.commit_async(offsets, callback=_log_failure)

    def close(self) -> None:
        """Leave the group, so that others needn't wait to find out."""
        self._consumer.close(autocommit=False, timeout_ms=_LEAVING_MS)


class _Pausing(ConsumerRebalanceListener):  # type: ignore[misc,unused-ignore]
    """Has the client fetch nothing."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._consumer.pause(*assigned)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Nothing is under way between two polls."""

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        _logger.warning("lost %d partitions to the group, after a silence", len(list(lost)))


def _log_failure(_: object, outcome: object) -> None:
    if isinstance(outcome, Exception):
        _logger.info("the group's offsets were not noted: %s", outcome)
