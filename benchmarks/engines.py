"""Join, training and evaluation by a single process and by a Ray cluster of this machine.

``python -m benchmarks.engines --rows 200000 --cores 2`` fills a lake with decisions among ten
actions, as ``benchmarks.join`` does, and times each step with both engines, one after the other, on
copies of it. Starting the cluster and its workers is timed by itself. On one machine both have the
same cores, and much of a single process is done by several threads: what can be seen here is what
the tasks cost, and not what more machines bring.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from benchmarks.join import CONFIG, DAY, LOOP, START, fill
from croupier.cli.output import Output
from croupier.offline.engine import LOCAL
from croupier.offline.evaluate import evaluate
from croupier.offline.interactions import current_interactions
from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.offline.merged_training import MergeConfig, Spread
from croupier.offline.ray_engine import RayEngine
from croupier.offline.retrain import is_judged, retrain

if TYPE_CHECKING:
    from croupier.offline.engine import Engine

__all__ = ("Step", "compare")

JUDGE_SHARE = 0.3
DAYS = 10


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A step, by both engines.

    Attributes
    ----------
    name
        Which one.
    local_s, ray_s
        Seconds that it took.
    """

    name: str
    local_s: float | None
    ray_s: float


def compare(folder: Path, rows: int, engine: Engine) -> list[Step]:
    """Time all steps.

    Parameters
    ----------
    folder
        To work in.
    rows
        Decisions.
    engine
        To compare with the local one.
    """
    fill(folder / "local", 0, DAYS, max(1, rows // DAYS))
    shutil.copytree(folder / "local", folder / "ray")
    # Until all workers are there.
    start = time.perf_counter()
    list(engine.map(_pause, range(2 * engine.workers), 0.1))
    started = Step(name="start workers", local_s=None, ray_s=time.perf_counter() - start)
    local, ray = _steps(folder / "local", LOCAL), _steps(folder / "ray", engine)
    return [
        started,
        *(Step(name=name, local_s=seconds, ray_s=ray[name]) for name, seconds in local.items()),
    ]


def _pause(seconds: float, _number: int) -> None:
    time.sleep(seconds)


def _steps(root: Path, engine: Engine) -> dict[str, float]:
    """Seconds of every step."""
    lake, moments = Lake(root), [time.perf_counter()]
    join(lake, LOOP, CONFIG, START + (DAYS + 1) * DAY, engine=engine)
    moments.append(time.perf_counter())
    made = retrain(
        lake,
        LOOP,
        CONFIG,
        number=1,
        parent=0,
        judge_share=JUDGE_SHARE,
        seed=0,
        created_us=START,
        spread=Spread(MergeConfig(), engine) if engine.distributed else None,
    )
    moments.append(time.perf_counter())
    judged = current_interactions(lake, LOOP).filter(is_judged(JUDGE_SHARE)).collect()
    evaluate(judged, None, made, CONFIG, engine=engine)
    moments.append(time.perf_counter())
    names = ("join", "train", "evaluate")
    return {
        name: end - begin for name, begin, end in zip(names, moments, moments[1:], strict=False)
    }


def main() -> None:
    """Measure, and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="decisions")
    parser.add_argument("--cores", type=int, help="of the cluster; all unless given")
    parser.add_argument("--json", action="store_true", help="write JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, RayEngine(cores=arguments.cores) as engine:
        found = compare(Path(folder), arguments.rows, engine)
    output = Output(json=arguments.json)
    output.result(
        found,
        lambda: output.table(
            f"{arguments.rows:,} decisions, by one process and by a Ray cluster",
            ["step", "local s", "ray s"],
            [[each.name, each.local_s, each.ray_s] for each in found],
        ),
    )


if __name__ == "__main__":
    main()
