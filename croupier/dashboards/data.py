"""What the pages read: small frames of the lake, cached by the version of their table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import polars as pl
import streamlit as st
from deltalake.exceptions import DeltaError
from polars.exceptions import PanicException, PolarsError

from croupier.dashboards.settings import data_dir
from croupier.offline.delays import DelayCurve, delay_curve
from croupier.offline.fairness.individuals import judged_table
from croupier.offline.fairness.pair_audit import AuditedPair, proposed_pairs
from croupier.offline.lake import Lake
from croupier.policy.errors import CroupierError
from croupier.policy.fairness.config import IndividualFairness
from croupier.policy.loop import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from croupier.offline.lake import TableName

__all__ = (
    "INTERVAL_LEVEL",
    "LakeUnreadableError",
    "delays",
    "generations",
    "generations_version",
    "interactions_version",
    "judgements",
    "loops_with_generations",
    "loops_with_interactions",
    "proposed",
)

INTERVAL_LEVEL: Final = "95 %"
"""Of every interval in the generations table; the table doesn't say, this is the gate's default."""

_GENERATIONS: TableName = "generations"
_INTERACTIONS: TableName = "interactions"

_PROPOSED: Final = 10
"""Pairs that are proposed at once."""

R = TypeVar("R")


class LakeUnreadableError(CroupierError):
    """The lake is there, but can't be read.

    Parameters
    ----------
    root
        Directory of the lake.
    cause
        What went wrong.
    """

    def __init__(self, root: Path, cause: BaseException) -> None:
        super().__init__(f"the lake in {root} can't be read: {cause}")
        self.root = root
        self.cause = cause


def generations_version() -> int:
    """Version of the generations table, the key of what is cached; -1 if nothing was written.

    Raises
    ------
    LakeUnreadableError
        If it can't be told.
    """
    return _reading(lambda lake: lake.version(_GENERATIONS))


def interactions_version() -> int:
    """Version of the interactions table, the key of what is cached; -1 if nothing was written.

    Raises
    ------
    LakeUnreadableError
        If it can't be told.
    """
    return _reading(lambda lake: lake.version(_INTERACTIONS))


def loops_with_generations(version: int) -> list[str]:
    """Names of all loops that have a generation, in order.

    Raises
    ------
    LakeUnreadableError
        If the table can't be read.
    """
    return _reading(lambda lake: _loops(str(lake.root), _GENERATIONS, version))


def loops_with_interactions(version: int) -> list[str]:
    """Names of all loops that have interactions, in order.

    Raises
    ------
    LakeUnreadableError
        If the table can't be read.
    """
    return _reading(lambda lake: _loops(str(lake.root), _INTERACTIONS, version))


def delays(version: int, loop: str) -> DelayCurve:
    """How late one loop's outcomes come, as ``croupier delays`` says for the default late horizon.

    Raises
    ------
    LakeUnreadableError
        If the table can't be read.
    """
    return _reading(lambda lake: _delays(str(lake.root), version, loop))


def generations(version: int, loop: str) -> pl.DataFrame:
    """One loop's rows of the generations table, by number; what is not finite is null.

    A row from before there were subsampled logs says that all decisions were logged.

    Raises
    ------
    LakeUnreadableError
        If the table can't be read.
    """
    return _reading(lambda lake: _generations(str(lake.root), version, loop))


def proposed(loop: str, config: IndividualFairness, seed: int) -> list[AuditedPair]:
    """Pairs whose judgement would tell most, as ``croupier judge`` proposes them.

    Raises
    ------
    LakeUnreadableError
        If the tables can't be read.
    NotEnoughDataError, InvalidInputError
        If there are no decisions to make pairs of.
    """

    def read(lake: Lake) -> list[AuditedPair]:
        versions = lake.version("decisions"), lake.version("audits")
        return _proposed(str(lake.root), versions, loop, config, seed)

    return _reading(read)


def judgements(loop: str) -> pl.DataFrame:
    """How many pairs everybody has judged in a loop, of columns ``Who`` and ``Pairs``.

    Raises
    ------
    LakeUnreadableError
        If the table can't be read.
    """
    return _reading(lambda lake: _judgements(str(lake.root), lake.version("audits"), loop))


def _reading(read: Callable[[Lake], R]) -> R:
    root = data_dir() / "lake"
    try:
        return read(Lake(root))
    except (OSError, DeltaError, PolarsError, PanicException) as error:
        # Polars panics, which is no Exception, where a file ends too early.
        raise LakeUnreadableError(root, error) from error


@st.cache_data(max_entries=16, show_spinner=False)
def _loops(root: str, table: TableName, version: int) -> list[str]:  # noqa: ARG001 - a key
    # Rows of a later version than the key's do no harm: the next look asks for that version.
    names = Lake(Path(root)).scan(table).select(pl.col("loop").unique().sort())
    return names.collect()["loop"].to_list()


@st.cache_data(max_entries=64, show_spinner="Reading the lake …")
def _generations(root: str, version: int, loop: str) -> pl.DataFrame:
    # An interval of a single reward has no ends: NaN in the lake, nothing to show here.
    finite = pl.col(pl.Float64)
    rows = Lake(Path(root)).scan_version(_GENERATIONS, version, loop)
    rows = rows.with_columns(pl.when(finite.is_finite()).then(finite))
    made = pl.coalesce("decisions_made", "decisions")
    return rows.with_columns(decisions_made=made).sort("generation").collect()


@st.cache_data(max_entries=64, show_spinner="Reading the lake …")
def _delays(root: str, version: int, loop: str) -> DelayCurve:
    # The dashboard knows no loop's configuration; of it, only the late horizon counts here.
    return delay_curve(Lake(Path(root)), loop, LoopConfig(), version=version)


@st.cache_data(
    max_entries=16,
    show_spinner="Looking for pairs …",
    hash_funcs={IndividualFairness: msgspec.json.encode},
)
def _proposed(
    root: str,
    versions: tuple[int, int],  # noqa: ARG001 - a key
    loop: str,
    config: IndividualFairness,
    seed: int,
) -> list[AuditedPair]:
    return proposed_pairs(Lake(Path(root)), loop, config, count=_PROPOSED, seed=seed)


@st.cache_data(max_entries=16, show_spinner=False)
def _judgements(root: str, version: int, loop: str) -> pl.DataFrame:  # noqa: ARG001 - a key
    judged = judged_table(Lake(Path(root)), loop).judgements
    counts = judged.group_by(Who="auditor").agg(Pairs=pl.len().cast(pl.Int64))
    return counts.sort("Pairs", "Who", descending=[True, False])
