"""How a Kafka cluster is reached, and what its topics are made with."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

__all__ = ("Compression", "KafkaConfig", "KafkaSecurity", "SecurityProtocol")

SecurityProtocol: TypeAlias = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Compression: TypeAlias = Literal["none", "gzip", "snappy", "lz4", "zstd"]

_SMALLEST_MESSAGE = 65_536
# A broker takes requests of 100 MiB, unless it is told otherwise.
_LARGEST_MESSAGE = 67_108_864
_SMALLEST_SPILL = 1_048_576

_SASL = ("SASL_PLAINTEXT", "SASL_SSL")


class KafkaSecurity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a client proves who it is, and the brokers who they are.

    Attributes
    ----------
    protocol
        As Kafka names it.
    ca_file, cert_file, key_file
        PEM files: whom to trust, and the client's own certificate and key where brokers ask for it.
    check_hostname
        Whether a broker's certificate must bear its name.
    sasl_mechanism, username, password
        With a SASL protocol. The password is best given by the environment:
        ``CROUPIER_LOG__KAFKA__SECURITY__PASSWORD``.
    """

    protocol: SecurityProtocol = "PLAINTEXT"
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    check_hostname: bool = True
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str | None = None
    password: str | None = None

    def __post_init__(self) -> None:
        if self.protocol in _SASL and (not self.username or not self.password):
            raise ValueError(f"username and password must be given with {self.protocol}")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file must be given together")


class KafkaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cluster that a log is kept in.

    The defaults of what follows were chosen by ``python -m benchmarks.eventlog``, by the processor
    time that an event takes of the scorer's process, with committed appends of 512 events:

    - confluent-kafka takes 0.2 to 0.4 of what kafka-python does, the less the smaller events are,
      and comes to 3 to 6 times the rate.
    - Batches of 256 KiB take 0.25 to 0.5 of batches of 16 KiB, since an append is cut into fewer.
    - 5 ms of linger change nothing that could be told from noise, and are added to every wait.
    - lz4 and zstd cost up to 1.6 times as much at 500 bytes and nothing at 5 kB; gzip up to 2.4
      times. Where network or the brokers' disks are short, take zstd.

    Attributes
    ----------
    bootstrap_servers
        ``host:port`` of brokers to ask first.
    security
        How to get in.
    topic_prefix
        What the names of all topics begin with.
    partitions, replication, min_insync, retention_s
        What topics are made with where they are missing: partitions, copies of each, how many
        copies must have a record before it is acknowledged, and how long records are kept, in
        seconds (None keeps them for ever). Decisions and outcomes of a loop must have the same
        number of partitions.
    client
        Whose code talks to the brokers; ``confluent-kafka`` has to be installed.
    compression, batch_bytes, linger_ms
        How records are put together on their way: compressed by what, up to which size in one
        batch, and how long confluent-kafka waits for more. kafka-python has no need to: it is
        given all records of an append, and sends what there is.
    max_message_bytes
        Largest message, its key and headers included, and likewise largest request to a broker.
        Topics are made to take it; one that doesn't is refused at the start.
    delivery_timeout_s
        How long a record may take to be acknowledged by the cluster before it is taken to be
        away, in seconds. So long at most those who wait for an append are kept waiting when it goes
        away; what comes after is written to the spill, the folder ``spill`` of the data directory,
        at once. Until then records pile up: ``log.max_pending`` has to have room for them.
    spill_max_bytes
        How large the spill may become, about. Beyond it the log is unavailable.
    """

    bootstrap_servers: tuple[str, ...] = ("127.0.0.1:9092",)
    security: KafkaSecurity = KafkaSecurity()
    topic_prefix: str = "croupier"
    partitions: int = 6
    replication: int = 1
    min_insync: int = 1
    retention_s: int | None = None
    client: Literal["kafka-python", "confluent-kafka"] = "kafka-python"
    compression: Compression = "none"
    linger_ms: int = 0
    batch_bytes: int = 262_144
    max_message_bytes: int = 16_777_216
    delivery_timeout_s: float = 2.0
    spill_max_bytes: int = 4_294_967_296

    def __post_init__(self) -> None:
        if not self.bootstrap_servers or not all(self.bootstrap_servers):
            raise ValueError("bootstrap_servers must name at least one host:port")
        if not valid_topic_part(self.topic_prefix):
            raise ValueError(
                "topic_prefix must be 1 to 100 letters, digits, dots, hyphens and underscores, "
                f"got {self.topic_prefix!r}"
            )
        if self.partitions < 1:
            raise ValueError(f"partitions must be at least 1, got {self.partitions}")
        if self.replication < 1:
            raise ValueError(f"replication must be at least 1, got {self.replication}")
        if not 1 <= self.min_insync <= self.replication:
            raise ValueError(
                f"min_insync must be between 1 and replication ({self.replication}), "
                f"got {self.min_insync}"
            )
        if self.retention_s is not None and self.retention_s < 1:
            raise ValueError(f"retention_s must be at least 1, got {self.retention_s}")
        self._require_sizes()
        if not 0 < self.delivery_timeout_s <= 3600:
            raise ValueError(
                f"delivery_timeout_s must be in (0, 3600], got {self.delivery_timeout_s}"
            )
        if self.linger_ms >= 1000 * self.delivery_timeout_s:
            raise ValueError(
                f"linger_ms must be below delivery_timeout_s ({self.delivery_timeout_s} s), "
                f"got {self.linger_ms}"
            )

    def _require_sizes(self) -> None:
        if not 0 <= self.linger_ms <= 10_000:
            raise ValueError(f"linger_ms must be in [0, 10000], got {self.linger_ms}")
        if self.batch_bytes < 1:
            raise ValueError(f"batch_bytes must be at least 1, got {self.batch_bytes}")
        if not _SMALLEST_MESSAGE <= self.max_message_bytes <= _LARGEST_MESSAGE:
            raise ValueError(
                f"max_message_bytes must be in [{_SMALLEST_MESSAGE}, {_LARGEST_MESSAGE}], "
                f"got {self.max_message_bytes}"
            )
        if self.spill_max_bytes < _SMALLEST_SPILL:
            raise ValueError(
                f"spill_max_bytes must be at least {_SMALLEST_SPILL}, got {self.spill_max_bytes}"
            )


def valid_topic_part(text: str) -> bool:
    """Whether Kafka takes it as a part of a topic's name."""
    return 0 < len(text) <= 100 and all(
        each.isascii() and (each.isalnum() or each in "._-") for each in text
    )
