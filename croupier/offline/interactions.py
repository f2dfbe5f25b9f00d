"""Interactions out of the lake, decoded into what oracles and policies take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, overload

import msgspec
import numpy as np
import polars as pl

from croupier.offline.lake import SCHEMAS
from croupier.offline.rewards import KEY
from croupier.offline.stretches import stretches
from croupier.policy.events import Action, Features, KeptAction
from croupier.policy.oracle import TrainingRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from croupier.offline.lake import Lake
    from croupier.offline.lake_files import DataFile

__all__ = (
    "LoggedRequest",
    "LoggedRows",
    "current_frames",
    "current_interactions",
    "keep_weights",
    "learning_weights",
    "logged_requests",
    "training_rows",
)

_context_decoder = msgspec.json.Decoder(Features)
_kept_decoder = msgspec.json.Decoder(list[KeptAction])
_AT_ONCE = 10_000
_MET, _KEPT = 100_000, 1_000


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """What was asked, for another policy to answer.

    Attributes
    ----------
    context, actions
        The request.
    eligible
        Which actions could be chosen, shape (K,); None if all could.
    chosen
        Index of the action that the log's policy drew.
    baseline
        Index of the application's own choice; None where the log doesn't tell.
    slate_size
        Number of places of the slate that the row is one place of; None for everything else.
    """

    context: Features
    actions: list[Action]
    eligible: NDArray[np.bool_] | None
    chosen: int
    baseline: int | None = None
    slate_size: int | None = None


def current_interactions(
    lake: Lake, loop: str | None = None, *, version: int | None = None, since: date | None = None
) -> pl.LazyFrame:
    """Interactions as they are known to be: of every decision and slot the highest revision.

    Parameters
    ----------
    lake
        To read lazily.
    loop
        Whose; all loops' if None.
    version
        Of the table; the latest if None.
    since
        The first day whose decisions are wanted: no file of an earlier one is read. Rows without a
        time are of the first of all days, as :class:`~croupier.offline.lake_files.DataFile` has it.
    """
    if version is None:
        rows = lake.scan("interactions", loop)
    else:
        assert loop is not None
        rows = lake.scan_version("interactions", version, loop)
    if since is not None and since != date.min:
        # A revision stands under the day of its decision, as every interaction does.
        rows = rows.filter(pl.col("date") >= since)
    key = ("loop", *KEY)
    revision = pl.col("revision").fill_null(0)
    # Few have been revised, so these are held, and all others stream past them.
    revised = rows.filter(pl.col("revision") > 0).group_by(key).agg(last=pl.col("revision").max())
    last = pl.col("last").fill_null(0)
    return (
        rows.with_columns(revision)
        .join(revised, on=key, how="left", nulls_equal=True, maintain_order="left")
        .filter(pl.col("revision") == last)
        .drop("last")
    )


def current_frames(
    lake: Lake, files: Sequence[DataFile], *, held: int, columns: Sequence[str] | None = None
) -> Iterator[pl.DataFrame]:
    """The same of some files of the table, no more than `held` rows at once.

    Parameters
    ----------
    lake
        To read.
    files
        All files that some days have, in order.
    held
        About how many rows there are in a frame.
    columns
        To be read; all if None.
    """
    wanted = list(SCHEMAS["interactions"].names() if columns is None else columns)
    revision = pl.col("revision").fill_null(0)
    rows = lake.read("interactions", [each.path for each in files]).filter(revision > 0)
    revised = rows.group_by(KEY).agg(last=pl.col("revision").max()).collect()
    for stretch in stretches(files, held):
        read = stretch.read(lake, "interactions").with_columns(revision)
        found = read.select(list(dict.fromkeys([*wanted, *KEY, "revision"]))).collect()
        last = found.join(revised, on=KEY, how="left", nulls_equal=True, maintain_order="left")
        yield last.filter(pl.col("revision") == pl.col("last").fill_null(0)).select(wanted)


def logged_requests(interactions: pl.DataFrame) -> Iterator[LoggedRequest]:
    """Decode requests, in the order of the rows; actions that come again are the same ones."""
    columns = ("context", "actions", "excluded", "chosen", "baseline", "slate_size")
    catalogue = _Catalogue()
    for context, actions, excluded, *rest in interactions.select(columns).iter_rows():
        decoded = catalogue.actions(actions)
        eligible = np.array([each.id not in excluded for each in decoded]) if excluded else None
        yield LoggedRequest(_context_decoder.decode(context), decoded, eligible, *rest)


class LoggedRows(Sequence[TrainingRow]):
    """What an oracle learns from, decoded row by row as it is asked for.

    Decoded, a log takes many times the room that it has in the table, and Python's collector of
    cycles goes through all of it again and again; so nothing is kept but the texts. A list of
    actions that was met before is known by its text, as most applications choose from a catalogue,
    and kept with its encoding.

    Parameters
    ----------
    interactions
        Rows of the interactions table.
    weights
        Importance of every row, shape (n,); :func:`learning_weights` if None.
    """

    def __init__(
        self, interactions: pl.DataFrame, weights: NDArray[np.float64] | None = None
    ) -> None:
        self._interactions = interactions
        self._weights = learning_weights(interactions) if weights is None else weights

    def __len__(self) -> int:
        return len(self._interactions)

    def __iter__(self) -> Iterator[TrainingRow]:
        """The rows in their order."""
        columns = ("context", "actions", "chosen", "propensity", "reward")
        catalogue = _Catalogue()
        for start in range(0, len(self), _AT_ONCE):
            block = self._interactions[start : start + _AT_ONCE]
            contexts, actions, *rest = (block[name].to_list() for name in columns)
            weights = self._weights[start : start + _AT_ONCE].tolist()
            decoded = map(_context_decoder.decode, contexts)
            yield from map(_row, decoded, map(catalogue.actions, actions), *rest, weights)

    @overload
    def __getitem__(self, place: int) -> TrainingRow: ...
    @overload
    def __getitem__(self, place: slice) -> LoggedRows: ...

    def __getitem__(self, place: int | slice) -> TrainingRow | LoggedRows:
        if isinstance(place, slice):
            return LoggedRows(self._interactions[place], self._weights[place])
        at = range(len(self))[place]
        (row,) = LoggedRows(self._interactions[at : at + 1], self._weights[at : at + 1])
        return row

    @property
    def folds(self) -> NDArray[np.int64]:
        """Folds of the rows' decisions, shape (n,)."""
        return self._interactions["fold"].to_numpy()

    def only(self, kept: NDArray[np.bool_]) -> LoggedRows:
        """Those of the rows, shape (n,), that are to be kept."""
        return LoggedRows(self._interactions.filter(pl.Series(kept)), self._weights[kept])


def training_rows(
    interactions: pl.DataFrame, weights: NDArray[np.float64] | None = None
) -> Iterator[TrainingRow]:
    """Decode what an oracle learns from, in the order of the rows; see :class:`LoggedRows`."""
    return iter(LoggedRows(interactions, weights))


def _row(  # noqa: PLR0917 - the columns of a row
    context: Features,
    actions: list[Action],
    chosen: int,
    propensity: float,
    reward: float,
    weight: float,
) -> TrainingRow:
    return TrainingRow(
        context=context,
        actions=actions,
        chosen=chosen,
        propensity=propensity,
        reward=reward,
        weight=weight,
    )


class _Catalogue:
    """Decodes lists of actions, and keeps those that are met again."""

    def __init__(self) -> None:
        self._met: set[int] = set()
        self._kept: dict[str, list[Action]] = {}

    def actions(self, text: str) -> list[Action]:
        """The actions of a text; of one that was met before, the same ones every time."""
        known = self._kept.get(text)
        if known is not None:
            return known
        digest = hash(text)
        if digest not in self._met:
            # Bounded: where every decision has actions of its own, none will be met again.
            if len(self._met) >= _MET:
                self._met.clear()
            self._met.add(digest)
            return list(_kept_decoder.decode(text))
        if len(self._kept) >= _KEPT:
            self._kept.clear()
        kept: list[Action] = list(_kept_decoder.decode(text))
        self._kept[text] = kept
        return kept


def keep_weights(interactions: pl.DataFrame) -> NDArray[np.float64]:
    """How many decisions every row of a log stands for, ``1 / keep_prob``, shape (n,)."""
    return 1.0 / interactions["keep_prob"].to_numpy()


def learning_weights(
    interactions: pl.DataFrame, before: Mapping[float, int] | None = None
) -> NDArray[np.float64]:
    """Importance of every row to an oracle, shape (n,): ``c·Σc / Σc²`` with ``c = 1 / keep_prob``.

    In proportion to the decisions that a row stands for, so that an oracle learns the mean of all
    of them; in sum the effective sample size (Kish), since a row that stands for five still is a
    single observation: with weights c, an oracle that knows how sure it is would be far too sure,
    and one that learns row by row would take far too large steps. Where all rows were kept with the
    same probability, every weight is exactly 1.

    Parameters
    ----------
    interactions
        Rows of the interactions table.
    before
        How many rows of which `keep_prob` an oracle that learns bit by bit has learned already,
        which count in the sums. What they weighed can't be changed any more, so after a change of
        `keep_prob` the proportions are right only in the long run.
    """
    if interactions.is_empty():
        return np.empty(0)
    weights = keep_weights(interactions)
    if not before:
        relative = weights / weights.min()
        return np.asarray(relative * (relative.sum() / (relative @ relative)))
    rows = Counter(before)
    rows.update(interactions["keep_prob"].to_list())
    least = 1.0 / max(rows)
    relative = weights / least
    # Whole numbers, if all were kept with the same probability: then their ratio is exactly 1.
    total = math.fsum(count * (1.0 / kept / least) for kept, count in rows.items())
    squares = math.fsum(count * (1.0 / kept / least) ** 2 for kept, count in rows.items())
    return np.asarray(relative * (total / squares))
