"""Trainings on disk: one that was stopped goes on as if it had not been, bit for bit."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, TypeVar

import equinox as eqx
import jax
import msgspec

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("load_checkpoint", "save_checkpoint")

_T = TypeVar("_T")
_LENGTH_BYTES = 8


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    purpose: str
    notes: msgspec.Raw


def save_checkpoint(path: Path, tree: object, *, purpose: str, notes: object = None) -> None:
    """Write a pytree, in one step: a reader sees all of it or what was there before.

    Parameters
    ----------
    path
        Where to; its folder is made.
    tree
        Arrays, and whatever they stand in.
    purpose
        What it is a training of; only the same goes on from it.
    notes
        Anything that becomes JSON, kept with it.
    """
    header = msgspec.json.encode(
        _Header(purpose=purpose, notes=msgspec.Raw(msgspec.json.encode(notes)))
    )
    written = io.BytesIO()
    written.write(len(header).to_bytes(_LENGTH_BYTES, "little"))
    written.write(header)
    eqx.tree_serialise_leaves(written, eqx.filter(tree, eqx.is_array))
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    with staging.open("wb") as file:
        file.write(written.getvalue())
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)


def load_checkpoint(path: Path, like: _T, *, purpose: str) -> tuple[_T, msgspec.Raw] | None:
    """Read a pytree that :func:`save_checkpoint` wrote.

    Parameters
    ----------
    path
        Where it is.
    like
        A pytree of the same structure, whose arrays are replaced.
    purpose
        What it has to be a training of.

    Returns
    -------
    tree, notes
        As they were saved, the notes as JSON; None if there is no such file, or it is of another
        purpose.

    Raises
    ------
    InvalidInputError
        If the file can't be read.
    """
    if not path.exists():
        return None
    content = path.read_bytes()
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    try:
        header = msgspec.json.decode(content[_LENGTH_BYTES:start], type=_Header)
        if header.purpose != purpose:
            return None
        arrays, rest = eqx.partition(like, eqx.is_array)
        arrays = eqx.tree_deserialise_leaves(io.BytesIO(content[start:]), arrays)
    except (msgspec.DecodeError, RuntimeError, ValueError, EOFError) as error:
        raise InvalidInputError(str(path), f"expected a checkpoint: {error}") from error
    return eqx.combine(jax.device_put(arrays), rest), header.notes
