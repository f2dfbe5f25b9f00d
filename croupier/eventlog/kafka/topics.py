"""Which topic holds what, and what stands in the headers of its messages.

A message's key is the record's key and its value is the record's payload, so decisions and outcomes
of one decision are in partitions of the same number.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from croupier.policy.errors import InvalidInputError

__all__ = (
    "DEAD_LETTERS",
    "KIND_HEADER",
    "LOGGED",
    "OFFSET_HEADER",
    "PARTITION_HEADER",
    "REASON_HEADER",
    "REPLIES",
    "REQUESTS",
    "SCHEMA_HEADER",
    "SCHEMA_VERSION",
    "TOPIC_HEADER",
    "Stream",
    "kinds_of",
    "stream_of",
    "topic",
)

Stream: TypeAlias = Literal[
    "decisions", "outcomes", "audits", "requests", "replies", "dead-letters"
]

LOGGED: tuple[Stream, ...] = ("decisions", "outcomes", "audits")
"""The streams that make up the event log, each named after its table in the lake."""
REQUESTS: Stream = "requests"
REPLIES: Stream = "replies"
DEAD_LETTERS: Stream = "dead-letters"

SCHEMA_HEADER = "croupier-schema"
"""Header with the version of the event types, in decimal digits."""
SCHEMA_VERSION = b"1"
KIND_HEADER = "croupier-kind"
"""Header with the record's kind."""

TOPIC_HEADER = "croupier-dead-topic"
PARTITION_HEADER = "croupier-dead-partition"
OFFSET_HEADER = "croupier-dead-offset"
"""Headers of a dead letter that say where it comes from, numbers in decimal digits. Together they
tell whether two dead letters are the same message, set aside twice."""
REASON_HEADER = "croupier-dead-reason"
"""Header of a dead letter that says what is wrong with it."""

_STREAMS: dict[str, Stream] = {
    "decision": "decisions",
    "outcome": "outcomes",
    "activation": "outcomes",
    "judgement": "audits",
    "acknowledgement": "audits",
    "override": "audits",
}


def topic(prefix: str, loop: str, stream: Stream) -> str:
    """Name of a loop's topic: ``<prefix>.<loop>.<stream>``."""
    return f"{prefix}.{loop}.{stream}"


def stream_of(kind: str) -> Stream:
    """The stream that records of a kind go to.

    Raises
    ------
    InvalidInputError
        If no event is of that kind.
    """
    try:
        return _STREAMS[kind]
    except KeyError:
        known = ", ".join(_STREAMS)
        raise InvalidInputError("record.kind", f"expected one of {known}, got {kind!r}") from None


def kinds_of(stream: Stream) -> tuple[str, ...]:
    """The kinds of records that go to a stream."""
    return tuple(kind for kind, each in _STREAMS.items() if each == stream)
