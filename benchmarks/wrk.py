"""Load from wrk, of which every answer counts: a refusal or a broken connection is an error."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("BenchmarkError", "Load", "find_wrk", "pinned", "put_load_on", "wrk_version")

_SCRIPT = Path(__file__).with_name("wrk.lua")
_TIMEOUT_S = 10


class BenchmarkError(Exception):
    """Something went wrong that leaves no figure to report."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one run of the load generator.

    Attributes
    ----------
    answers
        Answers with a status of 2xx; there were no others.
    rps
        Answers per second.
    p50_ms, p99_ms
        Quantiles of the time from request to answer, in milliseconds.
    generator_busy
        Share of the run in which the load generator computed, in [0, 1]; near 1 it was not the
        server that set the pace.
    """

    answers: int
    rps: float
    p50_ms: float
    p99_ms: float
    generator_busy: float


class _Printed(msgspec.Struct, frozen=True):
    """What the script prints."""

    answers: int
    duration_us: int
    p50_us: int
    p99_us: int
    refused: int
    first_refusal: int
    connect: int
    read: int
    write: int
    timeout: int


def put_load_on(
    url: str,
    bodies: Path,
    *,
    connections: int,
    seconds: int,
    cores: set[int],
    pause_ms: int = 0,
) -> Load:
    """Post the bodies in turn for some time, each connection as soon as it has its answer.

    Parameters
    ----------
    url
        Where to.
    bodies
        A file with a request's body on every line.
    connections
        Kept alive, all of them from one thread.
    seconds
        How long, at least 1.
    cores
        Those that the load generator may run on.
    pause_ms
        How long a connection waits on average before it sends its next request.

    Raises
    ------
    BenchmarkError
        If an answer was not 2xx, a connection failed, or there was no answer at all.
    """
    command = [find_wrk(), "--threads", "1", "--connections", str(connections)]
    command += ["--duration", f"{seconds}s", "--timeout", f"{_TIMEOUT_S}s"]
    command += ["--script", str(_SCRIPT), url, "--", str(bodies), str(pause_ms)]
    before = _children_s()
    with pinned(cores):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    busy_s = _children_s() - before
    lines = (ran.stdout + ran.stderr).strip().splitlines() or ["nothing printed"]
    try:
        printed = msgspec.json.decode(lines[-1], type=_Printed)
    except msgspec.MsgspecError:
        raise BenchmarkError(f"wrk failed on {url}: {lines[-1].strip()}") from None
    _require_clean(url, printed)
    duration_s = printed.duration_us / 1e6
    return Load(
        answers=printed.answers,
        rps=printed.answers / duration_s,
        p50_ms=printed.p50_us / 1e3,
        p99_ms=printed.p99_us / 1e3,
        generator_busy=busy_s / duration_s,
    )


def find_wrk() -> str:
    """Where wrk is.

    Raises
    ------
    BenchmarkError
        If it isn't installed.
    """
    found = shutil.which("wrk")
    if found is None:
        raise BenchmarkError("expected wrk on the path: apt-get install wrk")
    return found


def wrk_version() -> str:
    """Wrk's version, as it says it."""
    # It counts being asked as a failure.
    said = subprocess.run([find_wrk(), "-v"], capture_output=True, text=True, check=False)  # noqa: S603
    match = re.match(r"wrk (\S+)", said.stdout + said.stderr)
    return "unknown" if match is None else match[1]


@contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """Run this thread, and the processes that it starts meanwhile for good, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _require_clean(url: str, printed: _Printed) -> None:
    if printed.refused:
        raise BenchmarkError(
            f"{printed.refused} of {printed.answers} answers of {url} were refusals, the first "
            f"one {printed.first_refusal}"
        )
    broken = {
        name: getattr(printed, name)
        for name in ("connect", "read", "write", "timeout")
        if getattr(printed, name)
    }
    if broken:
        told = ", ".join(f"{count} {name}" for name, count in broken.items())
        raise BenchmarkError(f"connections to {url} failed: {told}")
    if not printed.answers:
        raise BenchmarkError(f"{url} gave no answer")


def _children_s() -> float:
    """Processor time of the children that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
