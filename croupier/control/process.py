"""The control plane's process: it listens on a socket in the data directory until it is ended."""

from __future__ import annotations

import contextlib
import fcntl
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvicorn

from croupier.control.job import ControlJob
from croupier.service.child import end_with_parent, read_job
from croupier.service.control import socket_address
from croupier.service.logs import configure_logging

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("main",)

_BACKLOG = 16


def main() -> None:
    """Serve as the job on the first line of the standard input says, until that input ends."""
    line = read_job()
    if not line:
        return
    job = msgspec.json.decode(line, type=ControlJob)
    configure_logging(job.log_format)
    end_with_parent()
    directory = Path(job.control_dir)
    directory.mkdir(parents=True, exist_ok=True)
    # Several workers or services of one data directory have one control plane; others wait for
    # their turn, and take no memory for it.
    with (directory / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        _serve(job, directory)


def _serve(job: ControlJob, directory: Path) -> None:
    from croupier.control.app import control_application  # noqa: PLC0415
    from croupier.control.evaluations import Evaluations  # noqa: PLC0415
    from croupier.control.plane import Plane  # noqa: PLC0415

    loops = list(job.loops)
    plane = Plane(job)
    application = control_application(
        plane, Evaluations(plane, directory / "evaluations", loops), loops
    )
    with _listening(job.socket) as listener:
        server = uvicorn.Server(
            uvicorn.Config(
                application,
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,
            )
        )
        server.run(sockets=[listener])


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """Listen at a path, for this user alone."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        staging = path.with_name(f".{path.name}")
        staging.unlink(missing_ok=True)
        with socket_address(staging) as address:
            listener.bind(address)
        staging.chmod(0o600)
        listener.listen(_BACKLOG)
        # Whoever finds it can connect.
        staging.rename(path)
        yield listener


if __name__ == "__main__":
    main()
