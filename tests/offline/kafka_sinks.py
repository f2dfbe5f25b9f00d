"""What the tests of Kafka's sinks share, and a sink for them to run in a process of its own.

Usage: ``kafka_sinks.py BOOTSTRAP PREFIX LAKE GROUP SESSION_S BATCH_ROWS``: sinks the loops until
SIGTERM, in batches that wait for nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from croupier.eventlog.kafka.config import KafkaConfig
from croupier.eventlog.kafka.reading import KafkaLog
from croupier.offline.group import Batching, GroupSink
from croupier.offline.lake import SCHEMAS, Lake
from croupier.offline.sink import partition_states

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from croupier.offline.lake import TableName

LOOPS = ("shop", "mail")
ROOT = Path(__file__).parents[2]


def rows(root: Path, table: TableName) -> pl.DataFrame:
    """All of a table, in an order that tells rows apart."""
    order = ("loop", "partition", "offset", "decision_id", "slot")
    columns = [name for name in order if name in SCHEMAS[table]]
    return Lake(root).scan(table).sort(columns).collect()


def start(config: KafkaConfig, lake: Path, group: str, *, rows: int = 50) -> subprocess.Popen[str]:
    """Run a member of a group in a process of its own."""
    arguments = [config.bootstrap_servers[0], config.topic_prefix, str(lake), group, "2", str(rows)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.offline.kafka_sinks", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def stop(process: subprocess.Popen[str], how: int = signal.SIGTERM) -> str:
    """End a process; gives what it said."""
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    # It may not have come as far as to wait for the signal.
    assert process.returncode in {0, -signal.SIGKILL, -signal.SIGTERM}, said
    return said


def wait_until(done: Callable[[], bool], *, seconds: float = 150.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def is_sunk(log: KafkaLog, lake: Path) -> bool:
    """Whether everything that is in the log is in the lake."""
    return all(state.lag == 0 for state in partition_states(log, Lake(lake)))


def main() -> None:
    bootstrap, prefix, lake, group, session_s, batch_rows = sys.argv[1:]
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    config = KafkaConfig(bootstrap_servers=(bootstrap,), topic_prefix=prefix, partitions=3)
    with KafkaLog(config, LOOPS) as log:
        GroupSink(
            log,
            Lake(Path(lake)),
            group,
            batching=Batching(int(batch_rows), 0.0),
            session_timeout_s=float(session_s),
        ).run(stopped.is_set)


if __name__ == "__main__":
    main()
