"""Many clients at once, each with a connection of its own, and what each of them was told."""

from __future__ import annotations

import http.client
import threading
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.service.running import Caller, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.running import Server


@dataclass
class Told:
    """What the clients of one load were told.

    Attributes
    ----------
    decisions
        Acknowledged decisions, in the order in which a client made them; one list per client.
    outcomes
        Ids of acknowledged outcomes.
    refused
        Answers that were anything but an acknowledgement.
    unanswered
        Ids of requests that were sent on a connection that the server had not closed, and that got
        no answer.
    """

    decisions: list[list[dict[str, Any]]] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)

    @property
    def decision_ids(self) -> list[str]:
        return [decided["decision_id"] for client in self.decisions for decided in client]


class Load:
    """Clients that decide and reward until they are told to stop, or nobody answers any more."""

    def __init__(self, server: Server, clients: int) -> None:
        self.told = Told()
        self._port = server.port
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def wait_for(self, decisions: int) -> None:
        """Wait until so many decisions more have been acknowledged."""
        enough = len(self.told.decision_ids) + decisions
        wait_until(lambda: len(self.told.decision_ids) >= enough)

    def _work(self) -> None:
        decided: list[dict[str, Any]] = []
        self.told.decisions.append(decided)
        with Caller(self._port) as caller:
            for sent, path, request in self._requests():
                try:
                    answer = caller.post(path, request)
                except ConnectionRefusedError:
                    # The last answer closed the connection, and there is nobody for another one.
                    return
                except (OSError, http.client.HTTPException):
                    self.told.unanswered.append(sent)
                    return
                if answer.status != 200:
                    self.told.refused.append(f"{answer.status} {answer.body!r}")
                elif path.endswith("decide"):
                    decided.append(answer.json)
                else:
                    self.told.outcomes.append(sent)

    def _requests(self) -> Iterator[tuple[str, str, Any]]:
        actions = [{"id": name, "features": {"size": len(name)}} for name in ("a", "bb", "ccc")]
        while not self._stopping.is_set():
            decision_id = uuid.uuid4().hex
            request = {"decision_id": decision_id, "actions": actions, "context": {"x": 0.5}}
            yield decision_id, "digits/decide", request
            outcome_id = uuid.uuid4().hex
            outcome = {"decision_id": decision_id, "reward": 1.0, "outcome_id": outcome_id}
            yield outcome_id, "digits/reward", outcome
