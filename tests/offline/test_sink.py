"""The sink: everything in the log is in the lake once, whatever happens on the way."""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.eventlog.log import Record
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.lake import SCHEMAS, Lake, LakeLockedError
from croupier.offline.sink import SinkReport, sink, sunk_position
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import (
    Acknowledgement,
    Action,
    Activation,
    Decision,
    Event,
    Judgement,
    MixComponent,
    Outcome,
    Override,
    Recall,
    SessionStep,
    Shadow,
    decode_event,
    encode_event,
)
from tests.offline.logs import SUNK, append, decision, mixed_events, outcome, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from croupier.offline.lake import TableName

ROOT = Path(__file__).parents[2]
Key: TypeAlias = tuple[str | None, ...]
UNIX = datetime(1970, 1, 1, tzinfo=UTC)

# Ids from a handful, so that events meet and repeat each other.
IDS = st.sampled_from(["d1", "d2", "naïve ☕", "\x00", "activation:d1", "x" * 256])
LOOPS = st.sampled_from(["shop", "mail"])
TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TIMES = st.integers(0, 4_102_444_800_000_000)
FEATURES: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    TEXT,
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | FLOATS | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)


COUNTS = st.integers(0, 2**31)
STEPS = st.builds(
    SessionStep,
    TEXT,
    COUNTS,
    st.none() | TEXT,
    st.lists(st.builds(Recall, COUNTS, COUNTS, st.binary(max_size=9)), max_size=2),
)


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    size = draw(st.integers(1, 4))
    values = st.lists(FLOATS, min_size=size, max_size=size)
    return Decision(
        decision_id=draw(IDS),
        loop=draw(LOOPS),
        ts=draw(TIMES),
        generation=draw(st.integers(0, 2**31)),
        learning_mode=draw(st.sampled_from(["online", "apprentice", "logging_only"])),
        context=draw(FEATURES),
        actions=[Action(f"{draw(TEXT)}{each}", draw(FEATURES)) for each in range(size)],
        excluded=draw(st.lists(TEXT, max_size=2)),
        pmf=draw(values),
        chosen=draw(st.integers(0, size - 1)),
        propensity=draw(FLOATS),
        baseline=draw(st.integers(0, size - 1)),
        scores=draw(st.none() | values),
        mix=draw(st.lists(st.builds(MixComponent, TEXT, FLOATS), max_size=2)),
        draw_key=draw(TEXT),
        deferred=draw(st.booleans()),
        slot=draw(st.none() | TEXT),
        keep_prob=draw(FLOATS),
        audit=draw(FEATURES),
        shadow=draw(st.none() | st.builds(Shadow, st.integers(0, 2**31), values)),
        slate_size=draw(st.none() | st.integers(1, 100)),
        session=draw(st.just(msgspec.UNSET) | STEPS),
    )


EVENTS: st.SearchStrategy[Event] = st.one_of(
    decisions(),
    st.builds(
        Outcome,
        decision_id=IDS,
        loop=LOOPS,
        outcome_id=IDS,
        reward=FLOATS,
        ts=TIMES,
        slot=st.none() | TEXT,
        guardrails=st.dictionaries(TEXT, FLOATS, max_size=2),
    ),
    st.builds(Activation, decision_id=IDS, loop=LOOPS, ts=TIMES),
    st.builds(
        Judgement,
        judgement_id=IDS,
        loop=LOOPS,
        decision_id=IDS,
        other_decision_id=IDS,
        auditor=TEXT,
        distance=FLOATS,
        ts=TIMES,
    ),
    st.builds(
        Override,
        override_id=IDS,
        loop=LOOPS,
        action=st.sampled_from(["promote", "rollback"]),
        generation=COUNTS,
        champion=COUNTS,
        reason=TEXT,
        by=TEXT,
        ts=TIMES,
    ),
)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteEventLog]:
    with SqliteEventLog(tmp_path / "log") as opened:
        yield opened


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def as_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def expected_row(event: Event, offset: int) -> tuple[TableName, Key, dict[str, Any]]:
    """Table, key and row of an event, written down a second time."""
    moment = UNIX + timedelta(microseconds=event.ts)
    fields = {name: getattr(event, name) for name in event.__struct_fields__ if name != "version"}
    row = fields | {"ts": moment, "date": moment.date(), "offset": offset, "partition": None}
    match event:
        case Decision():
            row |= {
                "context": as_json(event.context),
                "actions": as_json(event.actions),
                "audit": as_json(event.audit),
                "action_ids": [action.id for action in event.actions],
                "action_id": event.actions[event.chosen].id,
                "mix": [{"source": each.source, "weight": each.weight} for each in event.mix],
                "shadow": event.shadow and msgspec.structs.asdict(event.shadow),
                "session": None,
            }
            if isinstance(event.session, SessionStep):
                recalls = [msgspec.structs.asdict(each) for each in event.session.recalls]
                row["session"] = msgspec.structs.asdict(event.session) | {"recalls": recalls}
            return "decisions", (event.loop, event.decision_id, event.slot), row
        case Outcome():
            row |= {"kind": "outcome", "guardrails": as_json(event.guardrails)}
            return "outcomes", (event.loop, "outcome", event.outcome_id), row
        case Activation():
            row |= {
                "kind": "activation",
                "slot": None,
                "outcome_id": f"activation:{event.decision_id}",
                "reward": None,
                "guardrails": "{}",
            }
            return "outcomes", (event.loop, "activation", event.decision_id), row
        case Judgement():
            return "audits", (event.loop, event.judgement_id), audit(row | {"kind": "judgement"})
        case Acknowledgement():
            told = {"judgement_id": event.acknowledgement_id, "auditor": event.by}
            row.pop("acknowledgement_id")
            row.pop("by")
            row |= told | {"kind": "acknowledgement"}
            return "audits", (event.loop, event.acknowledgement_id), audit(row)
        case Override():
            told = {"judgement_id": event.override_id, "auditor": event.by, "kind": "override"}
            row.pop("override_id")
            row.pop("by")
            return "audits", (event.loop, event.override_id), audit(row | told)


def audit(row: dict[str, Any]) -> dict[str, Any]:
    """A row of that table, with nothing where nothing is known."""
    return dict.fromkeys(SCHEMAS["audits"].names()) | row


def bits(value: Any) -> Any:
    """Floats as their bits, so that -0.0 is not 0.0; all else as it is."""
    match value:
        case float():
            return struct.pack("<d", value)
        case list():
            return [bits(each) for each in value]
        case dict():
            return {name: bits(each) for name, each in value.items()}
        case _:
            return value


@settings(max_examples=25, deadline=None)
@given(
    history=st.lists(st.lists(EVENTS, max_size=12), min_size=1, max_size=3),
    batch=st.integers(1, 9),
)
def test_what_was_logged_is_in_the_lake_once(history: list[list[Event]], batch: int) -> None:
    """Run by run: every value to the bit, the first of equal ids, in the order of the log."""
    expected: dict[TableName, dict[Key, dict[str, Any]]] = {each: {} for each in SUNK}
    with (
        tempfile.TemporaryDirectory() as folder,
        SqliteEventLog(Path(folder, "log"), synchronous="normal") as log,
    ):
        lake = Lake(Path(folder, "lake"))
        offset = 0
        for events in history:
            append(log, events)
            before = {name: len(rows) for name, rows in expected.items()}
            for event in events:
                offset += 1
                # What the log gives back: JSON has one kind of number for 2**64 and 2.0**64.
                name, key, row = expected_row(decode_event(encode_event(event)), offset)
                expected[name].setdefault(key, row)
            report = sink(log, lake, batch=batch)
            added = {name: len(rows) - before[name] for name, rows in expected.items()}
            assert report == SinkReport(
                decisions=added["decisions"],
                outcomes=added["outcomes"],
                duplicates=len(events) - sum(added.values()),
                position=offset + 1,
            )
        for name, rows in expected.items():
            assert bits(table(lake.root, name).to_dicts()) == bits(list(rows.values()))


def test_a_record_counts_under_the_id_it_came_with_first(log: SqliteEventLog, lake: Lake) -> None:
    """Within a batch, in a later batch, in a later run; ids of other loops are other ids."""
    append(log, [outcome("d", "o", reward=1.0), outcome("d", "o", reward=2.0)])
    append(log, [outcome("d", "o", reward=3.0), outcome("d", "o", reward=4.0, loop="mail")])
    assert sink(log, lake, batch=2).duplicates == 2
    append(log, [outcome("d", "o", reward=5.0), decision("d")])
    assert sink(log, lake).duplicates == 1
    assert sink(log, lake) == SinkReport(decisions=0, outcomes=0, duplicates=0, position=7)
    rows = table(lake.root, "outcomes")
    assert rows.select("loop", "reward").rows() == [("shop", 1.0), ("mail", 4.0)]


def test_a_slot_is_part_of_a_decision_s_name(log: SqliteEventLog, lake: Lake) -> None:
    """The slots of one request are as many rows, and so is a decision without one."""
    slots = [None, "0", "1", "", "null"]
    for _ in range(2):
        append(log, [decision("d", slot=slot) for slot in slots])
    assert sink(log, lake, batch=3).duplicates == len(slots)
    append(log, [decision("d", slot=slot) for slot in slots])
    assert sink(log, lake).decisions == 0
    assert table(lake.root, "decisions")["slot"].to_list() == slots


def test_no_outcome_id_passes_for_an_activation(log: SqliteEventLog, lake: Lake) -> None:
    """An application may call its outcomes what it likes."""
    append(log, [outcome("d", "activation:d"), Activation(decision_id="d", loop="shop", ts=5)])
    sink(log, lake)
    assert table(lake.root, "outcomes")["kind"].to_list() == ["outcome", "activation"]


def test_days_are_those_of_utc(log: SqliteEventLog, lake: Lake) -> None:
    midnight = 1_793_491_200_000_000
    append(log, [decision("late", midnight - 1), decision("early", midnight)])
    sink(log, lake)
    assert table(lake.root, "decisions")["date"].to_list() == [
        date(2026, 10, 31),
        date(2026, 11, 1),
    ]


def test_progress_is_reported(log: SqliteEventLog, lake: Lake) -> None:
    append(log, mixed_events(10, seed=1))
    seen: list[tuple[int, int]] = []
    sink(log, lake, lambda done, total: seen.append((done, total)), batch=4)
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_it_can_stop_short_of_the_end_and_go_on(log: SqliteEventLog, lake: Lake) -> None:
    append(log, mixed_events(10, seed=1))
    assert sunk_position(lake) is None
    assert sink(log, lake, until=4).position == sunk_position(lake) == 4
    assert sink(log, lake).position == sunk_position(lake) == 11


def test_what_the_log_let_go_of_was_sunk_before(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    with SqliteEventLog(tmp_path / "short", segment_rows=4) as short:
        append(short, mixed_events(4, seed=1))
        position = sink(short, lake).position
        assert isinstance(position, int)
        append(short, mixed_events(8, seed=2)[4:])
        short.release(position)
        assert short.start() == position
        assert sink(short, lake).position == 9
        # A lake that never saw them begins where the log does.
        late = Lake(tmp_path / "late")
        assert sink(short, late).position == 9
        kept = [offset for name in SUNK for offset in table(late.root, name)["offset"]]
        assert sorted(kept) == [5, 6, 7, 8]


def test_another_log_than_before_is_refused(log: SqliteEventLog, tmp_path: Path) -> None:
    """A log that was lost begins at 1 again; its first records must not be taken for known."""
    lake = Lake(tmp_path / "lake")
    append(log, mixed_events(5, seed=1))
    sink(log, lake)
    with SqliteEventLog(tmp_path / "new") as new:
        append(new, mixed_events(4, seed=2))
        with pytest.raises(InvalidInputError, match="position 6; this one ends at 5"):
            sink(new, lake)


def test_a_record_that_can_t_be_read_is_named(log: SqliteEventLog, lake: Lake) -> None:
    append(log, [decision("a")])
    log.append([Record("shop", "decision", "b", b'{"type": "decision"}')])
    with pytest.raises(InvalidInputError, match="log position 2: event: expected"):
        sink(log, lake, batch=1)
    assert table(lake.root, "decisions")["decision_id"].to_list() == ["a"]


class CrashError(Exception):
    """Stands for the end of the process."""


class CrashingLake(Lake):
    """Breaks off right before or right after one of its commits."""

    def __init__(self, root: Path, commits: int, *, after: bool) -> None:
        super().__init__(root)
        self.commits = commits
        self.after = after

    def append(self, table: TableName, *args: Any, **kwargs: Any) -> None:
        self.commits -= 1
        if self.commits == 0 and not self.after:
            raise CrashError
        super().append(table, *args, **kwargs)
        if self.commits == 0:
            raise CrashError


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("resumed_batch", [3, 100])
def test_a_crash_between_the_commits_of_two_tables_changes_nothing(
    log: SqliteEventLog, tmp_path: Path, resumed_batch: int, *, after: bool
) -> None:
    """At every commit of the second batch; the next run may read batches of another size."""
    append(log, mixed_events(16, seed=3))
    sink(log, Lake(tmp_path / "whole"))
    for commit in range(4, 7):
        root = tmp_path / str(commit)
        with pytest.raises(CrashError):
            sink(log, CrashingLake(root, commit, after=after), batch=8)
        sink(log, Lake(root), batch=resumed_batch)
        for name in SUNK:
            assert table(root, name).equals(table(tmp_path / "whole", name)), (name, commit)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sink_that_is_killed_over_and_over_gets_there(
    log: SqliteEventLog, tmp_path: Path, seed: int
) -> None:
    append(log, mixed_events(50, seed))
    sink(log, Lake(tmp_path / "whole"))
    script = [sys.executable, "-m", "tests.offline.sinking"]
    result = subprocess.run(
        [*script, tmp_path / "log", tmp_path / "lake", "2", str(seed)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    # At most five of some 60 commits are made before a kill.
    assert int(result.stdout) >= 8
    for name in SUNK:
        assert table(tmp_path / "lake", name).equals(table(tmp_path / "whole", name)), name


def test_only_one_process_sinks(log: SqliteEventLog, tmp_path: Path) -> None:
    append(log, mixed_events(10, seed=1))
    lake = Lake(tmp_path / "lake")
    code = (
        "import sys, pathlib; from tests.offline.sinking import child;"
        "child(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), 5, 2)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log"), str(lake.root)]
    with lake.lock():
        refused = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
        sink(log, lake)
    assert refused.returncode != 0
    assert LakeLockedError.__name__ in refused.stderr
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert sunk_position(lake) == 11
