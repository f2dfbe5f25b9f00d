"""The lake: Delta tables with declared schemas, appended to exactly once."""

from __future__ import annotations

import fcntl
import random
import time
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from urllib.parse import unquote

import msgspec
import polars as pl
from arro3.core import RecordBatch, RecordBatchReader, Table
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from croupier.offline.lake_files import Snapshot, data_files, files_added, move_files
from croupier.policy.errors import CroupierError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = (
    "SCHEMAS",
    "ForgottenError",
    "Lake",
    "LakeConflictError",
    "LakeLockedError",
    "ProgressError",
    "TableName",
)

TableName: TypeAlias = Literal[
    "decisions", "outcomes", "interactions", "generations", "audits", "fairness"
]

_TIME = pl.Datetime("us", "UTC")
_MIX = pl.List(pl.Struct({"source": pl.String, "weight": pl.Float64}))
_SHADOW = pl.Struct({"generation": pl.Int64, "pmf": pl.List(pl.Float64)})
_SESSION = pl.Struct(
    {
        "id": pl.String,
        "step": pl.Int64,
        "previous": pl.String,
        "recalls": pl.List(
            pl.Struct({"generation": pl.Int64, "since": pl.Int64, "memory": pl.Binary})
        ),
    }
)
_GUARDRAILS = pl.List(pl.Struct({"name": pl.String, "reward": pl.Float64}))
_HARM = pl.List(
    pl.Struct(
        {
            "name": pl.String,
            "rows": pl.Int64,
            "estimate": pl.Float64,
            "champion_estimate": pl.Float64,
            "difference": pl.Float64,
            "difference_lower": pl.Float64,
            "difference_upper": pl.Float64,
        }
    )
)
_EARNED = pl.List(
    pl.Struct(
        {
            "name": pl.String,
            "decisions": pl.Int64,
            "mean": pl.Float64,
            "lower": pl.Float64,
            "upper": pl.Float64,
        }
    )
)

_Columns: TypeAlias = dict[str, pl.DataType | type[pl.DataType]]

_DECISION: _Columns = {
    "loop": pl.String,
    "date": pl.Date,
    "offset": pl.Int64,
    "decision_id": pl.String,
    "ts": _TIME,
    "generation": pl.Int64,
    "learning_mode": pl.String,
    "context": pl.String,
    "actions": pl.String,
    "action_ids": pl.List(pl.String),
    "excluded": pl.List(pl.String),
    "pmf": pl.List(pl.Float64),
    "chosen": pl.Int64,
    "action_id": pl.String,
    "propensity": pl.Float64,
    "baseline": pl.Int64,
    "scores": pl.List(pl.Float64),
    "mix": _MIX,
    "keep_prob": pl.Float64,
    "draw_key": pl.String,
    "deferred": pl.Boolean,
    "slot": pl.String,
    "audit": pl.String,
    "slate_size": pl.Int64,
    "shadow": _SHADOW,
}

# Where in a log with several partitions a row comes from; null if its log is one sequence.
_PARTITION: _Columns = {"partition": pl.Int64}

# Which step of a session a decision was; null where no session was followed.
_STEP: _Columns = {"session": _SESSION}

_OUTCOME: _Columns = {
    "loop": pl.String,
    "date": pl.Date,
    "offset": pl.Int64,
    "kind": pl.String,
    "decision_id": pl.String,
    "slot": pl.String,
    "outcome_id": pl.String,
    "reward": pl.Float64,
    "guardrails": pl.String,
    "ts": _TIME,
    **_PARTITION,
}

_INTERACTION: _Columns = {
    **_DECISION,
    "reward": pl.Float64,
    "reward_source": pl.String,
    "outcomes": pl.Int64,
    "delay_s": pl.Float64,
    "fold": pl.Int64,
    **_PARTITION,
    "revision": pl.Int64,
    "guardrails": _GUARDRAILS,
    **_STEP,
}

_GENERATION: _Columns = {
    "loop": pl.String,
    "generation": pl.Int64,
    "parent": pl.Int64,
    "created": _TIME,
    "promoted": _TIME,
    "status": pl.String,
    "exploration": pl.String,
    "oracle": pl.String,
    "run_id": pl.String,
    "lake_version": pl.Int64,
    "code_version": pl.String,
    "loop_config": pl.String,
    "seed": pl.Int64,
    "training_rows": pl.Int64,
    "judged_rows": pl.Int64,
    "estimator": pl.String,
    "estimate": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "ess": pl.Float64,
    "max_weight": pl.Float64,
    "champion_estimate": pl.Float64,
    "difference": pl.Float64,
    "difference_lower": pl.Float64,
    "difference_upper": pl.Float64,
    "verdict": pl.String,
    "override_reason": pl.String,
    "decisions": pl.Int64,
    "realised_mean": pl.Float64,
    "realised_lower": pl.Float64,
    "realised_upper": pl.Float64,
    "propensity_p_value": pl.Float64,
    "budget": pl.Float64,
    "match_rate": pl.Float64,
    "match_lower": pl.Float64,
    "match_upper": pl.Float64,
    "decisions_made": pl.Float64,
    "base_version": pl.Int64,
    "judge_share": pl.Float64,
    "judged": _TIME,
    "judged_against": pl.Int64,
    "calibration_p_value": pl.Float64,
    "total_variation": pl.Float64,
    "js_distance": pl.Float64,
    "flip_rate": pl.Float64,
    "override_by": pl.String,
    "rolled_back": _TIME,
    "rolled_back_by": pl.String,
    "rolled_back_to": pl.Int64,
    "rollback_reason": pl.String,
    "restored": _TIME,
    "guardrails": _HARM,
    "realised_guardrails": _EARNED,
    "spread_p_value": pl.Float64,
    "alternation_p_value": pl.Float64,
    "oscillates": pl.Boolean,
    "violation_rate": pl.Float64,
    "violation_lower": pl.Float64,
    "violation_upper": pl.Float64,
    "violation_pairs": pl.Float64,
    "violation_p_value": pl.Float64,
    "violations_rise": pl.Boolean,
    "disparity_p_value": pl.Float64,
    "disparity_rises": pl.Boolean,
    "session_value": pl.Float64,
    "session_lower": pl.Float64,
    "session_upper": pl.Float64,
    "simulated_value": pl.Float64,
    "simulated_sessions": pl.Int64,
    "simulated_version": pl.Int64,
    "simulator_gap": pl.Float64,
    "simulator_gap_lower": pl.Float64,
    "simulator_gap_upper": pl.Float64,
    "simulator_p_value": pl.Float64,
    "simulators_err": pl.Boolean,
    "off_policy_value": pl.Float64,
    "off_policy_lower": pl.Float64,
    "off_policy_upper": pl.Float64,
    "off_policy_sessions": pl.Int64,
    "off_policy_ess": pl.Float64,
    "simulator_error": pl.Float64,
    "simulator_disagreement": pl.Float64,
}

_AUDIT: _Columns = {
    "loop": pl.String,
    "date": pl.Date,
    "offset": pl.Int64,
    "kind": pl.String,
    "judgement_id": pl.String,
    "decision_id": pl.String,
    "other_decision_id": pl.String,
    "auditor": pl.String,
    "distance": pl.Float64,
    "ts": _TIME,
    **_PARTITION,
    "alert_id": pl.String,
    "action": pl.String,
    "generation": pl.Int64,
    "champion": pl.Int64,
    "reason": pl.String,
}

_FAIRNESS: _Columns = {
    "loop": pl.String,
    "generation": pl.Int64,
    "attribute": pl.String,
    "group": pl.String,
    "measure": pl.String,
    "action": pl.String,
    "hidden": pl.Boolean,
    "decisions": pl.Int64,
    "value": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "chosen": pl.Float64,
    "propensity": pl.Float64,
    "difference": pl.Float64,
    "difference_error": pl.Float64,
    "p_value": pl.Float64,
    "gap": pl.Float64,
    "ratio": pl.Float64,
    "of_decisions": pl.Int64,
    "of_mean": pl.Float64,
}

SCHEMAS: dict[TableName, pl.Schema] = {
    "decisions": pl.Schema(_DECISION | _PARTITION | _STEP),
    "outcomes": pl.Schema(_OUTCOME),
    "interactions": pl.Schema(_INTERACTION),
    "generations": pl.Schema(_GENERATION),
    "audits": pl.Schema(_AUDIT),
    "fairness": pl.Schema(_FAIRNESS),
}
"""Columns of every table. JSON stands in `context`, `actions`, `audit` and the `guardrails` of an
outcome. Those of an interaction are what its loop had configured when it was joined, in the order
of their names, and null if there was nothing; those of a generation are what the gate found, and
`realised_guardrails` what they came to. `pmf` and `scores` are null where an imported log doesn't
have them; `fold` is the decision's place, in [0, 1000), in the division of rows between learner and
judge. `slot` is null for a decision that has none, `slate_size` for all but slates, `shadow` where
none was asked, `session` where none was followed. `offset` is a row's position in its `partition`
of the log, which is null where the log is one sequence. An interaction has one row for every
`revision`, see :func:`~croupier.offline.interactions.current_interactions`; null stands for 0. Of a
generation, `decisions` are those that were logged, and `decisions_made` estimates all of them by
`Σ 1 / keep_prob`; `rolled_back` is when it last stopped being champion by a rollback, and
`restored` when it last became champion by one. `spread_p_value`, `alternation_p_value` and
`oscillates` are of the latest generations that have served, this one being the last, see
:mod:`croupier.offline.oscillation`; `violation_p_value` and `violations_rise` likewise, see
:mod:`croupier.offline.fairness.rises`. The other columns of violations are of the generation's own
decisions, by the auditors as they were in the last night. The next two say whether a disparity has
risen up to it, and the last ones what its sessions were worth: really, in simulators that were
learned from a `simulated_version` of the interactions, and by the log of all held-out users'
sessions since it was made, null where that says too little; see
:mod:`croupier.offline.simulator_gap`. A row of `fairness` is a group's `reward`, or its `exposure`
to an action, in a generation: with an interval, its difference to all other groups, and the `gap`
and `ratio` of the attribute's groups; of a hidden group no number is kept. See
:mod:`croupier.offline.fairness.signals`.

A row of `audits` whose `kind` is ``acknowledgement`` says that somebody, the `auditor`, has seen an
alert, `alert_id`; its own id stands in `judgement_id`. One whose `kind` is ``override`` says that
the `auditor` wants another champion, see :class:`~croupier.policy.events.Override`.

A table may gain columns, at the end; files that were written before have nulls in them."""

_PARTITIONS: dict[TableName, list[str]] = {
    "decisions": ["loop", "date"],
    "outcomes": ["loop", "date"],
    "interactions": ["loop", "date"],
    "generations": ["loop"],
    "audits": ["loop", "date"],
    "fairness": ["loop"],
}

# Delta forgets versions after 30 days unless it is told not to. A generation has to stay
# reproducible from the version of the interactions that it names, and the history of generations
# is kept.
_ALL_VERSIONS: tuple[TableName, ...] = ("interactions", "generations")
_KEEP_VERSIONS = {"delta.enableExpiredLogCleanup": "false"}

# Beyond delta-rs's own attempts, of which there are 15 to a write.
_ATTEMPTS = 8
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0
_ANYWHERE: Final = -1

# Characters of a path that Delta, polars or SQLAlchemy take for more than a part of a name.
_UNUSABLE = frozenset("%?#[]|^\\=")


class LakeLockedError(CroupierError):
    """Another process is writing to the lake."""


class ForgottenError(CroupierError):
    """Rows that were in an older version of a table have been deleted for good."""


class LakeConflictError(CroupierError):
    """Others have written to a table again and again at the same time; nothing was written."""


class ProgressError(CroupierError):
    """Somebody else has written under the same name meanwhile; nothing was written."""


class Lake:
    """Delta tables below one directory.

    Parameters
    ----------
    root
        Directory of the lake; made on the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def exists(self, table: TableName) -> bool:
        """Whether anything was ever written to a table."""
        # Not whether there is a directory: a crash can come between making it and the first commit.
        return DeltaTable.is_deltatable(str(self.root / table))

    def scan(self, table: TableName, loop: str | None = None) -> pl.LazyFrame:
        """Read a table lazily, as it is now; only one loop's rows if named."""
        if not self.exists(table):
            return pl.LazyFrame(schema=SCHEMAS[table])
        rows = self._rows(table, None)
        return rows if loop is None else rows.filter(pl.col("loop") == loop)

    def scan_version(self, table: TableName, version: int, loop: str) -> pl.LazyFrame:
        """Read one loop's rows as they were in a version of the table."""
        return self._rows(table, version).filter(pl.col("loop") == loop)

    def scan_commits(self, table: TableName, base: int, until: int, loop: str) -> pl.LazyFrame:
        """Read one loop's rows, with the version that each of them came with.

        Rows that were only moved by a commit, such as a compaction, did not come with it.

        Parameters
        ----------
        table
            To read.
        base
            Version whose rows all count as having come with it.
        until
            Last version whose rows are read.
        loop
            Whose rows.

        Returns
        -------
        LazyFrame
            The table's columns and `version`.

        Raises
        ------
        ForgottenError
            If rows have been deleted for good since.
        """
        delta = DeltaTable(self.root / table, version=base)
        pruned = delta.file_uris(file_pruning_predicate=[("loop", "=", loop)])
        files = dict.fromkeys(pruned, base)
        for version in range(base + 1, until + 1):
            files |= dict.fromkeys(self._appended(table, version, loop), version)
        paths = {unquote(uri): version for uri, version in files.items()}
        if not all(Path(path).exists() for path in paths):
            raise ForgottenError(
                f"rows of version {base} to {until} of {self.root / table} have been deleted"
            )
        versions = pl.LazyFrame(
            {"file": list(paths), "version": list(paths.values())},
            schema={"file": pl.String, "version": pl.Int64},
        )
        rows = self.read(table, [Path(path) for path in paths], file_paths="file")
        return (
            rows.filter(pl.col("loop") == loop)
            .join(versions, on="file", how="left")
            .select(*SCHEMAS[table].names(), "version")
        )

    def loops(self, table: TableName) -> list[str]:
        """Names of all loops that have rows in a table, in order; no row is read."""
        if not self.exists(table):
            return []
        partitions = DeltaTable(self.root / table).partitions()
        return sorted({str(each["loop"]) for each in partitions})

    def version(self, table: TableName) -> int:
        """Number of the table's latest version; -1 before the first write."""
        return DeltaTable(self.root / table).version() if self.exists(table) else -1

    def has_version(self, table: TableName, version: int) -> bool:
        """Whether a version of a table can be read; -1 is the one before the first write."""
        if version == -1:
            return True
        try:
            DeltaTable(self.root / table, version=version)
        except DeltaError:
            return False
        return True

    def progress(self, table: TableName, app: str, version: int | None = None) -> int | None:
        """How far an application's committed transactions on a table have come; None if nowhere.

        In a version of the table if one is named.
        """
        if not self.exists(table) or version == -1:
            return None
        return DeltaTable(self.root / table, version=version).transaction_version(app)

    def snapshot(
        self, table: TableName, loop: str | None = None, version: int | None = None
    ) -> Snapshot:
        """The files of one loop, as they are now or in a version; all loops' if none is named."""
        if version == -1 or not self.exists(table):
            return Snapshot(-1, [])
        delta = DeltaTable(self.root / table, version=version)
        return Snapshot(delta.version(), data_files(delta, self.root / table, loop))

    def added_since(self, table: TableName, version: int) -> set[Path] | None:
        """Files with rows that a table has gained after a version; None if that isn't known."""
        return files_added(self.root / table, version, self.version(table))

    def read(
        self,
        table: TableName,
        files: Sequence[Path],
        *,
        row_index: str | None = None,
        file_paths: str | None = None,
    ) -> pl.LazyFrame:
        """Read some files of a table lazily.

        Parameters
        ----------
        table, files
            Which ones.
        row_index
            Name of an additional first column: a row's place in all of the files, from 0.
        file_paths
            Name of an additional last column: the file that a row is in.
        """
        schema = SCHEMAS[table]
        columns = pl.Schema(schema)
        if row_index is not None:
            columns = pl.Schema({row_index: pl.UInt32(), **columns})
        if file_paths is not None:
            columns[file_paths] = pl.String()
        if not files:
            return pl.LazyFrame(schema=columns)
        partitions = pl.Schema({name: schema[name] for name in _PARTITIONS[table]})
        rows = pl.scan_parquet(
            list(files),
            glob=False,
            schema=schema,
            hive_partitioning=True,
            hive_schema=partitions,
            missing_columns="insert",
            row_index_name=row_index,
            include_file_paths=file_paths,
        )
        return rows.select(columns.names())

    def append_stream(
        self, table: TableName, frames: Iterator[pl.DataFrame], marks: Mapping[str, int]
    ) -> None:
        """Append rows that are too many to be held at once, in one commit.

        Parameters
        ----------
        table
            To append to; nobody else may write to it meanwhile, since the rows are only made once.
        frames
            Each of the table's schema.
        marks
            Applications and their progress, noted in the same commit.

        Raises
        ------
        LakeConflictError
            If somebody else has written to it.
        """
        delta = DeltaTable(self.root / table) if self.exists(table) else None
        self._stream(table, delta, frames, [Transaction(*each) for each in marks.items()])

    def write_apart(self, table: TableName, frames: Iterator[pl.DataFrame], folder: Path) -> None:
        """Write rows as :meth:`append_stream` would, but into a folder, for a later commit.

        Parameters
        ----------
        table
            That they are for.
        frames
            Each of the table's schema.
        folder
            That doesn't exist yet, within the lake; a Delta table of its own is made of it.
        """
        Lake(folder)._stream(table, None, frames, [])  # noqa: SLF001 - its own kind

    def append_written(
        self, table: TableName, folders: Sequence[Path], marks: Mapping[str, int]
    ) -> None:
        """Append what was written apart, in one commit.

        Parameters
        ----------
        table
            To append to; nobody else may write to it meanwhile.
        folders
            What :meth:`write_apart` has written; their files are moved into the table.
        marks
            Applications and their progress, noted in the same commit.

        Raises
        ------
        LakeConflictError
            If somebody else has written to it.
        """
        if not self.exists(table) or not self._has_columns(table):
            # Files are only added to a table that there is, with all columns that they have.
            self.append(table, pl.DataFrame(schema=SCHEMAS[table]))
        delta = DeltaTable(self.root / table)
        added = [move_files(folder / table, self.root / table) for folder in folders]
        try:
            delta.create_write_transaction(
                [each for actions in added for each in actions],
                "append",
                delta.schema(),
                _PARTITIONS[table],
                commit_properties=CommitProperties(
                    app_transactions=[Transaction(*each) for each in marks.items()]
                ),
            )
        except CommitFailedError as error:
            raise LakeConflictError(f"writing to {table} failed: {error}") from error

    def append(
        self,
        table: TableName,
        rows: pl.DataFrame,
        *,
        app: str | None = None,
        progress: int = 0,
        after: int | None = _ANYWHERE,
    ) -> None:
        """Append rows and, in the same commit, note an application's progress.

        Either both are seen afterwards or neither, whatever happens to this process. An append of
        no rows notes the progress alone. Any number of processes may append at once.

        Parameters
        ----------
        table
            To append to.
        rows
            Of the table's schema, in any order of columns.
        app
            Name of the application transaction; None for an append that isn't tracked.
        progress
            Grows from commit to commit.
        after
            The application's progress before, None if it has none: the append is made only if
            nobody has moved it on, however close in time. Not looked at if left out.

        Raises
        ------
        ProgressError
            If the application's progress isn't what it was to be.
        LakeConflictError
            If others wrote at the same time, too often.
        """
        transactions = [] if app is None else [Transaction(app, progress)]

        def attempt() -> None:
            delta = DeltaTable(self.root / table) if self.exists(table) else None
            if after != _ANYWHERE:
                assert app is not None
                found = None if delta is None else delta.transaction_version(app)
                if found != after:
                    raise ProgressError(
                        f"expected {app} to have come to {after} in {table}, found {found}"
                    )
            # What was committed since that table was opened is compared by Delta with what is
            # committed here: a transaction of the same application there is refused.
            self._write(table, delta, rows, "append", transactions)

        self._commit(table, attempt)

    def replace(self, table: TableName, rows: pl.DataFrame) -> None:
        """Put rows in the place of all of a table's; older versions stay readable."""
        self._commit(table, lambda: self._write(table, None, rows, "overwrite", []))

    def compact(self, *, before: date | None = None) -> dict[TableName, int]:
        """Put small files into larger ones, day by day; gives how many files fewer there are.

        Rows stay, and so do older versions. Others may append meanwhile; whoever else replaces the
        same files makes it fail, and then nothing has changed.

        Parameters
        ----------
        before
            Days to leave alone from; today and yesterday unless given, which still grow.
        """
        until = before or datetime.now(tz=UTC).date() - timedelta(days=1)
        fewer: dict[TableName, int] = {}
        for table, keys in _PARTITIONS.items():
            if "date" not in keys or not self.exists(table):
                continue
            with self._files(fcntl.LOCK_SH):
                delta = DeltaTable(self.root / table)
                metrics = delta.optimize.compact(
                    partition_filters=[("date", "<", until.isoformat())], max_concurrent_tasks=1
                )
            fewer[table] = metrics["numFilesRemoved"] - metrics["numFilesAdded"]
        return fewer

    def delete(
        self, table: TableName, predicate: str, *, marks: Mapping[str, int] | None = None
    ) -> None:
        """Delete rows, and the files that only held them: older versions lose these rows too.

        Files of others that are not committed yet are left alone.

        Parameters
        ----------
        table
            To delete from.
        predicate
            SQL that is true of the rows.
        marks
            Applications and their progress, noted in the same commit.

        Raises
        ------
        LakeConflictError
            If others wrote at the same time, too often.
        """
        if not self.exists(table):
            return
        transactions = [Transaction(*each) for each in (marks or {}).items()]
        properties = CommitProperties(app_transactions=transactions)

        def attempt() -> None:
            delta = DeltaTable(self.root / table)
            delta.delete(predicate, commit_properties=properties)
            delta.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)

        with self._files(fcntl.LOCK_EX):
            self._commit(table, attempt)

    def has_column(self, table: TableName, column: str) -> bool:
        """Whether a table was written to since it has had a column."""
        if not self.exists(table):
            return False
        return any(each.name == column for each in DeltaTable(self.root / table).schema().fields)

    @contextmanager
    def keeping_files(self) -> Iterator[None]:
        """Have no process of this machine delete files from the lake meanwhile.

        For whoever reads and appends beside the holder of the lock. Others do so at once; who is to
        delete comes next when he asks.
        """
        with self._files(fcntl.LOCK_SH):
            yield

    def check(self) -> None:
        """Make the directory if it is missing, and see whether it can be written to.

        Raises
        ------
        InvalidInputError
            If it can't.
        """
        unusable = sorted(_UNUSABLE.intersection(str(self.root.absolute())))
        if unusable:
            raise InvalidInputError(
                "lake", f"expected a path without {' '.join(unusable)}, got {self.root}"
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / ".lock").open("w").close()
        except OSError as error:
            raise InvalidInputError(
                "lake", f"expected a directory to write to at {self.root}: {error.strerror}"
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lake for writing, against other processes.

        Raises
        ------
        LakeLockedError
            At once, if another process holds it.
        InvalidInputError
            If nothing can be written there.
        """
        self.check()
        with (self.root / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LakeLockedError(
                    f"another process is writing to the lake in {self.root}"
                ) from None
            yield

    def _has_columns(self, table: TableName) -> bool:
        """Whether a table has all columns that are written now."""
        known = {each.name for each in DeltaTable(self.root / table).schema().fields}
        return known >= set(SCHEMAS[table])

    def _rows(self, table: TableName, version: int | None) -> pl.LazyFrame:
        """All rows of a version; what `polars.scan_delta` does for paths of plain letters alone.

        It asks for files by their percent-encoded names and finds none in a directory with spaces
        (https://github.com/pola-rs/polars/issues/20944).
        """
        delta = DeltaTable(self.root / table, version=version)
        return self.read(table, [Path(unquote(uri)) for uri in delta.file_uris()])

    def _appended(self, table: TableName, version: int, loop: str) -> list[str]:
        """Files of a loop's rows that are new in a version.

        Out of the commit itself: to have the library open one version after the other takes tens
        of milliseconds each.
        """
        commit = self.root / table / "_delta_log" / f"{version:020}.json"
        try:
            lines = commit.read_bytes().splitlines()
        except FileNotFoundError:
            raise ForgottenError(f"the commit {commit} has been deleted") from None
        actions = [msgspec.json.decode(line, type=_Action) for line in lines]
        if any(action.remove is not None for action in actions):
            return []
        added = [action.add for action in actions if action.add is not None]
        return [
            str(self.root / table / file.path)
            for file in added
            if file.partitions.get("loop") == loop
        ]

    @contextmanager
    def _files(self, kind: int) -> Iterator[None]:
        """Hold the files, shared or alone, after waiting for it in line."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".files").open("w") as files:
            # Without a line, those that share could keep out for ever who is to be alone.
            with (self.root / ".line").open("w") as line:
                fcntl.flock(line, fcntl.LOCK_EX)
                fcntl.flock(files, kind)
            yield

    def _commit(self, table: TableName, attempt: Callable[[], None]) -> None:
        """Try again what others' commits got in the way of."""
        for number in range(_ATTEMPTS):
            try:
                attempt()
            except CommitFailedError as error:
                failure = error
            else:
                return
            longest = min(_FIRST_PAUSE_S * 2**number, _LONGEST_PAUSE_S)
            time.sleep(longest * random.random())  # noqa: S311 - only not all at the same time
        raise LakeConflictError(f"writing to {table} failed: {failure}") from failure

    def _stream(
        self,
        table: TableName,
        delta: DeltaTable | None,
        frames: Iterator[pl.DataFrame],
        transactions: list[Transaction],
    ) -> None:
        schema = SCHEMAS[table]
        empty = Table.from_arrow(pl.DataFrame(schema=schema))
        broken: list[Exception] = []

        def batches() -> Iterator[RecordBatch]:
            try:
                for frame in frames:
                    rows = frame.select(schema.names()).match_to_schema(schema).rechunk()
                    yield from Table.from_arrow(rows).to_batches()
            except Exception as error:
                # Delta would make something of its own of it.
                broken.append(error)
                raise

        rows = RecordBatchReader.from_batches(empty.schema, batches())
        try:
            self._write(table, delta, rows, "append", transactions)
        except CommitFailedError as error:
            raise LakeConflictError(f"writing to {table} failed: {error}") from error
        except DeltaError:
            if broken:
                raise broken[0] from None
            raise

    def _write(
        self,
        table: TableName,
        delta: DeltaTable | None,
        rows: pl.DataFrame | RecordBatchReader,
        mode: Literal["append", "overwrite"],
        transactions: list[Transaction],
    ) -> None:
        if isinstance(rows, pl.DataFrame):
            schema = SCHEMAS[table]
            rows = rows.select(schema.names()).match_to_schema(schema)
        making = delta is None and mode == "append"
        try:
            write_deltalake(
                self.root / table if delta is None else delta,
                rows,
                mode="error" if making else mode,
                schema_mode="merge",
                partition_by=_PARTITIONS[table],
                configuration=_KEEP_VERSIONS if table in _ALL_VERSIONS else None,
                commit_properties=CommitProperties(app_transactions=transactions),
            )
        except DeltaError as error:
            if making and self.exists(table):
                raise CommitFailedError("somebody else has just made the table") from error
            raise


class _File(msgspec.Struct, rename={"partitions": "partitionValues"}):
    path: str
    partitions: dict[str, str | None] = {}


class _Action(msgspec.Struct):
    """As much as we need to know of an action in a commit of Delta's log."""

    add: _File | None = None
    remove: _File | None = None
