"""Run by a test: append to one table beside other processes that do the same.

Usage: ``appending.py LAKE APP COMMITS ROWS AT``: begins at a time, and commits some rows often.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import polars as pl

from croupier.offline.lake import SCHEMAS, Lake
from croupier.offline.sink import decision_row
from tests.offline.logs import decision


def main() -> None:
    root, app, commits, rows, at = sys.argv[1:]
    lake = Lake(Path(root))
    time.sleep(max(0.0, float(at) - time.time()))
    for commit in range(int(commits)):
        first = commit * int(rows)
        numbers = range(first, first + int(rows))
        frame = pl.DataFrame(
            [decision_row(decision(f"{app}-{number}"), number) for number in numbers],
            schema=SCHEMAS["decisions"],
        )
        with lake.keeping_files():
            lake.append("decisions", frame, app=app, progress=commit + 1, after=commit or None)


if __name__ == "__main__":
    main()
