"""Opening the log that a configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from croupier.eventlog.spilling import SpillingWriter
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.policy.errors import LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from croupier.eventlog.log import EventLog, LogConfig, LogWriter

__all__ = ("open_log", "open_writer")


def open_log(config: LogConfig, *, log_dir: Path, loops: Collection[str]) -> EventLog:
    """Open the log to read it.

    Parameters
    ----------
    config
        Which log.
    log_dir
        Of a log on this machine.
    loops
        Whose events there are; a log that is shared has topics for each.

    Raises
    ------
    LogUnavailableError
        If the folder can't be made. A cluster is only asked once something is read.
    ConfigError
        If the configured client isn't installed or doesn't find its files.
    """
    if config.backend == "sqlite":
        return SqliteEventLog.open(log_dir, config)
    # Those who don't need it are spared the time that it takes to load.
    from croupier.eventlog.kafka.reading import KafkaLog  # noqa: PLC0415

    return KafkaLog(config.kafka, loops)


def open_writer(
    config: LogConfig, *, log_dir: Path, spill_dir: Path, loops: Collection[str]
) -> LogWriter:
    """Open the log to append to it.

    A cluster that is away doesn't keep anybody from starting: records then go to the spill.

    Parameters
    ----------
    config
        Which log.
    log_dir
        Of a log on this machine.
    spill_dir
        What one that is shared spills to while it is away.
    loops
        Whose events there are going to be.

    Raises
    ------
    LogUnavailableError
        If the log can't be opened, and if nothing can be spilled either.
    ConfigError
        If the cluster's topics don't fit the configuration, or if the configured client isn't
        installed or doesn't find its files.
    """
    if config.backend == "sqlite":
        return SqliteEventLog.open(log_dir, config)
    # Those who don't need it are spared the time that it takes to load.
    from croupier.eventlog.kafka.writer import KafkaWriter  # noqa: PLC0415

    kafka = KafkaWriter(config.kafka, loops)
    writer = SpillingWriter(kafka, spill_dir, max_bytes=config.kafka.spill_max_bytes)
    try:
        if not writer.state.spilling:
            try:
                kafka.connect()
            except LogUnavailableError as error:
                writer.begin(error)
    except BaseException:
        writer.close()
        raise
    return writer
