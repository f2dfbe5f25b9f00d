"""What it takes to join and to export a lake: memory, time, and the cost of one more night.

Run with ``python -m benchmarks.join --rows 1000000`` (``--json`` for programs). Decisions among ten
actions, with features and scores, are put into a new lake over ten days, 30 % of them with an
outcome, one outcome in fifty days late. They are joined once; another day is added and joined by
itself; then everything is exported to one Parquet file. Each step runs in a process of its own,
whose peak of resident memory is reported.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl

from croupier.cli.output import Output
from croupier.offline.export import export_parquet
from croupier.offline.join import join
from croupier.offline.lake import SCHEMAS, Lake
from croupier.policy.loop import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from croupier.offline.lake import TableName

LOOP, ACTIONS, DAYS, BATCH = "shop", 10, 10, 50_000
SHARE, LATE = 0.3, 0.02
DAY = 86_400_000_000
START = 1_790_035_200_000_000
CONFIG = LoopConfig(attribution_window="1 h")


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What a step took.

    Attributes
    ----------
    name
        Which one.
    rows
        That came out of it.
    seconds
        How long it took.
    peak_mib
        Peak of the resident memory of its process.
    """

    name: str
    rows: int
    seconds: float
    peak_mib: float


def main() -> None:
    """Measure, and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="decisions")
    parser.add_argument("--folder", type=Path, help="where the lake is made, and left")
    parser.add_argument("--json", action="store_true", help="write JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        steps = measure(arguments.folder or Path(folder), arguments.rows)
    output = Output(json=arguments.json)
    output.result(
        steps,
        lambda: output.table(
            f"{arguments.rows:,} decisions between {ACTIONS} actions",
            ["step", "rows", "seconds", "rows a second", "peak MiB"],
            [
                [
                    each.name,
                    each.rows,
                    round(each.seconds, 1),
                    round(each.rows / each.seconds),
                    round(each.peak_mib),
                ]
                for each in steps
            ],
        ),
    )


def measure(folder: Path, rows: int) -> list[Step]:
    """Fill a lake, join it, add a night, and export it; each in its own process."""
    root, nightly = folder / "lake", max(1, rows // DAYS)
    return [
        alone("fill", fill, root, 0, DAYS, nightly),
        alone("join", join_until, root, DAYS),
        alone("add a night", fill, root, DAYS, 1, nightly),
        alone("join the night", join_until, root, DAYS + 1),
        alone("join nothing new", join_until, root, DAYS + 1),
        alone("export", export, root, folder / "export.parquet"),
    ]


def alone(name: str, work: Callable[..., int], *arguments: object) -> Step:
    """Run something in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (name, work, arguments))


def _measured(name: str, work: Callable[..., int], arguments: tuple[object, ...]) -> Step:
    start = time.perf_counter()
    rows = work(*arguments)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Step(name=name, rows=rows, seconds=seconds, peak_mib=peak)


def fill(root: Path, first: int, days: int, nightly: int) -> int:
    """Add days of decisions and outcomes."""
    lake = Lake(root)
    for day in range(first, first + days):
        lake.append_stream("decisions", decisions(day, nightly), {})
        lake.append_stream("outcomes", outcomes(day, nightly), {})
    return days * nightly


def join_until(root: Path, day: int) -> int:
    """Join what there is; gives the number of interactions that were written."""
    report = join(Lake(root), LOOP, CONFIG, START + (day + 1) * DAY)
    return max(1, report.joined + report.revised)


def export(root: Path, path: Path) -> int:
    """Write all interactions to one file."""
    return export_parquet(Lake(root), LOOP, path)


def decisions(day: int, count: int) -> Iterator[pl.DataFrame]:
    """One day's decisions, in frames of the lake's schema."""
    rng = np.random.default_rng((day, 0))
    pool = [_actions(rng) for _ in range(200)]
    for first in range(0, count, BATCH):
        size = min(BATCH, count - first)
        pmf = rng.dirichlet(np.ones(ACTIONS), size)
        drawn = pmf.cumsum(axis=1) < rng.random((size, 1))
        chosen = drawn.sum(axis=1).clip(max=ACTIONS - 1)
        ages = rng.integers(18, 90, size).tolist()
        yield _in_schema(
            "decisions",
            {
                "offset": np.arange(day * count + first, day * count + first + size),
                "decision_id": _ids(day, first, size, count),
                "ts": _times(day, first, size, count),
                "context": [f'{{"user":{{"age":{age},"segment":"s{age % 7}"}}}}' for age in ages],
                "actions": [pool[each] for each in rng.integers(0, len(pool), size).tolist()],
                "action_ids": [[f"action-{each}" for each in range(ACTIONS)]] * size,
                "pmf": pmf.tolist(),
                "chosen": chosen,
                "action_id": [f"action-{each}" for each in chosen.tolist()],
                "propensity": pmf[np.arange(size), chosen],
                "scores": rng.random((size, ACTIONS)).tolist(),
            },
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


def outcomes(day: int, count: int) -> Iterator[pl.DataFrame]:
    """What comes on a day: for 30 % of its decisions, and for some of the days before."""
    rng = np.random.default_rng((day, 1))
    for first in range(0, count, BATCH):
        size = min(BATCH, count - first)
        places = np.flatnonzero(rng.random(size) < SHARE) + first
        of = np.full(len(places), day)
        late = rng.random(len(places)) < LATE
        of[late] = np.maximum(0, day - rng.integers(1, DAYS, late.sum()))
        decided = START + of * DAY + places * (DAY // count)
        delays = np.where(of == day, rng.exponential(3e8, len(of)), 0).astype(np.int64)
        stamped = np.where(of == day, decided + delays, _times(day, first, size, count)[0])
        yield _in_schema(
            "outcomes",
            {
                "offset": np.arange(len(places)) + day * count + first,
                "decision_id": [
                    _id(each, place, count)
                    for each, place in zip(of.tolist(), places.tolist(), strict=True)
                ],
                "outcome_id": [f"{day}:{place}" for place in places.tolist()],
                "reward": rng.random(len(places)),
                "ts": stamped,
            },
            kind=pl.lit("outcome"),
            guardrails=pl.lit("{}"),
        )


def _in_schema(
    table: TableName, columns: dict[str, object], **same: pl.Expr | int | float
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


def _times(day: int, first: int, size: int, count: int) -> np.ndarray:
    return START + day * DAY + np.arange(first, first + size) * (DAY // count)


def _time(day: int, place: int, count: int) -> int:
    return int(START + day * DAY + place * (DAY // count))


def _ids(day: int, first: int, size: int, count: int) -> list[str]:
    return [_id(day, place, count) for place in range(first, first + size)]


def _id(day: int, place: int, count: int) -> str:
    """An id as long as a UUID of version 7, that grows with time as those do."""
    digits = f"{_time(day, place, count) // 1000:012x}"
    noise = f"{(place * 0x9E3779B97F4A7C15) % 2**64:016x}"
    return f"{digits[:8]}-{digits[8:]}-7{noise[:3]}-8{noise[3:6]}-{noise[4:]}"


if __name__ == "__main__":
    main()
