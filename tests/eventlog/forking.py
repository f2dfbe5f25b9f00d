"""Run by a test: a log and an appender that were opened before a fork are refused in the child."""

from __future__ import annotations

import os
import sys
import tempfile

from croupier.eventlog.appender import Appender
from croupier.eventlog.log import Record
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.policy.errors import LogUnavailableError

RECORD = Record("checkout", "decision", "d", b"payload")


def child(log: SqliteEventLog, appender: Appender, directory: str) -> int:
    """Count what the inherited log still lets through."""
    let_through = 0
    for use in (
        lambda: log.append([RECORD]),
        lambda: log.read(1, limit=1),
        log.end,
        lambda: appender.submit(RECORD),
    ):
        try:
            use()
            let_through += 1
        except LogUnavailableError as error:
            if "before a fork" not in str(error):
                let_through += 1
    appender.close()
    log.close()
    with SqliteEventLog(directory) as own:
        own.append([RECORD])
    return let_through


def main() -> int:
    with (
        tempfile.TemporaryDirectory() as directory,
        SqliteEventLog(directory) as log,
        Appender(log, max_batch=1, max_pending=1, durability="commit") as appender,
    ):
        appender.submit(RECORD).result()
        # Held by a thread that the child won't have: it must not wait for it.
        with log._read_lock:
            pid = os.fork()
            if pid == 0:
                os._exit(child(log, appender, directory))
        _, status = os.waitpid(pid, 0)
        appender.submit(RECORD).result()
        return os.waitstatus_to_exitcode(status) or int(log.end() != 4)


if __name__ == "__main__":
    sys.exit(main())
