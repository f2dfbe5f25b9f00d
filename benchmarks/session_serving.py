"""Decisions of a generation that remembers, beside those of one that doesn't: latency.

Run with ``python -m benchmarks.session_serving`` (``--json`` for programs, ``--requests N``). One
``croupier serve`` has two loops with the same 30 actions: one serves a linear oracle, the other a
recurrent policy (a state of 32 numbers, as ``croupier simulate lts`` trains it). One client with
one connection asks for decisions in turn, request by request, so that whatever else the machine
does meets all ways alike:

- ``ordinary``: the linear oracle;
- ``store``: the recurrent policy, of which the server keeps the sessions;
- ``token``: the same, with tokens that the client brings back;
- ``new``: the same with a token too, and nothing but first steps.

Weights are random: what a policy has learned doesn't change what it costs. Every answer has to be
one of the generation that it was asked of. The log is buffered, so no disk is waited for. Beside
it, what the scorer itself takes, without HTTP.
"""

from __future__ import annotations

import argparse
import http.client
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import msgspec
import numpy as np

from benchmarks.wrk import BenchmarkError
from croupier.cli.output import Output
from croupier.policy.decision import DecisionRequest
from croupier.policy.events import Action
from croupier.policy.exploration import Softmax
from croupier.policy.generation import Generation
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import VowpalWabbitConfig, make_oracle
from croupier.policy.recurrent import RecurrentConfig, RecurrentPolicy, TrainingNotes
from croupier.policy.sessions import SessionsConfig
from croupier.policy.traffic import Plan, Split
from croupier.service.catalogue import Catalogue
from croupier.service.scorer import Scorer
from croupier.service.server import read_address
from croupier.service.serving import ServingDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ("WAYS", "Report", "Row", "measure")

Way: TypeAlias = Literal["ordinary", "store", "token", "new"]

WAYS: tuple[Way, ...] = get_args(Way)

_ORDINARY, _SEQUENTIAL = "ordinary", "sequential"
_LOOPS: Final[dict[Way, str]] = dict.fromkeys(WAYS, _SEQUENTIAL) | {"ordinary": _ORDINARY}
_ACTIONS = [Action(f"d{place}") for place in range(30)]
_SESSIONS = SessionsConfig(
    user="user", state=("signal", "reward", "engagement"), horizon=140, pause="1 h"
)
_USERS = 50
_WARM_UP = 200
_PATIENCE_S = 120.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One way of asking.

    Attributes
    ----------
    way
        Which.
    p50_ms, p99_ms
        Quantiles of the time between a request and its answer, as the client sees it.
    scorer_us
        Median of what the scorer itself takes, in microseconds.
    answer_bytes
        Length of an answer, on average.
    """

    way: Way
    p50_ms: float
    p99_ms: float
    scorer_us: float
    answer_bytes: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All ways, of which each was asked as often."""

    requests: int
    rows: list[Row]


def measure(requests: int = 4000) -> Report:
    """Ask in all ways in turn, `requests` times each."""
    generations = (_linear(), _recurrent())
    with tempfile.TemporaryDirectory() as folder, _serving(Path(folder), generations) as port:
        seconds, sizes = _asked(port, requests)
    scorer_s = _in_process(generations, min(requests, 2000))
    rows = []
    for way in WAYS:
        p50, p99 = np.quantile(seconds[way], (0.5, 0.99)).tolist()
        rows.append(
            Row(
                way=way,
                p50_ms=1e3 * p50,
                p99_ms=1e3 * p99,
                scorer_us=1e6 * float(np.median(scorer_s[way])),
                answer_bytes=float(np.mean(sizes[way])),
            )
        )
    return Report(requests=requests, rows=rows)


class _Client:
    """Users of one way, and the tokens that they have."""

    def __init__(self, way: Way, seed: int = 0) -> None:
        self.way = way
        self._rng = np.random.default_rng(seed)
        self._tokens = dict.fromkeys(range(_USERS), "")
        self._user = 0

    def next(self) -> DecisionRequest:
        """The next user's next request."""
        self._user = (self._user + 1) % _USERS
        signal, reward, engagement = self._rng.normal(8.0, 4.0, 3).tolist()
        session = {"token": self._tokens[self._user], "new": ""}.get(self.way)
        return DecisionRequest(
            actions=_ACTIONS,
            context={
                "user": f"{self.way}-{self._user}",
                "signal": signal,
                "reward": reward,
                "engagement": engagement,
            },
            session=session,
        )

    def told(self, session: str | None) -> None:
        """Keep the answer's token."""
        self._tokens[self._user] = session or ""


def _asked(port: int, requests: int) -> tuple[dict[Way, list[float]], dict[Way, list[int]]]:
    """Seconds and bytes of every answer, by way."""
    clients = [_Client(way) for way in WAYS]
    seconds: dict[Way, list[float]] = {way: [] for way in WAYS}
    sizes: dict[Way, list[int]] = {way: [] for way in WAYS}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    for turn in range(requests + _WARM_UP):
        for client in clients:
            body = msgspec.json.encode(client.next())
            path = f"/v1/loops/{_LOOPS[client.way]}/decide"
            started = time.perf_counter()
            connection.request("POST", path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            taken = time.perf_counter() - started
            told: dict[str, Any] = msgspec.json.decode(answer)
            if response.status != 200 or told["generation"] != 1:
                raise BenchmarkError(f"{client.way}: {response.status}, {answer[:200]!r}")
            client.told(told.get("session"))
            if turn >= _WARM_UP:
                seconds[client.way].append(taken)
                sizes[client.way].append(len(answer))
    connection.close()
    return seconds, sizes


def _in_process(generations: Sequence[Generation], requests: int) -> dict[Way, list[float]]:
    """Seconds of the scorer's own, by way."""
    scorer = Scorer(
        {_ORDINARY: LoopConfig(), _SEQUENTIAL: LoopConfig(sessions=_SESSIONS)}, secret=bytes(32)
    )
    for generation in generations:
        scorer.swap(Plan(generation))
    clients, catalogue = [_Client(way) for way in WAYS], Catalogue()
    seconds: dict[Way, list[float]] = {way: [] for way in WAYS}
    for _ in range(requests):
        for client in clients:
            request = catalogue.read(msgspec.json.encode(client.next()))
            started = time.perf_counter()
            step = scorer.step(_LOOPS[client.way], request)
            seconds[client.way].append(time.perf_counter() - started)
            client.told(step.session)
    return seconds


@contextmanager
def _serving(folder: Path, generations: Sequence[Generation]) -> Iterator[int]:
    """A scorer with the generations, at a port."""
    config = folder / "croupier.toml"
    paths = ", ".join(f'"{path}"' for path in _SESSIONS.state)
    config.write_text(
        'data_dir = "data"\n[service]\nport = 0\nregistry_poll = "1 min"\n'
        f'[log]\ndurability = "buffered"\n[loops.{_ORDINARY}]\n[loops.{_SEQUENTIAL}.sessions]\n'
        f'user = "{_SESSIONS.user}"\nhorizon = {_SESSIONS.horizon}\npause = "{_SESSIONS.pause}"\n'
        f"state = [{paths}]\n"
    )
    serving = ServingDirectory(folder / "data" / "serving")
    for generation in generations:
        generation.save(serving.generation_path(generation.loop, generation.number))
        serving.write_split(generation.loop, Split(generation=generation.number))
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "croupier", "serve", "--config", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while (address := read_address(folder / "data" / "service.json")) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError((folder / "stderr").read_text())
            time.sleep(0.05)
        yield int(address.url.rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


def _linear() -> Generation:
    oracle = make_oracle(VowpalWabbitConfig())
    size = 1 << oracle.config.encoder.bits
    oracle.weights_ = np.random.default_rng(1).normal(size=size).astype(np.float32)
    return Generation(_ORDINARY, 1, Softmax(temperature=0.5, floor=0.001), oracle, None)


def _recurrent() -> Generation:
    config = RecurrentConfig(
        actions=tuple(action.id for action in _ACTIONS),
        observation=_SESSIONS.state,
        sees=(0, 1, 2),
        horizon=_SESSIONS.horizon,
        memory=32,
        hidden=32,
        head="ordered",
        floor=0.01,
        training=TrainingNotes(seed=1),
    )
    rng = np.random.default_rng(1)
    arrays = {
        name: rng.normal(0.0, 1.0 / np.sqrt(shape[0]), shape).astype(np.float32)
        for name, shape in config.shapes.items()
    }
    arrays["deviation"] = np.full(3, 4.0, dtype=np.float32)
    policy = RecurrentPolicy(config, arrays)
    return Generation(_SEQUENTIAL, 1, config.exploration, None, None, recurrent=policy)


def _show(report: Report, output: Output) -> None:
    plain = report.rows[0]
    output.table(
        f"Decisions among {len(_ACTIONS)} actions, {report.requests:,} of each way in turn",
        ["way", "p50 ms", "p99 ms", "p50, times", "p99, times", "scorer µs", "answer bytes"],
        [
            [
                *(row.way, round(row.p50_ms, 3), round(row.p99_ms, 3)),
                *(round(row.p50_ms / plain.p50_ms, 2), round(row.p99_ms / plain.p99_ms, 2)),
                *(round(row.scorer_us, 1), round(row.answer_bytes)),
            ]
            for row in report.rows
        ],
    )


def main() -> None:
    """Measure, and show it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=4000, help="of each way")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.requests < 1:
        parser.error("--requests: expected at least 1")
    report = measure(arguments.requests)
    output = Output(json=arguments.json)
    output.result(report, lambda: _show(report, output))


if __name__ == "__main__":
    main()
