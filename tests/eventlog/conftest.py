"""Fixtures of the event log's tests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from croupier.eventlog.sqlite import SqliteEventLog
from tests.eventlog.helpers import MEMORY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from croupier.eventlog.log import EventLog


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def memory_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        yield Path(directory)


@pytest.fixture
def log(memory_directory: Path) -> Iterator[EventLog]:
    """A log whose segments hold five records; every backend has to pass the contract's tests."""
    with SqliteEventLog(memory_directory, segment_rows=5, busy_timeout_s=60) as log:
        yield log
