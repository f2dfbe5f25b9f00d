"""Off-policy estimators beside those of the Open Bandit Pipeline: time and memory.

``python -m benchmarks.ope --peers peers/bin/python`` (``--json`` for programs) estimates the value
of a policy from one million rounds of ten actions with every estimator that both have; how to make
the interpreter `peers` stands in :mod:`benchmarks.ope_peers`. Each estimate is made in a process of
its own, which has loaded its code and has the log in memory as both want it: rewards, actions, and
for every action its probability under both policies and its estimated reward. What counts is
everything from there, the median of several rounds that take turns. Croupier always gives its
interval (empirical likelihood) with the value; of the Open Bandit Pipeline the value alone is
timed, and the value with its interval (100 bootstrap samples, its default). Memory is the peak of
what Python and NumPy allocate on top of the log, from a second, untimed estimate.

``--stream 100000000`` adds so many rounds to all of Croupier's estimators at once, a million at a
time, to see that memory stays where it is.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.cli.output import Output
from croupier.offline.ope import DM, DR, IPS, SNDR, SNIPS, DRos, LoggedBatch, SwitchDR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.offline.ope import Estimator

__all__ = ("Row", "compare", "stream")

NAMES = ("ips", "snips", "dm", "dr", "sndr", "switch-dr", "dros")
_AT_ONCE = 1_000_000
_WARM_UP = 1_000
_LARGEST = 200.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One estimator, by both.

    Attributes
    ----------
    estimator
        Its name.
    croupier, obp
        The values.
    croupier_s
        Seconds to value and interval, median.
    obp_s, obp_interval_s
        Seconds to the value alone, and to value and interval, medians.
    croupier_mib, obp_mib
        Peak of what is allocated on top of the log, in MiB, most of the rounds.
    """

    estimator: str
    croupier: float
    obp: float
    croupier_s: float
    obp_s: float
    obp_interval_s: float
    croupier_mib: float
    obp_mib: float


class Measured(msgspec.Struct, frozen=True):
    """One estimate, as its process tells of it; seconds to the value and, with it, the interval."""

    value: float
    seconds: float
    interval_s: float
    mib: float


def compare(folder: Path, rows: int, actions: int, peers: str, rounds: int) -> list[Row]:
    """Measure every estimator by both.

    Parameters
    ----------
    folder
        Where the log is put.
    rows, actions
        Its size.
    peers
        The interpreter that has the Open Bandit Pipeline.
    rounds
        How often.
    """
    fill(folder, rows, actions)
    own = [sys.executable, "-m", "benchmarks.ope", "--case"]
    other = [peers, str(Path(__file__).with_name("ope_peers.py")), "--time", str(folder)]
    found = []
    for name in NAMES:
        pairs = [
            (_measured([*own, name, "--folder", str(folder)]), _measured([*other, name]))
            for _ in range(rounds)
        ]
        ours, theirs = ([pair[side] for pair in pairs] for side in range(2))
        found.append(
            Row(
                estimator=name,
                croupier=ours[0].value,
                obp=theirs[0].value,
                croupier_s=statistics.median(each.seconds for each in ours),
                obp_s=statistics.median(each.seconds for each in theirs),
                obp_interval_s=statistics.median(each.interval_s for each in theirs),
                croupier_mib=max(each.mib for each in ours),
                obp_mib=max(each.mib for each in theirs),
            )
        )
    return found


def stream(rows: int, actions: int) -> Measured:
    """Add many rounds to all estimators, batch by batch; gives DR's value."""
    log = _log(min(rows, _AT_ONCE), actions, seed=1)
    estimators = [estimator(name) for name in NAMES]
    before, start = _peak_mib(), time.perf_counter()
    for _ in range(-(-rows // _AT_ONCE)):
        _add(estimators, log)
    value = estimators[NAMES.index("dr")].result(0.95).value
    seconds = time.perf_counter() - start
    return Measured(value, seconds, seconds, _peak_mib() - before)


def fill(folder: Path, rows: int, actions: int) -> None:
    """Write a log into files, one for each of its arrays."""
    for name, array in zip(_ARRAYS, _log(rows, actions, seed=0), strict=True):
        np.save(folder / f"{name}.npy", array)


def estimator(name: str) -> Estimator:
    """One of those that both have, with the same parameter."""
    limits = (0.0, _LARGEST)
    match name:
        case "switch-dr":
            return SwitchDR(2.0, weight_range=limits)
        case "dros":
            return DRos(2.0, weight_range=limits)
        case "dm":
            return DM(weight_range=limits)
    plain: dict[str, type[Estimator]] = {"ips": IPS, "snips": SNIPS, "dr": DR, "sndr": SNDR}
    return plain[name](weight_range=limits)


_ARRAYS = ("reward", "action", "logging", "target", "q")


def _log(rows: int, actions: int, seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    logging, target = (rng.dirichlet(np.full(actions, 2.0), rows) for _ in range(2))
    logging = 0.05 / actions + 0.95 * logging
    action = (logging.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    reward = (rng.random(rows) < 0.2 + 0.4 * action / actions).astype(float)
    return reward, action, logging, target, rng.random((rows, actions))


def _add(estimators: Sequence[Estimator], log: Sequence[np.ndarray]) -> None:
    arrays = dict(zip(_ARRAYS, log, strict=True))
    for part in LoggedBatch.of_pmfs(**arrays):
        for each in estimators:
            each.add(part)


def _case(name: str, folder: Path) -> Measured:
    wanted = _ARRAYS[:-1] if name in {"ips", "snips"} else _ARRAYS
    log = {each: np.load(folder / f"{each}.npy") for each in wanted}

    def estimate(rows: int | None = None) -> float:
        mine = estimator(name)
        for part in LoggedBatch.of_pmfs(**{each: array[:rows] for each, array in log.items()}):
            mine.add(part)
        return mine.result(0.95).value

    # The first estimate of a process loads the parts of SciPy that it needs; the pipeline's are
    # loaded with it, before its clock starts.
    estimate(_WARM_UP)
    start = time.perf_counter()
    value = estimate()
    seconds = time.perf_counter() - start
    tracemalloc.start()
    estimate()
    return Measured(value, seconds, seconds, tracemalloc.get_traced_memory()[1] / 2**20)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measured(command: Sequence[str]) -> Measured:
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return msgspec.json.decode(done.stdout, type=Measured)


def main() -> None:
    """Measure, and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rounds of the log")
    parser.add_argument("--actions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--peers", help="interpreter that has the Open Bandit Pipeline")
    parser.add_argument("--stream", type=int, help="rounds to add batch by batch instead")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="write JSON")
    asked = parser.parse_args()
    if asked.case is not None:
        print(json.dumps(msgspec.to_builtins(_case(asked.case, asked.folder))))
        return
    output = Output(json=asked.json)
    if asked.stream is not None:
        found = stream(asked.stream, asked.actions)
        output.result(
            found,
            lambda: output.remark(
                f"{asked.stream:,} rounds added to {len(NAMES)} estimators in "
                f"{found.seconds:.0f} s; the peak of memory grew by {found.mib:.0f} MiB"
            ),
        )
        return
    if asked.peers is None:
        parser.error("--peers: expected an interpreter with obp; see benchmarks/ope_peers.py")
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder), asked.rows, asked.actions, asked.peers, asked.rounds)
    output.result(rows, lambda: _show(output, asked.rows, asked.actions, rows))


def _show(output: Output, rounds: int, actions: int, rows: Sequence[Row]) -> None:
    output.table(
        f"{rounds:,} rounds of {actions} actions: Croupier and the Open Bandit Pipeline",
        [
            "estimator",
            "value",
            "obp's",
            "s",
            "obp's",
            "times",
            "with interval",
            "times",
            "MiB",
            "obp's",
            "share",
        ],
        [
            [
                each.estimator,
                f"{each.croupier:.9f}",
                f"{each.obp:.9f}",
                f"{each.croupier_s:.3f}",
                f"{each.obp_s:.3f}",
                f"{each.obp_s / each.croupier_s:.1f}",
                f"{each.obp_interval_s:.3f}",
                f"{each.obp_interval_s / each.croupier_s:.0f}",
                f"{each.croupier_mib:.1f}",
                f"{each.obp_mib:.0f}",
                f"{each.croupier_mib / max(each.obp_mib, 1.0):.2f}",
            ]
            for each in rows
        ],
    )


if __name__ == "__main__":
    main()
