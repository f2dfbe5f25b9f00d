"""Getting into a Kafka cluster: what each client is told, and the topics that a log needs.

This is the only place where :class:`KafkaSecurity` is turned into the arguments of a client.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import (
    KafkaError,
    TopicAlreadyExistsError,
    for_code,
)
from kafka.net.compat import KafkaNetClient

from croupier.eventlog.kafka.topics import LOGGED, topic
from croupier.policy.errors import ConfigError, LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from croupier.eventlog.kafka.config import KafkaConfig
    from croupier.eventlog.kafka.topics import Stream

__all__ = (
    "admin",
    "client_settings",
    "confluent_settings",
    "ensure_topics",
    "milliseconds",
    "open_client",
    "reason",
)

# A cluster that is back is to be found within a second, not within Kafka's 30.
_RECONNECT_AT_LEAST_MS = 50
_RECONNECT_AT_MOST_MS = 1000

# Nobody waits for the answer to a request meanwhile.
_SHORTEST_WAIT_S = 5.0

_FINE = 0
_UNKNOWN_TOPIC = 3

_LARGEST_MESSAGE = "max.message.bytes"

# What a connection failed of, the most exact first, and the settings to look at. Brokers give the
# reason and hang up; kafka-python drops what arrives along with the end of a connection.
_SUSPECTS = (
    ("UnsupportedSaslMechanismError", "sasl_mechanism"),
    ("SaslAuthenticationFailedError", "username, password"),
    ("CERTIFICATE_VERIFY_FAILED", "ca_file, check_hostname"),
    ("socket disconnected", "username, password, sasl_mechanism, protocol"),
)


def client_settings(config: KafkaConfig) -> dict[str, Any]:
    """What every client of kafka-python is told: where the brokers are, and how to get in.

    Raises
    ------
    ConfigError
        If a file of certificates or keys isn't there.
    """
    security = config.security
    _require_files(config)
    settings: dict[str, Any] = {
        "bootstrap_servers": list(config.bootstrap_servers),
        "security_protocol": security.protocol,
        "reconnect_backoff_ms": _RECONNECT_AT_LEAST_MS,
        "reconnect_backoff_max_ms": _RECONNECT_AT_MOST_MS,
    }
    if security.protocol in {"SSL", "SASL_SSL"}:
        settings |= {
            "ssl_cafile": security.ca_file,
            "ssl_certfile": security.cert_file,
            "ssl_keyfile": security.key_file,
            "ssl_check_hostname": security.check_hostname,
        }
    if security.protocol in {"SASL_PLAINTEXT", "SASL_SSL"}:
        settings |= {
            "sasl_mechanism": security.sasl_mechanism,
            "sasl_plain_username": security.username,
            "sasl_plain_password": security.password,
        }
    return settings


def confluent_settings(config: KafkaConfig) -> dict[str, Any]:
    """What every client of confluent-kafka is told; the twin of :func:`client_settings`."""
    security = config.security
    _require_files(config)
    settings: dict[str, Any] = {
        "bootstrap.servers": ",".join(config.bootstrap_servers),
        "security.protocol": security.protocol,
        "reconnect.backoff.ms": _RECONNECT_AT_LEAST_MS,
        "reconnect.backoff.max.ms": _RECONNECT_AT_MOST_MS,
    }
    if security.protocol in {"SSL", "SASL_SSL"}:
        settings |= {
            "ssl.ca.location": security.ca_file,
            "ssl.certificate.location": security.cert_file,
            "ssl.key.location": security.key_file,
            "ssl.endpoint.identification.algorithm": "https" if security.check_hostname else "none",
        }
    if security.protocol in {"SASL_PLAINTEXT", "SASL_SSL"}:
        settings |= {
            "sasl.mechanism": security.sasl_mechanism,
            "sasl.username": security.username,
            "sasl.password": security.password,
        }
    return {name: value for name, value in settings.items() if value is not None}


def admin(config: KafkaConfig) -> KafkaAdminClient:
    """Connect to the cluster in order to ask about topics, and make them. To be closed.

    Raises
    ------
    ConfigError
        If a file of certificates or keys isn't there.
    LogUnavailableError
        If the cluster doesn't answer within ``delivery_timeout_s``, and five seconds.
    """
    timeout_ms = milliseconds(max(config.delivery_timeout_s, _SHORTEST_WAIT_S))
    return open_client(
        KafkaAdminClient,
        bootstrap_timeout_ms=timeout_ms,
        request_timeout_ms=timeout_ms,
        **client_settings(config),
    )


def open_client(kind: Callable[..., Any], **settings: Any) -> Any:
    """Make a client of kafka-python, or leave nothing behind.

    By itself, one that finds no broker leaves a thread running for ever.

    Parameters
    ----------
    kind
        Its class.
    **settings
        Its arguments.

    Raises
    ------
    LogUnavailableError
        If the cluster can't be reached, or doesn't let it in.
    """
    made: list[KafkaNetClient] = []
    refusals: list[BaseException] = []

    def connections(**arguments: Any) -> KafkaNetClient:
        made.append(KafkaNetClient(**arguments))
        _note_refusals(made[-1], refusals)
        return made[-1]

    try:
        return kind(kafka_client=connections, **settings)
    except (KafkaError, OSError) as error:
        for each in made:
            each.close()
        why = (
            reason(error) if not refusals else _why_refused(refusals, settings["security_protocol"])
        )
        raise LogUnavailableError(f"connecting to Kafka failed: {why}") from error


def ensure_topics(
    config: KafkaConfig, loops: Collection[str], streams: Iterable[Stream] = LOGGED
) -> None:
    """Make the topics that are missing; what there is already stays as it is.

    Parameters
    ----------
    config
        The cluster, and what topics are made with.
    loops
        Whose topics.
    streams
        Which of them.

    Raises
    ------
    ConfigError
        If decisions and outcomes of a loop have different numbers of partitions, or if a topic
        doesn't take messages as large as ``max_message_bytes``.
    LogUnavailableError
        If the cluster can't be reached, or doesn't allow it.
    """
    wanted = tuple(streams)
    with closing(admin(config)) as client:
        try:
            found = _partitions(config, client, loops, wanted)
            _create(config, client, [name for name, count in found.items() if count is None])
            present = {name: count or config.partitions for name, count in found.items()}
            _check_partitions(config, loops, present)
            _check_sizes(config, client, present)
        except (KafkaError, OSError) as error:
            raise LogUnavailableError(f"looking after topics failed: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What a client's error says, and what kind it is, without its class twice.

    Of a request that was turned down, kafka-python would quote all of it, and of the answer.
    """
    name, text = type(error).__name__, str(error).partition("Request '")[0].rstrip(": ")
    return text if text.startswith(name) else f"{name}: {text}" if text else name


def _note_refusals(client: KafkaNetClient, refusals: list[BaseException]) -> None:
    """Keep why connections fail: kafka-python tells its logger, and then says that time is up."""
    manager = client._manager  # noqa: SLF001 - there is no other way to hear of it
    connect = manager.get_connection

    def get_connection(*arguments: Any, **settings: Any) -> Any:
        connection = connect(*arguments, **settings)
        connection.init_future.add_errback(refusals.append)
        return connection

    manager.get_connection = get_connection


def _why_refused(refusals: Sequence[BaseException], protocol: str) -> str:
    """The most telling reason for which connections failed, and the settings it may be due to."""
    reasons = [reason(each) for each in refusals]
    if protocol != "PLAINTEXT":
        for sign, fields in _SUSPECTS:
            for said in reasons:
                if sign in said:
                    return f"{said} (due to log.kafka.security.{fields}?)"
    return reasons[-1]


def _partitions(
    config: KafkaConfig,
    client: KafkaAdminClient,
    loops: Collection[str],
    streams: Iterable[Stream],
) -> dict[str, int | None]:
    """How many partitions each topic has; None if it is missing."""
    names = [topic(config.topic_prefix, loop, stream) for loop in loops for stream in streams]
    found: dict[str, int | None] = {}
    for each in client.describe_topics(names) if names else ():
        if each["error_code"] not in {_FINE, _UNKNOWN_TOPIC}:
            raise for_code(each["error_code"])(each["name"])
        found[each["name"]] = len(each["partitions"]) or None
    return found


def _create(config: KafkaConfig, client: KafkaAdminClient, names: Iterable[str]) -> None:
    retention_ms = -1 if config.retention_s is None else 1000 * config.retention_s
    topics = {
        name: {
            "num_partitions": config.partitions,
            "replication_factor": config.replication,
            "configs": {
                "min.insync.replicas": str(config.min_insync),
                "retention.ms": str(retention_ms),
                # Time bounds what is kept, and nothing else: a broker's default may be a size.
                "retention.bytes": "-1",
                "cleanup.policy": "delete",
                _LARGEST_MESSAGE: str(config.max_message_bytes),
            },
        }
        for name in names
    }
    for name, settings in topics.items():
        try:
            client.create_topics({name: settings}, wait_for_metadata=True)
        except TopicAlreadyExistsError:
            # Another scorer has started at the same time, over the same configuration.
            client.wait_for_topics([name])
        except KafkaError as error:
            raise LogUnavailableError(f"making topic {name} failed: {reason(error)}") from error


def _check_partitions(
    config: KafkaConfig, loops: Iterable[str], present: Mapping[str, int]
) -> None:
    for loop in loops:
        decisions = topic(config.topic_prefix, loop, "decisions")
        outcomes = topic(config.topic_prefix, loop, "outcomes")
        if not {decisions, outcomes} <= present.keys():
            continue
        if present[decisions] != present[outcomes]:
            raise ConfigError(
                "log.kafka.partitions",
                f"expected as many partitions in {decisions} as in {outcomes}, "
                f"found {present[decisions]} and {present[outcomes]}",
            )


def _check_sizes(config: KafkaConfig, client: KafkaAdminClient, names: Iterable[str]) -> None:
    """Have no record acknowledged that a topic will never take."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    described = client.describe_configs(resources, config_filter="all") if resources else {}
    for name, settings in described.get("topic", {}).items():
        if _LARGEST_MESSAGE not in settings:
            # Whoever may only write to topics that others have made has to trust their size.
            continue
        if int(settings[_LARGEST_MESSAGE]["value"]) < config.max_message_bytes:
            raise ConfigError(
                "log.kafka.max_message_bytes",
                f"expected at most {settings[_LARGEST_MESSAGE]['value']}, which is "
                f"{_LARGEST_MESSAGE} of {name}, got {config.max_message_bytes}",
            )


def _require_files(config: KafkaConfig) -> None:
    for field in ("ca_file", "cert_file", "key_file"):
        path = getattr(config.security, field)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"log.kafka.security.{field}", f"expected a file, got {path}")


def milliseconds(seconds: float) -> int:
    """As Kafka's clients have it."""
    return max(1, round(1000 * seconds))
