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
from croupier.offline.one_decision import decision_by_id
from croupier.offline.overrides import AskedOverride, asked_overrides
from croupier.offline.summaries.tables import summaries_of
from croupier.policy.errors import CroupierError
from croupier.policy.fairness.config import IndividualFairness
from croupier.policy.loop import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from croupier.offline.lake import TableName
    from croupier.offline.one_decision import FoundDecision
    from croupier.offline.summaries.tables import SummaryName, SummaryState

__all__ = (
    "INTERVAL_LEVEL",
    "LakeUnreadableError",
    "acknowledged",
    "decision",
    "delays",
    "fairness",
    "generations",
    "generations_version",
    "interactions_version",
    "judged",
    "judgements",
    "loops_with_decisions",
    "loops_with_generations",
    "loops_with_interactions",
    "overrides",
    "proposed",
    "summarised_loops",
    "summary",
    "summary_state",
    "summary_version",
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


def loops_with_decisions() -> list[str]:
    """Names of all loops that have decisions, in order.

    Raises
    ------
    LakeUnreadableError
        If the table can't be read.
    """
    return _reading(lambda lake: lake.loops("decisions"))


def decision(loop: str, decision_id: str) -> FoundDecision | None:
    """What the lake has of a decision; None if it has none of that id.

    Raises
    ------
    LakeUnreadableError
        If a table can't be read.
    InvalidInputError
        If it is no id.
    """
    return _reading(lambda lake: decision_by_id(lake, loop, decision_id))


def acknowledged() -> dict[str, tuple[str, datetime]]:
    """Who was the first to acknowledge an alert, of whatever loop, and when; by its id.

    Raises
    ------
    LakeUnreadableError
        If the table can't be read.
    """
    return _reading(lambda lake: _acknowledged(str(lake.root), lake.version("audits")))


def overrides(loop: str) -> list[AskedOverride]:
    """What champions people have asked for in a loop, by time.

    Raises
    ------
    LakeUnreadableError
        If the table can't be read.
    """
    return _reading(lambda lake: _overrides(str(lake.root), lake.version("audits"), loop))


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
    counts = judged(loop).group_by(Who="auditor").agg(Pairs=pl.len().cast(pl.Int64))
    return counts.sort("Pairs", "Who", descending=[True, False])


def judged(loop: str) -> pl.DataFrame:
    """All judgements of pairs in a loop, of every auditor and pair the latest.

    Raises
    ------
    LakeUnreadableError
        If the table can't be read.
    """
    return _reading(lambda lake: _judged(str(lake.root), lake.version("audits"), loop))


def summarised_loops() -> list[str]:
    """Names of all loops that a night has summed up, in order.

    Raises
    ------
    LakeUnreadableError
        If it can't be told.
    """
    return _reading(lambda lake: summaries_of(lake).loops())


def summary_version(loop: str) -> str:
    """Name of a loop's current set of small tables, the key of what is cached.

    Raises
    ------
    LakeUnreadableError
        If it can't be told.
    """
    return _reading(lambda lake: summaries_of(lake).version(loop))


def summary(loop: str, name: SummaryName) -> pl.DataFrame:
    """One of the small tables of a loop, or of the scorers, as it is now; not to be changed.

    Raises
    ------
    LakeUnreadableError
        If it can't be read.
    """
    return _reading(
        lambda lake: _summary(str(lake.root), loop, name, summaries_of(lake).version(loop))
    )


def summary_state(loop: str) -> SummaryState | None:
    """What a loop's small tables were made of; None if there are none.

    Raises
    ------
    LakeUnreadableError
        If it can't be read.
    """
    return _reading(lambda lake: summaries_of(lake).state(loop))


def fairness(loop: str) -> pl.DataFrame:
    """One loop's rows of the fairness table, which are few.

    Raises
    ------
    LakeUnreadableError
        If the table can't be read.
    """
    return _reading(lambda lake: _fairness(str(lake.root), lake.version("fairness"), loop))


def _reading(read: Callable[[Lake], R]) -> R:
    root = data_dir() / "lake"
    try:
        return read(Lake(root))
    except (OSError, DeltaError, PolarsError, PanicException) as error:
        # Polars panics, which is no Exception, where a file ends too early.
        raise LakeUnreadableError(root, error) from error


# Frames are never changed in place, so all viewers share one.
@st.cache_resource(max_entries=64, show_spinner=False)
def _summary(root: str, loop: str, name: SummaryName, version: str) -> pl.DataFrame:  # noqa: ARG001
    return summaries_of(Lake(Path(root))).read(loop, name)


@st.cache_resource(max_entries=16, show_spinner=False)
def _fairness(root: str, version: int, loop: str) -> pl.DataFrame:  # noqa: ARG001 - a key
    return Lake(Path(root)).scan("fairness", loop).sort("generation").collect()


@st.cache_data(max_entries=16, show_spinner=False)
def _loops(root: str, table: TableName, version: int) -> list[str]:  # noqa: ARG001 - a key
    # Rows of a later version than the key's do no harm: the next look asks for that version.
    return Lake(Path(root)).loops(table)


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


@st.cache_resource(max_entries=16, show_spinner=False)
def _overrides(root: str, version: int, loop: str) -> list[AskedOverride]:  # noqa: ARG001 - a key
    return asked_overrides(Lake(Path(root)), loop)


@st.cache_resource(max_entries=16, show_spinner=False)
def _acknowledged(
    root: str,
    version: int,  # noqa: ARG001 - a key
) -> dict[str, tuple[str, datetime]]:
    rows = (
        Lake(Path(root))
        .scan("audits")
        .filter(pl.col("kind") == "acknowledgement")
        .sort("ts", descending=True)
        .select("alert_id", "auditor", "ts")
        .collect()
    )
    return {alert: (who, when) for alert, who, when in rows.iter_rows()}


@st.cache_resource(max_entries=16, show_spinner=False)
def _judged(root: str, version: int, loop: str) -> pl.DataFrame:  # noqa: ARG001 - a key
    return judged_table(Lake(Path(root)), loop).judgements
