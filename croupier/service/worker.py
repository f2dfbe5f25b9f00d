"""One of several processes that decide: started by ``croupier serve --workers N``."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack

import msgspec

from croupier.service.child import end_with_parent, read_job
from croupier.service.logs import configure_logging
from croupier.service.metrics_share import MetricsShare
from croupier.service.server import WorkerJob, serve_on, terminated_in_order
from croupier.service.setup import ServiceSetup, running_parts

__all__ = ("main",)


def main() -> None:
    """Serve as the job on the first line of the standard input says, until told to stop."""
    line = read_job()
    if not line:
        return
    job = msgspec.json.decode(line, type=WorkerJob)
    setup = ServiceSetup.decoded(bytes(job.setup))
    configure_logging(setup.service.log_format)
    # Whichever way its parent went: what is in flight is answered.
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with ExitStack() as stack:
        stack.enter_context(terminated_in_order())
        listener = stack.enter_context(socket.socket(fileno=job.listener))
        parts = stack.enter_context(running_parts(setup, mirror=False))
        shared = MetricsShare(parts.metrics, setup.metrics_dir)
        shared.start()
        stack.callback(shared.stop)
        serve_on(listener, setup, parts, shared=shared)


if __name__ == "__main__":
    main()
