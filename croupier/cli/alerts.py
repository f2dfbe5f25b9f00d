"""Commands of alerts: those that are open, and watching the scorers for more."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
import typer
from polars.exceptions import PolarsError

from croupier.cli.alone import alone
from croupier.cli.options import (
    SMTP_PASSWORD,
    ConfigOption,
    DataDirOption,
    JsonOption,
    LoopOption,
    Session,
)
from croupier.cli.output import Output
from croupier.cli.stopping import stop_on_signals
from croupier.offline.schedule import Schedule, keep_schedule
from croupier.offline.summaries.tables import SCORERS, summaries_of
from croupier.offline.watch import Look, look
from croupier.policy.errors import InvalidInputError
from croupier.service.scorer import now_us

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from croupier.offline.schedule import NightTold

__all__ = ("register",)

_OFTEN_US = 2_000_000


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(alerts)
    app.command()(watch)


def alerts(
    loop: LoopOption = None,
    past: Annotated[bool, typer.Option("--past", help="Also those that are closed.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """List alerts, as the last night and `croupier watch` have left them.

    Those of the scorers stand under `*`, and are of no single loop. Exit code 1 if any is open.
    """
    session = Session.open(config, data_dir, json=json)
    summaries = summaries_of(session.lake)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in [*session.loops(loop), *([SCORERS] if loop is None else [])]:
        rows = summaries.read(name, "alerts")
        kept = rows if past else rows.filter(pl.col("closed").is_null())
        found[name] = kept.sort("first", descending=True).to_dicts()
    still = sum(row["closed"] is None for rows in found.values() for row in rows)
    session.output.result(found, lambda: _show(session.output, found))
    raise typer.Exit(1 if still else 0)


def watch(
    every: Annotated[
        str | None,
        typer.Option(help="From the beginning of a look to the next one's; 1 min unless given."),
    ] = None,
    once: Annotated[
        bool,
        typer.Option(
            "--once", help="Look once; exit code 1 if an alert is open or couldn't be delivered."
        ),
    ] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Watch the scorers until stopped: how fast they are, whether their log takes what they write.

    Opens and closes alerts by the rules of [alerts], and delivers them. It may be killed, and
    started again: what has been seen is kept in the data directory.
    """
    if once and every is not None:
        raise InvalidInputError("every", "expected none with --once")
    schedule = Schedule.parse(every or "1 min")
    if schedule.every_us < _OFTEN_US:
        raise InvalidInputError("every", f"expected at least 2 s, got {every!r}")
    session = Session.open(config, data_dir, json=json)
    session.lake.check()
    root = session.paths.root
    with alone(root / "watch.lock", f"watches the scorers of {root}"):
        if once:
            raise typer.Exit(_once(session))
        _until_stopped(session, schedule)


def _once(session: Session) -> int:
    found = _look(session)
    session.output.result(found, lambda: _show(session.output, {SCORERS: found.open}))
    for failure in found.failed:
        session.output.remark(f"not delivered: {failure}")
    return 1 if found.open or found.failed else 0


def _until_stopped(session: Session, schedule: Schedule) -> None:
    """Look until SIGTERM or SIGINT; tell of what changes."""
    output = Output(json=session.output.json, clock=now_us)
    before: list[str] = []

    def once() -> str | None:
        try:
            found = _look(session)
        except (OSError, PolarsError) as error:
            # A disk that is full, for example; the next look may find it otherwise.
            return f"the look failed: {type(error).__name__}: {' '.join(str(error).split())}"
        output.result(found, lambda: _tell(output, found))
        return "; ".join(f"not delivered: {each}" for each in found.failed) or None

    def tell(told: NightTold) -> None:
        now = [] if told.failure is None else [told.failure]
        if now != before:
            output.remark(told.failure or "all is delivered, and looks go well again")
        before[:] = now

    with stop_on_signals() as stop:
        output.remark(f"watching {', '.join(session.scorers)}; stop with SIGTERM or SIGINT")
        keep_schedule(schedule, once, clock=now_us, wait=stop.wait, tell=tell)
        output.remark("stopped")


def _look(session: Session) -> Look:
    return look(
        session.lake,
        session.scorers,
        session.config.alerts,
        seen=session.paths.watch,
        now_us=now_us(),
        password=os.environ.get(SMTP_PASSWORD),
    )


def _tell(output: Output, found: Look) -> None:
    for what, rows in (("opened", found.opened), ("closed", found.closed)):
        for row in rows:
            output.remark(f"{what}: {row['title']}. {row['told']}")


def _show(output: Output, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    columns = ["loop", "severity", "alert", "since", "closed", "id"]
    table = [
        [
            name,
            row["severity"],
            f"{row['title']}. {row['told']}",
            row["first"],
            row["closed"],
            row["alert_id"],
        ]
        for name, rows in found.items()
        for row in rows
    ]
    output.table("Alerts", columns, table)
