"""What generations earned, and whether their draws were those logged, kept as sums day by day.

A day's sums are a file below the lake, with the names of the files of interactions that they are
of. So the next night adds up what those don't have, and nothing else; a day of which files are
gone, because it was compacted or partly deleted, is added up anew. Nothing is lost with these files
but the time that it takes to make them again.
"""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
import scipy

from croupier.offline.audit import draws_of
from croupier.offline.draw_sums import BIN_EDGES, CountSums, DrawSums
from croupier.offline.guardrails import GUARDRAILS
from croupier.offline.interactions import current_frames, keep_weights
from croupier.offline.propensity import PropensityTest, propensity_test_of
from croupier.offline.rewards import fold_of
from croupier.offline.stretches import stretches

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.offline.lake import Lake
    from croupier.offline.lake_files import DataFile

__all__ = ("DrawsCheck", "Moments", "Realised", "draws_checks", "realised")

_FORMAT = 2
_HELD = 200_000
# Sums of pairs of actions: of more actions than these, groups of them are summed up.
_MOST_CELLS = 500
_EARNED = ("generation", "reward", "keep_prob", GUARDRAILS)
_DRAWN = ("decision_id", "slot", "slate_size", "action_ids", "pmf", "chosen")
_BINS = len(BIN_EDGES) - 1


class Moments(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of rewards r that count c times.

    Attributes
    ----------
    rows
        Number of rewards.
    weight, mean
        ``Σ c`` and the mean ``Σ c r / Σ c``.
    squares
        ``Σ c² (r - mean)^k`` for k = 0, 1, 2.
    """

    rows: int = 0
    weight: float = 0.0
    mean: float = 0.0
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, rewards: NDArray[np.float64], weights: NDArray[np.float64]) -> Moments:
        """Of rewards and how often each counts, shape (n,)."""
        weight = float(weights.sum())
        mean = float((weights * rewards).sum() / weight)
        off, square = rewards - mean, weights * weights
        sums = float(square.sum()), float(square @ off), float(square @ (off * off))
        return cls(rows=len(rewards), weight=weight, mean=mean, squares=sums)

    def __add__(self, other: Moments) -> Moments:
        """Of both together, all of it centred, so that nothing cancels (Chan et al., 1979)."""
        if not self.rows or not other.rows:
            return self if self.rows else other
        weight = self.weight + other.weight
        mean = self.mean + (other.mean - self.mean) * (other.weight / weight)
        moved = [each.about(mean) for each in (self, other)]
        none, one, two = (math.fsum(each) for each in zip(*moved, strict=True))
        rows = self.rows + other.rows
        return Moments(rows=rows, weight=weight, mean=mean, squares=(none, one, two))

    def error(self) -> float | None:
        """Standard error of the mean by the delta method; None of a single reward.

        That says nothing about how far others are from it.
        """
        if self.rows < 2:
            return None
        scale = self.rows / self.weight
        return scale * math.sqrt(max(self.squares[2], 0.0) / (self.rows - 1) / self.rows)

    def interval(self, confidence: float) -> tuple[float | None, float | None]:
        """Normal interval of the mean; None of a single reward."""
        error = self.error()
        if error is None:
            return None, None
        half = float(scipy.stats.norm.isf((1.0 - confidence) / 2.0)) * error
        return self.mean - half, self.mean + half

    def about(self, centre: float) -> tuple[float, float, float]:
        """The squares, with another centre than the mean."""
        none, one, two = self.squares
        shift = self.mean - centre
        return none, one + shift * none, two + 2.0 * shift * one + shift * shift * none


class Realised(msgspec.Struct, frozen=True, kw_only=True):
    """What a generation's decisions came to.

    Attributes
    ----------
    moments
        Of the rewards.
    guardrails
        The same of every guardrail, over the decisions that have it.
    propensity_p_value
        Whether draws happened with the probabilities that were logged.
    """

    moments: Moments
    guardrails: dict[str, Moments]
    propensity_p_value: float


def realised(lake: Lake, loop: str) -> dict[int, Realised]:
    """What every generation of a loop that served has come to.

    Reads the interactions that were added since it was asked last.

    Parameters
    ----------
    lake
        To read, and to keep sums in; hold its lock.
    loop
        Whose.
    """
    return {
        number: Realised(
            moments=tally.earned.moments,
            guardrails=tally.earned.guardrails,
            propensity_p_value=propensity_test_of(tally.drawn.sums()).combined_p_value,
        )
        for number, tally in _of_loop(lake, loop, keep=True).items()
    }


class DrawsCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Whether all draws of a generation happened with the probabilities that were logged.

    Attributes
    ----------
    actions
        Names of the test's actions, by code.
    test
        Of the generation's interactions.
    """

    actions: list[str]
    test: PropensityTest


def draws_checks(
    lake: Lake, loop: str, generations: Collection[int], *, since: date | None = None
) -> dict[int, DrawsCheck]:
    """The propensity test of some generations, from the sums that are kept of them.

    Reads of the interactions only what was added since sums were kept, and writes nothing, so that
    the lake's lock need not be held.

    Parameters
    ----------
    lake, loop
        Whose interactions.
    generations
        Of which the test is wanted; those that didn't serve are left out.
    since
        The first day whose draws are tested, and read; all days if None.
    """
    found = _of_loop(lake, loop, keep=False, only=generations, since=since)
    return {
        number: DrawsCheck(actions=tally.drawn.names(), test=propensity_test_of(tally.drawn.sums()))
        for number, tally in found.items()
    }


def _of_loop(
    lake: Lake,
    loop: str,
    *,
    keep: bool,
    only: Collection[int] | None = None,
    since: date | None = None,
) -> dict[int, _Tally]:
    """All days' tallies together, of every generation or of some, in their order."""
    folder = lake.root / ".realised" / loop
    days: dict[date, list[DataFile]] = defaultdict(list)
    for file in lake.snapshot("interactions", loop).files:
        days[file.date].append(file)
    if keep:
        _forget(folder, days)
    found: dict[int, _Tally] = {}
    for day, files in sorted(days.items()):
        if since is not None and day < since:
            continue
        for number, tally in _of_day(lake, folder / day.isoformat(), files, keep=keep).items():
            if only is None or number in only:
                found[number] = found[number].plus(tally) if number in found else tally
    return dict(sorted(found.items()))


class _Drawn(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of draws to be written down.

    Attributes
    ----------
    actions
        Ids of the cells, in order; numbers of groups of actions if there were too many.
    grouped
        Whether these are groups.
    rows, impossible
        See :class:`~croupier.offline.draw_sums.DrawSums`.
    packed
        All its sums one after the other, as numbers of 64 bits.
    """

    actions: list[str]
    grouped: bool
    rows: int
    impossible: int
    packed: bytes

    @classmethod
    def of(cls, actions: list[str], sums: DrawSums, *, grouped: bool = False) -> _Drawn:
        if len(actions) > _MOST_CELLS and not grouped:
            return cls.of(*_in_groups(actions, sums), grouped=True)
        parts = (
            *(sums.cells.expected, sums.cells.observed, sums.cells.spread),
            *(sums.bins.expected, sums.bins.observed, sums.bins.spread),
            *(each.toarray() for each in (sums.cells.squares, sums.bins.squares)),
            *(each.toarray() for each in (sums.both, sums.products)),
        )
        flat = np.concatenate([np.asarray(each, dtype="<f8").ravel() for each in parts])
        return cls(
            actions=actions,
            grouped=grouped,
            rows=sums.rows,
            impossible=sums.impossible,
            packed=flat.tobytes(),
        )

    def sums(self) -> DrawSums:
        k = len(self.actions)
        shapes = (*[(k,)] * 3, *[(_BINS,)] * 3, (k, k), (_BINS, _BINS), *[(k, _BINS)] * 2)
        ends = np.cumsum([math.prod(each) for each in shapes])
        flat = np.split(np.frombuffer(self.packed, dtype="<f8"), ends[:-1])
        parts = [each.reshape(shape) for each, shape in zip(flat, shapes, strict=True)]
        cells, bins, (squares, bin_squares, both, products) = parts[:3], parts[3:6], parts[6:]
        return DrawSums(
            self.rows,
            self.impossible,
            CountSums(
                cells[0], cells[1].astype(np.int64), cells[2], scipy.sparse.csr_array(squares)
            ),
            CountSums(
                bins[0], bins[1].astype(np.int64), bins[2], scipy.sparse.csr_array(bin_squares)
            ),
            scipy.sparse.csr_array(both),
            scipy.sparse.csr_array(products),
        )

    def names(self) -> list[str]:
        """Of the cells, for people."""
        return [f"group {each}" for each in self.actions] if self.grouped else self.actions

    def plus(self, other: _Drawn) -> _Drawn:
        if self.grouped != other.grouped:
            return self.in_groups().plus(other.in_groups())
        actions = sorted({*self.actions, *other.actions})
        one, two = (_placed(each.sums(), each.actions, actions) for each in (self, other))
        return _Drawn.of(actions, one + two, grouped=self.grouped)

    def in_groups(self) -> _Drawn:
        if self.grouped:
            return self
        return _Drawn.of(*_in_groups(self.actions, self.sums()), grouped=True)


class _Earned(msgspec.Struct, frozen=True, kw_only=True):
    """Rewards and guardrails of some interactions; a guardrail is of those that have it."""

    moments: Moments = Moments()
    guardrails: dict[str, Moments] = {}

    @classmethod
    def of(cls, interactions: pl.DataFrame) -> _Earned:
        moments = Moments.of(interactions["reward"].to_numpy(), keep_weights(interactions))
        having = interactions.select("keep_prob", GUARDRAILS).drop_nulls(GUARDRAILS)
        if having.is_empty():
            return cls(moments=moments)
        each = having.explode(GUARDRAILS).unnest(GUARDRAILS).group_by("name", maintain_order=True)
        guardrails = {
            str(name): Moments.of(rows["reward"].to_numpy(), keep_weights(rows))
            for (name,), rows in each
        }
        return cls(moments=moments, guardrails=guardrails)

    def plus(self, other: _Earned) -> _Earned:
        names = self.guardrails | other.guardrails
        nothing = Moments()
        return _Earned(
            moments=self.moments + other.moments,
            guardrails={
                name: self.guardrails.get(name, nothing) + other.guardrails.get(name, nothing)
                for name in names
            },
        )


class _Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a generation's interactions."""

    earned: _Earned
    drawn: _Drawn

    @classmethod
    def of(cls, interactions: pl.DataFrame) -> _Tally:
        return cls(earned=_Earned.of(interactions), drawn=_Drawn.of(*draws_of(interactions)))

    def plus(self, other: _Tally) -> _Tally:
        return _Tally(earned=self.earned.plus(other.earned), drawn=self.drawn.plus(other.drawn))


class _Day(msgspec.Struct, frozen=True, kw_only=True):
    """A day's tallies by generation, and the names of the files that they are of."""

    format: int
    files: list[str]
    tallies: dict[int, _Tally]


_days = msgspec.msgpack.Decoder(_Day)


def _of_day(
    lake: Lake, path: Path, files: Sequence[DataFile], *, keep: bool
) -> Mapping[int, _Tally]:
    """A day's tallies, brought up to date where they aren't, and kept so if they are to be."""
    names = {each.path.name for each in files}
    known = _read(path)
    if known is not None and names == set(known.files):
        return known.tallies
    if known is None or not names.issuperset(known.files):
        columns = (*_EARNED, *_DRAWN)
        tallies = _tallies(current_frames(lake, files, held=_HELD, columns=columns))
    else:
        passed = set(known.files)
        fresh = [each for each in files if each.path.name not in passed]
        tallies = _grown(lake, known.tallies, fresh, files)
    if keep:
        _write(path, _Day(format=_FORMAT, files=sorted(names), tallies=tallies))
    return tallies


def _grown(
    lake: Lake, known: Mapping[int, _Tally], fresh: Sequence[DataFile], files: Sequence[DataFile]
) -> dict[int, _Tally]:
    """Tallies with what has come in fresh files.

    A revision changes rewards, and no draw: rewards are then added up anew for all of the day.
    """
    revision = pl.col("revision").fill_null(0)
    found = dict(known)
    revised = False
    for stretch in stretches(fresh, _HELD):
        read = stretch.read(lake, "interactions").with_columns(revision)
        held = read.select(*_EARNED, *_DRAWN, "revision").collect()
        revised |= bool((held["revision"] > 0).any())
        for number, tally in _tallies([held.filter(pl.col("revision") == 0)]).items():
            found[number] = found[number].plus(tally) if number in found else tally
    if not revised:
        return found
    earned: dict[int, _Earned] = defaultdict(_Earned)
    for rows in current_frames(lake, files, held=_HELD, columns=_EARNED):
        for number, served in _by_generation(rows):
            earned[number] = earned[number].plus(_Earned.of(served))
    return {
        number: msgspec.structs.replace(tally, earned=earned[number])
        for number, tally in found.items()
    }


def _tallies(frames: Iterable[pl.DataFrame]) -> dict[int, _Tally]:
    found: dict[int, _Tally] = {}
    for rows in frames:
        for number, served in _by_generation(rows):
            tally = _Tally.of(served)
            found[number] = found[number].plus(tally) if number in found else tally
    return found


def _by_generation(rows: pl.DataFrame) -> Iterable[tuple[int, pl.DataFrame]]:
    served = rows.filter(pl.col("generation").is_not_null())
    for (number,), own in served.group_by("generation", maintain_order=True):
        yield int(number), own


def _in_groups(actions: Sequence[str], sums: DrawSums) -> tuple[list[str], DrawSums]:
    """Groups by a hash of the id: it makes no difference when there came to be too many actions."""
    names = [f"{fold_of(each) % _MOST_CELLS:03d}" for each in actions]
    groups = sorted(set(names))
    return groups, _placed(sums, names, groups)


def _placed(sums: DrawSums, names: Sequence[str], among: Sequence[str]) -> DrawSums:
    """Sums whose cells have names, with the cells of others among them."""
    place = {name: index for index, name in enumerate(among)}
    return sums.pooled(np.array([place[each] for each in names], dtype=np.int64), len(among))


def _read(path: Path) -> _Day | None:
    """What was kept of a day; None if it isn't there, or isn't in order."""
    try:
        day = _days.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return day if day.format == _FORMAT else None


def _write(path: Path, day: _Day) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(".new")
    made.write_bytes(msgspec.msgpack.encode(day))
    made.replace(path)


def _forget(folder: Path, days: Mapping[date, object]) -> None:
    """Remove what was kept of days that the lake doesn't have any more."""
    if not days:
        shutil.rmtree(folder, ignore_errors=True)
        return
    kept = {day.isoformat() for day in days}
    for path in folder.glob("*"):
        if path.name not in kept:
            path.unlink()
