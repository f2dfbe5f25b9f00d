"""Copies of a data directory that is in use, and data directories from such copies.

A backup is a folder with the same parts as the data directory. The lake comes first and the log
last, so the log knows all that the lake does: the next sink brings the rest, and the lake could be
built anew from it. The registry is copied between the two. Nothing that writes to the lake, a night
for example, may run meanwhile; scorers go on.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from croupier import __version__
from croupier.eventlog.layouts import copy_log
from croupier.offline.data_format import FORMAT, FORMAT_FILE, check_format
from croupier.offline.summaries.tables import summaries_of
from croupier.policy.errors import ConfigError, InvalidInputError

if TYPE_CHECKING:
    from croupier.offline.lake import Lake

__all__ = ("BackupManifest", "backup", "relocate", "restore")

_MANIFEST = "backup.json"
_DATABASE = "mlflow.db"
_ARTIFACTS = "mlartifacts"
# What else is in a data directory is made anew, or belongs to processes that run.
_SMALL = ("draw-secret", FORMAT_FILE)
_FOLDERS = ("settings", "control")
_LOCATIONS = (
    ("runs", "artifact_uri"),
    ("experiments", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup says of itself; it is written last.

    Attributes
    ----------
    format
        Of the data directory.
    written_by
        The version of Croupier that made the backup.
    root
        Where the data directory was: its registry names places below it.
    parts
        What of it is there.
    """

    format: int
    written_by: str
    root: str
    parts: list[str]


def backup(root: Path, lake: Lake, into: Path) -> BackupManifest:
    """Copy a data directory while scorers use it.

    What was acknowledged before the call is in the copy.

    Parameters
    ----------
    root
        The data directory.
    lake
        Its lake, which is held meanwhile.
    into
        The folder of the backup; made, and must not be there.

    Raises
    ------
    InvalidInputError
        If `into` is there already or lies within the data directory.
    ConfigError
        If there is no data directory, or none of this format.
    LakeLockedError
        If a night or another writer of the lake is at work.
    LogUnavailableError
        If the log can't be copied.
    """
    check_format(root)
    if not root.is_dir():
        raise ConfigError("data_dir", f"expected a data directory at {root}")
    if into.exists():
        raise InvalidInputError("into", f"expected a folder that doesn't exist, got {into}")
    if into.resolve().is_relative_to(root.resolve()):
        raise InvalidInputError("into", f"expected a folder outside of {root}, got {into}")
    into.mkdir(parents=True)
    with lake.lock():
        with summaries_of(lake).locked_scorers():
            for name in ("lake", *_FOLDERS):
                if (root / name).is_dir():
                    shutil.copytree(root / name, into / name)
        # Artifacts come after the database that names them; they are never changed or replaced.
        if (root / _DATABASE).exists():
            _copy_database(root / _DATABASE, into / _DATABASE)
        if (root / _ARTIFACTS).is_dir():
            shutil.copytree(root / _ARTIFACTS, into / _ARTIFACTS)
        for name in _SMALL:
            if (root / name).exists():
                shutil.copy2(root / name, into / name)
        if (root / "log").is_dir():
            copy_log(root / "log", into / "log")
    manifest = BackupManifest(
        format=FORMAT,
        written_by=__version__,
        root=str(root),
        parts=sorted(path.name for path in into.iterdir()),
    )
    _sync(into)
    (into / _MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    _sync_file(into / _MANIFEST)
    return manifest


def restore(source: Path, root: Path) -> BackupManifest:
    """Make a data directory from a backup.

    It may be at another place than the one that was copied: places that the registry's database
    names are moved with it.

    Parameters
    ----------
    source
        The folder of the backup, which stays as it is.
    root
        The data directory; must be empty or not there.

    Raises
    ------
    InvalidInputError
        If `source` is no whole backup.
    ConfigError
        If there is something at `root`, or if a later version has made the backup.
    """
    try:
        manifest = msgspec.json.decode((source / _MANIFEST).read_bytes(), type=BackupManifest)
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInputError(
            "source", f"expected a whole backup in {source}: {error}"
        ) from error
    missing = [name for name in manifest.parts if not (source / name).exists()]
    if missing:
        raise InvalidInputError("source", f"expected {', '.join(missing)} in {source}")
    check_format(source)
    if root.exists() and any(root.iterdir()):
        raise ConfigError("data_dir", f"expected nothing in {root}")
    root.mkdir(parents=True, exist_ok=True)
    for name in manifest.parts:
        if (source / name).is_dir():
            shutil.copytree(source / name, root / name)
        else:
            shutil.copy2(source / name, root / name)
    if (root / _DATABASE).exists():
        relocate(root / _DATABASE, manifest.root, str(root))
    _sync(root)
    return manifest


def _copy_database(path: Path, into: Path) -> None:
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(into)) as target,
    ):
        source.backup(target)


def relocate(database: Path, before: str, after: str) -> None:
    """Replace the data directory's place at the beginning of all that MLflow remembers."""
    with closing(sqlite3.connect(database)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        for table, column in _LOCATIONS:
            if table not in tables:
                continue
            for scheme in ("", "file://"):
                old, new = f"{scheme}{before}/", f"{scheme}{after}/"
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - constants
                    f"WHERE substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old), old),
                )


def _sync(folder: Path) -> None:
    """Bring everything below a folder to the disk."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync_file(Path(path) / name)
        _sync_file(Path(path))


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
