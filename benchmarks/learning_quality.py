"""What explorations earn while they learn, beside the learners of other packages.

``python -m benchmarks.learning_quality --peers peers/bin/python`` (``--json`` for programs) lets
every exploration of Croupier's, and every learner of :mod:`benchmarks.learning_peers` under the
interpreter given, go through the streams of :mod:`benchmarks.learning_streams`: one context at a
time, choose, see the reward of that choice, learn from it alone. What is reported is the mean
reward from the first decision on, over five seeds, and :mod:`benchmarks.learning_verdicts` says who
has won where. Without ``--peers`` it is Croupier alone, on scikit-learn's data sets.

Every result is a line of ``FOLDER/results.jsonl`` as soon as it is there. Runs that are in the file
aren't made again, so that the command can be stopped at any time, or by ``--minutes``, and goes on
where it was.

Seeds from 0 on are for reporting. The settings of ``thompson, scale 0.05, l2 10`` were chosen on
seed 100; how ``regcb optimistic`` tells clipped bounds apart was looked at on seeds 100 and 101, at
its default settings. The ``gamma_scale`` of 100 and the ``optimism`` of 0.01 of the default, and
the ``l2`` of 0.2 that is ``auto``'s, were chosen on seeds 100 to 103, of 200 and of
1000 rows. All else is as its name says, or at its defaults.
"""

from __future__ import annotations

import argparse
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from benchmarks.learning_ours import COMPARED, LEARNERS, Answer, Job
from benchmarks.learning_streams import BUNDLED, DATA, MOST_ROWS, load, read, stream, write
from benchmarks.learning_verdicts import (
    ALPHA,
    Earned,
    Record,
    Standing,
    Verdict,
    records,
    standings,
    verdicts,
)
from croupier.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SEEDS = 5
_PEERS_SCRIPT = Path(__file__).with_name("learning_peers.py")


class Peers(msgspec.Struct, frozen=True):
    """What ``learning_peers.py --list`` tells."""

    learners: list[str]
    versions: dict[str, str]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes
    ----------
    versions
        Of the peers' packages.
    standings
        Every learner on every data set.
    verdicts, records
        By which of ours is compared.
    failed
        Runs that ended with an error.
    missing
        How many runs of those that were asked for are yet to be made.
    """

    versions: dict[str, str]
    standings: list[Standing]
    verdicts: dict[str, list[Verdict]]
    records: dict[str, list[Record]]
    failed: list[Earned]
    missing: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be measured, and where results are kept.

    Attributes
    ----------
    folder
        Of streams and results; made if it isn't there.
    peers
        Interpreter that has their packages; None for Croupier alone.
    data
        Data sets.
    seeds
        Of the orders, and of the learners.
    most_rows
        At most how many rows of a data set are decided.
    only
        Names of learners to measure, those of Croupier's as they are and others with the package
        in front; all if empty.
    jobs
        How many processes work.
    minutes
        After which no further run is started; None for no limit.
    """

    folder: Path
    peers: str | None = None
    data: tuple[str, ...] = DATA
    seeds: tuple[int, ...] = tuple(range(SEEDS))
    most_rows: int = MOST_ROWS
    only: tuple[str, ...] = ()
    jobs: int = 2
    minutes: float | None = None


class _Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is to be made."""

    learner: str
    ours: bool
    data: str
    seed: int
    most_rows: int


def measure(plan: Plan, note: Callable[[int, int], None] = lambda _done, _total: None) -> Report:
    """Make the runs that are missing, and report on all that the plan asks for."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    peers = Peers([], {}) if plan.peers is None else _listed(plan.peers)
    wanted = _wanted(plan, peers)
    results = plan.folder / "results.jsonl"
    known = {_run_of(each) for each in _kept(results)}
    missing = [run for run in wanted if run not in known]
    if missing:
        _prepare(plan, missing)
        _work(plan, missing, results, note)
    asked = set(wanted)
    # Of two processes on one folder both may have made a run.
    found = list(
        {_run_of(each): each for each in _kept(results) if _run_of(each) in asked}.values()
    )
    # In the order of the plan, whichever was ready first.
    place = {run: index for index, run in enumerate(wanted)}
    found.sort(key=lambda each: place[_run_of(each)])
    compared = {
        learner: verdicts(found, learner)
        for learner in dict.fromkeys(each.learner for each in found if each.ours)
    }
    return Report(
        versions=peers.versions,
        standings=standings(found),
        verdicts=compared,
        records={learner: records(told) for learner, told in compared.items()},
        failed=[each for each in found if each.reward is None],
        missing=len(wanted) - len(found),
    )


def _listed(interpreter: str) -> Peers:
    told = subprocess.run(  # noqa: S603 - the interpreter is the caller's
        [interpreter, str(_PEERS_SCRIPT), "--list"], check=True, capture_output=True
    )
    return msgspec.json.decode(told.stdout, type=Peers)


def _wanted(plan: Plan, peers: Peers) -> list[_Run]:
    """All runs that the plan asks for; those of one seed before those of the next."""
    learners = [(name, True) for name in LEARNERS] + [(name, False) for name in peers.learners]
    return [
        _Run(learner=name, ours=ours, data=data, seed=seed, most_rows=plan.most_rows)
        for seed in plan.seeds
        for data in plan.data
        for name, ours in learners
        if not plan.only or name in plan.only
    ]


def _run_of(found: Earned) -> _Run:
    return _Run(
        learner=found.learner,
        ours=found.ours,
        data=found.data,
        seed=found.seed,
        most_rows=found.most_rows,
    )


def _kept(results: Path) -> list[Earned]:
    """Results so far; a line that a stop has cut off doesn't count."""
    if not results.exists():
        return []
    lines = results.read_bytes().split(b"\n")[:-1]
    return [msgspec.json.decode(line, type=Earned) for line in lines if line]


def _prepare(plan: Plan, missing: Sequence[_Run]) -> None:
    """Write the streams that aren't there yet."""
    exported = plan.folder / "exported"
    if plan.peers is not None and not exported.exists():
        exported.mkdir()
        subprocess.run(  # noqa: S603 - the interpreter is the caller's
            [plan.peers, str(_PEERS_SCRIPT), "--export", str(exported)], check=True
        )
    for run in missing:
        path = _stream_path(plan, run)
        if not path.exists():
            write(path, stream(load(run.data, exported), run.seed, run.most_rows))


def _stream_path(plan: Plan, run: _Run) -> Path:
    return plan.folder / f"{run.data} {run.seed} {run.most_rows}.npz"


def _work(
    plan: Plan, missing: Sequence[_Run], results: Path, note: Callable[[int, int], None]
) -> None:
    """Have processes make the runs, and write each result down as soon as it is there."""
    waiting: queue.SimpleQueue[_Run] = queue.SimpleQueue()
    for run in missing:
        waiting.put(run)
    until = float("inf") if plan.minutes is None else time.monotonic() + 60.0 * plan.minutes
    lock, done, failures = threading.Lock(), [0], list[BaseException]()
    with results.open("ab") as file:
        # Whatever a stop has cut off goes.
        file.truncate(results.read_bytes().rfind(b"\n") + 1)

        def work() -> None:
            workers: dict[bool, _Worker] = {}
            try:
                while time.monotonic() < until:
                    run = waiting.get_nowait()
                    if run.ours not in workers:
                        workers[run.ours] = _Worker(None if run.ours else plan.peers)
                    earned = _earned(workers[run.ours], run, _stream_path(plan, run))
                    with lock:
                        file.write(msgspec.json.encode(earned) + b"\n")
                        file.flush()
                        done[0] += 1
                        note(done[0], len(missing))
            except queue.Empty:
                pass
            except BaseException as error:  # noqa: BLE001 - raised again by the caller
                failures.append(error)
            finally:
                for worker in workers.values():
                    worker.close()

        threads = [threading.Thread(target=work) for _ in range(plan.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if done[0] < len(missing):
        # Time was up: no more than these were made.
        note(done[0], done[0])
    if failures:
        raise failures[0]


def _earned(worker: _Worker, run: _Run, path: Path) -> Earned:
    actions = read(path).rewards.shape[1]
    start = time.perf_counter()
    answer = worker.ask(Job(learner=run.learner, stream=str(path), actions=actions, seed=run.seed))
    seconds = time.perf_counter() - start
    return Earned(
        learner=run.learner,
        data=run.data,
        seed=run.seed,
        ours=run.ours,
        most_rows=run.most_rows,
        rows=len(answer.rewards),
        reward=float(np.mean(answer.rewards)) if answer.error is None else None,
        error=answer.error,
        seconds=seconds,
    )


class _Worker:
    """A process that makes one run after the other: Croupier's own, or one of an interpreter."""

    def __init__(self, interpreter: str | None) -> None:
        ours = [sys.executable, "-m", "benchmarks.learning_ours"]
        self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - as above
            ours if interpreter is None else [interpreter, str(_PEERS_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_PEERS_SCRIPT.parents[1],
            # One core each: threads of a BLAS would only wait for each other.
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def ask(self, job: Job) -> Answer:
        assert self._process.stdin is not None, "a pipe"
        assert self._process.stdout is not None, "a pipe"
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that was asked for {job.learner!r} has ended")
        return msgspec.json.decode(line, type=Answer)

    def close(self) -> None:
        self._process.communicate()


def _show(output: Output, report: Report, plan: Plan) -> None:
    by_place = {(each.learner, each.data): each for each in report.standings}
    learners = list(dict.fromkeys(each.learner for each in report.standings))
    data = [name for name in plan.data if any(each.data == name for each in report.standings)]

    def mean(learner: str) -> float | None:
        found = [by_place.get((learner, name)) for name in data]
        there = [each.reward for each in found if each is not None]
        return round(float(np.mean(there)), 3) if len(there) == len(data) else None

    output.table(
        f"Mean reward of at most {plan.most_rows:,} decisions while learning, "
        f"{len(plan.seeds)} seeds",
        ["learner", *data, "mean"],
        [
            [name, *(_cell(by_place.get((name, each))) for each in data), mean(name)]
            for name in learners
        ],
    )
    for learner in COMPARED:
        told = report.records.get(learner, [])
        if told:
            output.table(
                f"{learner} beside each peer: on how many data sets",
                [
                    "peer",
                    "mean difference",
                    "better",
                    "worse",
                    "wins",
                    "losses",
                    "plain wins",
                    "plain losses",
                ],
                [
                    [
                        each.other,
                        f"{each.difference:+.3f}",
                        each.better,
                        each.worse,
                        each.wins,
                        each.losses,
                        each.plain_wins,
                        each.plain_losses,
                    ]
                    for each in told
                ],
                note=f"wins and losses: paired t over seeds, two-sided, {ALPHA:g}, corrected by "
                "Holm over all peers; plain: uncorrected",
            )
    for failed in report.failed:
        output.warn(f"{failed.learner} on {failed.data}, seed {failed.seed}: {failed.error}")
    if report.missing:
        output.warn(f"{report.missing:,} runs are yet to be made: run the command again")


def _cell(found: Standing | None) -> str | None:
    return None if found is None else f"{found.reward:.3f} ± {found.error:.3f}"


def _draw(report: Report, data: Sequence[str], path: Path) -> None:
    """Draw a panel for every data set: each learner's mean with its 95 % interval over seeds."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415
    from scipy import stats  # noqa: PLC0415

    learners = list(dict.fromkeys(each.learner for each in report.standings))[::-1]
    figure, panels = plt.subplots(
        1, len(data), sharey=True, figsize=(3 + 1.5 * len(data), 1 + 0.17 * len(learners))
    )
    for panel, name in zip(np.atleast_1d(panels), data, strict=True):
        for each in (found for found in report.standings if found.data == name):
            half = stats.t.ppf(0.975, each.seeds - 1) * each.error if each.seeds > 1 else 0.0
            colour = "tab:blue" if each.ours else "tab:grey"
            marker = "D" if each.learner in COMPARED else "o"
            place = learners.index(each.learner)
            panel.errorbar(each.reward, place, xerr=half, fmt=marker, ms=3, lw=0.8, color=colour)
        panel.set_title(name, fontsize=8)
        panel.set_xlabel("mean reward", fontsize=7)
        panel.tick_params(labelsize=6)
        panel.grid(axis="x", lw=0.3)
        panel.set_yticks(range(len(learners)), learners)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="an interpreter with the packages of learning_peers.py")
    parser.add_argument("--folder", type=Path, default=Path("learning-quality"))
    parser.add_argument("--data", nargs="+", choices=DATA)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument("--rows", type=int, default=MOST_ROWS)
    parser.add_argument("--only", nargs="+", default=[], metavar="LEARNER")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", action="store_true")
    given: Any = parser.parse_args()
    output = Output(json=given.json)
    data = given.data or (BUNDLED if given.peers is None else DATA)
    beyond = sorted(set(data) - set(BUNDLED))
    if given.peers is None and beyond:
        parser.error(f"--data: {', '.join(beyond)} come with the peers' packages; give --peers too")
    plan = Plan(
        folder=given.folder,
        peers=given.peers,
        data=tuple(data),
        seeds=tuple(given.seeds),
        most_rows=given.rows,
        only=tuple(given.only),
        jobs=given.jobs,
        minutes=given.minutes,
    )
    with output.progress("runs") as note:
        report = measure(plan, note)
    output.result(report, lambda: _show(output, report, plan))
    if given.figure is not None:
        _draw(report, plan.data, given.figure)


if __name__ == "__main__":
    main()
