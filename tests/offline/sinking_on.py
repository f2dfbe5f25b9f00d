"""Run by a test: log and sink, batch by batch, beside whatever else is done to the lake.

Usage: ``sinking_on.py LOG LAKE SEED``. Goes on until a line comes in, or the input ends, and says
after every round how many there were. Like a sink of a group, it holds no lock.
"""

from __future__ import annotations

import select
import sys
from pathlib import Path

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.lake import Lake
from croupier.offline.sink import sink
from tests.offline.logs import append, mixed_events

ROUND, BATCH = 30, 10


def main() -> None:
    log, lake, seed = Path(sys.argv[1]), Lake(Path(sys.argv[2])), int(sys.argv[3])
    events = mixed_events(10_000, seed)
    with SqliteEventLog(log) as records:
        for number in range(len(events) // ROUND):
            append(records, events[number * ROUND : (number + 1) * ROUND])
            sink(records, lake, batch=BATCH)
            print(number + 1, flush=True)
            if select.select([sys.stdin], [], [], 0.0)[0]:
                break


if __name__ == "__main__":
    main()
