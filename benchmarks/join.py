"""What it takes to join and to export a lake: memory, time, and the cost of one more night.

Run with ``make bench-join`` or ``python -m benchmarks.join --rows 1000000 4000000`` (``--json`` for
programs). For each number of rows a new lake is filled: days of a million decisions (`--night`)
among ten actions, with features and scores, 30 % of them with an outcome, one outcome in fifty up
to nine days late. It is joined at once; another day is added, and what a night does about that day
is measured; then everything is exported. Each step runs in a process of its own, whose peak of
resident memory is reported, with the load of the machine meanwhile.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl

from croupier.cli.output import Output
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.export import export_dsjson, export_parquet
from croupier.offline.generations import refresh_realised
from croupier.offline.join import join
from croupier.offline.lake import SCHEMAS, Lake
from croupier.offline.retention import retain
from croupier.policy.guardrails import Guardrail
from croupier.policy.loop import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from croupier.offline.lake import TableName

LOOP, ACTIONS, BATCH = "shop", 10, 50_000
SHARE, LATE, LATEST = 0.3, 0.02, 10
DAY = 86_400_000_000
START = 1_790_035_200_000_000
CONFIG = LoopConfig(attribution_window="1 h", log_retention="1000 d")
_HEX = np.array([f"{byte:02x}".encode() for byte in range(256)])


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What a step took.

    Attributes
    ----------
    name
        Which one.
    rows
        That came out of it, or that it looked at.
    seconds, cpu_seconds
        How long it took, and of how much of the processors.
    peak_mib
        Peak of the resident memory of its process.
    load
        Load average of the machine over the minute before its end; 1 of it is the step itself.
    """

    name: str
    rows: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    load: float


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """All steps with a lake of so many decisions, to which a night of others was added."""

    rows: int
    night: int
    lake_mib: float
    steps: list[Step]


def main() -> None:
    """Measure, and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="decisions")
    parser.add_argument("--night", type=int, default=1_000_000, help="decisions a day")
    parser.add_argument("--folder", type=Path, help="where lakes are made (and deleted)")
    parser.add_argument("--guardrails", type=int, default=0, help="that every outcome names")
    parser.add_argument("--dsjson", action="store_true", help="export as dsjson too")
    parser.add_argument("--json", action="store_true", help="write JSON")
    arguments = parser.parse_args()
    output = Output(json=arguments.json)
    runs: list[Run] = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            run = measure(
                Path(folder),
                rows,
                arguments.night,
                guardrails=arguments.guardrails,
                dsjson=arguments.dsjson,
                tell=output.remark,
            )
            runs.append(run)
    output.result(runs, lambda: show(output, runs))


def show(output: Output, runs: Sequence[Run]) -> None:
    """A table of every run, and one of what a night takes with each of them."""
    for run in runs:
        output.table(
            f"{run.rows:,} decisions between {ACTIONS} actions, {run.lake_mib:,.0f} MiB",
            ["step", "rows", "seconds", "CPU seconds", "rows a second", "peak MiB", "load"],
            [
                [
                    each.name,
                    each.rows,
                    round(each.seconds, 1),
                    round(each.cpu_seconds, 1),
                    round(each.rows / each.seconds),
                    round(each.peak_mib),
                    round(each.load, 1),
                ]
                for each in run.steps
            ],
        )


def measure(
    folder: Path,
    rows: int,
    night: int,
    *,
    guardrails: int = 0,
    dsjson: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Run:
    """Fill a lake, join it, add a night, and export it; each in its own process."""

    def alone(name: str, work: Callable[..., int], *arguments: object) -> Step:
        step = in_a_process(name, work, *arguments)
        if tell is not None:
            tell(
                f"{rows:,} decisions: {name}, {step.seconds:.1f} s, {step.cpu_seconds:.1f} s of "
                f"the processors, {step.peak_mib:.0f} MiB"
            )
        return step

    root, days = folder / "lake", max(1, rows // night)
    steps = [
        alone("fill", fill, root, 0, days, rows // days, guardrails),
        alone("join", join_until, root, days, guardrails),
        alone("count what generations earned", realise, root, days * night),
        alone("add a night", fill, root, days, 1, night, guardrails),
        alone("join the night", join_until, root, days + 1, guardrails),
        alone("count the night", realise, root, night),
        alone("look for what is to be forgotten", forget, root, days + 1, night),
        alone("join nothing new", join_until, root, days + 1, guardrails),
        alone("export Parquet", export, root, folder / "export.parquet"),
    ]
    if dsjson:
        steps.append(alone("export dsjson", export, root, folder / "export.dsjson"))
    size = sum(each.stat().st_size for each in root.rglob("*") if each.is_file())
    return Run(rows=rows, night=night, lake_mib=size / 2**20, steps=steps)


def in_a_process(name: str, work: Callable[..., int], *arguments: object) -> Step:
    """Run something in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (name, work, arguments))


def _measured(name: str, work: Callable[..., int], arguments: tuple[object, ...]) -> Step:
    start, before = time.perf_counter(), time.process_time()
    rows = work(*arguments)
    return Step(
        name=name,
        rows=rows,
        seconds=time.perf_counter() - start,
        cpu_seconds=time.process_time() - before,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        load=os.getloadavg()[0],
    )


def fill(root: Path, first: int, days: int, nightly: int, guardrails: int = 0) -> int:
    """Add days of decisions and outcomes."""
    lake = Lake(root)
    for day in range(first, first + days):
        lake.append_stream("decisions", decisions(day, nightly), {})
        lake.append_stream("outcomes", outcomes(day, nightly, guardrails), {})
    return days * nightly


def join_until(root: Path, day: int, guardrails: int) -> int:
    """Join what there is; gives the number of interactions that were written."""
    guarded = {name: Guardrail() for name in _guardrails(guardrails)}
    config = msgspec.structs.replace(CONFIG, guardrails=guarded)
    report = join(Lake(root), LOOP, config, START + (day + 1) * DAY)
    return report.joined + report.revised


def realise(root: Path, rows: int) -> int:
    """Put what generations earned beside what was promised, as every night does."""
    refresh_realised(Lake(root), LOOP)
    return rows


def forget(root: Path, day: int, rows: int) -> int:
    """Find out whether anything is old enough to be forgotten, and joined; nothing is."""
    with SqliteEventLog(root.parent / "log") as log:
        retain(Lake(root), log, {LOOP: CONFIG}, now_us=START + (day + 1) * DAY)
    return rows


def export(root: Path, path: Path) -> int:
    """Write all interactions to one file."""
    write = export_dsjson if path.suffix == ".dsjson" else export_parquet
    count = write(Lake(root), LOOP, path)
    path.unlink()
    return count


def decisions(day: int, count: int) -> Iterator[pl.DataFrame]:
    """One day's decisions, in frames of the lake's schema."""
    rng = np.random.default_rng((day, 0))
    pool = pl.Series([_actions(rng) for _ in range(200)])
    contexts = pl.Series(
        [f'{{"user":{{"age":{age},"segment":"s{age % 7}"}}}}' for age in range(18, 90)]
    )
    names = pl.Series([f"action-{each}" for each in range(ACTIONS)])
    for first in range(0, count, BATCH):
        places = np.arange(first, min(first + BATCH, count))
        size = len(places)
        pmf = rng.dirichlet(np.ones(ACTIONS), size)
        drawn = pmf.cumsum(axis=1) < rng.random((size, 1))
        chosen = drawn.sum(axis=1).clip(max=ACTIONS - 1)
        yield _in_schema(
            "decisions",
            {
                "offset": places + day * count,
                "decision_id": _ids(np.full(size, day), places, count),
                "ts": _times(day, places, count),
                "context": contexts.gather(rng.integers(0, len(contexts), size)),
                "actions": pool.gather(rng.integers(0, len(pool), size)),
                "pmf": pmf,
                "chosen": chosen,
                "action_id": names.gather(chosen),
                "propensity": pmf[np.arange(size), chosen],
                "scores": rng.random((size, ACTIONS)),
            },
            action_ids=pl.lit(names.to_list()),
            excluded=pl.lit([], dtype=pl.List(pl.String)),
            generation=1,
            learning_mode=pl.lit("online"),
            baseline=0,
            mix=pl.lit([{"source": "generation:1", "weight": 1.0}]),
            keep_prob=1.0,
            draw_key=pl.lit("0" * 16),
            deferred=pl.lit(value=False),
            audit=pl.lit("{}"),
        )


def outcomes(day: int, count: int, guardrails: int) -> Iterator[pl.DataFrame]:
    """What comes on a day: for 30 % of its decisions, and for some of the days before."""
    named = pl.lit("{}")
    if guardrails:
        each = [pl.col("reward").alias(name) for name in _guardrails(guardrails)]
        named = pl.struct(each).struct.json_encode()
    rng = np.random.default_rng((day, 1))
    for first in range(0, count, BATCH):
        size = min(BATCH, count - first)
        places = np.flatnonzero(rng.random(size) < SHARE) + first
        of = np.full(len(places), day)
        late = rng.random(len(places)) < LATE
        of[late] = np.maximum(0, day - rng.integers(1, LATEST, late.sum()))
        delays = rng.exponential(3e8, len(of)).astype(np.int64)
        now = _times(day, np.array([first]), count)
        yield _in_schema(
            "outcomes",
            {
                "offset": np.arange(len(places)) + day * count + first,
                "decision_id": _ids(of, places, count),
                "reward": rng.random(len(places)),
                "ts": np.where(of == day, _times(day, places, count) + delays, now),
            },
            outcome_id=pl.format("{}:{}", pl.lit(day), pl.Series(places)),
            kind=pl.lit("outcome"),
            guardrails=named,
        )


def _guardrails(count: int) -> list[str]:
    return [f"guardrail-{number}" for number in range(count)]


def _in_schema(
    table: TableName, columns: dict[str, object], **same: pl.Expr | list[str] | int | float
) -> pl.DataFrame:
    moments = pl.col("ts").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    rows = pl.DataFrame(columns).with_columns(moments, loop=pl.lit(LOOP), **same)
    rows = rows.with_columns(date=pl.col("ts").dt.date())
    schema = SCHEMAS[table]
    missing = [pl.lit(None).alias(name) for name in schema.names() if name not in rows.columns]
    return rows.with_columns(missing).select(
        pl.col(name).cast(kind) for name, kind in schema.items()
    )


def _actions(rng: np.random.Generator) -> str:
    actions = [
        {"id": f"action-{each}", "features": {"price": round(rng.random(), 4), "kind": f"k{each}"}}
        for each in range(ACTIONS)
    ]
    return msgspec.json.encode(actions).decode()


def _times(
    days: int | NDArray[np.int64], places: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    return START + days * DAY + places * (DAY // count)


def _ids(days: NDArray[np.int64], places: NDArray[np.int64], count: int) -> pl.Series:
    """Ids as long as UUIDs of version 7, that grow with time as those do."""
    noise = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    stamp = _hexadecimal((_times(days, places, count) // 1000).astype(np.uint64))[:, 4:]
    tail = _hexadecimal(noise)
    dash, version, variant = (np.full((len(places), 1), each, "S1") for each in (b"-", b"7", b"8"))
    parts = (
        *(stamp[:, :8], dash, stamp[:, 8:], dash, version, tail[:, :3], dash),
        *(variant, tail[:, 3:6], dash, tail[:, 4:]),
    )
    text = np.ascontiguousarray(np.concatenate(parts, axis=1)).view("S36").ravel()
    return pl.Series(text.tolist(), dtype=pl.Binary).cast(pl.String)


def _hexadecimal(numbers: NDArray[np.uint64]) -> NDArray[np.bytes_]:
    """Digits of numbers of 64 bits, shape (n, 16)."""
    octets = numbers.astype(">u8").view(np.uint8).reshape(len(numbers), 8)
    return np.ascontiguousarray(_HEX[octets]).view("S1").reshape(len(numbers), 16)


if __name__ == "__main__":
    main()
