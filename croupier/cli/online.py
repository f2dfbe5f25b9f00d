"""Commands that serve or show: serve, dashboard, status, demo."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import polars as pl
import typer
import urllib3

from croupier.cli.config import service_setup
from croupier.cli.demo import run_demo, show_demo
from croupier.cli.options import ConfigOption, DataDirOption, JsonOption, Session
from croupier.cli.output import Output
from croupier.cli.plan import describe_plan
from croupier.cli.traffic import TrafficConfig
from croupier.control.job import ControlJob
from croupier.eventlog.spilling import SpillState, spill_state, spilling_since
from croupier.offline.generations import generation_rows
from croupier.offline.latest_signals import Signal, latest_signals
from croupier.offline.sink import partition_states
from croupier.policy.errors import ConfigError, InvalidInputError, LogUnavailableError
from croupier.service.control import ControlSetup
from croupier.service.logs import configure_logging
from croupier.service.server import read_address, run_service
from croupier.service.serving import ServingDirectory
from croupier.service.settings import SettingsDirectory

if TYPE_CHECKING:
    from croupier.cli.config import DataPaths

__all__ = ("register",)


class LoopState(msgspec.Struct, frozen=True, kw_only=True):
    """What ``croupier status`` says of a loop.

    Attributes
    ----------
    loop
        Its name.
    decisions, interactions
        In the lake.
    champion, exploration, mean
        Number of the champion, how it explores, and the mean reward of what it has played.
    guardrails
        Their means over what the champion has played, by name.
    match_rate
        Of a champion that learned to imitate the baseline, see :mod:`croupier.offline.imitation`.
    traffic
        What this machine's scorers were told to play.
    caution
        What users of its exploration should know of.
    settings
        What was set over Personalizer's API, by which key and when; None if nothing was.
    signals
        Whether generations oscillate, and whether disparities or violations rise, as the nights
        have last said.
    """

    loop: str
    decisions: int | None
    interactions: int | None
    champion: int | None
    exploration: str | None
    mean: float | None
    guardrails: dict[str, float]
    match_rate: float | None
    traffic: str | None
    caution: str | None
    settings: str | None
    signals: list[Signal]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(serve)
    app.command()(dashboard)
    app.command()(status)
    app.command()(demo)


def serve(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decide.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Answer requests from Kafka's topics too.")
    ] = False,
) -> None:
    """Start the scorer and serve until it is told to stop."""
    # Settings that can't be read must not keep the scorer from starting: it goes without them.
    session = Session.open(
        config,
        data_dir,
        json=False,
        flags={"service.host": host, "service.port": port, "service.workers": workers},
        settings=False,
    )
    session.loops(None)
    if stream and session.config.log.backend != "kafka":
        raise ConfigError(
            "log.backend",
            f'expected "kafka" for serve --stream, got "{session.config.log.backend}"',
        )
    configure_logging(session.config.service.log_format)
    session.warn()
    setup = msgspec.structs.replace(
        service_setup(session.configured, session.paths), control=_control(session), stream=stream
    )
    loops = ", ".join(session.config.loops)

    def announce(url: str) -> None:
        session.output.remark(f"croupier serves {loops} at {url} (data in {session.paths.root})")

    run_service(setup, announce)


def _control(session: Session) -> ControlSetup:
    """How ``croupier serve`` runs the control plane, which the service knows nothing more of."""
    job = ControlJob(
        loops=session.configured.loops,
        nightly=session.config.nightly,
        log=session.config.log,
        log_format=session.config.service.log_format,
        tracking_uri=session.paths.tracking_uri(session.config.registry),
        artifacts=str(session.paths.artifacts),
        lake_dir=str(session.paths.lake),
        log_dir=str(session.paths.log),
        spill_dir=str(session.paths.spill),
        settings_dir=str(session.paths.settings),
        control_dir=str(session.paths.control),
    )
    return ControlSetup(
        module=ControlJob.MODULE,
        job=msgspec.json.encode(job).decode(),
        socket=job.socket,
    )


def dashboard(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8501,
    service: Annotated[
        str | None,
        typer.Option(
            help="Address of the scorer that judgements go to; that of this data directory unless "
            "given."
        ),
    ] = None,
) -> None:
    """Open the dashboards.

    What a person judges there is sent to the scorer, with the API key in CROUPIER_JUDGE_KEY. With a
    password in CROUPIER_DASHBOARD_PASSWORD, or with dashboard.trusted_header, others may reach it.
    """
    from croupier.dashboards.launch import run_dashboard  # noqa: PLC0415 - Streamlit is slow to load
    from croupier.dashboards.settings import DashboardSettings  # noqa: PLC0415 - as above

    session = Session.open(config, data_dir, json=False)
    if service is not None and not service.startswith(("http://", "https://")):
        raise InvalidInputError("service", f"expected an address with http://, got {service!r}")
    told = DashboardSettings(
        service=service or session.scorer_address,
        judged={
            name: each.individual_fairness
            for name, each in session.config.loops.items()
            if each.individual_fairness is not None
        },
        trusted_header=session.config.dashboard.trusted_header,
        features_for=session.config.dashboard.features_for,
        overrides_for=session.config.dashboard.overrides_for,
        slow_s=session.config.alerts.latency.p99_s,
    )
    raise typer.Exit(run_dashboard(session.paths.root, host=host, port=port, settings=told))


def status(
    config: ConfigOption = None, data_dir: DataDirOption = None, json: JsonOption = False
) -> None:
    """Show what a data directory holds and whether its scorer answers."""
    session = Session.open(config, data_dir, json=json)
    service, log, loops = _service(session.paths), _log_state(session), _loop_states(session)
    spill = _spill(session.paths)

    def show() -> None:
        session.output.table(
            f"Croupier in {session.paths.root}",
            ["part", "state"],
            [
                ["scorer", _service_line(service)],
                ["event log", _log_line(log)],
                *([["spill", _spill_line(spill)]] if spill.spilling else []),
            ],
        )
        if loops:
            # A caution is a sentence, and has a line of its own on stderr.
            aside = {"caution", "guardrails", "settings", "signals"}
            columns = [name for name in LoopState.__struct_fields__ if name not in aside]
            rows = [[getattr(loop, name) for name in columns] for loop in loops]
            session.output.table("Loops", columns, rows)
        for loop in loops:
            if loop.guardrails:
                means = ", ".join(f"{name} {mean:.4g}" for name, mean in loop.guardrails.items())
                session.output.remark(f"{loop.loop}: guardrails of the champion: {means}")
            if loop.settings is not None:
                session.output.remark(f"{loop.loop}: {loop.settings}")
            for signal in loop.signals:
                session.output.remark(f"{loop.loop}: {_signal_line(signal)}")

    facts = {
        "data_dir": str(session.paths.root),
        "service": service,
        "log": log,
        "spill": spill,
        "loops": loops,
    }
    session.output.result(facts, show)
    session.warn()


def demo(
    data_dir: Annotated[Path, typer.Option(help="Where to keep everything.")] = Path("demo-data"),
    decisions: Annotated[int, typer.Option(help="Decisions a day, at least 200.")] = 3000,
    label_noise: Annotated[float, typer.Option(help="Share of wrong rewards, in [0, 1).")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the traffic.")] = 0,
    json: JsonOption = False,
) -> None:
    """Run the main job on real input: decide, log, join, retrain, prove, promote, five times."""
    if decisions < 200:
        raise InvalidInputError("decisions", f"expected at least 200, got {decisions}")
    if not 0.0 <= label_noise < 1.0:
        raise InvalidInputError("label-noise", f"expected a share in [0, 1), got {label_noise}")
    output = Output(json=json)
    report = run_demo(
        data_dir,
        output,
        decisions_per_day=decisions,
        traffic=TrafficConfig(label_noise=label_noise),
        seed=seed,
    )
    output.result(report, lambda: show_demo(report, data_dir, output))
    raise typer.Exit(0 if report.passed else 1)


def _service(paths: DataPaths) -> dict[str, Any]:
    """What the scorer says of itself."""
    address = read_address(paths.address)
    if address is None:
        return {"running": False}
    try:
        ready = urllib3.request("GET", f"{address.url}/readyz", timeout=2.0, retries=False)
        return {"running": True, "url": address.url, "pid": address.pid, **ready.json()}
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        return {"running": False, "url": address.url, "error": str(error)}


def _log_state(session: Session) -> dict[str, Any] | None:
    if session.config.log.backend == "sqlite":
        if not session.paths.log.is_dir():
            return None
        with session.log() as log:
            (state,) = partition_states(log, session.lake)
        return {"start": state.start, "end": state.end, "not_in_lake": state.lag}
    try:
        with session.log() as log:
            states = partition_states(log, session.lake)
    except LogUnavailableError as error:
        return {"error": str(error)}
    return {"partitions": len(states), "not_in_lake": sum(state.lag for state in states)}


def _loop_states(session: Session) -> list[LoopState]:
    """The state of every loop that is configured or in the lake."""
    # A revised interaction is still one.
    first = session.lake.scan("interactions").filter(pl.col("revision").fill_null(0) == 0)
    counts = [
        rows.group_by("loop").agg(pl.len().alias(table)).collect()
        for table, rows in (("decisions", session.lake.scan("decisions")), ("interactions", first))
    ]
    champions = (
        session.lake.scan("generations")
        .filter(pl.col("status") == "champion")
        .select(
            *("loop", "exploration", "match_rate"),
            champion="generation",
            mean="realised_mean",
            guardrails="realised_guardrails",
        )
        .collect()
    )
    names = {*session.config.loops, *(name for each in counts for name in each["loop"])}
    table = pl.DataFrame({"loop": sorted(names)}, schema={"loop": pl.String})
    for each in (*counts, champions):
        table = table.join(each, on="loop", how="left", maintain_order="left")
    serving, cautions = ServingDirectory(session.paths.serving), session.cautions()
    return [
        LoopState(
            **row | {"guardrails": {e["name"]: e["mean"] for e in row["guardrails"] or ()}},
            traffic=_traffic(serving, row["loop"]),
            caution=cautions.get(row["loop"]),
            settings=_settings(session, row["loop"]),
            signals=latest_signals(generation_rows(session.lake, row["loop"])),
        )
        for row in table.to_dicts()
    ]


def _settings(session: Session, loop: str) -> str | None:
    """What was set over the API and the configuration file has no word in."""
    settings = SettingsDirectory(session.paths.settings).read(loop)
    if settings is None or not settings.names():
        return None
    time = datetime.fromtimestamp(settings.edited_us / 1e6, tz=UTC).isoformat(timespec="seconds")
    values = ", ".join(f"{name} {_value(getattr(settings, name))}" for name in settings.names())
    return f"set over the API, last by key {settings.by!r} at {time}: {values}"


def _value(setting: Any) -> str:
    if isinstance(setting, msgspec.Struct):
        return str(setting.__struct_config__.tag)
    return "for ever" if setting is None else str(setting)


def _traffic(serving: ServingDirectory, loop: str) -> str | None:
    """The plan that this machine's scorers follow; None if nobody has told them of one."""
    killed = serving.killed(loop)
    try:
        plan = serving.split(loop)
    except msgspec.DecodeError as error:
        return f"can't be read: {error}" if killed is None else f"killed: {killed}"
    if plan is None:
        return None if killed is None else f"killed: {killed}"
    return describe_plan(plan if killed is None else msgspec.structs.replace(plan, killed=killed))


def _signal_line(signal: Signal) -> str:
    p_value = "" if signal.p_value is None else f", p-value {signal.p_value:.2g}"
    said = f"signal: {signal.says}" if signal.raised else f"no signal that {signal.says}"
    return f"{said} (generation {signal.generation}{p_value})"


def _service_line(service: dict[str, Any]) -> str:
    if service["running"]:
        return f"{service['status']} at {service['url']} (process {service['pid']})"
    return f"not answering at {service['url']}" if "url" in service else "not running"


def _spill(paths: DataPaths) -> SpillState:
    try:
        return spill_state(paths.spill)
    except LogUnavailableError as error:
        return SpillState(spilling=True, since=spilling_since(paths.spill), error=str(error))


def _spill_line(spill: SpillState) -> str:
    if spill.error is not None:
        return f"can't be read: {spill.error}"
    since = datetime.fromtimestamp(spill.since or 0.0, tz=UTC).isoformat(timespec="seconds")
    return f"{spill.records:,} records wait for the cluster since {since}"


def _log_line(log: dict[str, Any] | None) -> str:
    if log is None:
        return "none yet"
    if "error" in log:
        return f"can't be read: {log['error']}"
    waiting = f"{log['not_in_lake']:,} not in the lake"
    if "partitions" in log:
        return f"{log['partitions']:,} partitions, {waiting}"
    return f"positions {log['start']:,} to {log['end'] - 1:,}, {waiting}"
