"""The main job from end to end on real input: ``croupier demo``."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import urllib3

from croupier.cli.config import CONFIG_FILE, load_config
from croupier.cli.output import Output, with_interval
from croupier.cli.traffic import DigitTraffic, TrafficConfig
from croupier.offline.audit import draws_test
from croupier.offline.interactions import current_interactions
from croupier.offline.lake import Lake
from croupier.policy.errors import ConfigError, CroupierError
from croupier.service.server import read_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ("DemoReport", "run_demo", "show_demo")

LOOP = "digits"
_MARKER = "made-by-croupier-demo"
_WINDOW_S = 4
_CONFIG = f"""\
# Written by `croupier demo`. A day is compressed into seconds, and so is the attribution window.
data_dir = "."

[service]
port = 0          # any free port; `croupier status` tells which

[loops.{LOOP}]
attribution_window = "{_WINDOW_S} s"
default_reward = 0.0
exploration = {{ kind = "squarecb", gamma_scale = 2.0, gamma_exponent = 0.5 }}
oracle = {{ kind = "sklearn", estimator = "sklearn.linear_model.LogisticRegression", \
params = {{ C = 0.1, max_iter = 300 }} }}
"""
_GENERATIONS = 5
_MAX_DAYS = 8
_START_TIMEOUT_S = 60
_SWAP_TIMEOUT_S = 60
_NIGHT_TRAFFIC_PER_S = 40.0
# A log whose propensities are right fails the check once in ten thousand runs.
_SIGNIFICANCE = 1e-4


class DemoGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """One generation that was served: what was promised before promotion, what then happened."""

    generation: int
    exploration: str
    decisions: int
    realised_mean: float | None
    realised_lower: float | None
    realised_upper: float | None
    estimate: float | None
    lower: float | None
    upper: float | None
    ess: float | None
    p50_ms: float
    p99_ms: float


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo saw.

    Attributes
    ----------
    generations
        Those that were served, the uniform cold start first.
    acknowledged, in_lake
        Decisions that the application got an answer to, and those that are in the lake.
    missing, duplicates
        Acknowledged decisions that are not in the lake, and ids that are in it more than once.
    rewards_observed, rewards_defaulted
        Interactions with an outcome in time, and with the default reward.
    propensity_p_value
        Of the test that draws happened with the probabilities that were logged.
    p50_ms, p99_ms
        Of the time that the client waited for a decision.
    failed_requests
        Requests that were not answered as they should be.
    days, seconds
        How long it took, in the demo's days and in real time.
    passed
        Whether every check passed.
    """

    generations: list[DemoGeneration]
    acknowledged: int
    in_lake: int
    missing: int
    duplicates: int
    rewards_observed: int
    rewards_defaulted: int
    propensity_p_value: float
    p50_ms: float
    p99_ms: float
    failed_requests: int
    failures: list[str]
    days: int
    seconds: float
    passed: bool


def run_demo(
    data_dir: Path, output: Output, *, decisions_per_day: int, traffic: TrafficConfig, seed: int
) -> DemoReport:
    """Run the whole loop in a data directory of its own.

    Starts a scorer, streams decisions day by day with a nightly job between, and stops when five
    generations have been served (or after eight days).

    Parameters
    ----------
    data_dir
        Made anew; one that holds anything but an earlier demo is left alone.
    output
        Shows progress.
    decisions_per_day
        Size of a day.
    traffic
        How the application behaves.
    seed
        Of the traffic.

    Raises
    ------
    ConfigError
        If the directory holds something else.
    CroupierError
        If the scorer or the nightly job fails.
    """
    started = time.monotonic()
    _prepare(data_dir)
    with _scorer(data_dir, output) as url:
        application = DigitTraffic(url, LOOP, traffic, seed=seed)
        champion, days = 0, 0
        for day in range(1, _MAX_DAYS + 1):
            with output.progress(f"day {day}: generation {champion} decides") as progress:
                application.stream(decisions_per_day, progress)
            served, days = champion, day
            if len(application.latencies) >= _GENERATIONS:
                break
            champion = _night(data_dir, application, output, day)
            if champion != served:
                _await_swap(url, application, champion)
        with output.progress("last rewards and windows") as progress:
            application.settle()
            _wait(_WINDOW_S + 1.5, progress)
        application.close()
        _run(data_dir, "sink")
        _run(data_dir, "join")
    return _report(data_dir, application, days=days, seconds=time.monotonic() - started)


def show_demo(report: DemoReport, data_dir: Path, output: Output) -> None:
    """Print the report as a table, the checks, and what to do next."""
    output.table(
        f"Generations of loop {LOOP}",
        [
            "generation",
            "exploration",
            "decisions",
            "estimate before promotion (95 %)",
            "what then happened (95 %)",
            "ESS",
            "p50 ms",
            "p99 ms",
        ],
        [
            [
                row.generation,
                row.exploration,
                row.decisions,
                with_interval(row.estimate, row.lower, row.upper),
                with_interval(row.realised_mean, row.realised_lower, row.realised_upper),
                None if row.ess is None else round(row.ess),
                round(row.p50_ms, 2),
                round(row.p99_ms, 2),
            ]
            for row in report.generations
        ],
        note="Mean reward per decision. ESS: effective sample size behind the estimate.",
    )
    checks = [
        (
            report.acknowledged == report.in_lake and not report.missing,
            f"decisions acknowledged = in the lake: {report.acknowledged:,} = {report.in_lake:,}",
        ),
        (report.duplicates == 0, f"duplicates: {report.duplicates}"),
        (
            report.propensity_p_value >= _SIGNIFICANCE,
            f"draws happened with the logged propensities: p = {report.propensity_p_value:.3f}",
        ),
        (report.failed_requests == 0, f"failed requests: {report.failed_requests}"),
    ]
    for passed, text in checks:
        output.console.print(f"{'[green]✓[/green]' if passed else '[red]✗[/red]'} {text}")
    for failure in report.failures[:5]:
        output.console.print(f"  {failure}")
    output.console.print(
        f"{report.rewards_observed:,} rewards came in time, {report.rewards_defaulted:,} decisions "
        f"took the default; client's p50 {report.p50_ms:.2f} ms, p99 {report.p99_ms:.2f} ms; "
        f"{report.days} days in {report.seconds:.0f} s."
    )
    config = data_dir / CONFIG_FILE
    output.console.print("\nNext:", style="bold")
    output.console.print(f"  croupier dashboard --config {config}", soft_wrap=True)
    output.console.print(f"  croupier status --config {config}", soft_wrap=True)


def _prepare(data_dir: Path) -> None:
    """Make the data directory anew, with the demo's configuration."""
    if data_dir.exists():
        if any(data_dir.iterdir()) and not (data_dir / _MARKER).exists():
            raise ConfigError(
                "data-dir", f"expected an empty directory or an earlier demo's, got {data_dir}"
            )
        shutil.rmtree(data_dir)
    data_dir.mkdir(parents=True)
    (data_dir / _MARKER).touch()
    (data_dir / CONFIG_FILE).write_text(_CONFIG)


@contextmanager
def _scorer(data_dir: Path, output: Output) -> Iterator[str]:
    """Run the scorer as a process of its own; gives its URL."""
    log_file = data_dir / "service.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(_command(data_dir, "serve"), stdout=log, stderr=log)  # noqa: S603
    try:
        url = _await_start(data_dir, process)
        output.remark(f"scorer: process {process.pid} at {url}")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_start(data_dir: Path, process: subprocess.Popen[bytes]) -> str:
    _, paths = load_config(data_dir / CONFIG_FILE, environment={})
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        address = read_address(paths.address)
        if address is not None and _is_ready(address.url):
            return address.url
        time.sleep(0.1)
    tail = (data_dir / "service.log").read_text(errors="replace").strip().splitlines()[-1:]
    raise CroupierError(f"the scorer didn't start: {' '.join(tail) or 'no message'}")


def _is_ready(url: str) -> bool:
    try:
        return urllib3.request("GET", f"{url}/readyz", timeout=5.0, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def _night(data_dir: Path, application: DigitTraffic, output: Output, day: int) -> int:
    """Wait for the windows to close and run the nightly job, with traffic going on all the while.

    Gives the number of the champion afterwards.
    """
    with output.progress(f"night {day}: attribution windows close") as progress:
        application.settle()
        _wait(_WINDOW_S + 1.5, progress)
    answer: dict[str, Any] = {}
    failure: list[CroupierError] = []

    def job() -> None:
        try:
            answer.update(_run(data_dir, "nightly"))
        except CroupierError as error:
            failure.append(error)

    worker = threading.Thread(target=job, name="nightly")
    with output.progress(f"night {day}: sink, join, retrain, evaluate, gate") as progress:
        worker.start()
        application.trickle(lambda: not worker.is_alive(), per_second=_NIGHT_TRAFFIC_PER_S)
        progress(1, 1)
    if failure:
        raise failure[0]
    night = answer["loops"][0]
    if night["skipped"] is not None:
        output.remark(f"  nothing trained: {night['skipped']}")
    else:
        word = "promoted" if night["verdict"]["promote"] else "not promoted"
        output.remark(
            f"  generation {night['challenger']} {word}: {'; '.join(night['verdict']['reasons'])}"
        )
    return int(night["champion"])


def _await_swap(url: str, application: DigitTraffic, champion: int) -> None:
    """Go on asking until the running scorer serves the new champion."""
    deadline = time.monotonic() + _SWAP_TIMEOUT_S

    def swapped() -> bool:
        report = urllib3.request("GET", f"{url}/readyz", timeout=5.0).json()
        if time.monotonic() > deadline:
            raise CroupierError(f"the scorer didn't swap to generation {champion}: {report}")
        return bool(report["loops"][LOOP]["generation"] == champion)

    application.trickle(swapped, per_second=_NIGHT_TRAFFIC_PER_S)


def _wait(seconds: float, progress: Any) -> None:
    steps = round(seconds * 10)
    for step in range(steps):
        time.sleep(0.1)
        progress(step + 1, steps)


def _command(data_dir: Path, name: str) -> list[str]:
    return [sys.executable, "-m", "croupier", name, "--config", str(data_dir / CONFIG_FILE)]


def _run(data_dir: Path, name: str) -> Any:
    """Run another command of ours as a user would, and read its JSON."""
    done = subprocess.run(  # noqa: S603
        [*_command(data_dir, name), "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CroupierError(f"croupier {name} failed: {done.stderr.strip()}")
    return msgspec.json.decode(done.stdout)


def _report(data_dir: Path, application: DigitTraffic, *, days: int, seconds: float) -> DemoReport:
    _, paths = load_config(data_dir / CONFIG_FILE, environment={})
    lake = Lake(paths.lake)
    decisions = lake.scan("decisions", LOOP).collect()
    ids = decisions["decision_id"]
    sources = current_interactions(lake, LOOP).select("reward_source").collect()["reward_source"]
    p_value = draws_test(decisions).combined_p_value
    missing = len(set(application.acknowledged) - set(ids.to_list()))
    duplicates = len(ids) - ids.n_unique()
    waits = [wait for each in application.latencies.values() for wait in each]
    passed = (
        len(application.acknowledged) == len(ids)
        and not missing
        and not duplicates
        and not application.failures
        and p_value >= _SIGNIFICANCE
    )
    return DemoReport(
        generations=_served(lake, application),
        acknowledged=len(application.acknowledged),
        in_lake=len(ids),
        missing=missing,
        duplicates=duplicates,
        rewards_observed=int((sources == "observed").sum()),
        rewards_defaulted=int((sources == "default").sum()),
        propensity_p_value=p_value,
        p50_ms=_quantile_ms(waits, 0.5),
        p99_ms=_quantile_ms(waits, 0.99),
        failed_requests=len(application.failures),
        failures=application.failures,
        days=days,
        seconds=seconds,
        passed=passed,
    )


def _served(lake: Lake, application: DigitTraffic) -> list[DemoGeneration]:
    table = lake.scan("generations", LOOP).sort("generation").collect()
    shared = DemoGeneration.__struct_fields__[:-2]
    return [
        DemoGeneration(
            **{name: row[name] for name in shared},
            p50_ms=_quantile_ms(application.latencies[row["generation"]], 0.5),
            p99_ms=_quantile_ms(application.latencies[row["generation"]], 0.99),
        )
        for row in table.iter_rows(named=True)
        if row["decisions"]
    ]


def _quantile_ms(seconds: list[float], level: float) -> float:
    return float(np.quantile(seconds, level)) * 1000.0 if seconds else float("nan")
