"""Hot swap: follows the serving directory and hands new generations to the scorer."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from croupier.policy.errors import CroupierError, GenerationError
from croupier.policy.generation import Generation, cold_start
from croupier.policy.traffic import Plan

if TYPE_CHECKING:
    from croupier.service.metrics import Metrics
    from croupier.service.scorer import Scorer
    from croupier.service.serving import ServingDirectory

__all__ = ("Follower", "FollowerReport")

_log = logging.getLogger(__name__)

_OK = "ok"
_STALE_AFTER_POLLS = 30
_STALE_AT_LEAST_S = 30.0


@dataclass(frozen=True, slots=True)
class FollowerReport:
    """What ``/readyz`` says of the registry and of each loop."""

    status: str
    registry: str
    registry_age_s: float | None
    loops: dict[str, dict[str, Any]]


class Follower:
    """Polls the serving directory from a thread; a generation is loaded there and swapped in whole.

    A generation that can't be loaded is not served: the one before goes on.

    Parameters
    ----------
    serving
        The directory that the registry mirror keeps.
    scorer
        Receives the generations.
    metrics
        Shows which generation is served.
    poll_s
        Seconds between looks.
    """

    def __init__(
        self, serving: ServingDirectory, scorer: Scorer, metrics: Metrics, *, poll_s: float
    ) -> None:
        self._serving = serving
        self._scorer = scorer
        self._metrics = metrics
        self._poll_s = poll_s
        self._stale_after_s = max(_STALE_AFTER_POLLS * poll_s, _STALE_AT_LEAST_S)
        self._errors: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generation-follower", daemon=True)

    def start(self) -> None:
        """Load what is there, then go on following in the background."""
        self.poll()
        self._thread.start()

    def stop(self) -> None:
        """Stop following; the scorer goes on with what it has."""
        self._stop.set()
        self._thread.join()

    def poll(self) -> None:
        """Look once at every loop, and swap where the champion has changed."""
        for loop in self._scorer.loops:
            try:
                self._follow(loop)
            except Exception as error:  # noqa: BLE001
                # Whatever is wrong with the files, the last good generation goes on (invariant 5).
                if self._errors.get(loop) != str(error):
                    foreseen = isinstance(error, CroupierError | msgspec.DecodeError | OSError)
                    _log.error(
                        "loop %s: the new generation can't be loaded: %s",
                        loop,
                        error,
                        exc_info=None if foreseen else error,
                    )
                self._errors[loop] = str(error)
            else:
                self._errors.pop(loop, None)

    def report(self) -> FollowerReport:
        """How fresh the registry's word is, and what every loop serves."""
        registry, age_s = self._registry()
        degraded = (
            registry != _OK
            or bool(self._errors)
            or any(self._scorer.plan(loop) is None for loop in self._scorer.loops)
        )
        return FollowerReport(
            "degraded" if degraded else "ready",
            registry,
            age_s,
            {loop: self._loop_report(loop) for loop in self._scorer.loops},
        )

    def _registry(self) -> tuple[str, float | None]:
        """What is wrong with the registry, or ``ok``; and how long ago it answered."""
        try:
            state = self._serving.state()
        except (OSError, msgspec.DecodeError) as error:
            return f"its state can't be read: {error}", None
        if state is None:
            return "not asked yet", None
        if state.answered_us is None:
            return state.error or "never answered", None
        age_s = (self._scorer.now() - state.answered_us) / 1e6
        if state.error is None and age_s > self._stale_after_s:
            return f"the mirror has been silent for {age_s:.0f} s", age_s
        return state.error or _OK, age_s

    def _loop_report(self, loop: str) -> dict[str, Any]:
        plan = self._scorer.plan(loop)
        return {
            "generation": None if plan is None else plan.champion.number,
            "error": self._errors.get(loop),
        }

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            self.poll()

    def _follow(self, loop: str) -> None:
        champion = self._serving.champion(loop)
        if champion is None:
            return
        serving = self._scorer.plan(loop)
        if serving is not None and serving.champion.number == champion.generation:
            return
        if champion.generation == 0:
            generation = cold_start(loop, self._scorer.loop(loop).exploration)
        else:
            path = self._serving.generation_path(loop, champion.generation)
            generation = Generation.load(path)
            if (generation.loop, generation.number) != (loop, champion.generation):
                raise GenerationError(
                    f"{path} holds generation {generation.number} of loop {generation.loop}"
                )
        self._scorer.swap(Plan(generation))
        self._metrics.generation.labels(loop).set(generation.number)
        _log.info("loop %s: serving generation %d", loop, generation.number)
