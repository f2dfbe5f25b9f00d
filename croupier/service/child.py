"""Processes beside the service: started, started again should they die, and ended with it."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ("ChildProcess", "end_with_parent", "read_job", "stop_all")

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1
_FIRST_PAUSE_S = 0.5


class ChildProcess:
    """Runs a module beside the service, and starts it again should it die.

    The job goes to the child's standard input, since command lines can be read by everybody on the
    machine and an address may hold a password. The same pipe tells the child, by its end, that the
    service is gone, whichever way it went; see :func:`read_job` and :func:`end_with_parent`.

    Parameters
    ----------
    name
        What it is, for the log.
    module
        To run.
    job
        One line, without its end.
    descriptors
        Open files that it shares.
    grace_s
        How long it may take to end by itself when it is asked to, in seconds; without any it is not
        asked.
    longest_pause_s
        Before it is started again, in seconds; one that keeps dying soon is given ever more.
    """

    def __init__(
        self,
        name: str,
        module: str,
        job: bytes,
        *,
        descriptors: Sequence[int] = (),
        grace_s: float = 0.0,
        longest_pause_s: float = 60.0,
    ) -> None:
        self._name = name
        self._module = module
        self._job = job
        self._descriptors = descriptors
        self._grace_s = grace_s
        self._longest_pause_s = longest_pause_s
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the process in the background, unless that was done before."""
        with self._starting:
            if self._thread is None and not self._stopping.is_set():
                name = self._name.replace(" ", "-")
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the process, and wait until it has."""
        stop_all([self])

    def _tell_to_stop(self) -> None:
        with self._starting:
            self._stopping.set()

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                with self._started() as process:
                    while process.poll() is None and not self._stopping.wait(_LOOK_EVERY_S):
                        pass
            except OSError as error:
                _log.warning(
                    "the %s can't be started: %s",
                    self._name,
                    error,
                    extra={"event": "child_not_started"},
                )
            if time.monotonic() - started > self._longest_pause_s:
                pause = _FIRST_PAUSE_S
            if not self._stopping.wait(pause):
                _log.warning(
                    "the %s has ended, another one takes its place",
                    self._name,
                    extra={"event": "child_replaced"},
                )
                pause = min(2 * pause, self._longest_pause_s)

    @contextlib.contextmanager
    def _started(self) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(  # noqa: S603 - our own module
            # -P, or a module in the working directory could take the place of one of ours.
            [sys.executable, "-P", "-m", self._module],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            pass_fds=self._descriptors,
            # A terminal's Ctrl-C is for the service, which ends its children itself.
            process_group=0,
        )
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(self._job + b"\n")
                process.stdin.flush()
            yield process
        finally:
            if self._grace_s:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self._grace_s)
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()


def stop_all(processes: Sequence[ChildProcess]) -> None:
    """End processes at the same time, and wait until all have ended."""
    for process in processes:
        process._tell_to_stop()  # noqa: SLF001 - the two are one
    for process in processes:
        if process._thread is not None:  # noqa: SLF001
            process._thread.join()  # noqa: SLF001


def read_job() -> bytes:
    """In the child: the job, from the first line of the standard input; nothing if there is none.

    Also keeps MLflow from what it would do by itself.
    """
    # The next look is the better retry: MLflow's own would hide for minutes that nobody answers.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return sys.stdin.buffer.readline()


def end_with_parent(end: Callable[[], None] = lambda: os._exit(0)) -> None:
    """In the child: have it end when the standard input does.

    Parameters
    ----------
    end
        Ends the process, from a thread of its own.
    """
    threading.Thread(target=_watch, args=(end,), name="watch", daemon=True).start()


def _watch(end: Callable[[], None]) -> None:
    # Unbuffered: a thread inside of Python's own reader would trip over the interpreter's end.
    while os.read(0, 1):
        pass
    end()
