"""The join: decisions meet their outcomes and become interactions, each exactly once.

A join reads what is new. The commit that adds its interactions also notes how far it has come: the
moment up to which windows have closed, and the versions of `decisions` and `outcomes` that were
read. The next one looks at the days whose windows have closed since, at files that were added
since, and, for outcomes that came late, at the keys of the days that their decisions can be of.
What it does not look at can't have changed.

It holds no more than a bounded number of rows at once. Keys and outcomes, which are narrow, are
divided by a hash of the decision's id into buckets that are resolved one by one; then the wide rows
of the decisions are read and written stretch by stretch, all in one commit. Each of these pieces of
work is a task of its own for an :class:`~croupier.offline.engine.Engine`; the commit is not.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import polars as pl

from croupier.offline.engine import LOCAL
from croupier.offline.guardrails import column_of, packed, told, unpacked
from croupier.offline.lake import SCHEMAS
from croupier.offline.pending import Pending, joined_until, joined_versions, that_may_hold
from croupier.offline.rewards import FOLDS, KEY, fold_of, resolve
from croupier.offline.stretches import Buckets, Stretch, stretches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from croupier.offline.engine import Engine
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


def _schema(table: TableName, names: Sequence[str], more: Mapping[str, pl.DataType]) -> pl.Schema:
    return pl.Schema([*((name, SCHEMAS[table][name]) for name in names), *more.items()])


# A decision is found again by its stretch, and its place in the stretch's files.
_PLACE = pl.Schema({"row": pl.UInt32, "stretch": pl.UInt32})
_KEYS = _schema("decisions", _DECISIONS, _PLACE)


def _narrowed(config: LoopConfig) -> dict[TableName, pl.Schema]:
    """What is read of a loop's tables to resolve its rewards, with its guardrails one by one."""
    guardrails = _guardrails(config)
    return {
        "decisions": _KEYS,
        "outcomes": _schema("outcomes", _OUTCOMES, {**guardrails, "new": pl.Boolean()}),
        "interactions": _schema("interactions", _PRESENT, guardrails),
    }


def _resolved(config: LoopConfig) -> pl.Schema:
    """What is resolved of an interaction, likewise."""
    return _schema("interactions", _WRITTEN, {**_PLACE, **_guardrails(config)})


def _guardrails(config: LoopConfig) -> dict[str, pl.DataType]:
    return {column_of(name): pl.Float64() for name in sorted(config.guardrails)}


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

    def and_also(self, other: JoinReport) -> JoinReport:
        """What two of them did together."""
        mine, theirs = asdict(self), asdict(other)
        return JoinReport(**{name: count + theirs[name] for name, count in mine.items()})


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
    engine: Engine = LOCAL,
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
    engine
        Does the work.
    """
    before = joined_until(lake, loop)
    until = as_of_us if before is None else max(as_of_us, before)
    run = _Run(lake, loop, config, until, held=held, seen=seen, engine=engine)
    try:
        return run()
    finally:
        run.clear()


@dataclass(frozen=True, slots=True)
class _Given:
    """What the tasks of a join are given, and the buckets that they hand on their rows in."""

    lake: Lake
    config: LoopConfig
    until_us: int
    seen: Seen | None
    keys: Buckets
    sent: Buckets
    present: Buckets

    @property
    def guardrails(self) -> list[str]:
        """Their names, in order."""
        return sorted(self.config.guardrails)


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch to read, under a name of its own; only rows of some decisions if there are ids."""

    name: str
    stretch: Stretch
    ids: pl.DataFrame | None = None
    new: bool = False


@dataclass(frozen=True, slots=True)
class _Keys:
    """Numbered stretches of decisions to read the keys of, likewise."""

    name: str
    stretches: list[tuple[int, Stretch]]
    ids: pl.DataFrame | None


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
        engine: Engine,
    ) -> None:
        self._lake, self._loop, self._config, self._until = lake, loop, config, until_us
        self._seen = seen
        self._engine = engine
        self._held = held
        self._wide = max(1, held // _WIDTH)
        self._pending = Pending(lake, loop, config)
        # A task of a join that was killed may still be at work, and is not to write into this one.
        self._folder = lake.root / ".join" / secrets.token_hex(8)
        self._stretches: list[Stretch] = []
        self._parts = 0

    def __call__(self) -> JoinReport:
        """Do it."""
        # A join that was killed has left its buckets.
        self.clear()
        near = self._pending.near_decisions()
        sent = self._pending.near_outcomes({each.date for each in near})
        count = self._buckets(-(-max(_rows(near), _rows(sent), 1) // self._held))
        buckets = (
            Buckets(schema, self._folder / name, count, pl.col("decision_id").hash() % count)
            for name, schema in _narrowed(self._config).items()
        )
        keys, outcomes, present = buckets
        self._given = _Given(
            self._lake, self._config, self._until, self._seen, keys, outcomes, present
        )
        self._add_decisions(near)
        self._add_outcomes(sent)
        self._add_present({each.date for each in near})
        self._look_back(near, sent)
        resolved, report = self._resolve(count)
        anything = report.joined + report.revised > 0
        if anything or (self._pending.interactions.version >= 0 and self._anything_new()):
            self._write(resolved)
        return report

    def clear(self) -> None:
        """Remove what was put aside on disk."""
        shutil.rmtree(self._folder.parent, ignore_errors=True)

    def _buckets(self, needed: int) -> int:
        """Of how many buckets there are enough to be held, and to be resolved side by side."""
        # Several in any case: those alone are seen by other processes.
        return max(needed, 1 + self._engine.workers) if self._engine.distributed else needed

    def _anything_new(self) -> bool:
        return bool(self._pending.new_decisions or self._pending.new_outcomes)

    def _name(self) -> str:
        self._parts += 1
        return str(self._parts)

    def _width(self, count: int) -> int:
        """How many of some stretches a task is given, so that all workers have one."""
        if not self._engine.distributed:
            return _WIDTH
        return max(1, min(_WIDTH, count // self._engine.workers))

    def _add_decisions(
        self, files: Sequence[DataFile], ids: pl.DataFrame | None = None
    ) -> pl.DataFrame:
        """Read keys, of all decisions in some files or of some; gives the latter."""
        found = [pl.DataFrame(schema=_KEYS)]
        first = len(self._stretches)
        self._stretches += stretches(files, self._wide)
        numbered = list(enumerate(self._stretches[first:], first))
        # Many to a task: every task makes a file in every bucket.
        width = self._width(len(numbered))
        parts = [
            _Keys(self._name(), numbered[start : start + width], ids)
            for start in range(0, len(numbered), width)
        ]
        found += self._engine.map(_read_keys, parts, self._given)
        return pl.concat(found)

    def _add_outcomes(self, files: Iterable[DataFile], ids: pl.DataFrame | None = None) -> None:
        parts = []
        for new in (False, True):
            chosen = [each for each in files if (each.path in self._pending.new_outcomes) == new]
            parts += [_Part(self._name(), each, ids, new) for each in stretches(chosen, self._held)]
        for _ in self._engine.map(_read_outcomes, parts, self._given):
            pass

    def _add_present(self, days: set[date], ids: pl.DataFrame | None = None) -> pl.DataFrame:
        """Read what interactions of some days hold, of all or of some; gives the latter."""
        found = [pl.DataFrame(schema=_narrowed(self._config)["interactions"])]
        files = [each for each in self._pending.interactions.files if each.date in days]
        parts = [_Part(self._name(), each, ids) for each in stretches(files, self._held)]
        found += self._engine.map(_read_present, parts, self._given)
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
        """Ids and days of new outcomes without a decision among the near ones."""
        buckets = ((bucket, self._pending.first) for bucket in range(self._given.sent.count))
        found = [pl.DataFrame(schema={"decision_id": pl.String, "date": pl.Date})]
        found += self._engine.map(_homeless_of, buckets, self._given)
        return pl.concat(found)

    def _resolve(self, count: int) -> tuple[Buckets, JoinReport]:
        """What is to be written, by stretch, and what to say of it."""
        width = self._width(len(self._stretches))
        groups = self._buckets(max(1, -(-len(self._stretches) // width)))
        schema = _resolved(self._config)
        resolved = Buckets(schema, self._folder / "resolved", groups, pl.col("stretch") // width)
        report = JoinReport(0, 0, 0, 0, 0, 0)
        buckets = ((bucket, resolved) for bucket in range(count))
        for each in self._engine.map(_resolve_bucket, buckets, self._given):
            report = report.and_also(each)
        return resolved, report

    def _write(self, resolved: Buckets) -> None:
        """Write what there is to be written, all in one commit."""
        groups = range(resolved.count)
        names = self._given.guardrails
        task = _Whole(self._lake, resolved, self._stretches, self._folder / "written", names)
        if not self._engine.distributed:
            frames = (frame for group in groups for frame in task.frames(group))
            self._lake.append_stream(
                "interactions", frames, self._pending.marks(self._until, whole=self._seen is None)
            )
            return
        written = list(self._engine.map(_write_group, groups, task))
        self._lake.append_written(
            "interactions", written, self._pending.marks(self._until, whole=self._seen is None)
        )


def _read_keys(given: _Given, part: _Keys) -> pl.DataFrame:
    """Put the keys of some stretches of decisions into buckets; gives those that were asked for."""
    found = [pl.DataFrame(schema=_KEYS)]
    for number, stretch in part.stretches:
        rows = stretch.read(given.lake, "decisions")
        if given.seen is not None:
            rows = rows.filter(given.seen.decisions)
        keys = _of(rows.select(*_DECISIONS, "row").collect(), part.ids)
        found.append(keys.with_columns(stretch=pl.lit(number, dtype=pl.UInt32)))
    together = pl.concat(found)
    given.keys.add(together, part.name)
    return together if part.ids is not None else together.clear()


def _read_outcomes(given: _Given, part: _Part) -> None:
    """Put a stretch of outcomes into buckets."""
    rows = part.stretch.read(given.lake, "outcomes")
    if given.seen is not None:
        rows = rows.filter(given.seen.outcomes)
    found = _of(rows.select(*_OUTCOMES, *told(given.guardrails)).collect(), part.ids)
    given.sent.add(found.with_columns(new=pl.lit(part.new)), part.name)


def _read_present(given: _Given, part: _Part) -> pl.DataFrame:
    """Put what a stretch of interactions holds into buckets; gives what was asked for."""
    rows = part.stretch.read(given.lake, "interactions")
    held = rows.select(*_PRESENT, *unpacked(given.guardrails)).collect()
    found = _of(held, part.ids).with_columns(pl.col("revision").fill_null(0))
    given.present.add(found, part.name)
    return found if part.ids is not None else found.clear()


def _homeless_of(given: _Given, asked: tuple[int, date | None]) -> pl.DataFrame:
    """Ids and days of a bucket's new outcomes without a decision there.

    Of an activated decision some slots can be in new files, and others in old ones of the day.
    """
    bucket, first = asked
    new = given.sent[bucket].filter("new")
    if new.is_empty():
        return new.select("decision_id", "date")
    whole = pl.lit(value=True) if first is None else pl.col("date") >= first
    keys, sent = given.keys[bucket], pl.col("kind") == "outcome"
    missing = (
        new.filter(sent).join(keys, on=KEY, how="anti", nulls_equal=True),
        new.filter(~sent).join(keys.filter(whole), on="decision_id", how="anti"),
    )
    return pl.concat([each.select("decision_id", "date").unique() for each in missing])


def _resolve_bucket(given: _Given, asked: tuple[int, Buckets]) -> JoinReport:
    """Resolve a bucket, and put what is to be written where its stretch is."""
    bucket, resolved = asked
    found = resolve(
        given.config,
        given.until_us,
        given.keys[bucket],
        given.sent[bucket],
        given.present[bucket],
    )
    resolved.add(found.rows.select(_resolved(given.config).names()), str(bucket))
    fresh = found.rows.filter(pl.col("revision") == 0)
    observed = int((fresh["outcomes"] > 0).sum())
    return JoinReport(
        joined=len(fresh),
        observed=observed,
        defaulted=len(fresh) - observed,
        open=found.counts.open,
        late=found.counts.late,
        orphans=found.counts.orphans,
        revised=len(found.rows) - len(fresh),
    )


@dataclass(frozen=True, slots=True)
class _Whole:
    """Makes whole interactions of what was resolved, from the stretches of the decisions."""

    lake: Lake
    resolved: Buckets
    stretches: list[Stretch]
    folder: Path
    guardrails: list[str]

    def frames(self, group: int) -> Iterator[pl.DataFrame]:
        """Those of a group of stretches, with all their columns, stretch by stretch."""
        stretched = self.resolved[group].partition_by("stretch", as_dict=True, include_key=False)
        for (number,), rows in sorted(stretched.items()):
            stretch = self.stretches[int(number)]
            decisions = stretch.read(self.lake, "decisions")
            if len(rows) * _FEW < stretch.rows:
                decisions = decisions.filter(pl.col("row").is_in(rows["row"].implode()))
            whole = decisions.collect().join(rows, on="row").sort("offset")
            yield whole.with_columns(packed(self.guardrails))


def _write_group(task: _Whole, group: int) -> Path:
    """Write a group's interactions, for somebody else to commit; gives where they are."""
    # Of its own in every attempt: one that was given up may go on writing.
    folder = task.folder / f"{group}-{secrets.token_hex(4)}"
    task.lake.write_apart("interactions", task.frames(group), folder)
    return folder


def _of(rows: pl.DataFrame, ids: pl.DataFrame | None) -> pl.DataFrame:
    return rows if ids is None else rows.join(ids, on="decision_id", how="semi")


def _rows(files: Iterable[DataFile]) -> int:
    return sum(each.rows for each in files)
