"""What reading a damaged file can raise."""

from __future__ import annotations

import struct
import zipfile
import zlib
from typing import Final

import msgspec

__all__ = ("UNREADABLE",)

UNREADABLE: Final = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    msgspec.MsgspecError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""Everything that NumPy, zipfile and msgspec were seen to raise on damaged files."""
