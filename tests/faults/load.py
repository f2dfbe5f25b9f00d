"""A steady load of decisions and their outcomes, and what of it was acknowledged.

A client sends again what was not acknowledged, under the same id and to the next scorer, as clients
are told to. What never was acknowledged may have been logged or not.
"""

from __future__ import annotations

import heapq
import http.client
import json
import random
import threading
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.faults.deployment import LOOP

if TYPE_CHECKING:
    from collections.abc import Sequence

_ATTEMPTS = 12
_PAUSE_S = 0.25
_TIMEOUT_S = 10.0
_REWARDED = 0.7
_TWICE = 0.1
_LONGEST_DELAY_S = 6.0


def reward_of(decision_id: str) -> float:
    """What a decision earns, if it earns anything."""
    return (zlib.crc32(decision_id.encode()) % 1000) / 1000


@dataclass
class Told:
    """What was sent and what of it was acknowledged; ids of decisions, and of rewarded ones."""

    decisions_sent: set[str] = field(default_factory=set)
    decisions: set[str] = field(default_factory=set)
    outcomes_sent: set[str] = field(default_factory=set)
    outcomes: set[str] = field(default_factory=set)
    attempts: int = 0
    failures: int = 0


class Load:
    """Clients, each of which decides at a steady rate and rewards some time later.

    Parameters
    ----------
    ports
        Of the scorers.
    rate
        Decisions a second, of all clients together.
    clients
        How many; while scorers are slow, each waits for its own answer.
    prefix
        Of the ids, which no other load of the same deployment may have.
    """

    def __init__(
        self, ports: Sequence[int], rate: float, clients: int = 8, *, prefix: str = "c"
    ) -> None:
        self.told = Told()
        self.prefix = prefix
        self._ports = ports
        self._every_s = clients / rate
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"client-{number}")
            for number in range(clients)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Decide no more, and reward what is still to be rewarded."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors

    def _work(self, number: int) -> None:
        try:
            _Client(self, number).run(self._stopping, self._every_s)
        except BaseException as error:
            self._errors.append(error)
            raise

    def ask(self, client: _Client, path: str, body: Any) -> bool:
        """Send until it is acknowledged, or for as long as a client would try."""
        encoded = json.dumps(body).encode()
        for attempt in range(_ATTEMPTS):
            answered = client.post(path, encoded)
            with self._lock:
                self.told.attempts += 1
                self.told.failures += not answered
            if answered:
                return True
            time.sleep(_PAUSE_S * (1 + attempt))
        return False


class _Client:
    """One of the clients, with a connection to one scorer at a time."""

    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._number = number
        self._ports = load._ports
        self._turn = number
        self._connection: http.client.HTTPConnection | None = None
        self._random = random.Random(number)
        self._rewards: list[tuple[float, str]] = []

    def run(self, stopping: threading.Event, every_s: float) -> None:
        due = time.monotonic() + self._random.uniform(0, every_s)
        made = 0
        while not stopping.wait(max(0.0, due - time.monotonic())):
            self._decide(f"{self._load.prefix}{self._number}-{made}")
            made += 1
            self._reward_until(time.monotonic())
            # What was missed while the scorers were slow is not made up for.
            due = max(due + every_s, time.monotonic())
        self._reward_until(float("inf"))
        self._hang_up()

    def post(self, path: str, body: bytes) -> bool:
        """Whether a scorer has acknowledged it; another one is asked the next time if not."""
        port = self._ports[self._turn % len(self._ports)]
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
            self._connection.request("POST", f"/v1/loops/{LOOP}/{path}", body)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            answered = False
        else:
            # Anything else would be a mistake of this test's.
            assert answer.status in {200, 503}, (answer.status, text)
            answered = answer.status == 200
        if not answered:
            self._hang_up()
            self._turn += 1
        return answered

    def _decide(self, decision_id: str) -> None:
        told = self._load.told
        actions = [{"id": name, "features": {"size": len(name)}} for name in ("a", "bb", "ccc")]
        context = {"number": self._random.random()}
        told.decisions_sent.add(decision_id)
        body = {"decision_id": decision_id, "actions": actions, "context": context}
        if self._load.ask(self, "decide", body):
            told.decisions.add(decision_id)
            if self._random.random() < _REWARDED:
                delay = self._random.uniform(0.0, _LONGEST_DELAY_S)
                heapq.heappush(self._rewards, (time.monotonic() + delay, decision_id))

    def _reward_until(self, now: float) -> None:
        told = self._load.told
        while self._rewards and self._rewards[0][0] <= now:
            _, decision_id = heapq.heappop(self._rewards)
            body = {
                "decision_id": decision_id,
                "outcome_id": f"o-{decision_id}",
                "reward": reward_of(decision_id),
            }
            told.outcomes_sent.add(decision_id)
            if self._load.ask(self, "reward", body):
                told.outcomes.add(decision_id)
            if self._random.random() < _TWICE:
                # As a client that never got to see the answer would, and to another scorer.
                self._hang_up()
                self._turn += 1
                self._load.ask(self, "reward", body)

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError):
                connection.close()
