"""The scorer: decisions without any web framework, for the service and for in-process use."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from croupier.policy.decision import (
    Circumstances,
    DecisionRequest,
    check_request,
    decide,
    decide_baseline,
)
from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import InvalidInputError
from croupier.policy.traffic import Plan, uniform_share
from croupier.service.json_values import check_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from croupier.policy.events import Decision, LearningMode
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

__all__ = ("Scorer", "now_us", "uuid7")

_log = logging.getLogger(__name__)


class Scorer:
    """Holds the plan being served of every loop and decides from it.

    Thread-safe: a decision reads its loop's plan once, and :meth:`swap` replaces it in one
    assignment.

    Parameters
    ----------
    loops
        Configuration by loop name.
    clock
        Gives now, in microseconds since the Unix epoch.
    on_fallback
        Called with loop and reason whenever a decision falls back to the baseline.
    secret
        Of the draws; the same on every scorer of a loop.
    """

    def __init__(
        self,
        loops: Mapping[str, LoopConfig],
        *,
        clock: Callable[[], int] | None = None,
        on_fallback: Callable[[str, str], None] | None = None,
        secret: bytes = b"",
    ) -> None:
        self.loops = dict(loops)
        self._clock = clock or now_us
        self._on_fallback = on_fallback
        self._secret = secret
        self._plans: dict[str, Plan] = {}
        self._failed: set[tuple[str, int]] = set()
        self._encoder = FeatureEncoder(EncoderConfig())

    def now(self) -> int:
        """Now, in microseconds since the Unix epoch, by the scorer's clock."""
        return self._clock()

    def plan(self, loop: str) -> Plan | None:
        """What is being served; None while the registry has not been heard of."""
        return self._plans.get(loop)

    def swap(self, plan: Plan) -> None:
        """Serve another plan from the next decision on.

        Raises
        ------
        InvalidInputError
            If its loop is not configured here.
        """
        self.loop(plan.champion.loop)
        self._plans[plan.champion.loop] = plan

    def loop(self, name: str) -> LoopConfig:
        """Configuration of a loop.

        Raises
        ------
        InvalidInputError
            If there is none of that name.
        """
        try:
            return self.loops[name]
        except KeyError:
            known = ", ".join(sorted(self.loops))
            raise InvalidInputError("loop", f"expected one of {known}, got {name!r}") from None

    def decide(self, loop: str, request: DecisionRequest) -> Decision:
        """Decide. Trouble with the generation ends in the baseline, never in an error.

        Raises
        ------
        InvalidInputError
            If the request is not a valid one.
        """
        config = self.loop(loop)
        check_request(request)
        check_json("audit", request.audit)
        try:
            return self._decide(config, loop, request)
        except InvalidInputError as error:
            raise _in_the_request(error, request) from error

    def _decide(self, config: LoopConfig, loop: str, request: DecisionRequest) -> Decision:
        ts = self._clock()
        circumstances = Circumstances(
            decision_id=request.decision_id if request.decision_id is not None else uuid7(ts),
            ts=ts,
            learning_mode=config.learning_mode,
            uniform=uniform_share(config.uniform_slices, ts) if config.uniform_slices else 0.0,
            secret=self._secret,
        )
        plan = self._plans.get(loop)
        if plan is None:
            self._check_features(request)
            reason, number = "no generation", 0
        else:
            if not _is_scored(plan, config.learning_mode):
                self._check_features(request)
            try:
                return decide(request, plan, circumstances, on_failure=self._note_failure)
            except InvalidInputError:
                raise
            except Exception as error:  # noqa: BLE001
                # Whatever an oracle does, the application gets an answer (invariant 5).
                self._note_failure(plan.champion, error)
                self._check_features(request)
                reason, number = "scoring failed", plan.champion.number
        if self._on_fallback is not None:
            self._on_fallback(loop, reason)
        return decide_baseline(request, circumstances, loop=loop, generation=number)

    def _check_features(self, request: DecisionRequest) -> None:
        """Refuse features that no oracle could read, where none has looked at them.

        An application must not find out on the day of its first promotion, nor the training in
        what was logged until then.
        """
        self._encoder.encode(request.context, request.actions)

    def _note_failure(self, generation: Generation, error: Exception) -> None:
        """Log the first failure of a generation; more would come at the rate of requests."""
        if (generation.loop, generation.number) not in self._failed:
            self._failed.add((generation.loop, generation.number))
            _log.error(
                "loop %s: generation %d can't score, others are played instead",
                generation.loop,
                generation.number,
                exc_info=error,
            )


def _is_scored(plan: Plan, learning_mode: LearningMode) -> bool:
    """Whether an oracle looks at the features of every request."""
    return (
        plan.killed is None and learning_mode != "logging_only" and plan.champion.oracle is not None
    )


def _in_the_request(error: InvalidInputError, request: DecisionRequest) -> InvalidInputError:
    """Name an action by its place, as all other errors do; the encoder names it by its id."""
    for position, action in enumerate(request.actions):
        by_id = f"actions[id={action.id}]."
        if error.field.startswith(by_id):
            field = f"actions[{position}].{error.field.removeprefix(by_id)}"
            return InvalidInputError(field, error.expected)
    return error


def now_us() -> int:
    """Now, in microseconds since the Unix epoch, UTC."""
    return time.time_ns() // 1000


def uuid7(ts_us: int) -> str:
    """Make a UUID of version 7 (RFC 9562): milliseconds since the epoch, then 74 random bits."""
    random = int.from_bytes(os.urandom(10), "big")
    value = (ts_us // 1000 & (1 << 48) - 1) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
