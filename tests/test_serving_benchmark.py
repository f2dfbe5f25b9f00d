"""The benchmark of the HTTP scorer runs, and doesn't report what went wrong as a figure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from benchmarks.serving import SERVERS, Report
from benchmarks.serving_workloads import LARGE, SMALL, bodies
from benchmarks.wrk import BenchmarkError, put_load_on
from tests.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.serving_workloads import Workload

ROOT = Path(__file__).parent.parent
CORE = min(os.sched_getaffinity(0))


@pytest.fixture
def wrk() -> None:
    if shutil.which("wrk") is None:
        reason = "no wrk: install the package wrk"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


class Refusing(BaseHTTPRequestHandler):
    """Answers that the log can't be written, but for every other request."""

    protocol_version = "HTTP/1.1"
    answered = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        Refusing.answered += 1
        self.send_response(503 if Refusing.answered % 2 == 0 else 200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/decide"
        server.shutdown()
        thread.join()


def benchmark(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", *arguments],
        cwd=ROOT,
        env=os.environ if path is None else os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.usefixtures("wrk")
def test_every_server_is_measured() -> None:
    ran = benchmark("--quick", "--seconds", "1", "--json")
    assert ran.returncode == 0, ran.stderr
    report = msgspec.json.decode(ran.stdout, type=Report)
    assert [row.server for row in report.rows] == list(SERVERS)
    for row in report.rows:
        assert (row.actions, row.connections) == (10, 8)
        assert row.rps > 0
        assert 0 < row.p50_ms <= row.p99_ms
        assert 0 < row.half_rps < row.rps
        assert row.half_p99_ms > 0
    (in_process,) = report.in_process
    assert in_process.actions == 10
    assert min(in_process.decide_us, in_process.decide_plain_us) > 0
    assert 0 < in_process.body_us < in_process.body_fresh_us
    assert [each.workers for each in report.scaling] == [1, 2]
    assert all(each.rps > 0 for each in report.scaling)
    assert {"Python", "wrk", "uvicorn", "fastapi", "numpy", "vowpal-wabbit-next"} <= set(
        report.environment.versions
    )


def test_without_wrk(tmp_path: Path) -> None:
    ran = benchmark("--quick", path=str(tmp_path))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "error: expected wrk on the path: apt-get install wrk" in ran.stderr.splitlines()


@pytest.mark.usefixtures("wrk")
def test_refusals_are_no_answers(refusing: str, tmp_path: Path) -> None:
    (tmp_path / "bodies").write_text("{}\n")
    with pytest.raises(BenchmarkError, match="were refusals, the first one 503"):
        put_load_on(refusing, tmp_path / "bodies", connections=1, seconds=1, cores={CORE})


@pytest.mark.usefixtures("wrk")
def test_nobody_listens(tmp_path: Path) -> None:
    (tmp_path / "bodies").write_text("{}\n")
    url = f"http://127.0.0.1:{free_port()}/decide"
    with pytest.raises(BenchmarkError, match="unable to connect"):
        put_load_on(url, tmp_path / "bodies", connections=1, seconds=1, cores={CORE})


@pytest.mark.parametrize("workload", [SMALL, LARGE])
def test_requests_differ_and_have_the_size_they_say(workload: Workload) -> None:
    made = bodies(workload, 50)
    assert len({msgspec.json.encode(each) for each in made}) == 50
    for each in made:
        assert len(each.context) == 20
        assert len({action.id for action in each.actions}) == workload.actions
        assert {len(action.features) for action in each.actions} == {workload.features}
