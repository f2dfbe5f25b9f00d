"""Hot swap: follows the serving directory and hands new plans to the scorer."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from croupier.policy.errors import CroupierError, GenerationError
from croupier.policy.generation import Generation, cold_start
from croupier.policy.traffic import Plan
from croupier.service.api import LoopReport, Readiness, SpillReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.eventlog.spilling import SpillState
    from croupier.policy.traffic import Split
    from croupier.service.metrics import Metrics
    from croupier.service.scorer import Scorer
    from croupier.service.serving import ServingDirectory
    from croupier.service.settings import SettingsDirectory

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
    loops: dict[str, LoopReport]

    def readiness(self, log_error: Exception | None, spill: SpillState) -> Readiness:
        """The whole of it, given why the log can't be written, if it can't, or isn't."""
        report = None
        status, log = self.status, _OK
        if spill.since is not None:
            since = datetime.fromtimestamp(spill.since, tz=UTC)
            report = SpillReport(since=since, records=spill.records, error=spill.error)
            status, log = "degraded", "away: records are kept on this machine's disk"
        if log_error is not None:
            status, log = "unavailable", str(log_error)
        return Readiness(
            status=status, log=log, registry=self.registry, loops=self.loops, spill=report
        )


class Follower:
    """Polls the serving directory from a thread; a plan is loaded there and swapped in whole.

    A champion that can't be loaded is not served: the one before goes on. A canary or a shadow that
    can't be loaded is left out.

    Parameters
    ----------
    serving
        The directory that the registry mirror keeps.
    scorer
        Receives the plans.
    metrics
        Shows which plan is served.
    settings
        Where what was set over Personalizer's API is kept; it is put over the configuration that
        the scorer was made with.
    poll_s
        Seconds between looks.
    """

    def __init__(
        self,
        serving: ServingDirectory,
        scorer: Scorer,
        metrics: Metrics,
        settings: SettingsDirectory,
        *,
        poll_s: float,
    ) -> None:
        self._serving = serving
        self._settings = settings
        self._configured = dict(scorer.loops)
        self._scorer = scorer
        self._metrics = metrics
        self._poll_s = poll_s
        self._stale_after_s = max(_STALE_AFTER_POLLS * poll_s, _STALE_AT_LEAST_S)
        self._read: dict[str, Split] = {}
        self._killed: dict[str, str | None] = {}
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
        """Look once at every loop, and swap where the plan has changed."""
        for loop in self._scorer.loops:
            troubles: list[_Trouble] = []
            try:
                self._configure(loop)
            except Exception as error:  # noqa: BLE001
                # What was set before goes on.
                troubles.append(_Trouble(error))
            try:
                self._follow(loop, troubles)
            except Exception as error:  # noqa: BLE001
                # Whatever is wrong with the files, the last good plan goes on (invariant 5).
                troubles.append(_Trouble(error))
            self._note(loop, troubles)

    def _configure(self, loop: str) -> None:
        """Have the scorer decide by the loop's settings, from the next request on."""
        config = self._settings.over(loop, self._configured[loop])
        if config != self._scorer.loops[loop]:
            self._scorer.loops[loop] = config
            _log.info(
                "loop %s: its settings have changed",
                loop,
                extra={"event": "settings_changed", "loop": loop},
            )

    def _note(self, loop: str, troubles: Sequence[_Trouble]) -> None:
        """Keep what is wrong for the report, and log it when it is new."""
        said = "; ".join(map(str, troubles))
        if said and self._errors.get(loop) != said:
            unforeseen = [each.error for each in troubles if not each.foreseen]
            _log.error(
                "loop %s: the plan can't be followed: %s",
                loop,
                said,
                exc_info=unforeseen[0] if unforeseen else None,
                extra={"event": "plan_trouble", "loop": loop},
            )
        if said:
            self._errors[loop] = said
        else:
            self._errors.pop(loop, None)

    def report(self) -> FollowerReport:
        """How fresh the registry's word is, and what every loop serves."""
        registry, age_s = self._registry()
        degraded = (
            registry != _OK
            or bool(self._errors)
            or any(self._killed.values())
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

    def _loop_report(self, loop: str) -> LoopReport:
        plan = self._scorer.plan(loop)
        canary = None if plan is None else plan.canary
        shadow = None if plan is None else plan.shadow
        return LoopReport(
            generation=None if plan is None else plan.champion.number,
            canary=None if canary is None else canary.number,
            canary_share=0.0 if plan is None or canary is None else plan.canary_share,
            shadow=None if shadow is None else shadow.number,
            killed=self._killed.get(loop),
            error=self._errors.get(loop),
        )

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            self.poll()

    def _follow(self, loop: str, troubles: list[_Trouble]) -> None:
        """Swap in what the files say; what can't be followed is added to the troubles."""
        serving = self._scorer.plan(loop)
        split = self._split(loop, troubles)
        killed = self._serving.killed(loop)
        if killed is None and split is not None:
            killed = split.killed
        self._killed[loop] = killed
        self._metrics.killed.labels(loop).set(killed is not None)
        # Without a plan there is only the baseline, killed or not.
        plan = None if split is None else self._plan(loop, split, serving, troubles)
        if plan is None:
            return
        plan = replace(plan, killed=killed)
        if plan != serving:
            self._scorer.swap(plan)
            self._show(plan)

    def _split(self, loop: str, troubles: list[_Trouble]) -> Split | None:
        """What is to be served; as it was last read, if it can't be read."""
        try:
            split = self._serving.split(loop)
        except (OSError, msgspec.DecodeError) as error:
            troubles.append(_Trouble(error))
        else:
            if split is not None:
                self._read[loop] = split
        return self._read.get(loop)

    def _plan(
        self, loop: str, split: Split, serving: Plan | None, troubles: list[_Trouble]
    ) -> Plan | None:
        """Load what isn't served already; None if there is no champion, old or new."""
        at_hand = {} if serving is None else _generations(serving)

        def loaded(role: str, number: int | None) -> Generation | None:
            try:
                return None if number is None else self._generation(loop, number, at_hand)
            except Exception as error:  # noqa: BLE001
                # Whatever the files hold, the others go on.
                troubles.append(_Trouble(error, role))
                return None

        champion = loaded("champion", split.generation)
        if champion is None:
            if serving is None:
                return None
            champion = serving.champion
        canary = loaded("canary", split.canary)
        if canary is None or canary.number == champion.number:
            return Plan(champion, shadow=loaded("shadow", split.shadow))
        return Plan(
            champion,
            canary=canary,
            canary_share=split.canary_share,
            shadow=loaded("shadow", split.shadow),
        )

    def _generation(self, loop: str, number: int, at_hand: dict[int, Generation]) -> Generation:
        if number == 0:
            # How a loop starts depends on its exploration, which may be set to another one.
            return cold_start(loop, self._scorer.loop(loop).exploration)
        if number in at_hand:
            return at_hand[number]
        path = self._serving.generation_path(loop, number)
        generation = Generation.load(path)
        if (generation.loop, generation.number) != (loop, number):
            raise GenerationError(
                f"{path} holds generation {generation.number} of loop {generation.loop}"
            )
        return generation

    def _show(self, plan: Plan) -> None:
        """Put a new plan into metrics and log."""
        loop = plan.champion.loop
        self._metrics.generation.labels(loop).set(plan.champion.number)
        self._metrics.canary_share.labels(loop).set(plan.canary_share)
        _log.info(
            "loop %s: serving generation %d%s%s%s",
            loop,
            plan.champion.number,
            "" if plan.canary is None else f", {plan.canary.number} on {plan.canary_share:.3g}",
            "" if plan.shadow is None else f", {plan.shadow.number} as shadow",
            "" if plan.killed is None else f"; killed, the baseline is played: {plan.killed}",
            extra={"event": "serving", "loop": loop},
        )


def _generations(plan: Plan) -> dict[int, Generation]:
    served = (plan.champion, plan.canary, plan.shadow)
    return {each.number: each for each in served if each is not None}


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Something that can't be followed, and the role of the generation that it is about."""

    error: Exception
    role: str | None = None

    @property
    def foreseen(self) -> bool:
        """Whether its text says enough; anything else leaves its traceback in the log."""
        return isinstance(self.error, CroupierError | msgspec.DecodeError | OSError)

    def __str__(self) -> str:
        text = str(self.error) or type(self.error).__name__
        return text if self.role is None else f"{self.role}: {text}"
