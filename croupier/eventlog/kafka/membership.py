"""Sharing the partitions of a log out among the members of a consumer group.

Kafka says who is responsible for which partition, and takes partitions from members that are no
longer heard of. It doesn't say from where to read: whoever brings records somewhere knows that
best from there. So a member fetches nothing by its membership. It tells Kafka how far it has come
only for those who watch the group's lag.
"""

from __future__ import annotations

from functools import partial
from logging import getLogger
from typing import TYPE_CHECKING, Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError

from croupier.eventlog.kafka.connection import client_settings, milliseconds, open_client, reason
from croupier.eventlog.kafka.topics import LOGGED, topic
from croupier.policy.errors import LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kafka import TopicPartition

    from croupier.eventlog.kafka.reading import KafkaLog, KafkaPartition

__all__ = ("Member", "Membership")

# Topics and partitions that are made later are found within this.
_LOOK_AGAIN_MS = 10_000
_LEAVING_MS = 3_000
# All members have to come before any of them is told: each at its next poll, those that are gone
# without a word when their session is over.
_JOINING_MS = 30_000

_logger = getLogger(__name__)


class Member(KafkaConsumer):  # type: ignore[misc,unused-ignore]
    """A consumer whose polls wait for the end of every join that they begin.

    With kafka-python 3.0.12 they don't: a join goes on by itself when the time of its poll is up.
    If it ends before the next one, its outcome is forgotten and all members have to join again. And
    if it was begun because topics had changed, nobody ever asks for its outcome: the member holds
    nothing and says nothing from then on, although every poll goes well.

    Parameters
    ----------
    **settings
        See ``KafkaConsumer``. Its polls raise a ``KafkaError`` if a join takes longer than half a
        minute; it is of no use after that.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        coordinator = self._coordinator
        coordinator.ensure_active_group = partial(_to_the_end, coordinator.ensure_active_group)


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
        self._group = group
        self._session_ms = milliseconds(session_timeout_s)
        self._member: Member | None = self._joining()

    def poll(self, timeout_s: float) -> frozenset[KafkaPartition]:
        """Keep up the membership, for at most so long; gives the partitions that are this one's.

        Raises
        ------
        LogUnavailableError
            If the group can't be kept up with now.
        """
        if self._member is None:
            self._member = self._joining()
        try:
            self._member.poll(milliseconds(timeout_s))
            assigned = self._member.assignment()
        except (KafkaError, OSError) as error:
            # None is kept that has failed.
            self.close()
            raise LogUnavailableError(f"taking part in a group failed: {reason(error)}") from error
        return frozenset(
            self._log.partition(*self._parts[place.topic], place.partition) for place in assigned
        )

    def note(self, positions: Mapping[KafkaPartition, int]) -> None:
        """Tell Kafka how far partitions were brought, without waiting for an answer."""
        offsets = {
            each.place: OffsetAndMetadata(position, "", -1) for each, position in positions.items()
        }
        if offsets and self._member is not None:
            self._member.commit_async(offsets, callback=_log_failure)

    def close(self) -> None:
        """Leave the group, so that others needn't wait to find out."""
        member, self._member = self._member, None
        if member is not None:
            member.close(autocommit=False, timeout_ms=_LEAVING_MS)

    def _joining(self) -> Member:
        member: Member = open_client(
            Member,
            group_id=self._group,
            partition_assignment_strategy=[CooperativeStickyAssignor],
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            auto_offset_reset="earliest",
            session_timeout_ms=self._session_ms,
            heartbeat_interval_ms=max(1, self._session_ms // 5),
            metadata_max_age_ms=_LOOK_AGAIN_MS,
            bootstrap_timeout_ms=milliseconds(self._log.config.delivery_timeout_s),
            metrics_enabled=False,
            **client_settings(self._log.config),
        )
        member.subscribe(list(self._parts), listener=_Pausing(member))
        return member


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


def _to_the_end(join: Callable[..., bool], timeout_ms: float | None = None) -> bool:
    """Join with more patience than a poll has, or fail."""
    if not join(timeout_ms=max(_JOINING_MS, timeout_ms or 0)):
        raise KafkaError(f"joining the group did not end within {_JOINING_MS // 1000} s")
    return True


def _log_failure(_: object, outcome: object) -> None:
    if isinstance(outcome, Exception):
        _logger.info("the group's offsets were not noted: %s", outcome)
