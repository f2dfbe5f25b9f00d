"""Real processes for tests: free ports, and scorers that are started and always ended."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import urllib3

from croupier.service.server import read_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_scorer(config: Path, data_dir: Path) -> Iterator[str]:
    """Run ``croupier serve`` until the block ends; gives its URL once it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "croupier", "serve", "--config", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield _await_ready(process, data_dir)
    finally:
        process.terminate()
        process.wait(timeout=120)


def _await_ready(process: subprocess.Popen[bytes], data_dir: Path) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        address = read_address(data_dir / "service.json")
        if address is not None:
            try:
                urllib3.request("GET", f"{address.url}/readyz", timeout=5.0, retries=False)
            except urllib3.exceptions.HTTPError:
                pass
            else:
                return address.url
        time.sleep(0.05)
    raise AssertionError(f"the scorer didn't start (exit code {process.poll()})")
