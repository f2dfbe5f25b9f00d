"""The join: decisions meet their outcomes and become interactions, each exactly once.

A join reads what is new. The commit that adds its interactions also notes how far it has come: the
moment up to which windows have closed, and the versions of `decisions` and `outcomes` that were
read. The next one looks at the days whose windows have closed since, at files that were added
since, and, for outcomes that came late, at the keys of the days that their decisions can be of.
What it does not look at can't have changed.

It holds no more than a bounded number of rows at once. Keys and outcomes, which are narrow, are
divided by a hash of the decision's id into buckets that are resolved one by one; then the wide rows
of the decisions are read and written stretch by stretch, all in one commit.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from croupier.offline.lake import SCHEMAS
from croupier.offline.pending import Pending, joined_until, joined_versions, that_may_hold
from croupier.offline.rewards import FOLDS, KEY, fold_of, resolve
from croupier.offline.stretches import Buckets, Stretch, stretches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date

    from croupier.offline.lake import Lake, TableName
    from croupier.offline.lake_files import DataFile
    from croupier.policy.loop import LoopConfig

__all__ = ("FOLDS", "JoinReport", "Seen", "fold_of", "join", "joined_until", "joined_versions")

_HELD, _WIDTH = 1_000_000, 20
# A stretch of which no more than one row in so many is needed is read row by row.
_FEW = 20

_DECISIONS = (*KEY, "date", "ts", "deferred")
_OUTCOMES = ("kind", *KEY, "date", "reward", "ts", "partition", "offset")
_PRESENT = (*KEY, "revision", "reward", "reward_source", "outcomes", "delay_s")
_WRITTEN = ("reward", "reward_source", "outcomes", "delay_s", "fold", "revision")


def _schema(table: TableName, names: Sequence[str], more: pl.Schema) -> pl.Schema:
    return pl.Schema([*((name, SCHEMAS[table][name]) for name in names), *more.items()])


# A decision is found again by its stretch, and its place in the stretch's files.
_PLACE = pl.Schema({"row": pl.UInt32, "stretch": pl.UInt32})
_NARROWED = {
    "decisions": _schema("decisions", _DECISIONS, _PLACE),
    "outcomes": _schema("outcomes", _OUTCOMES, pl.Schema({"new": pl.Boolean})),
    "interactions": _schema("interactions", _PRESENT, pl.Schema()),
}
_RESOLVED = _schema("interactions", _WRITTEN, _PLACE)


@dataclass(frozen=True, slots=True)
class JoinReport:
    """What one run of the join did for a loop.

    Attributes
    ----------
    joined
        Interactions added.
    observed, defaulted
        How many of them had an outcome, and how many took the default reward.
    open
        Decisions whose window has not closed yet.
    late, orphans
        Outcomes, of those that are new to the join, that came after their decision's window had
        closed, and outcomes without a decision that they can count for.
    revised
        Interactions that got another reward, since outcomes came after they had been added.
    """

    joined: int
    observed: int
    defaulted: int
    open: int
    late: int
    orphans: int
    revised: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """Which rows a join is to take for all that there are."""

    decisions: pl.Expr
    outcomes: pl.Expr


def join(
    lake: Lake,
    loop: str,
    config: LoopConfig,
    as_of_us: int,
    *,
    held: int = _HELD,
    seen: Seen | None = None,
) -> JoinReport:
    """Add an interaction for every decision whose attribution window closed before `as_of_us`.

    A decision is known by its id and its slot: an outcome counts for the slot that it names, and is
    an orphan if the decision has none of that name, or has slots and the outcome names none. An
    activation is one of all slots. A deferred decision counts once it was activated, and not at all
    if it never was.

    All outcomes count that are stamped within the loop's `late_horizon` of their decision. Those
    that are in the lake by the time of the decision's first join make its reward; whatever comes
    later revises it: a row with the next `revision` has the reward of all outcomes so far. Its
    `reward_source` tells by the stamps alone whether they came within the window (``observed``),
    after it (``late``), or both (``revised``). So what the current interactions hold depends on the
    log, the loop's configuration and how far the join has come, not on how often it runs.

    An outcome or activation that is stamped before its decision, by no more than a day, is in time,
    with a delay of 0: nobody can answer a decision that was not made yet, so the clocks of two
    scorers differ. Dropping it would trade a real reward for the default one, and only on the
    scorers whose clocks are behind.

    Parameters
    ----------
    lake
        To read and write; hold its lock.
    loop, config
        Whose decisions, and how outcomes count.
    as_of_us
        In microseconds since the epoch: everything received before is in the lake.
    held
        About how many keys or outcomes are held at once, and twenty times as many as whole
        decisions.
    seen
        Rows to look at, if not all: what was left out is looked at by the next join.
    """
    before = joined_until(lake, loop)
    until = as_of_us if before is None else max(as_of_us, before)
    run = _Run(lake, loop, config, until, held=held, seen=seen)
    try:
        return run()
    finally:
        run.clear()


class _Run:
    """One run of the join for one loop."""

    def __init__(
        self,
        lake: Lake,
        loop: str,
        config: LoopConfig,
        until_us: int,
        *,
        held: int,
        seen: Seen | None,
    ) -> None:
        self._lake, self._loop, self._config, self._until = lake, loop, config, until_us
        self._seen = seen
        self._held = held
        self._wide = max(1, held // _WIDTH)
        self._pending = Pending(lake, loop, config)
        self._folder = lake.root / ".join"
        self._stretches: list[Stretch] = []

    def __call__(self) -> JoinReport:
        """Do it."""
        # A join that was killed has left its buckets.
        self.clear()
        near = self._pending.near_decisions()
        sent = self._pending.near_outcomes({each.date for each in near})
        count = -(-max(_rows(near), _rows(sent), 1) // self._held)
        self._keys, self._sent, self._present = (
            Buckets(schema, self._folder / name, count, pl.col("decision_id").hash() % count)
            for name, schema in _NARROWED.items()
        )
        self._add_decisions(near)
        self._add_outcomes(sent)
        self._add_present({each.date for each in near})
        self._look_back(near, sent)
        resolved, report = self._resolve(count)
        anything = report.joined + report.revised > 0
        if anything or (self._pending.interactions.version >= 0 and self._anything_new()):
            marks = self._pending.marks(self._until, whole=self._seen is None)
            self._lake.append_stream("interactions", self._frames(resolved), marks)
        return report

    def clear(self) -> None:
        """Remove what was put aside on disk."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _anything_new(self) -> bool:
        return bool(self._pending.new_decisions or self._pending.new_outcomes)

    def _add_decisions(
        self, files: Sequence[DataFile], ids: pl.DataFrame | None = None
    ) -> pl.DataFrame:
        """Read keys, of all decisions in some files or of some; gives the latter."""
        found = [pl.DataFrame(schema=_NARROWED["decisions"])]
        for stretch in stretches(files, self._wide):
            rows = stretch.read(self._lake, "decisions")
            if self._seen is not None:
                rows = rows.filter(self._seen.decisions)
            keys = _of(rows.select(*_DECISIONS, "row").collect(), ids).with_columns(
                stretch=pl.lit(len(self._stretches), dtype=pl.UInt32)
            )
            self._stretches.append(stretch)
            self._keys.add(keys)
            if ids is not None:
                found.append(keys)
        return pl.concat(found)

    def _add_outcomes(self, files: Iterable[DataFile], ids: pl.DataFrame | None = None) -> None:
        for new in (False, True):
            chosen = [each for each in files if (each.path in self._pending.new_outcomes) == new]
            for stretch in stretches(chosen, self._held):
                rows = stretch.read(self._lake, "outcomes")
                if self._seen is not None:
                    rows = rows.filter(self._seen.outcomes)
                found = _of(rows.select(_OUTCOMES).collect(), ids)
                self._sent.add(found.with_columns(new=pl.lit(new)))

    def _add_present(self, days: set[date], ids: pl.DataFrame | None = None) -> pl.DataFrame:
        """Read what interactions of some days hold, of all or of some; gives the latter."""
        found = [pl.DataFrame(schema=_NARROWED["interactions"])]
        files = [each for each in self._pending.interactions.files if each.date in days]
        for stretch in stretches(files, self._held):
            rows = stretch.read(self._lake, "interactions").select(_PRESENT).collect()
            rows = _of(rows, ids).with_columns(pl.col("revision").fill_null(0))
            self._present.add(rows)
            if ids is not None:
                found.append(rows)
        return pl.concat(found)

    def _look_back(self, near: Iterable[DataFile], sent: Iterable[DataFile]) -> None:
        """Find the decisions of new outcomes that are none of the near ones.

        Their keys are read alone, of days that they can be of, and of files whose bounds do not
        rule them out: with ids that grow with time, such as UUIDs of version 7, hardly any.
        """
        homeless = self._homeless()
        if homeless.is_empty():
            return
        ids = homeless.select("decision_id").unique()
        passed = {each.path for each in near}
        reach = self._pending.of_outcomes(set(homeless["date"]))
        files = [
            each
            for each in that_may_hold(ids["decision_id"], self._pending.decisions.files)
            if each.date in reach and each.path not in passed
        ]
        far = self._add_decisions(files, ids)
        present = self._add_present(set(far["date"]), far.select("decision_id").unique())
        # An interaction without outcomes has had none: all that there are now are new.
        some = present.sort("revision").unique(KEY, keep="last")
        without = some.filter(pl.col("outcomes") == 0)
        having = far.join(without, on=KEY, how="anti", nulls_equal=True)
        passed = {each.path for each in sent}
        reach = self._pending.of_decisions(set(having["date"]))
        files = [
            each
            for each in self._pending.outcomes.files
            if each.date in reach and each.path not in passed
        ]
        self._add_outcomes(files, having.select("decision_id").unique())

    def _homeless(self) -> pl.DataFrame:
        """Ids and days of new outcomes without a decision among the near ones.

        Of an activated decision some slots can be in new files, and others in old ones of the day.
        """
        first = self._pending.first
        whole = pl.lit(value=True) if first is None else pl.col("date") >= first
        found = [pl.DataFrame(schema={"decision_id": pl.String, "date": pl.Date})]
        for bucket in range(self._sent.count):
            new = self._sent[bucket].filter("new")
            if len(new):
                keys, sent = self._keys[bucket], pl.col("kind") == "outcome"
                missing = (
                    new.filter(sent).join(keys, on=KEY, how="anti", nulls_equal=True),
                    new.filter(~sent).join(keys.filter(whole), on="decision_id", how="anti"),
                )
                found += [each.select("decision_id", "date").unique() for each in missing]
        return pl.concat(found)

    def _resolve(self, count: int) -> tuple[Buckets, JoinReport]:
        """What is to be written, by stretch, and what to say of it."""
        groups = max(1, -(-len(self._stretches) // _WIDTH))
        resolved = Buckets(
            _RESOLVED, self._folder / "resolved", groups, pl.col("stretch") // _WIDTH
        )
        joined = observed = revised = open_ = late = orphans = 0
        for bucket in range(count):
            found = resolve(
                self._config,
                self._until,
                self._keys[bucket],
                self._sent[bucket],
                self._present[bucket],
            )
            first = pl.col("revision") == 0
            resolved.add(found.rows.select(_RESOLVED.names()))
            fresh = found.rows.filter(first)
            joined += len(fresh)
            observed += int((fresh["outcomes"] > 0).sum())
            revised += len(found.rows) - len(fresh)
            open_ += found.counts.open
            late += found.counts.late
            orphans += found.counts.orphans
        report = JoinReport(joined, observed, joined - observed, open_, late, orphans, revised)
        return resolved, report

    def _frames(self, resolved: Buckets) -> Iterator[pl.DataFrame]:
        """Interactions with all their columns, stretch by stretch."""
        for group in range(resolved.count):
            stretched = resolved[group].partition_by("stretch", as_dict=True, include_key=False)
            for (number,), rows in sorted(stretched.items()):
                stretch = self._stretches[int(number)]
                decisions = stretch.read(self._lake, "decisions")
                if len(rows) * _FEW < stretch.rows:
                    decisions = decisions.filter(pl.col("row").is_in(rows["row"].implode()))
                yield decisions.collect().join(rows, on="row").sort("offset")


def _of(rows: pl.DataFrame, ids: pl.DataFrame | None) -> pl.DataFrame:
    return rows if ids is None else rows.join(ids, on="decision_id", how="semi")


def _rows(files: Iterable[DataFile]) -> int:
    return sum(each.rows for each in files)
