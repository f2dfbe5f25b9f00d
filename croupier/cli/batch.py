"""Commands of the batch side: sink, join, retrain, replay, import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import polars as pl
import typer

from croupier.cli.findings import show_became, show_fidelity, show_sink
from croupier.cli.options import (
    ConfigOption,
    DataDirOption,
    EngineOption,
    JsonOption,
    LoopOption,
    RayAddressOption,
    Session,
)
from croupier.cli.stopping import stop_on_signals
from croupier.eventlog.log import Record
from croupier.offline.generations import refresh_realised
from croupier.offline.interactions import current_interactions
from croupier.offline.join import Seen, join, joined_until, joined_versions
from croupier.offline.lake import SCHEMAS, Lake, TableName
from croupier.offline.nightly import became_of, fidelity_of
from croupier.offline.open_bandit import import_open_bandit
from croupier.offline.retention import forget_again, sink_again, sunk_positions
from croupier.offline.sink import SinkReport, sink, sunk_in, tables_of
from croupier.offline.tabular import import_table, read_column_map
from croupier.policy.errors import ConfigError, InvalidInputError
from croupier.policy.loop import LoopConfig
from croupier.service.scorer import now_us

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from croupier.eventlog.log import EventLog, LogPartition

__all__ = ("register",)

# What tells the rows of a loop apart.
_ORDER = ("partition", "offset", "decision_id", "slot")
_PART_BYTES = 4_000_000
_REPLAYED: tuple[TableName, ...] = ("decisions", "outcomes", "audits", "interactions")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("sink")(sink_command)
    app.command("join")(join_command)
    app.command("retrain")(retrain_command)
    app.command()(replay)
    app.command("import")(import_command)


def sink_command(
    name: Annotated[
        str, typer.Argument(help="Name of the group; a lake has one of its own.")
    ] = "croupier-sink",
    group: Annotated[
        bool, typer.Option("--group", help="Go on until stopped, sharing partitions in a group.")
    ] = False,
    batch_rows: Annotated[
        int, typer.Option(min=1, help="In a group: most records that are committed at once.")
    ] = 20_000,
    batch_seconds: Annotated[
        float, typer.Option(min=0.0, help="In a group: longest that fewer wait for more.")
    ] = 5.0,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
) -> None:
    """Bring what the event log holds into the lake, once or for as long as this runs.

    With --engine ray the partitions of a Kafka log are brought over side by side; a log on one
    machine is one sequence, and is brought over here.
    """
    if group and engine != "local":
        raise InvalidInputError(
            "engine", "expected local with --group: its members share the partitions by themselves"
        )
    session = Session.open(config, data_dir, json=json, engine=engine, ray_address=ray_address)
    if group:
        report = _sink_in_group(session, name, batch_rows, batch_seconds)
    else:
        with session.log() as log, session.lake.lock(), session.output.progress("sink") as progress:
            report = sink(log, session.lake, progress, engine=session.engine)
    session.output.result(report, lambda: show_sink(session, report))


def _sink_in_group(session: Session, name: str, rows: int, seconds: float) -> SinkReport:
    """Sink until SIGTERM or SIGINT."""
    # Other commands are spared the time that Kafka's client takes to load.
    from croupier.eventlog.kafka.reading import KafkaLog  # noqa: PLC0415
    from croupier.offline.group import Batching, GroupSink  # noqa: PLC0415

    batching = Batching(rows, seconds)
    if session.config.log.backend != "kafka":
        raise ConfigError("log.backend", "expected kafka: a log on one machine has no groups")
    session.loops(None)
    session.lake.check()
    with (
        stop_on_signals() as stop,
        KafkaLog(session.config.log.kafka, session.config.loops) as log,
    ):
        session.output.errors.print(f"sinking in group {name}; stop with SIGTERM or SIGINT")
        return GroupSink(log, session.lake, name, batching=batching).run(lambda: stop.requested)


def join_command(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    loop: LoopOption = None,
    json: JsonOption = False,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
) -> None:
    """Join decisions with their outcomes, where the attribution window has closed.

    What the event log holds is brought into the lake first.
    """
    session = Session.open(config, data_dir, json=json, engine=engine, ray_address=ray_address)
    names = session.loops(loop)
    reports = {}
    with session.log() as log, session.lake.lock():
        # In this order: an outcome that is still in the log would be taken for missing, for good.
        now = now_us()
        with session.output.progress("sink") as progress:
            sink(log, session.lake, progress, engine=session.engine)
        for name in names:
            reports[name] = session.nightly.join(name, now_us=now)
            confidence = session.config.nightly.gate.confidence
            refresh_realised(session.lake, name, confidence=confidence)

    def show() -> None:
        columns = ["loop", "joined", "observed", "defaulted", "revised", "open", "late", "orphans"]
        session.output.table(
            "Join",
            columns,
            [
                [name, *(getattr(report, column) for column in columns[1:])]
                for name, report in reports.items()
            ],
        )

    session.output.result(reports, show)


def retrain_command(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    loop: LoopOption = None,
    json: JsonOption = False,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
) -> None:
    """Train the next generation and register it as challenger."""
    session = Session.open(config, data_dir, json=json, engine=engine, ray_address=ray_address)
    names = session.loops(loop)
    trained: dict[str, dict[str, Any]] = {}
    with session.lake.lock():
        for name in names:
            with session.output.progress(f"{name}: train") as progress:
                generation = session.nightly.train(name, now_us=now_us())
                session.nightly.publish(generation, session.nightly.report(generation))
                progress(1, 1)
            assert generation.provenance is not None
            trained[name] = {
                "generation": generation.number,
                "exploration": generation.exploration.describe(),
                "training_rows": generation.provenance.training_rows,
                "parent": generation.provenance.parent,
                "fidelity": fidelity_of(generation),
                "became": became_of(generation),
            }
    columns = ["generation", "exploration", "training_rows", "parent"]

    def show() -> None:
        session.output.table(
            "Challengers",
            ["loop", *columns],
            [[name, *(facts[each] for each in columns)] for name, facts in trained.items()],
        )
        for name, facts in trained.items():
            show_fidelity(session, name, facts["fidelity"])
            show_became(session, name, facts["became"])

    session.output.result(trained, show)


def replay(
    into: Annotated[Path, typer.Argument(help="Directory for the new lake; must not exist.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Build a lake anew from the event log and say whether it equals the present one.

    They are compared as far as the present lake has come. The new one then takes in the rest of
    the log; decisions that the present one has not joined are left to the next join.
    """
    session = Session.open(config, data_dir, json=json)
    if into.exists():
        raise InvalidInputError("into", f"expected a directory that doesn't exist, got {into}")
    fresh = Lake(into)
    names = session.loops(None)
    reports = []
    with session.log() as log, fresh.lock():
        # Others may go on sinking meanwhile.
        until = sunk_positions(session.lake, log.partitions())
        with session.output.progress("replay") as progress:
            reports += sink_again(log, fresh, session.lake, names, progress, until=until)
        for name in names:
            _join_as_far(fresh, session.lake, name, session.config.loop(name), log)
            forget_again(fresh, session.lake, name)
        tables = {
            name: {
                table: _same(
                    table, session.lake, fresh, name, _reached(table, name, until, log.partitions())
                )
                for table in _REPLAYED
            }
            for name in names
        }
        with session.output.progress("rest of the log") as progress:
            reports.append(sink(log, fresh, progress, again=True))
    equal = {name: all(same.values()) for name, same in tables.items()}
    decisions, outcomes = (
        sum(getattr(report, kind) for report in reports) for kind in ("decisions", "outcomes")
    )
    session.output.result(
        {"decisions": decisions, "outcomes": outcomes, "equal": equal, "tables": tables},
        lambda: session.output.table(
            f"Replay into {into}: equal to the present lake?",
            ["loop", *_REPLAYED],
            [[name, *same.values()] for name, same in tables.items()],
            note=f"{decisions:,} decisions and {outcomes:,} outcomes from the log",
        ),
    )
    raise typer.Exit(0 if all(equal.values()) else 1)


def import_command(
    path: Annotated[Path, typer.Argument(help="A file, or a directory of them.")],
    fmt: Annotated[
        Literal["open-bandit", "dsjson", "table"],
        typer.Option("--format", help="What the files are."),
    ],
    loop: Annotated[
        str | None, typer.Option(help="Name of the loop; from the file's name unless given.")
    ] = None,
    columns: Annotated[
        Path | None, typer.Option(help="TOML file that says which column of a table holds what.")
    ] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Import logs that were made elsewhere.

    The Open Bandit Dataset goes into the lake. Vowpal Wabbit's dsjson, which Personalizer's logs
    are too, goes into the event log of a configured loop, for the next sink and join. A table is
    a Parquet or CSV file, one decision a row, and goes into the lake.
    """
    session = Session.open(config, data_dir, json=json)
    if fmt == "dsjson":
        _import_dsjson(session, path, loop)
        return
    with session.lake.lock(), session.output.progress(f"import {path}") as progress:
        if fmt == "table":
            if loop is None or columns is None:
                raise InvalidInputError("loop", "expected --loop and --columns with a table")
            reports = [import_table(path, session.lake, loop, read_column_map(columns))]
        else:
            reports = import_open_bandit(path, session.lake, loop=loop, progress=progress)
    session.output.result(
        {each.loop: each for each in reports},
        lambda: session.output.table(
            "Imported",
            ["loop", "added", "already there", "with a reward"],
            [[each.loop, each.added, each.present, each.positive] for each in reports],
        ),
    )


def _import_dsjson(session: Session, path: Path, loop: str | None) -> None:
    # Other commands are spared the time that it takes to load.
    from croupier.control.dsjson import read_interactions  # noqa: PLC0415

    if loop is None:
        raise InvalidInputError("loop", "expected --loop: whose decisions they become")
    files = sorted(each for each in path.glob("*") if each.is_file()) if path.is_dir() else [path]
    settings, events = session.config.loop(loop), 0
    with session.writer() as log, session.output.progress(f"import {path}") as progress:
        for number, file in enumerate(files, 1):
            for body in _parts_of(file):
                found = read_interactions(body, loop, settings, now_us=now_us())
                log.append([Record.of(each) for each in found])
                events += len(found)
            progress(number, len(files))
    session.output.result(
        {loop: {"events": events}},
        lambda: session.output.remark(f"{loop}: {events:,} events in the log; sink and join next"),
    )


def _parts_of(file: Path) -> Iterator[bytes]:
    """Some lines after another, so that a large file need not be held.

    Those that have been before stand there empty, so that an error names the right line.
    """
    before = 0
    try:
        with file.open("rb") as opened:
            while lines := opened.readlines(_PART_BYTES):
                yield b"\n" * before + b"".join(lines)
                before += len(lines)
    except OSError as error:
        raise InvalidInputError("path", f"expected a file at {file}: {error.strerror}") from error


def _join_as_far(fresh: Lake, present: Lake, loop: str, config: LoopConfig, log: EventLog) -> None:
    """Join what the present lake's last join has looked at, up to where it came."""
    until = joined_until(present, loop)
    if until is not None:
        versions = joined_versions(present, loop)
        seen = Seen(
            sunk_in(present, "decisions", log.partitions(), versions[0]),
            sunk_in(present, "outcomes", log.partitions(), versions[1]),
        )
        join(fresh, loop, config, until, seen=seen)
        return
    # The join of an earlier version of Croupier didn't note how far it came.
    newest = present.scan("interactions", loop).select(pl.col("ts").max().dt.epoch("us"))
    until = newest.collect().item()
    if until is not None:
        join(fresh, loop, config, until + config.attribution_window_us + 1)


def _same(table: TableName, one: Lake, other: Lake, loop: str, reached: pl.Expr) -> bool:
    """Whether two lakes have the same rows of a loop, as far as one of them has come.

    How often an interaction was revised depends on when it was joined, and is not compared.
    """
    order = [name for name in _ORDER if name in SCHEMAS[table]]
    first, second = (
        (
            current_interactions(lake, loop).drop("revision")
            if table == "interactions"
            else lake.scan(table, loop)
        )
        .filter(reached)
        .sort(order)
        .collect()
        for lake in (one, other)
    )
    return first.equals(second)


def _reached(
    table: TableName,
    loop: str,
    until: int | dict[str, int] | None,
    parts: Sequence[LogPartition],
) -> pl.Expr:
    """Which rows of a loop in a table stand below positions of the log."""
    if not isinstance(until, dict):
        return pl.lit(value=True)
    source = "decisions" if table == "interactions" else table
    below = [
        (pl.col("partition") == part.number) & (pl.col("offset") < until[part.name])
        for part in parts
        if part.loop == loop and source in tables_of(part)
    ]
    return pl.any_horizontal(pl.col("partition").is_null(), *below)
