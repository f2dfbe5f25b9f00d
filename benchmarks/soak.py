"""Memory in the long run: many decisions and generation swaps in one process, which must not grow.

Run with ``python -m benchmarks.soak`` (``--decisions``, ``--swaps``, ``--warm-up``, ``--json``).
One process does what the service does for each request but HTTP: it decodes a body, decides, and
encodes the event and the answer; the event goes to a log through the appender. Every so often it
loads another generation from disk and swaps it in. Segments of the log are released on the way, so
that the disk holds two of them at most. One feature of the context is a user's name, of many users,
and one action of every request is a new one, so that what is cached fills up, and is emptied, again
and again.

What is compared is therefore not the resident memory at two moments but its largest sample of the
warm-up's second half and of the last stretch of the same length; the exit code is 1 if it grew by
more than ``--limit`` per cent. The largest sample in between is reported too.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from benchmarks.serving_workloads import SMALL, bodies, trained_generation, training_rows
from croupier.cli.output import Output
from croupier.eventlog.appender import Appender
from croupier.eventlog.log import LogConfig, Record
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.policy.generation import Generation
from croupier.policy.loop import LoopConfig
from croupier.policy.traffic import Plan
from croupier.service.api import DecideResponse
from croupier.service.catalogue import Catalogue
from croupier.service.scorer import Scorer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

__all__ = ("SoakReport", "soak")

_LOOP = "soak"
_GENERATIONS = 4
_REQUESTS = 2_000
_USERS = 150_000
_SEGMENT_ROWS = 20_000
_WAITING = 2_000
_SAMPLE_EVERY = 10_000
_LEAST_WARM_UP = 200_000


class SoakReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a run found.

    Attributes
    ----------
    decisions, swaps
        Made in all, after and during the warm-up.
    warm_up
        Decisions of the warm-up.
    records
        That the log took.
    seconds
        It took.
    warm_mib, end_mib, peak_mib
        Largest resident memory of the warm-up's second half, of as many decisions at the end, and
        of all after the warm-up.
    growth_percent
        From `warm_mib` to `end_mib`.
    limit_percent
        How much is allowed.
    """

    decisions: int
    swaps: int
    warm_up: int
    records: int
    seconds: float
    warm_mib: float
    end_mib: float
    peak_mib: float
    growth_percent: float
    limit_percent: float

    @property
    def passed(self) -> bool:
        """Whether the process stayed within its limit."""
        return self.growth_percent <= self.limit_percent


def soak(
    directory: Path,
    *,
    decisions: int,
    swaps: int,
    warm_up: int,
    limit_percent: float,
    progress: Callable[[int, int], None] | None = None,
) -> SoakReport:
    """Decide and swap, and watch the memory.

    Parameters
    ----------
    directory
        For the log and the generations.
    decisions, swaps
        How many in all; swaps are spread evenly.
    warm_up
        Decisions before the first measurement.
    limit_percent
        How much the memory may grow.
    progress
        Called with decisions done and in all.
    """
    paths = _generations(directory)
    requests = [msgspec.json.encode(each) for each in bodies(SMALL, _REQUESTS, seed=2)]
    scorer = Scorer({_LOOP: LoopConfig()}, secret=b"soak")
    config = LogConfig(segment_rows=_SEGMENT_ROWS)
    started = time.monotonic()
    swapped = 0
    memory: list[tuple[int, float]] = []
    with (
        SqliteEventLog.open(directory / "log", config) as log,
        Appender.open(log, config) as appender,
    ):
        worker = _Worker(scorer, appender, requests)
        for done in range(decisions):
            if swapped * decisions <= done * swaps:
                scorer.swap(Plan(Generation.load(paths[swapped % len(paths)])))
                swapped += 1
            worker.decide()
            if done % _SAMPLE_EVERY == 0 or done == warm_up:
                log.release(log.end())
                if progress is not None:
                    progress(done, decisions)
                memory.append((done, _resident_mib()))
        worker.settle()
        records = log.end() - 1
        memory.append((decisions, _resident_mib()))
    stretch = warm_up // 2
    warm = max(mib for done, mib in memory if warm_up - stretch <= done <= warm_up)
    end = max(mib for done, mib in memory if done >= decisions - stretch)
    return SoakReport(
        decisions=decisions,
        swaps=swapped,
        warm_up=warm_up,
        records=records,
        seconds=time.monotonic() - started,
        warm_mib=warm,
        end_mib=end,
        peak_mib=max(mib for done, mib in memory if done > warm_up),
        growth_percent=100.0 * (end / warm - 1.0),
        limit_percent=limit_percent,
    )


class _Worker:
    """Decides, logs and answers, as the service does."""

    def __init__(self, scorer: Scorer, appender: Appender, requests: Sequence[bytes]) -> None:
        self._scorer = scorer
        self._appender = appender
        self._requests = requests
        self._rng = random.Random(0)
        self._serial = 0
        self._catalogue = Catalogue()
        self._encoder = msgspec.json.Encoder()
        self._waiting: deque[Future[None]] = deque()

    def decide(self) -> None:
        self._serial += 1
        user = b'{"context":{"user":"u%d",' % self._rng.randrange(_USERS)
        # One of its actions was never met before, and will not be again.
        fresh = b'"features":{"serial":%d,' % self._serial
        body = self._rng.choice(self._requests).replace(b'{"context":{', user, 1)
        body = body.replace(b'"features":{', fresh, 1)
        decision = self._scorer.decide(_LOOP, self._catalogue.read(body))
        self._waiting.append(self._appender.submit(Record.of(decision)))
        self._encoder.encode(DecideResponse.of(decision))
        if len(self._waiting) > _WAITING:
            self._waiting.popleft().result()

    def settle(self) -> None:
        """Wait until everything is on disk."""
        while self._waiting:
            self._waiting.popleft().result()


def _generations(directory: Path) -> list[Path]:
    """Generations on disk, each trained on rows of its own."""
    rows = training_rows(SMALL, 500 * _GENERATIONS)
    paths = []
    for number in range(1, _GENERATIONS + 1):
        paths.append(directory / "generations" / str(number))
        part = rows[500 * (number - 1) : 500 * number]
        trained_generation(_LOOP, number, part).save(paths[-1])
    return paths


def _resident_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=10_000_000)
    parser.add_argument("--swaps", type=int, default=1_000)
    parser.add_argument("--warm-up", type=int, help="decisions; 5 per cent, and at least 200,000")
    parser.add_argument("--limit", type=float, default=5.0, help="per cent")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    warm_up = given.warm_up or max(given.decisions // 20, _LEAST_WARM_UP)
    if not 0 < warm_up < given.decisions:
        parser.error(f"expected more decisions than those of the warm-up, {warm_up:,}")
    if given.swaps < 1:
        parser.error(f"expected at least 1 swap, got {given.swaps}")
    output = Output(json=given.json)
    with tempfile.TemporaryDirectory() as directory, output.progress("decisions") as progress:
        report = soak(
            Path(directory),
            decisions=given.decisions,
            swaps=given.swaps,
            warm_up=warm_up,
            limit_percent=given.limit,
            progress=progress,
        )

    def show() -> None:
        values = msgspec.structs.asdict(report)
        output.table("Memory", ["what", "value"], [list(row) for row in values.items()])

    output.result(report, show)
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    main()
