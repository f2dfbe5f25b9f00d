"""A real Ray cluster for tests: two workers on this machine, started once a session.

Where Ray isn't installed, tests that ask for it are skipped, and in CI they fail.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from croupier.offline.engine import Engine
from croupier.offline.ray_engine import RayEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = ("Killing", "die", "ray_address", "ray_engine")

WORKERS = 2


@pytest.fixture(scope="session")
def ray_engine() -> Iterator[RayEngine]:
    """Two workers, which tests share: whatever they do to them, Ray has others."""
    if find_spec("ray") is None and os.environ.get("CI") != "true":
        pytest.skip("Ray is not installed here")
    with RayEngine(cores=WORKERS) as engine:
        yield engine


@pytest.fixture
def ray_address(ray_engine: RayEngine) -> str:  # noqa: ARG001 - it is connected to
    """Where other processes find the cluster."""
    import ray  # noqa: PLC0415 - it may be missing

    return str(ray.get_runtime_context().gcs_address)


@dataclass(frozen=True)
class Killing(Engine):
    """Another engine, of which a worker is killed in the middle of the first call of a function.

    Attributes
    ----------
    engine
        That does the work.
    function
        Name of the function.
    folder
        Where it is noted that it was done.
    """

    engine: Engine
    function: str
    folder: Path

    @property
    def workers(self) -> int:
        return self.engine.workers

    @property
    def distributed(self) -> bool:
        return self.engine.distributed

    @property
    def killed(self) -> bool:
        """Whether a worker was."""
        return self._mark.exists()

    @property
    def _mark(self) -> Path:
        return self.folder / self.function

    def map(
        self, function: Callable[[Any, Any], Any], items: Iterable[Any], shared: Any
    ) -> Iterator[Any]:
        if function.__name__ != self.function:
            return self.engine.map(function, items, shared)
        return self.engine.map(_killed_once, items, (function, shared, self._mark))


def _killed_once(given: tuple[Callable[[Any, Any], Any], Any, Path], item: Any) -> Any:
    function, shared, mark = given
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return function(shared, item)
    # Wherever it is by then. One that is done before has written all, and told nobody.
    threading.Timer(0.03, die).start()
    function(shared, item)
    while True:
        time.sleep(1.0)


def die() -> NoReturn:
    """End this process as if by ``kill -9``."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody survives this")
