"""Any history of appends, releases and reopenings reads back as it was written."""

from __future__ import annotations

import tempfile

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from croupier.eventlog.log import LogEntry, Record
from croupier.eventlog.sqlite import SqliteEventLog
from tests.eventlog.helpers import MEMORY, read_all

RECORDS = st.lists(
    st.builds(Record, st.text(), st.text(), st.text(), st.binary(max_size=300)), max_size=8
)


class LogMachine(RuleBasedStateMachine):
    """A log next to the list that it should be equal to, used through two instances at once."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY)
        self.model: list[Record] = []
        self.logs: list[SqliteEventLog] = []

    @initialize(rows=st.lists(st.integers(1, 12), min_size=2, max_size=2))
    def open_logs(self, rows: list[int]) -> None:
        self.logs = [
            SqliteEventLog(self.folder.name, segment_rows=count, busy_timeout_s=60)
            for count in rows
        ]

    @rule(which=st.integers(0, 1), records=RECORDS)
    def append(self, which: int, records: list[Record]) -> None:
        self.model += records
        assert self.logs[which].append(records) == len(self.model) + 1

    @rule(which=st.integers(0, 1), share=st.floats(0, 1.1))
    def release(self, which: int, share: float) -> None:
        position = int(share * (len(self.model) + 1))
        log = self.logs[which]
        before = log.start()
        removed = log.release(position)
        assert log.start() <= max(before, position)
        assert (removed > 0) == (log.start() > before)

    @rule(which=st.integers(0, 1), rows=st.integers(1, 12))
    def reopen(self, which: int, rows: int) -> None:
        self.logs[which].close()
        self.logs[which] = SqliteEventLog(self.folder.name, segment_rows=rows, busy_timeout_s=60)

    @rule(which=st.integers(0, 1), share=st.floats(0, 1), limit=st.integers(1, 20))
    def read(self, which: int, share: float, limit: int) -> None:
        log = self.logs[which]
        position = log.start() + int(share * (log.end() - log.start()))
        expected = self.model[position - 1 : position - 1 + limit]
        assert [_record(entry) for entry in log.read(position, limit=limit)] == expected

    @invariant()
    def both_hold_the_same(self) -> None:
        for log in self.logs:
            assert log.end() == len(self.model) + 1
            assert [_record(entry) for entry in read_all(log, 5)] == self.model[log.start() - 1 :]

    def teardown(self) -> None:
        for log in self.logs:
            log.close()
        self.folder.cleanup()


def _record(entry: LogEntry) -> Record:
    return Record(entry.loop, entry.kind, entry.key, entry.payload)


LogMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestHistories = LogMachine.TestCase
