"""Fixtures of the service's tests: servers that are always ended."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.service.generations import generation
from tests.service.running import Caller, Server, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALL_KEY = "key-of-all-loops"
DIGITS_KEY = "key-of-digits"
HASHED_KEY = "key-known-by-digest"
MAX_BODY_BYTES = 300_000

# One server for every test that leaves it as it was. Its keys see to it that no answer is given
# because nobody asked for one.
_SHARED = f"""
[service]
port = 0
max_body_bytes = {MAX_BODY_BYTES}

[service.keys.all]
key = "{ALL_KEY}"
scopes = ["decide", "reward", "judge", "override"]

[service.keys.digits]
key = "{DIGITS_KEY}"
loops = ["digits"]

[service.keys.hashed]
key_sha256 = "{hashlib.sha256(HASHED_KEY.encode()).hexdigest()}"
loops = ["scaled", "digits"]

[loops.digits]

[loops.scaled]
reward_min = -1.0
reward_max = 10.0

[loops.trained]

[loops.watching]
learning_mode = "apprentice"
"""


class Serve(Protocol):
    """Starts a server of one's own with a configuration, and ends it after the test."""

    def __call__(self, config: str) -> Server: ...


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that most tests share."""
    server = Server(tmp_path_factory.mktemp("shared"), _SHARED, ALL_KEY)
    server.serve(generation("trained", 1))
    with running(server):
        yield server


@pytest.fixture
def caller(shared: Server) -> Iterator[Caller]:
    """A connection to the shared server, with the key for everything."""
    with shared.caller() as caller:
        yield caller


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda config: stack.enter_context(running(Server(tmp_path, config)))
