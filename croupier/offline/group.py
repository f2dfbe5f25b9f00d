"""A sink that runs on and on as a member of a group, which share the log's partitions."""

from __future__ import annotations

import random
import time
from logging import getLogger
from typing import TYPE_CHECKING

import msgspec

from croupier.eventlog.kafka.connection import ensure_topics
from croupier.eventlog.kafka.membership import Membership
from croupier.eventlog.kafka.topics import DEAD_LETTERS, LOGGED
from croupier.offline.lake import LakeConflictError, ProgressError
from croupier.offline.sink import PartitionSink, SinkReport, report_of
from croupier.policy.errors import InvalidInputError, LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from croupier.eventlog.kafka.reading import KafkaLog, KafkaPartition
    from croupier.offline.lake import Lake

__all__ = ("Batching", "GroupSink")

# How often is looked for new records while there are none.
_LOOK_S = 0.1
_START_S = 30.0
_AGAIN_S = 0.5
_AGAIN_AT_MOST_S = 5.0
# A broker that has just taken over a partition may not know for a moment how far it goes.
_BEHIND_S = 30.0

_logger = getLogger(__name__)


class Batching(msgspec.Struct, frozen=True):
    """When what a partition has is brought over: every batch is a file of its own, or several.

    Attributes
    ----------
    rows
        As soon as there are so many records, which are also the most in a batch.
    seconds
        At the latest so long after there are any.
    """

    rows: int = 20_000
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InvalidInputError("batch-rows", f"expected at least 1, got {self.rows}")
        if not 0 <= self.seconds <= 3600:
            raise InvalidInputError(
                "batch-seconds", f"expected a number in [0, 3600], got {self.seconds}"
            )


class GroupSink:
    """Brings the partitions that a group gives it into the lake, until it is told to stop.

    Others may be at it at the same time: members of the group, and a nightly job. What decides is
    the progress in the lake, so one that has lost a partition without knowing it does no harm.

    Parameters
    ----------
    log, lake
        From where and to where. The lake's lock isn't needed.
    group
        Name of the group.
    batching
        How large batches are.
    session_timeout_s
        See :class:`Membership`.
    """

    def __init__(
        self,
        log: KafkaLog,
        lake: Lake,
        group: str,
        *,
        batching: Batching | None = None,
        session_timeout_s: float = 15.0,
    ) -> None:
        self._log = log
        self._lake = lake
        self._group = group
        self._batching = batching or Batching()
        self._session_timeout_s = session_timeout_s
        self._held: dict[KafkaPartition, _Held] = {}
        self._done: list[PartitionSink] = []

    def run(self, stopped: Callable[[], bool]) -> SinkReport:
        """Go on until told to stop; gives what was done by this member.

        Parameters
        ----------
        stopped
            Says whether to stop; asked between batches, and several times a second.

        Raises
        ------
        InvalidInputError
            If the lake is ahead of the log: it was filled from another one.
        LogUnavailableError
            If the cluster can't be reached for half a minute at the start: an election of leaders
            takes less, a wrong address or password doesn't pass. Later on it is waited for.
        """
        member = self._joined(stopped)
        pause = _AGAIN_S
        try:
            while not stopped():
                try:
                    self._turn(member)
                    pause = _AGAIN_S
                except (LogUnavailableError, LakeConflictError, FileNotFoundError) as error:
                    # A file may be missing that somebody on another machine has just forgotten.
                    _logger.warning("%s; trying again", str(error))
                    time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                    pause = min(2 * pause, _AGAIN_AT_MOST_S)
        finally:
            member.close()
        return report_of([*self._done, *(held.sink for held in self._held.values())])

    def _joined(self, stopped: Callable[[], bool]) -> Membership:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                ensure_topics(self._log.config, self._log.loops, (*LOGGED, DEAD_LETTERS))
                return Membership(self._log, self._group, session_timeout_s=self._session_timeout_s)
            except LogUnavailableError as error:
                if stopped() or time.monotonic() > deadline:
                    raise
                _logger.warning("%s; trying again", str(error))
                time.sleep(_AGAIN_S)

    def _turn(self, member: Membership) -> None:
        """Take over what was given and let go of what was taken, then bring over one batch."""
        if self._due() is None:
            self._look()
        self._hold(member.poll(_LOOK_S if self._due() is None else 0))
        due = self._due()
        if due is None:
            return
        held = self._held[due]
        try:
            held.sink.step(held.end, self._batching.rows)
        except ProgressError as error:
            # Whose partition it is shows at the next poll.
            _logger.info("%s; going on from there", error)
            held.sink.begin()
        held.waiting_since = None
        member.note({due: held.sink.position})

    def _hold(self, assigned: Iterable[KafkaPartition]) -> None:
        assigned = set(assigned)
        for part in self._held.keys() - assigned:
            self._done.append(self._held.pop(part).sink)
        for part in assigned - self._held.keys():
            sink = PartitionSink(part, self._lake)
            sink.begin()
            self._held[part] = _Held(sink)

    def _look(self) -> None:
        """See how far the partitions go now."""
        now = time.monotonic()
        for part, end in self._log.ends(self._held).items():
            held = self._held[part]
            held.end = end
            if end < held.sink.position:
                held.check_behind(now)
                continue
            held.behind_since = None
            if end == held.sink.position:
                held.waiting_since = None
            elif held.waiting_since is None:
                held.waiting_since = now

    def _due(self) -> KafkaPartition | None:
        """The partition that has waited longest of those that needn't wait for more records."""
        now = time.monotonic()
        due = {
            part: held.waiting_since
            for part, held in self._held.items()
            if held.waiting_since is not None
            and (
                held.end - held.sink.position >= self._batching.rows
                or now - held.waiting_since >= self._batching.seconds
            )
        }
        return min(due, key=due.__getitem__) if due else None


class _Held:
    """A partition that is this member's."""

    def __init__(self, sink: PartitionSink) -> None:
        self.sink = sink
        self.end = sink.position
        self.waiting_since: float | None = None
        self.behind_since: float | None = None

    def check_behind(self, now: float) -> None:
        """Give up on a log that ends before what the lake has of it."""
        self.waiting_since = None
        if self.behind_since is None:
            self.behind_since = now
        elif now - self.behind_since > _BEHIND_S:
            # Says so.
            self.sink.end()
