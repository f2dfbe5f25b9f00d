"""Lakes that look like those of real loops, for the dashboards' tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.join import join
from croupier.offline.lake import SCHEMAS, Lake
from croupier.offline.sink import sink
from croupier.policy.loop import LoopConfig
from croupier.sim2rec.lts import LTSConfig, UserPopulation
from croupier.sim2rec.study import constant_policy_study
from croupier.sim2rec.transfer_config import ARMS, UPPER_BOUND
from croupier.sim2rec.transfer_runs import RECOMMENDER, RUNS_SCHEMA
from croupier.sim2rec.transfer_study import summarise_transfer
from tests.offline.logs import EPOCH_US, append, decision, outcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from croupier.policy.events import Event
    from croupier.sim2rec.transfer_study import TransferStudy

__all__ = (
    "champion_of",
    "generation_row",
    "homepage",
    "newsletter",
    "write_delays",
    "write_lake",
    "write_study",
)

_FIRST_NIGHT = datetime(2026, 10, 1, 2, 10, tzinfo=UTC)


def generation_row(loop: str, number: int, **values: Any) -> dict[str, Any]:
    """A row with everything missing but what is given."""
    empty = dict.fromkeys(SCHEMAS["generations"].names())
    return empty | {"loop": loop, "generation": number} | values


def write_lake(data_dir: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows in the place of the generations table of a data directory."""
    frame = pl.DataFrame(rows, schema=SCHEMAS["generations"])
    Lake(data_dir / "lake").replace("generations", frame)


def write_delays(data_dir: Path, delays_s: Sequence[float | None], loop: str = "homepage") -> None:
    """Log, sink and join decisions of a month ago, each with an outcome that came after a delay.

    None stands for an outcome that never came.
    """
    month_us = 30 * 86_400_000_000
    events: list[Event] = []
    for number, delay in enumerate(delays_s):
        made = decision(f"{loop}-{number}", EPOCH_US + number, loop=loop)
        events.append(made)
        if delay is not None:
            ts = made.ts + round(1e6 * delay)
            events.append(outcome(made.decision_id, f"o-{made.decision_id}", ts, loop=loop))
    lake = Lake(data_dir / "lake")
    with SqliteEventLog(data_dir / "log", synchronous="normal") as log, lake.lock():
        append(log, events)
        sink(log, lake)
        join(lake, loop, LoopConfig(), EPOCH_US + month_us)


def write_study(folder: Path, levels: Sequence[int] = (2, 3)) -> TransferStudy:
    """Write what ``croupier simulate lts`` does, of runs that nobody has trained."""
    rng = np.random.default_rng(3)
    rows = []
    for seed in range(2):
        for level in (0, *levels):
            names = [RECOMMENDER, *(arm.name for arm in ARMS)]
            for place, arm in enumerate(names):
                if (arm == UPPER_BOUND) != (level == 0):
                    continue
                for iteration in (0,) if arm == RECOMMENDER else (2, 4, 6):
                    earned = 40.0 + place + 0.3 * iteration - 0.1 * level + float(rng.normal())
                    run = {"digest": "", "level": level, "arm": arm, "seed": seed}
                    run |= {"iteration": iteration, "training_return": earned, "seconds": 1.0}
                    rows.append(run | {"test_return": earned})
    runs = pl.DataFrame(rows, schema=RUNS_SCHEMA)
    users = UserPopulation.draw(3, np.random.default_rng(1))
    yardsticks = constant_policy_study(LTSConfig(), users, np.random.default_rng(2))
    study = summarise_transfer(runs, yardsticks, levels)
    folder.mkdir(parents=True)
    runs.write_delta(str(folder / "runs"))
    (folder / "lts.json").write_bytes(msgspec.json.encode(study))
    return study


def champion_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The champion's row."""
    return next(row for row in rows if row["status"] == "champion")


def homepage(nights: int = 9) -> list[dict[str, Any]]:
    """A loop with a history: a cold start, promotions, rejections, an override, a challenger.

    One generation earned less than it promised.
    """
    rng = np.random.default_rng(7)
    loop = "homepage"
    rows = [
        generation_row(
            loop,
            0,
            status="retired",
            exploration="uniform",
            **_realised(0.0402, 48_211, p_value=0.61),
        )
    ]
    worth = 0.0402
    for number in range(1, nights + 1):
        created = _FIRST_NIGHT + timedelta(days=number)
        lead = float(rng.normal(0.0012, 0.0012))
        promoted = number % 4 != 3
        row = generation_row(
            loop,
            number,
            parent=number - 1,
            created=created,
            exploration="squarecb(gamma_scale=25, floor=0.01)",
            oracle="vowpal_wabbit",
            run_id=f"{number:032x}",
            training_rows=30_000 * number,
            **_estimated(worth, lead, judged=12_000 + 900 * number),
        )
        if number == nights:
            row |= {"status": "challenger"}
        elif promoted:
            worth += lead
            broken = -0.006 if number == 4 else 0.0
            row |= {"status": "retired", "promoted": created + timedelta(minutes=4)}
            row |= _realised(worth + broken + float(rng.normal(0, 0.0004)), 41_000 + 17 * number)
            row["verdict"] = "promoted: the interval of the difference is above 0"
        else:
            row |= {
                "status": "rejected",
                "verdict": f"generation {number} - generation {number - 1} is {lead:+.4f}, 95 % "
                f"interval [{lead - 0.003:+.4f}, {lead + 0.003:+.4f}]: not shown to be above +0",
            }
        rows.append(row)
    champion = [row for row in rows if row["promoted"] is not None][-1]
    champion["status"] = "champion"
    rows[2]["override_reason"] = "seasonal campaign, agreed with marketing"
    return rows


def newsletter() -> list[dict[str, Any]]:
    """A loop on its first day: the cold start alone, with a status but no estimate."""
    realised = _realised(0.31, 902, p_value=0.44)
    return [generation_row("newsletter", 0, status="champion", exploration="uniform", **realised)]


def _realised(mean: float, n: int, *, p_value: float = 0.37) -> dict[str, Any]:
    half = 1.96 * float(np.sqrt(mean * (1 - mean) / n))
    return {
        "decisions": n,
        "realised_mean": mean,
        "realised_lower": mean - half,
        "realised_upper": mean + half,
        "propensity_p_value": p_value,
    }


def _estimated(worth: float, lead: float, *, judged: int) -> dict[str, Any]:
    half = 0.0031
    return {
        "judged_rows": judged,
        "estimator": "dr",
        "estimate": worth + lead,
        "lower": worth + lead - half,
        "upper": worth + lead + half,
        "ess": judged * 0.41,
        "max_weight": 14.2,
        "champion_estimate": worth,
        "difference": lead,
        "difference_lower": lead - 0.0011,
        "difference_upper": lead + 0.0011,
    }
