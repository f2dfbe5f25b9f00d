"""Which format a data directory has, and bringing one of an earlier format to the present one.

The file ``format.json`` in the data directory says it. A directory without it was written by a
version that didn't have one yet; its log tells which.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from croupier import __version__
from croupier.eventlog.files import sync_directory
from croupier.eventlog.layouts import LAYOUT, log_layouts, migrate_log
from croupier.policy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("FORMAT", "FORMAT_FILE", "DataFormat", "check_format", "format_of", "migrate")

FORMAT = 2
"""The present format. Formats are those of the log's segments until something else changes."""

FORMAT_FILE = "format.json"
_STATE = ("log", "lake", "mlflow.db")


class DataFormat(msgspec.Struct, frozen=True, kw_only=True):
    """Format of a data directory.

    Attributes
    ----------
    format
        Its number, at least 1.
    written_by
        The version of Croupier that has written it.
    """

    format: int
    written_by: str


def format_of(root: Path) -> DataFormat | None:
    """The format of a data directory; None if there is nothing in it yet.

    Raises
    ------
    ConfigError
        If the file that says it can't be read.
    LogUnavailableError
        If there is none, and the log can't be read.
    """
    try:
        return msgspec.json.decode((root / FORMAT_FILE).read_bytes(), type=DataFormat)
    except (FileNotFoundError, NotADirectoryError):
        # What is no directory is told of by whoever is to write into it.
        pass
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            "data_dir", f"expected the format of {root} in {FORMAT_FILE}: {error}"
        ) from error
    if not any((root / name).exists() for name in _STATE):
        return None
    return DataFormat(format=min(log_layouts(root / "log"), default=LAYOUT), written_by="unknown")


def check_format(root: Path) -> None:
    """Check that this version can use a data directory, and note its format if nobody has yet.

    Raises
    ------
    ConfigError
        If a later version has written it, or an earlier one whose format has to be migrated.
    LogUnavailableError
        If its log can't be read.
    """
    found = format_of(root)
    if found is None:
        return
    if found.format > FORMAT:
        raise ConfigError(
            "data_dir",
            f"expected format {FORMAT} or lower in {root}, got {found.format}, written by "
            f"Croupier {found.written_by}: a later version than this one, {__version__}",
        )
    if found.format < FORMAT:
        raise ConfigError(
            "data_dir",
            f"expected format {FORMAT} in {root}, got {found.format}: end what uses it, back it "
            "up, and run croupier migrate",
        )
    if not (root / FORMAT_FILE).exists():
        # Whoever may only read needs no note; the next one who writes makes it.
        with suppress(PermissionError):
            _note(root)


def migrate(root: Path) -> tuple[int, int]:
    """Bring a data directory to the present format.

    Each file is replaced whole, and the format is noted last: a migration that is killed is begun
    again.

    Parameters
    ----------
    root
        The data directory. Nothing else may use it.

    Returns
    -------
    tuple
        Its format before, and the segments of the log that were rewritten.

    Raises
    ------
    ConfigError
        If there is nothing there, or if a later version has written it.
    LogUnavailableError
        If the log is in use, or can't be read or written.
    """
    found = format_of(root)
    if found is None:
        raise ConfigError("data_dir", f"expected a data directory, found nothing in {root}")
    if found.format > FORMAT:
        check_format(root)
    rewritten = migrate_log(root / "log")
    _note(root)
    return found.format, rewritten


def _note(root: Path) -> None:
    temporary = root / f"{FORMAT_FILE}.{os.getpid()}"
    with temporary.open("wb") as file:
        file.write(msgspec.json.encode(DataFormat(format=FORMAT, written_by=__version__)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(root / FORMAT_FILE)
    sync_directory(root)
