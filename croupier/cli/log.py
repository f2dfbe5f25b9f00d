"""Commands that look into the event log: tail, status."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from croupier.cli.options import ConfigOption, DataDirOption, JsonOption, LoopOption, Session
from croupier.offline.sink import partition_states
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import decode_event

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from croupier.eventlog.log import LogEntry, LogPartition

__all__ = ("register",)

_LOOK_S = 0.2
_AT_ONCE = 1_000
# How far back is looked for records of one loop among those of others.
_LOOKED_THROUGH = 20_000
_SHOWN_BYTES = 120


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    log = typer.Typer(help="Look into the event log.", no_args_is_help=True)
    log.command()(tail)
    log.command()(status)
    app.add_typer(log, name="log")


def tail(
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="How many records.")] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with those that come.")
    ] = False,
    loop: LoopOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Print the last records of the event log, by their time; with --json one object a line."""
    session = Session.open(config, data_dir, json=json)
    session.loops(loop)
    with session.log() as log:
        parts = [part for part in log.partitions() if loop is None or part.loop in {None, loop}]
        ends = {part: part.end() for part in parts}
        last = [
            (part, entry) for part, end in ends.items() for entry in _last(part, end, count, loop)
        ]
        last.sort(key=lambda each: _time(each[1]))
        _print(last[len(last) - count :] if count < len(last) else last, json=json)
        while follow:
            time.sleep(_LOOK_S)
            for part, position in ends.items():
                found = part.read(position, limit=_AT_ONCE)
                ends[part] = found[-1].position + 1 if found else position
                chosen = (each for each in found if loop is None or each.loop == loop)
                _print(((part, each) for each in chosen), json=json)


def status(
    config: ConfigOption = None, data_dir: DataDirOption = None, json: JsonOption = False
) -> None:
    """Show every partition of the event log, and how much of it isn't in the lake yet."""
    session = Session.open(config, data_dir, json=json)
    with session.log() as log:
        states = partition_states(log, session.lake)
    columns = ["partition", "start", "end", "sunk", "lag"]
    session.output.result(
        states,
        lambda: session.output.table(
            f"Event log ({session.config.log.backend})",
            columns,
            [[getattr(each, column) for column in columns] for each in states],
            note=f"{sum(each.lag for each in states):,} positions not in the lake yet",
        ),
    )


def _last(part: LogPartition, end: int, count: int, loop: str | None) -> Sequence[LogEntry]:
    """The last records of a partition, of one loop if asked."""
    start, found, looked = part.start(), [], count
    while count:
        first = max(start, end - looked)
        read = _read(part, first, end)
        found = [each for each in read if loop is None or each.loop == loop]
        if len(found) >= count or first == start or looked > _LOOKED_THROUGH:
            break
        looked *= 4
    return found[-count:] if count else []


def _read(part: LogPartition, position: int, end: int) -> Iterator[LogEntry]:
    while position < end and (found := part.read(position, limit=_AT_ONCE)):
        yield from (each for each in found if each.position < end)
        position = found[-1].position + 1


def _time(entry: LogEntry) -> int:
    try:
        return decode_event(entry.payload).ts
    except InvalidInputError:
        return 0


def _print(entries: Iterable[tuple[LogPartition, LogEntry]], *, json: bool) -> None:
    for part, entry in entries:
        line = _object(part, entry) if json else _line(part, entry)
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _object(part: LogPartition, entry: LogEntry) -> str:
    shown: dict[str, Any] = {
        "partition": part.name,
        "position": entry.position,
        "loop": entry.loop,
        "kind": entry.kind,
        "key": entry.key,
    }
    try:
        msgspec.json.decode(entry.payload)
        shown["event"] = msgspec.Raw(entry.payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        shown["bytes"] = entry.payload
    if entry.flaw is not None:
        shown["flaw"] = entry.flaw
    return msgspec.json.encode(shown).decode()


def _line(part: LogPartition, entry: LogEntry) -> str:
    text = entry.payload[:_SHOWN_BYTES].decode(errors="replace")
    if len(entry.payload) > _SHOWN_BYTES:
        text += "…"
    flaw = f" ({entry.flaw})" if entry.flaw is not None else ""
    return f"{part.name} {entry.position} {entry.kind or '?'} {entry.key!r}{flaw} {text!r}"
