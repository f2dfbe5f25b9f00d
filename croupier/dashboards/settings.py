"""Where the dashboard's lake is; light enough for the process that only starts Streamlit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ("DATA_DIR_VARIABLE", "data_dir")

DATA_DIR_VARIABLE: Final = "CROUPIER_DATA_DIR"
"""Environment variable that names the data directory, as it does for every command."""


def data_dir() -> Path:
    """The data directory that the dashboard shows; ``croupier-data`` if nothing names another."""
    return Path(os.environ.get(DATA_DIR_VARIABLE) or "croupier-data").absolute()
