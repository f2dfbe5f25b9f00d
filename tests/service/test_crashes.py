"""Servers that are killed again and again: nothing acknowledged is lost, nothing counts twice."""

from __future__ import annotations

import http.client
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from croupier.offline.lake import Lake
from croupier.policy.events import Decision, Outcome
from tests.service.running import Caller, Server, running, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import polars as pl

    from croupier.policy.events import Event

WINDOW_S = 2
CONFIG = f"""
[service]
port = 0

[log]
segment_rows = 500

[loops.digits]
attribution_window = "{WINDOW_S} s"
exploration = {{ kind = "epsilon_greedy", epsilon = 0.5 }}
"""
CLIENTS = 6
ACTIONS = [{"id": name, "features": {"size": len(name)}} for name in ("a", "bb", "ccc")]
ONE_PROCESS: tuple[str, ...] = ()
SEVERAL: tuple[str, ...] = ("--workers", "2")
SERVERS = [ONE_PROCESS, SEVERAL]
KILLS = [3, pytest.param(50, marks=pytest.mark.slow)]


@dataclass
class Sent:
    """A request, how often it was sent, and what was answered."""

    path: str
    body: dict[str, Any]
    times: int = 0
    answers: list[Any] = field(default_factory=list)


class Book:
    """Everything that was ever sent, by id, and what should never have been answered."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sent: dict[str, Sent] = {}
        self.unrewarded: list[str] = []
        self.refused: list[str] = []

    def acknowledged(self, path: str) -> set[str]:
        return {key for key, sent in self.sent.items() if sent.path == path and sent.answers}

    def total(self) -> int:
        return sum(len(sent.answers) for sent in list(self.sent.values()))


class Customers:
    """Clients that decide, reward, and ask again for what they asked before.

    Parameters
    ----------
    server, book
        Whom they ask, and where they write down what they were told.
    seed
        Of their choices.
    """

    def __init__(self, server: Server, book: Book, seed: str) -> None:
        self._port = server.port
        self._book = book
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(random.Random(f"{seed}-{number}"),))
            for number in range(CLIENTS)
        ]

    def __enter__(self) -> Customers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, answers: int) -> None:
        enough = self._book.total() + answers
        wait_until(lambda: self._book.total() >= enough)

    def _work(self, rng: random.Random) -> None:
        key = self._next(rng)
        while not self._stopping.is_set():
            # A connection ends with the process that held it; there may be another one behind it,
            # which is asked for what the first one left unanswered.
            try:
                with Caller(self._port) as caller:
                    while not self._stopping.is_set():
                        self._ask(caller, key)
                        key = self._next(rng)
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)

    def _ask(self, caller: Caller, key: str) -> None:
        with self._book.lock:
            sent = self._book.sent[key]
            sent.times += 1
        answer = caller.post(sent.path, sent.body)
        with self._book.lock:
            if answer.status == 200:
                sent.answers.append(answer.json)
            else:
                self._book.refused.append(f"{answer.status} {answer.body!r}")

    def _next(self, rng: random.Random) -> str:
        """What to ask next, by id: now and then, something that was asked before."""
        with self._book.lock:
            again = rng.random() < 0.15 and len(self._book.sent) > 0
            return rng.choice(list(self._book.sent)) if again else self._new(rng)

    def _new(self, rng: random.Random) -> str:
        """Another decision, or the outcome of one, answered or not; gives its id."""
        if self._book.unrewarded and rng.random() < 0.5:
            decision = self._book.unrewarded.pop()
            key = f"o-{decision}"
            body = {"decision_id": decision, "outcome_id": key, "reward": reward(decision)}
            self._book.sent[key] = Sent("digits/reward", body)
            return key
        key = f"{rng.getrandbits(64):016x}"
        body = {"decision_id": key, "actions": ACTIONS, "context": {"x": 0.5}}
        self._book.sent[key] = Sent("digits/decide", body)
        self._book.unrewarded.append(key)
        return key


def reward(decision_id: str) -> float:
    return random.Random(decision_id).random()


def kill_all(server: Server, _: random.Random) -> None:
    server.kill()
    server.start()


def kill_one(server: Server, rng: random.Random) -> None:
    before = server.workers()
    victim = rng.choice(before)
    os.kill(victim, signal.SIGKILL)
    # Another one takes its place.
    wait_until(lambda: victim not in server.workers() and len(server.workers()) >= len(before))


def crash(
    server: Server, kills: int, kill: Callable[[Server, random.Random], None], seed: str
) -> Book:
    """Kill a server at random moments while it is asked, and write down what it said."""
    book, rng = Book(), random.Random(seed)
    for round_ in range(kills):
        # A server that starts again takes another port.
        with Customers(server, book, f"{seed}-{round_}") as customers:
            customers.wait_for(rng.randint(1, 400))
            time.sleep(rng.uniform(0.0, 0.03))
            kill(server, rng)
    # What got no answer is asked for again, as clients do.
    for sent in book.sent.values():
        if not sent.answers:
            sent.times += 1
            answer = server.post(sent.path, sent.body)
            assert answer.status == 200, answer
            sent.answers.append(answer.json)
    return book


def check(server: Server, book: Book) -> dict[str, int]:
    """Compare what clients were told with the log, and with the lake that is made from it."""
    assert book.refused == []
    decisions = book.acknowledged("digits/decide")
    outcomes = book.acknowledged("digits/reward")
    for key in decisions:
        # Asked again, also of another process: the same answer.
        first, *others = book.sent[key].answers
        assert all(each == first for each in others), key
    events = server.events()
    logged: Counter[str] = Counter(map(identity, events))
    assert set(logged) == decisions | outcomes
    assert all(count <= book.sent[key].times for key, count in logged.items())
    check_decisions(events, book)

    last = max(event.ts for event in events)
    time.sleep(max(0.0, last / 1e6 + WINDOW_S + 1.2 - time.time()))
    # The second time there is nothing left to be done.
    for command in ("sink", "join", "join"):
        server.run(command)
    lake = Lake(server.data_dir / "lake")
    sunk = lake.scan("decisions", "digits").collect()
    assert sorted(sunk["decision_id"]) == sorted(decisions)
    assert sorted(lake.scan("outcomes", "digits").collect()["outcome_id"]) == sorted(outcomes)
    interactions = lake.scan("interactions", "digits").collect()
    assert sorted(interactions["decision_id"]) == sorted(decisions)
    observed = check_rewards(interactions)
    answers = sum(len(sent.answers) for sent in book.sent.values())
    return {
        "decisions": len(decisions),
        "outcomes": len(outcomes),
        "answers": answers,
        "records": logged.total(),
        "observed": observed,
    }


def identity(event: Event) -> str:
    assert isinstance(event, Decision | Outcome)
    return event.decision_id if isinstance(event, Decision) else event.outcome_id


def check_decisions(events: list[Event], book: Book) -> None:
    """What the log says of a decision is what its caller was told."""
    for event in events:
        if isinstance(event, Decision):
            told = book.sent[event.decision_id].answers[0]
            assert (event.chosen, event.propensity) == (told["index"], told["propensity"])
            assert event.pmf == told["pmf"]


def check_rewards(interactions: pl.DataFrame) -> int:
    """A decision has its own reward, if any came; gives how many came in time."""
    for row in interactions.iter_rows(named=True):
        if row["reward_source"] == "default":
            assert (row["reward"], row["outcomes"]) == (0.0, 0)
        else:
            assert (row["reward"], row["outcomes"]) == (reward(row["decision_id"]), 1)
    return interactions["reward_source"].to_list().count("observed")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("arguments", SERVERS, ids=lambda given: " ".join(given) or "alone")
@pytest.mark.parametrize("kills", KILLS)
def test_kill_9_under_load_loses_nothing_and_counts_nothing_twice(
    tmp_path: Path,
    arguments: tuple[str, ...],
    kills: int,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    with running(Server(tmp_path, CONFIG, arguments=arguments)) as server:
        book = crash(server, kills, kill_all, f"all-{kills}")
        counts = check(server, book)
    assert counts["observed"] > kills
    for name, count in counts.items():
        record_testsuite_property(f"kill -9 x {kills}, {len(arguments)} arguments: {name}", count)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", KILLS)
def test_a_worker_that_is_killed_takes_nothing_with_it(tmp_path: Path, kills: int) -> None:
    with running(Server(tmp_path, CONFIG, arguments=SEVERAL)) as server:
        book = crash(server, kills, kill_one, f"one-{kills}")
        check(server, book)
