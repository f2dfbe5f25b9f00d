"""Run by the tests: append batches to a log, and acknowledge each on the standard output.

Usage: ``writer.py DIRECTORY NAME APPENDS BATCH SEGMENT_ROWS``. The keys are ``NAME:NUMBER``.
"""

from __future__ import annotations

import os
import random
import sys

from croupier.eventlog.log import Record
from croupier.eventlog.sqlite import SqliteEventLog


def main() -> None:
    directory, name = sys.argv[1:3]
    appends, batch, segment_rows = map(int, sys.argv[3:])
    rng = random.Random(name)
    number = 0
    with SqliteEventLog(directory, segment_rows=segment_rows, busy_timeout_s=60) as log:
        for _ in range(appends):
            count = rng.randint(1, batch)
            log.append(
                [
                    Record("checkout", "decision", f"{name}:{n}", payload(f"{name}:{n}"))
                    for n in range(number, number + count)
                ]
            )
            number += count
            # One system call, so that an acknowledgement is never torn by a kill.
            os.write(1, f"{number}\n".encode())


def payload(key: str) -> bytes:
    """Make what a key's record has to hold; a few are large enough to need pages of their own."""
    rng = random.Random(key)
    return rng.randbytes(rng.choice((10, 100, 1500, 1500, 20_000)))


if __name__ == "__main__":
    main()
