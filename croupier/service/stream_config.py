"""Configuration of the scorer over Kafka."""

from __future__ import annotations

import msgspec

from croupier.policy.loop import parse_duration

__all__ = ("StreamConfig",)


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How ``croupier serve --stream`` answers requests from Kafka.

    Attributes
    ----------
    group
        Name of the consumer group, whose members share the partitions out among them. None is the
        topics' prefix and ``-stream``.
    max_batch
        Most requests that are answered in one transaction.
    session_timeout
        How long the partitions of a scorer that is gone without a word wait for another one, and
        how long a transaction may take; 1 s to 10 min. Brokers take no less than 6 s unless they
        are told otherwise.
    """

    group: str | None = None
    max_batch: int = 500
    session_timeout: str = "10 s"

    def __post_init__(self) -> None:
        if self.group is not None and not self.group:
            raise ValueError("group must be a name, or left out")
        if self.max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {self.max_batch}")
        try:
            timeout_ms = self.session_timeout_ms
        except ValueError as error:
            raise ValueError(f"session_timeout: {error}") from error
        if not 1000 <= timeout_ms <= 600_000:
            raise ValueError(
                f"session_timeout must be in [1 s, 10 min], got {self.session_timeout!r}"
            )

    @property
    def session_timeout_ms(self) -> int:
        """The session timeout in milliseconds."""
        return parse_duration(self.session_timeout) // 1000
