"""Trouble with disk, log, registry and models under load: told where it must be, and got over."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.policy.events import Decision, Outcome, decode_event
from tests.service.generations import generation
from tests.service.load import Load
from tests.service.running import Server, running, wait_until
from tests.service.test_durability import locked_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from croupier.policy.events import Event
    from tests.service.conftest import Serve
    from tests.service.load import Told
    from tests.service.running import Answer

CONFIG = """
[service]
port = 0
registry_poll = "50 ms"

[log]
busy_timeout_s = 0.2

[loops.digits]
"""
DECIDE = {"actions": [{"id": "a"}, {"id": "b"}]}
# A file system of its own for the log, in a mount namespace that ends with the server.
SMALL_DISK = ("unshare", "--mount", "sh", "-c")
DISK_BYTES = 6 * 2**20
FILLER_BYTES = 3 * 2**20


def identity(event: Event) -> str:
    assert isinstance(event, Decision | Outcome)
    return event.decision_id if isinstance(event, Decision) else event.outcome_id


def logged(directory: Path) -> list[str]:
    with SqliteEventLog(directory) as log:
        return [identity(decode_event(entry.payload)) for entry in log.read(1, limit=10**9)]


def check_that_only_the_log_was_to_blame(told: Told) -> None:
    assert told.unanswered == []
    assert told.refused
    for refused in told.refused:
        status, _, body = refused.partition(" ")
        assert status == "503", refused
        assert "LogUnavailable" in body, refused


def check_that_it_is_told(server: Server) -> None:
    refused = server.post("digits/decide", DECIDE)
    assert (refused.status, refused.error["code"]) == (503, "LogUnavailable")
    assert refused.headers["retry-after"] == "1"
    ready = server.get("/readyz")
    assert (ready.status, ready.json["status"]) == (503, "unavailable")
    assert server.get("/healthz").status == 200


def recovered(server: Server) -> bool:
    return server.get("/readyz").status == 200


def check_that_it_is_over(server: Server) -> None:
    wait_until(partial(recovered, server))
    assert server.post("digits/decide", DECIDE).status == 200


def require_namespaces() -> None:
    """Go on only if this process may mount something that nobody else sees."""
    if subprocess.run([*SMALL_DISK, "true"], check=False, capture_output=True).returncode != 0:
        reason = "may not make a mount namespace: needs root, or CAP_SYS_ADMIN in a container"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def on_a_small_disk(tmp_path: Path) -> Iterator[Server]:
    """A server whose log is alone on a file system of some megabytes."""
    require_namespaces()
    log = tmp_path / "data" / "log"
    log.mkdir(parents=True)
    mount = f'mount -t tmpfs -o size={DISK_BYTES} tmpfs "{log}" && exec "$@"'
    with running(Server(tmp_path, CONFIG, prefix=(*SMALL_DISK, mount, "sh"))) as server:
        yield server


def seen_by(server: Server) -> Path:
    """The log's folder as the server sees it."""
    return Path(f"/proc/{server.process.pid}/root{server.data_dir / 'log'}")


def copied(server: Server) -> list[str]:
    """What its log holds, once it is idle: SQLite can't go the way through ``/proc``."""
    copy = server.data_dir / "copy"
    within(server, "cp", "-r", str(server.data_dir / "log"), str(copy))
    return logged(copy)


def within(server: Server, *command: str) -> None:
    """Run a command where the server is."""
    subprocess.run(
        ["nsenter", "--mount", "--target", str(server.process.pid), *command], check=True
    )


def test_a_full_disk(on_a_small_disk: Server) -> None:
    server = on_a_small_disk
    filler = seen_by(server) / "filler"
    filler.write_bytes(b"\0" * FILLER_BYTES)
    with Load(server, clients=4) as load:
        wait_until(lambda: len(load.told.refused) > 20)
        check_that_it_is_told(server)
        before = len(load.told.decision_ids)
        filler.unlink()
        check_that_it_is_over(server)
        load.wait_for(decisions=20)
    check_that_only_the_log_was_to_blame(load.told)
    found = copied(server)
    assert before > 20
    # Nothing that was refused is there either.
    expected = {*load.told.decision_ids, *load.told.outcomes}
    assert len(found) == len(expected) + 1
    assert expected <= set(found)


def test_a_log_that_turns_read_only(on_a_small_disk: Server) -> None:
    server = on_a_small_disk
    folder = str(server.data_dir / "log")
    first = server.post("digits/decide", DECIDE).json["decision_id"]
    with Load(server, clients=4) as load:
        load.wait_for(decisions=20)
        within(server, "mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder)
        wait_until(lambda: len(load.told.refused) > 20)
        check_that_it_is_told(server)
        within(server, "umount", folder)
        check_that_it_is_over(server)
        load.wait_for(decisions=20)
    check_that_only_the_log_was_to_blame(load.told)
    assert {first, *load.told.decision_ids, *load.told.outcomes} <= set(copied(server))


def test_a_file_that_may_not_grow(serve: Serve) -> None:
    """What a quota does, and a limit of the process's."""
    server = serve(CONFIG)
    pid = server.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    with Load(server, clients=4) as load:
        load.wait_for(decisions=20)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, limits[1]))
        wait_until(lambda: len(load.told.refused) > 20)
        check_that_it_is_told(server)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        check_that_it_is_over(server)
        load.wait_for(decisions=20)
    check_that_only_the_log_was_to_blame(load.told)
    assert {*load.told.decision_ids, *load.told.outcomes} <= set(logged(server.data_dir / "log"))


def test_a_log_that_is_moved_away(serve: Serve) -> None:
    server = serve(CONFIG)
    log, away, elsewhere = (server.data_dir / name for name in ("log", "away", "elsewhere"))
    with Load(server, clients=4) as load:
        load.wait_for(decisions=20)
        log.rename(away)
        wait_until(lambda: len(load.told.refused) > 20)
        check_that_it_is_told(server)
        away.rename(log)
        check_that_it_is_over(server)
        load.wait_for(decisions=20)
        # What is acknowledged from here on has to be in the new one, not in files that were moved.
        log.rename(elsewhere)
        log.mkdir()
        check_that_it_is_over(server)
        load.wait_for(decisions=20)
    assert load.told.unanswered == []
    new = logged(log)
    assert new
    found = [*logged(elsewhere), *new]
    assert {*load.told.decision_ids, *load.told.outcomes} <= set(found)
    assert len(found) == len(set(found))


def test_another_process_holds_the_writers_lock(serve: Serve) -> None:
    server = serve(CONFIG)
    assert server.post("digits/decide", DECIDE).status == 200
    with Load(server, clients=4) as load:
        load.wait_for(decisions=5)
        held = subprocess.Popen(
            ["flock", str(server.data_dir / "log" / "writer.lock"), "sleep", "60"],
            start_new_session=True,
        )
        try:
            wait_until(lambda: len(load.told.refused) > 4)
            check_that_it_is_told(server)
        finally:
            os.killpg(held.pid, signal.SIGKILL)
            held.wait()
        check_that_it_is_over(server)
    check_that_only_the_log_was_to_blame(load.told)


def test_trouble_with_registry_and_models_never_shows(serve: Serve) -> None:
    server = serve(CONFIG)
    server.serve(generation("digits", 1))
    wait_until(partial(serves, server, 1))
    serving = server.serving.root
    with Load(server, clients=4) as load:
        for number, trouble in enumerate(TROUBLES, start=2):
            trouble(server, number)
            load.wait_for(decisions=50)
            # Whatever it was, the next good generation is taken.
            server.serve(generation("digits", number + 100))
            wait_until(partial(serves, server, number + 100))
            load.wait_for(decisions=5)
    assert (load.told.refused, load.told.unanswered) == ([], [])
    assert serving.exists()
    numbers = {each["generation"] for client in load.told.decisions for each in client}
    assert numbers >= {1, *(number + 100 for number in range(2, len(TROUBLES) + 2))}
    # Never the broken ones.
    assert numbers.isdisjoint(range(2, 100))


def serves(server: Server, number: int) -> bool:
    return bool(server.readiness()["loops"]["digits"]["generation"] == number)


def reports(server: Server) -> bool:
    return server.readiness()["loops"]["digits"]["error"] is not None


def corrupt_model(server: Server, number: int) -> None:
    path = server.serving.generation_path("digits", number)
    generation("digits", number).save(path)
    weights = path / "oracle" / "weights.npz"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0xFF
    weights.write_bytes(content)
    server.name("digits", number)
    wait_until(partial(reports, server))


def half_a_plan(server: Server, _: int) -> None:
    (server.serving.root / "digits" / "champion.json").write_bytes(b'{"generation": ')
    wait_until(partial(reports, server))


def no_serving_directory(server: Server, number: int) -> None:
    server.serving.root.rename(server.data_dir / f"serving-{number}")


def rubbish_for_a_registry(server: Server, _: int) -> None:
    registry = server.data_dir / "mlflow.db"
    registry.write_bytes(b"no database" * 1000)
    wait_until(lambda: server.readiness()["registry"] != "ok")
    registry.unlink()


def dead_mirror(server: Server, _: int) -> None:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(server.process.pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    workers = server.workers()
    (mirror,) = (pid for pid in map(int, listed.stdout.split()) if pid not in workers)
    os.kill(mirror, signal.SIGKILL)


TROUBLES = [corrupt_model, half_a_plan, no_serving_directory, rubbish_for_a_registry, dead_mirror]

FLOODING = """
[service]
port = 0
max_body_bytes = 200000
max_inflight_bytes = 4000000

[log]
busy_timeout_s = 1.0
max_batch = 16
max_pending = 200
max_pending_bytes = 5000000

[loops.digits]
"""
FLOODERS = 150
MOST_GROWTH_BYTES = 200 * 2**20


class Flood:
    """Far more clients than the log can serve, with bodies of all sizes."""

    def __init__(self, server: Server) -> None:
        self.answers: list[tuple[Answer, int]] = []
        self.lost = 0
        self._server = server
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(number,)) for number in range(FLOODERS)
        ]

    def __enter__(self) -> Flood:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def statuses(self) -> set[int]:
        return {answer.status for answer, _ in list(self.answers)}

    def _work(self, number: int) -> None:
        size = (1_000, 30_000, 150_000)[number % 3]
        body = large(size)
        with self._server.caller() as caller:
            while not self._stopping.is_set():
                self.answers.append((caller.post("digits/decide", body), size))


def large(size: int) -> bytes:
    """A request of many features, as costly as so many bytes can be."""
    count = size // 10
    body: dict[str, Any] = {**DECIDE, "context": {f"f{n}": n for n in range(count // 2)}}
    return json.dumps(body).encode()


@contextmanager
def watched_memory(server: Server) -> Iterator[Sequence[int]]:
    """Sample the server's memory until the block ends."""
    samples = [server.resident_bytes()]
    stopping = threading.Event()

    def sample() -> None:
        while not stopping.wait(0.05):
            samples.append(server.resident_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stopping.set()
        thread.join()


@pytest.mark.parametrize("durability", ["commit", "buffered"])
def test_a_flood_ends_in_503_and_bounded_memory(
    serve: Serve, durability: str, record_testsuite_property: Callable[[str, object], None]
) -> None:
    server = serve(FLOODING.replace("[log]", f'[log]\ndurability = "{durability}"'))
    for size in (1_000, 30_000, 150_000):
        assert server.post("digits/decide", large(size)).status == 200
    # Buffered, they are acknowledged before there is a segment to lock.
    wait_until(lambda: len(logged(server.data_dir / "log")) == 3)
    with watched_memory(server) as samples, ExitStack() as stack:
        with locked_log(server):
            flood = stack.enter_context(Flood(server))
            # Some seconds of it, in which everything fills up that can.
            wait_until(lambda: sum(a.status == 503 for a, _ in list(flood.answers)) > 150)
        wait_until(partial(recovered, server))
        before = len(flood.answers)
        wait_until(lambda: any(a.status == 200 for a, _ in list(flood.answers)[before:]))
    assert flood.statuses() == {200, 503}
    refused = [answer for answer, _ in flood.answers if answer.status == 503]
    assert {answer.error["code"] for answer in refused} <= {"LogUnavailable", "Overloaded"}
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    growth = max(samples) - samples[0]
    record_testsuite_property(f"flood, {durability}: refused", len(refused))
    record_testsuite_property(f"flood, {durability}: growth in MiB", growth / 2**20)
    assert growth < MOST_GROWTH_BYTES, growth
    check_that_it_is_over(server)
    assert server.stop() == 0
    acknowledged = {a.json["decision_id"] for a, _ in flood.answers if a.status == 200}
    assert acknowledged <= set(logged(server.data_dir / "log"))
