"""A generation as one file: a ZIP archive of what it is saved as, and back."""

from __future__ import annotations

import io
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from croupier.control.learning import refuse_foreign
from croupier.policy.errors import GenerationError, InvalidInputError
from croupier.policy.generation import Generation

if TYPE_CHECKING:
    from croupier.policy.loop import LoopConfig

__all__ = ("pack", "unpack")

# Archives of the same generation are the same bytes.
_TIME = (1980, 1, 1, 0, 0, 0)
_MOST_FILES = 64
# Read by nothing but JSON's and NumPy's readers, the latter without pickles.
_OWN_SUFFIXES = frozenset({".json", ".sha256", ".npz"})
# Of the archive, RuntimeError says that it is encrypted or compressed in an unknown way.
_UNREADABLE = (
    GenerationError,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    zlib.error,
    msgspec.MsgspecError,
)


def pack(generation: Generation) -> bytes:
    """The archive of a generation."""
    content = io.BytesIO()
    with (
        tempfile.TemporaryDirectory() as staging,
        zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive,
    ):
        directory = Path(staging) / "generation"
        generation.save(directory)
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                name = path.relative_to(directory).as_posix()
                archive.writestr(zipfile.ZipInfo(name, _TIME), path.read_bytes())
    return content.getvalue()


def unpack(content: bytes, *, max_bytes: int, configured: LoopConfig) -> Generation:
    """The generation that an archive holds, checked file by file against its manifest.

    Parameters
    ----------
    content
        The archive.
    max_bytes
        Most that it may hold, files of arrays unpacked.
    configured
        Of the loop: its exploration is the only one that may be a class of the user's, and its
        oracle's kind the only one that may have a model for another program to run.

    Raises
    ------
    InvalidInputError
        If it is no such archive; nothing of it was left anywhere.
    """
    try:
        with (
            zipfile.ZipFile(io.BytesIO(content)) as archive,
            tempfile.TemporaryDirectory() as staging,
        ):
            directory = Path(staging)
            _extract(archive, directory, max_bytes)
            manifest = msgspec.json.decode((directory / "manifest.json").read_bytes())
            refuse_foreign("body", manifest, known=msgspec.to_builtins(configured.exploration))
            _refuse_programs(directory, configured)
            return Generation.load(directory)
    except zipfile.BadZipFile as error:
        raise InvalidInputError(
            "body",
            "expected an archive as GET model gives one; a model file of Vowpal Wabbit can't be "
            "taken over, since its weights belong to other features than a loop's",
        ) from error
    except _UNREADABLE as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError("body", f"expected a whole generation: {_told(error)}") from error


def _extract(archive: zipfile.ZipFile, directory: Path, max_bytes: int) -> None:
    entries = archive.infolist()
    if len(entries) > _MOST_FILES:
        raise InvalidInputError("body", f"expected at most {_MOST_FILES} files")
    left = max_bytes
    for entry in entries:
        name = PurePosixPath(entry.filename)
        if entry.is_dir():
            continue
        if name.is_absolute() or ".." in name.parts or "\\" in entry.filename or "\0" in str(name):
            raise InvalidInputError("body", f"expected plain file names, got {entry.filename!r}")
        with archive.open(entry) as file:
            # Whatever size the archive says that it has.
            found = file.read(left + 1)
        if len(found) > left:
            raise InvalidInputError("body", f"expected at most {max_bytes} bytes in the archive")
        left -= len(found)
        if name.suffix == ".npz":
            left -= _unpacked(found)
            if left < 0:
                raise InvalidInputError("body", f"expected at most {max_bytes} bytes of arrays")
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(found)


def _refuse_programs(directory: Path, configured: LoopConfig) -> None:
    """Refuse models for other programs to run, where the loop has none of the kind."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    if all(path.suffix in _OWN_SUFFIXES for path in files):
        return
    saved = msgspec.json.decode((directory / "oracle" / "oracle.json").read_bytes(), type=_Saved)
    kind = str(configured.oracle.__struct_config__.tag)
    if saved.config.kind != kind:
        raise InvalidInputError(
            "body", f"expected weights, or a model of the loop's kind of oracle, {kind}"
        )


class _Config(msgspec.Struct, frozen=True):
    kind: str


class _Saved(msgspec.Struct, frozen=True):
    config: _Config


def _unpacked(arrays: bytes) -> int:
    """Size of the arrays in a file of NumPy's, which is an archive too; readers read no more."""
    with zipfile.ZipFile(io.BytesIO(arrays)) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _told(error: Exception) -> str:
    """What went wrong, without the directory of our own that it went wrong in."""
    text = str(error) or type(error).__name__
    return text.replace(tempfile.gettempdir(), "")
