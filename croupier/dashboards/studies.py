"""Studies that ``croupier simulate`` has written, as the dashboards read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import polars as pl
from deltalake import DeltaTable

from croupier.policy.errors import CroupierError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("Study", "StudyUnreadableError", "curves", "read_study", "studies")

_TABLE: Final = "lts.json"
_RUNS: Final = "runs"
_OPTIMUM: Final = "optimum"
_Z: Final = 1.959963984540054


class StudyUnreadableError(CroupierError):
    """A study's files are there and can't be read."""


class Mean(msgspec.Struct, frozen=True):
    """A mean over seeds with its standard error; None with one seed."""

    value: float
    error: float | None = None


class Arm(msgspec.Struct, frozen=True):
    """What an arm's policies earn from users that no simulator knew."""

    level: int
    arm: str
    seeds: int
    test_return: Mean
    of_optimum: float
    of_upper_bound: float


class Yardstick(msgspec.Struct, frozen=True):
    """What is known without any training."""

    policy: str
    mean_return: float
    standard_error: float
    users: int


class Study(msgspec.Struct, frozen=True):
    """One study, as much as is shown."""

    arms: list[Arm]
    yardsticks: list[Yardstick]

    @property
    def optimum(self) -> float | None:
        """What nobody can do better than; None where it isn't known."""
        found = [each.mean_return for each in self.yardsticks if each.policy == _OPTIMUM]
        return found[0] if found else None

    def results(self) -> pl.DataFrame:
        """A row for each arm: its level, its value with the interval, and shares of yardsticks."""
        rows = [
            {
                "level": f"Level {each.level}" if each.level else "Every level",
                "arm": each.arm,
                "seeds": each.seeds,
                "value": each.test_return.value,
                "lower": _end(each.test_return, -1.0),
                "upper": _end(each.test_return, 1.0),
                "of_optimum": each.of_optimum,
                "of_upper_bound": each.of_upper_bound,
            }
            for each in self.arms
        ]
        return pl.DataFrame(rows, infer_schema_length=None)


def studies(folder: Path) -> list[str]:
    """Names of the studies in a folder, in order."""
    return sorted(each.parent.name for each in folder.glob(f"*/{_TABLE}"))


def read_study(folder: Path) -> Study:
    """Read a study.

    Raises
    ------
    StudyUnreadableError
        If it can't be read.
    """
    try:
        return msgspec.json.decode((folder / _TABLE).read_bytes(), type=Study)
    except (OSError, msgspec.MsgspecError) as error:
        raise StudyUnreadableError(f"the study in {folder} can't be read: {error}") from error


def curves(folder: Path) -> pl.DataFrame:
    """Learning curves by level, arm and iteration, over seeds; empty if none were kept.

    Columns ``level``, ``arm``, ``iteration``, ``seeds``, ``training``, ``value`` (the test users'
    mean return) and the ends of its interval.
    """
    table = folder / _RUNS
    columns = ("level", "arm", "seed", "iteration", "training_return", "test_return")
    if not DeltaTable.is_deltatable(str(table)):
        return pl.DataFrame()
    rows = pl.read_delta(str(table)).select(columns).filter(pl.col("iteration") > 0)
    n, error = pl.len(), pl.col("test_return").std() / pl.len().sqrt()
    mean = pl.col("test_return").mean()
    return (
        rows.group_by("level", "arm", "iteration")
        .agg(
            seeds=n,
            training=pl.col("training_return").mean(),
            value=mean,
            lower=mean - _Z * error,
            upper=mean + _Z * error,
        )
        .sort("level", "arm", "iteration")
    )


def _end(mean: Mean, sign: float) -> float | None:
    return None if mean.error is None else mean.value + sign * _Z * mean.error
