"""Being told to stop: what a command that goes on does on SIGTERM and SIGINT."""

from __future__ import annotations

import os
import select
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ("Stop", "stop_on_signals")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether somebody wants this process to end, and waiting that ends when somebody does.

    Parameters
    ----------
    descriptor
        Of a pipe that can be read from as soon as somebody does.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @property
    def requested(self) -> bool:
        """Whether somebody does."""
        return self.wait(0.0)

    def wait(self, seconds: float) -> bool:
        """Wait for so long, or until somebody does; gives whether somebody does."""
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        return bool(ready)

    def fileno(self) -> int:
        """The pipe, to wait for it among others."""
        return self._descriptor


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Take SIGTERM and SIGINT for a request to stop; one that comes again ends the process."""
    # Not an event of threads: its lock may be the very one that the interrupted code holds.
    reading, writing = os.pipe()

    def request(number: int, _frame: FrameType | None) -> None:
        os.write(writing, b"\0")
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield Stop(reading)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)
