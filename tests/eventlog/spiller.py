"""A log that can be switched off, and a process that appends to it through a spill until killed."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from croupier.eventlog import spilling
from croupier.eventlog.log import Record
from croupier.eventlog.spilling import SpillingWriter
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.policy.errors import LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence


class AwayableLog(SqliteEventLog):
    """A log that is away while a file is there.

    Attributes
    ----------
    deaf
        How many appends store their records and lose the acknowledgement.
    budget
        How many more appends of records it takes; None is any number.
    asked
        How often somebody has tried to append.
    """

    def __init__(self, folder: Path, flag: Path) -> None:
        super().__init__(folder, busy_timeout_s=60)
        self.folder = folder
        self.flag = flag
        self.deaf = 0
        self.budget: int | None = None
        self.asked = 0

    @property
    def away(self) -> bool:
        return self.flag.exists()

    @away.setter
    def away(self, away: bool) -> None:
        if away:
            self.flag.touch()
        else:
            self.flag.unlink(missing_ok=True)

    def append(self, records: Sequence[Record]) -> int:
        self.asked += 1
        if self.away or (self.budget == 0 and records):
            raise LogUnavailableError("the log is away")
        end = super().append(records)
        if self.budget is not None and records:
            self.budget -= 1
        if self.deaf and records:
            self.deaf -= 1
            raise LogUnavailableError("the acknowledgement was lost")
        return end


def main(folder: str, flag: str, spill: str, name: str) -> None:
    spilling._FIRST_RETRY_S = spilling._LAST_RETRY_S = 0.01
    log = AwayableLog(Path(folder), Path(flag))
    writer = SpillingWriter(log, Path(spill), max_bytes=2**30)
    print("ready", flush=True)
    for number in count():
        key = f"{name}-{number}"
        writer.append([Record("checkout", "decision", key, b"x" * 100)])
        print(key, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
