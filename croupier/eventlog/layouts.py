"""What segments of a log in SQLite look like, now and in earlier versions; and copies of them."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from croupier.eventlog.files import exclusive, sync_directory
from croupier.policy.errors import InvalidInputError, LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = (
    "LAYOUT",
    "LOCK_NAME",
    "PAGE_BYTES",
    "ROW_BYTES",
    "check_layout",
    "copy_log",
    "lay_out",
    "log_layouts",
    "migrate_log",
    "prepare",
)

LAYOUT = 2
"""A row for every append. Layout 1 had one for every record, in a table ``records``."""

LOCK_NAME = "writer.lock"
"""The file that everything that writes holds."""

ROW_BYTES = 2 * 2**20
"""How much goes into a row: rows are read whole, and SQLite has a limit for them."""

PAGE_BYTES = 16384
"""Fewer calls of the operating system than with SQLite's default of 4096, and little waste."""

_APPLICATION_ID = 0x43524F55  # "CROU"
_BATCHES_TABLE = """
CREATE TABLE batches (
    position INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    records BLOB NOT NULL
)
"""
_SEGMENT_TABLE = "CREATE TABLE segment (base INTEGER NOT NULL, sealed_end INTEGER)"
_EARLIER = 1
_SEGMENT_NAME = re.compile(r"\d{20}\.db")
_LOCK_PATIENCE_S = 5.0
_BATCH_RECORDS = 256
_COPIED_PAGES = 1024


def lay_out(connection: sqlite3.Connection) -> None:
    """Make the tables of a segment in an empty database, within the caller's transaction."""
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {LAYOUT}")
    connection.execute(_BATCHES_TABLE)
    connection.execute(_SEGMENT_TABLE)


def prepare(connection: sqlite3.Connection) -> None:
    """Set what can't be changed later of an empty database, before its first transaction."""
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = 1")
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")


def check_layout(connection: sqlite3.Connection, path: Path) -> None:
    """Check that a database is a segment of the present layout.

    Raises
    ------
    LogUnavailableError
        If it isn't.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if (application, layout) != (_APPLICATION_ID, LAYOUT):
        raise LogUnavailableError(
            f"{path} is not a log segment that this version of Croupier knows: expected "
            f"application id {_APPLICATION_ID:#x} and layout {LAYOUT}, "
            f"found {application:#x} and {layout}"
        )


def log_layouts(directory: Path) -> set[int]:
    """Layouts of a log's segments; empty if there is no log.

    Raises
    ------
    LogUnavailableError
        If a file can't be read.
    """
    return {_layout(path) for path in _segments(directory)}


def migrate_log(directory: Path) -> int:
    """Bring segments of layout 1 to layout 2, each whole or not at all.

    Positions stay, so readers go on where they were. It may be killed and begun again.

    Parameters
    ----------
    directory
        Of the log. No scorer may have it open.

    Returns
    -------
    int
        Segments that were rewritten.

    Raises
    ------
    LogUnavailableError
        If somebody is writing to it, or if a segment can't be read or written.
    """
    outdated = [path for path in _segments(directory) if _layout(path) == _EARLIER]
    if not outdated:
        return 0
    with exclusive(directory / LOCK_NAME, time.monotonic() + _LOCK_PATIENCE_S) as alone:
        if not alone:
            raise LogUnavailableError(f"another process is writing to the log in {directory}")
        # The last one is what a scorer has open: that is found before anything is done.
        for path in reversed(outdated):
            try:
                _rewrite(path)
            except (sqlite3.Error, OSError) as error:
                raise LogUnavailableError(f"migrating {path} failed: {error}") from error
    return len(outdated)


def copy_log(directory: Path, into: Path) -> None:
    """Copy a log while it is written to.

    Segments are copied in their order by SQLite's own backup, each as it is at one moment. What was
    acknowledged before this was called is in the copy; what came during it may be, up to some
    position and without holes.

    Parameters
    ----------
    directory
        Of the log.
    into
        Of the copy; made, and must not be there.

    Raises
    ------
    InvalidInputError
        If `into` is there already.
    LogUnavailableError
        If a segment can't be read or the copy can't be written.
    """
    if into.exists():
        raise InvalidInputError("into", f"expected a directory that doesn't exist, got {into}")
    into.mkdir(parents=True)
    copied: set[str] = set()
    try:
        # One that begins meanwhile follows a segment that was sealed before, and copied so.
        while left := [path for path in _segments(directory) if path.name not in copied]:
            for path in left:
                _copy(path, into / path.name)
                copied.add(path.name)
            if _is_open(into / left[-1].name):
                break
        sync_directory(into)
    except (sqlite3.Error, OSError) as error:
        raise LogUnavailableError(f"copying the log in {directory} failed: {error}") from error


def _segments(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _SEGMENT_NAME.fullmatch(path.name))


def _layout(path: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (layout,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        raise LogUnavailableError(f"reading {path} failed: {error}") from error
    if application != _APPLICATION_ID:
        raise LogUnavailableError(
            f"{path} is no log segment: expected application id {_APPLICATION_ID:#x}, "
            f"found {application:#x}"
        )
    return int(layout)


def _rewrite(path: Path) -> None:
    temporary = path.with_name("segment.tmp")
    for leftover in path.parent.glob(f"{temporary.name}*"):
        leftover.unlink()
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        # Empties the write-ahead log and removes it, and fails if anybody else has the file open:
        # what they would write later would go into a file that is no longer there.
        (mode,) = old.execute("PRAGMA journal_mode = DELETE").fetchone()
        if mode != "delete":
            raise LogUnavailableError(f"another process has {path} open")
        with closing(sqlite3.connect(temporary, isolation_level=None)) as new:
            _fill(old, new)
    temporary.replace(path)
    sync_directory(path.parent)


def _fill(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    prepare(new)
    new.execute("BEGIN")
    lay_out(new)
    new.executemany("INSERT INTO segment VALUES (?, ?)", old.execute("SELECT * FROM segment"))
    for position, records in _batches(old):
        encoded = msgspec.msgpack.encode(records)
        new.execute("INSERT INTO batches VALUES (?, ?, ?)", (position, len(records), encoded))
    new.execute("COMMIT")
    new.execute("PRAGMA journal_mode = WAL").fetchone()


def _batches(old: sqlite3.Connection) -> Iterator[tuple[int, list[tuple[str, str, str, bytes]]]]:
    """Records in runs without a hole that fit into a row, with the first one's position."""
    start, size = 0, 0
    run: list[tuple[str, str, str, bytes]] = []
    for position, *record in old.execute(
        "SELECT position, loop, kind, key, payload FROM records ORDER BY position"
    ):
        loop, kind, key, payload = record
        full = len(run) == _BATCH_RECORDS or size + len(payload) > ROW_BYTES
        if run and (full or position != start + len(run)):
            yield start, run
            run = []
        if not run:
            start, size = position, 0
        run.append((loop, kind, key, payload))
        size += len(payload)
    if run:
        yield start, run


def _copy(path: Path, into: Path) -> None:
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(into)) as target,
    ):
        source.backup(target, pages=_COPIED_PAGES)
    descriptor = os.open(into, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_open(path: Path) -> bool:
    """Whether a segment was still written to when it was copied."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        (sealed_end,) = connection.execute("SELECT sealed_end FROM segment").fetchone()
    return sealed_end is None
