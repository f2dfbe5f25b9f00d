"""The command that does nights: once, or for as long as it runs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sqlite3
import time
import traceback
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from deltalake.exceptions import DeltaError
from polars.exceptions import PanicException, PolarsError

from croupier.cli.alone import alone
from croupier.cli.findings import show_nights
from croupier.cli.options import (
    SMTP_PASSWORD,
    ConfigOption,
    DataDirOption,
    EngineOption,
    JsonOption,
    RayAddressOption,
    Session,
)
from croupier.cli.output import Output
from croupier.cli.stopping import stop_on_signals
from croupier.offline.batch_metrics import write_batch_metrics
from croupier.offline.delivery import deliver_alerts
from croupier.offline.lake import LakeLockedError
from croupier.offline.schedule import Schedule, keep_schedule
from croupier.policy.errors import CroupierError, InvalidInputError
from croupier.policy.loop import parse_duration
from croupier.service.scorer import now_us

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from croupier.cli.stopping import Stop
    from croupier.offline.engine import EngineName
    from croupier.offline.night import NightlyReport, Steps
    from croupier.offline.schedule import NightTold

__all__ = ("register",)

_LOOK_EVERY_S = 1.0
# What a full disk, a damaged file or a lack of memory is raised as.
_OF_THE_MACHINE = (OSError, MemoryError, sqlite3.Error, DeltaError, PolarsError, PanicException)


class NightBrokenError(CroupierError):
    """A night that couldn't go on, for a reason that lies outside of Croupier."""


class NightStoppedError(CroupierError):
    """A night that was asked to stop, and will be gone on with."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(nightly)


class _Options(NamedTuple):
    """What every night of this process is done with."""

    config: Path | None
    data_dir: str | None
    json: bool
    due: bool
    wait_s: float
    engine: EngineName
    ray_address: str | None
    metrics: Path | None

    def session(self, *, in_log: bool) -> Session:
        """The configuration as it is now."""
        session = Session.open(
            self.config,
            self.data_dir,
            json=self.json,
            engine=self.engine,
            ray_address=self.ray_address,
        )
        session.loops(None)
        return replace(session, output=self.output()) if in_log else session

    def output(self) -> Output:
        return Output(json=self.json, clock=now_us)


def nightly(
    due: Annotated[
        bool,
        typer.Option(help="Train only loops whose latest generation is older than they are to be."),
    ] = False,
    every: Annotated[
        str | None,
        typer.Option(help="Go on until stopped: from the beginning of a night to the next one's."),
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="With --every: the time of a night, HH:MM in UTC.")
    ] = None,
    wait_for: Annotated[
        str | None,
        typer.Option(
            "--wait",
            help="How long to wait while another process writes to the lake; not at all unless "
            "given, and with --every for as long as nights are apart.",
        ),
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(help="Where to leave metrics for Prometheus's textfile collector (*.prom)."),
    ] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
) -> None:
    """Do a night's work: sink, join, retrain, evaluate, gate, register, promote, forget.

    It may be broken off anywhere, and run again at any time: the next one goes on from there, and
    trains no loop again that nothing has come of.
    """
    if metrics is not None and not metrics.parent.is_dir():
        raise InvalidInputError("metrics", f"expected a directory that exists at {metrics.parent}")
    if every is None:
        if at is not None:
            raise InvalidInputError("at", "expected --every with it; a single night begins at once")
        wait_s = _seconds(wait_for or "0 s")
        options = _Options(config, data_dir, json, due, wait_s, engine, ray_address, metrics)
        raise typer.Exit(_single(options))
    schedule = Schedule.parse(every, at)
    wait_s = _seconds(wait_for or every)
    options = _Options(config, data_dir, json, due, wait_s, engine, ray_address, metrics)
    _until_stopped(options, schedule)


def _single(options: _Options) -> int:
    session = options.session(in_log=False)
    failed = _do(session, options, session.output.progress)
    for line in failed:
        session.output.remark(line)
    return 1 if failed else 0


def _do(session: Session, options: _Options, steps: Steps) -> list[str]:
    """Do a night and show what it has brought; gives what failed, a line for each loop.

    Raises
    ------
    CroupierError
        If it can't go on.
    """
    session.warn()

    def once() -> NightlyReport:
        with session.log() as log:
            return session.nightly.run(log, now_us=now_us(), steps=steps, due_only=options.due)

    try:
        report = _when_free(session, once, options.wait_s)
    except _OF_THE_MACHINE as error:
        raise NightBrokenError(f"the night can't go on: {_line(error)}") from error
    session.output.result(report, lambda: show_nights(session, report))
    if options.metrics is not None:
        write_batch_metrics(options.metrics, session.lake, report, now_us=now_us())
    failed = [f"{each.loop}: failed: {each.failed}" for each in report.loops if each.failed]
    return failed + _deliver(session)


def _deliver(session: Session) -> list[str]:
    """Tell people of what has opened; gives what failed, and is tried again by the next night."""
    try:
        with session.lake.lock():
            return deliver_alerts(
                session.lake,
                session.config.loops,
                session.config.alerts,
                now_us=now_us(),
                password=os.environ.get(SMTP_PASSWORD),
            )
    except LakeLockedError:
        return ["alerts were not delivered, since another process writes to the lake"]


def _when_free(session: Session, once: Callable[[], NightlyReport], wait_s: float) -> NightlyReport:
    """Do something once nobody else writes to the lake."""
    deadline = None
    while True:
        try:
            return once()
        except LakeLockedError as error:
            # Counted from here: what went before the lock was work, and not waiting.
            if deadline is None:
                deadline = time.monotonic() + wait_s
                if wait_s > 0:
                    session.output.remark(f"waiting: {error}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise
        time.sleep(min(left, _LOOK_EVERY_S))


def _until_stopped(options: _Options, schedule: Schedule) -> None:
    """Do nights until SIGTERM or SIGINT."""
    # Mistakes are told now, and not in the night.
    session = options.session(in_log=True)
    # Every night's process has its own: a cluster held here would lie idle all day.
    session.engine.close()
    output = session.output
    root = session.paths.root
    lock = alone(root / "nightly.lock", f"does the nights of {root}")
    with lock, stop_on_signals() as stop:
        first = _moment(schedule.first(now_us()))
        output.remark(f"the first night begins at {first}; stop with SIGTERM or SIGINT")
        keep_schedule(
            schedule,
            lambda: _in_child(options, stop),
            clock=now_us,
            wait=stop.wait,
            tell=lambda told: output.remark(_told(told)),
        )
        output.remark("stopped")


def _told(night: NightTold) -> str:
    begun, following = _moment(night.begun_us), f"the next one begins at {_moment(night.next_us)}"
    if night.failure is None:
        return f"the night of {begun} is done; {following}"
    row = f", {night.failures:,} in a row" if night.failures > 1 else ""
    return f"the night of {begun} failed{row}: {night.failure}; {following}"


def _in_child(options: _Options, stop: Stop) -> str | None:
    """Do a night in a process of its own; gives why it failed, and None if it didn't.

    What it takes is given back with it, and whatever ends it, this process goes on.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(options, theirs), name="night")
    child.start()
    theirs.close()
    with ours:
        ready = wait([child.sentinel, stop.fileno()])
        if child.sentinel not in ready:
            # It ends after the step in progress, and the next night goes on from there.
            child.terminate()
            child.join()
        return _said(child, ours)


def _said(child: SpawnProcess, ours: Connection) -> str | None:
    """What a child that has ended says of its night."""
    child.join()
    with contextlib.suppress(EOFError):
        if ours.poll():
            failure: str | None = ours.recv()
            return failure
    return f"its process was ended by {_cause(child.exitcode or 0)}"


def _cause(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _child(options: _Options, theirs: Connection) -> None:
    """In the child: do a night, and say why it failed."""
    with stop_on_signals() as stop:
        failure: str | None = None
        try:
            session = options.session(in_log=True)
            failed = _do(session, options, _stoppable(session.output.progress, stop))
            failure = "; ".join(failed) or None
        except NightStoppedError as error:
            options.output().remark(str(error))
        except CroupierError as error:
            failure = " ".join(str(error).split())
        except Exception as error:  # noqa: BLE001 - told in one line, and the next night is tried
            failure = f"an error in Croupier: {_line(error)}"
        with contextlib.suppress(BrokenPipeError):
            theirs.send(failure)


def _stoppable(steps: Steps, stop: Stop) -> Steps:
    """Steps between which, and between whose parts, a night stops."""

    def check(label: str) -> None:
        if stop.requested:
            raise NightStoppedError(f"{label}: stopped; the next night goes on from there")

    @contextmanager
    def step(label: str, /) -> Iterator[Callable[[int, int], None]]:
        check(label)
        with steps(label) as progress:

            def note(done: int, total: int) -> None:
                progress(done, total)
                check(label)

            yield note

    return step


def _line(error: BaseException) -> str:
    """An error in one line, with the place that it comes from."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said} ({Path(place.filename).name}, line {place.lineno})"


def _moment(us: int) -> str:
    return f"{datetime.fromtimestamp(us // 1_000_000, tz=UTC):%Y-%m-%dT%H:%M:%SZ}"


def _seconds(text: str) -> float:
    try:
        return parse_duration(text) / 1e6
    except ValueError as error:
        raise InvalidInputError("wait", str(error)) from error
