"""Real decisions to stream: scikit-learn's handwritten digits as a contextual bandit.

The context is an image's 64 pixels, the ten actions are the digits, and the reward is 1 for the
right one. Rewards come back late and in batches, some twice, some never.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.policy.events import Action
from croupier.service.api import OutcomeRequest
from croupier.service.client import Client, ClientOptions, ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ("DigitTraffic", "TrafficConfig")

_DIGITS = [Action(str(digit)) for digit in range(10)]
_FLUSH_S = 0.2


class TrafficConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the application behaves.

    Attributes
    ----------
    threads
        Requests in flight.
    delay_s
        Longest time until a reward is sent; each takes a random share of it.
    lost, repeated
        Shares of rewards that never come and that come twice.
    label_noise
        Share of rewards that are reported wrongly.
    """

    threads: int = 2
    delay_s: float = 1.5
    lost: float = 0.03
    repeated: float = 0.05
    label_noise: float = 0.0


@dataclass(frozen=True, slots=True)
class _Due:
    """A reward that waits for its time."""

    at: float
    outcome: OutcomeRequest


class DigitTraffic:
    """An application that asks a scorer which digit it sees.

    Parameters
    ----------
    url, loop
        Where to ask.
    config
        How it behaves.
    seed
        Of the order of the images and of everything random about rewards.

    Attributes
    ----------
    acknowledged
        Ids of all decisions that were answered.
    latencies
        Seconds from request to answer, by generation.
    failures
        Requests that were not answered as they should be, with the reason.
    """

    def __init__(self, url: str, loop: str, config: TrafficConfig, *, seed: int) -> None:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second

        digits = load_digits()
        self._images: NDArray[np.float64] = np.round(digits.data / 16.0, 4)
        self._labels: NDArray[np.int64] = digits.target
        # Whatever isn't answered at once is to be counted, not asked again.
        options = ClientOptions(connections=config.threads + 2, attempts=1)
        self._client = Client(url, loop, options=options)
        self._config = config
        self._random = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._due: list[_Due] = []
        self._closing = threading.Event()
        self._courier = threading.Thread(target=self._deliver, name="rewards", daemon=True)
        self._courier.start()
        self.acknowledged: list[str] = []
        self.latencies: dict[int, list[float]] = defaultdict(list)
        self.failures: list[str] = []

    def stream(self, decisions: int, progress: Callable[[int, int], None]) -> None:
        """Ask for so many decisions as fast as the threads can."""
        images = self._draw(decisions)
        with ThreadPoolExecutor(self._config.threads) as pool:
            for done, _ in enumerate(pool.map(self._ask, images), start=1):
                if done % 50 == 0 or done == decisions:
                    progress(done, decisions)

    def trickle(self, until: Callable[[], bool], *, per_second: float) -> None:
        """Go on asking now and then, until something has happened."""
        while not until():
            self._ask(int(self._draw(1)[0]))
            time.sleep(1.0 / per_second)

    def settle(self) -> None:
        """Wait until every reward that is to come was sent."""
        while True:
            with self._lock:
                if not self._due:
                    return
            time.sleep(_FLUSH_S)

    def close(self) -> None:
        """Send what is due and stop."""
        self.settle()
        self._closing.set()
        self._courier.join()
        self._client.close()

    def _draw(self, size: int) -> list[int]:
        with self._lock:
            return list(self._random.integers(len(self._labels), size=size))

    def _ask(self, image: int) -> None:
        started = time.perf_counter()
        try:
            answer = self._client.decide(_DIGITS, {"pixels": self._images[image].tolist()})
        except ServiceError as error:
            with self._lock:
                self.failures.append(f"decide: {error}")
            return
        elapsed = time.perf_counter() - started
        reward = float(int(answer.action) == self._labels[image])
        with self._lock:
            self.acknowledged.append(answer.decision_id)
            self.latencies[answer.generation].append(elapsed)
            self._schedule(answer.decision_id, reward)

    def _schedule(self, decision_id: str, reward: float) -> None:
        lost, repeated, noisy, *delays = self._random.random(5)
        if lost < self._config.lost:
            return
        if noisy < self._config.label_noise:
            reward = 1.0 - reward
        times = 2 if repeated < self._config.repeated else 1
        for delay in delays[:times]:
            at = time.monotonic() + delay * self._config.delay_s
            self._due.append(_Due(at, OutcomeRequest(decision_id=decision_id, reward=reward)))

    def _deliver(self) -> None:
        while not self._closing.wait(_FLUSH_S):
            now = time.monotonic()
            with self._lock:
                batch = [due.outcome for due in self._due if due.at <= now]
            if not batch:
                continue
            try:
                self._client.rewards(batch)
            except ServiceError as error:
                with self._lock:
                    self.failures.append(f"reward: {error}")
            with self._lock:
                self._due = [due for due in self._due if due.at > now]
