"""The scorer: decisions without any web framework, for the service and for in-process use."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from croupier.policy.decision import DecisionRequest, check_request, decide, decide_baseline
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from croupier.policy.events import Decision
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

__all__ = ("Scorer", "now_us", "uuid7")

_log = logging.getLogger(__name__)


class Scorer:
    """Holds the generation being served of every loop and decides from it.

    Thread-safe: a decision reads its loop's generation once, and :meth:`swap` replaces it in one
    assignment.

    Parameters
    ----------
    loops
        Configuration by loop name.
    clock
        Gives now, in microseconds since the Unix epoch.
    on_fallback
        Called with loop and reason whenever a decision falls back to the baseline.
    """

    def __init__(
        self,
        loops: Mapping[str, LoopConfig],
        *,
        clock: Callable[[], int] | None = None,
        on_fallback: Callable[[str, str], None] | None = None,
    ) -> None:
        self.loops = dict(loops)
        self._clock = clock or now_us
        self._on_fallback = on_fallback
        self._generations: dict[str, Generation] = {}

    def now(self) -> int:
        """Now, in microseconds since the Unix epoch, by the scorer's clock."""
        return self._clock()

    def generation(self, loop: str) -> Generation | None:
        """The generation being served; None while the registry has not been heard of."""
        return self._generations.get(loop)

    def swap(self, generation: Generation) -> None:
        """Serve another generation from the next decision on.

        Raises
        ------
        InvalidInputError
            If its loop is not configured here.
        """
        self.loop(generation.loop)
        self._generations[generation.loop] = generation

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
        ts = self._clock()
        decision_id = request.decision_id if request.decision_id is not None else uuid7(ts)
        generation = self._generations.get(loop)
        if generation is not None:
            try:
                return decide(
                    request,
                    generation,
                    decision_id=decision_id,
                    ts=ts,
                    learning_mode=config.learning_mode,
                )
            except InvalidInputError:
                raise
            except Exception:  # noqa: BLE001
                # Whatever an oracle does, the application gets an answer (invariant 5).
                _log.exception("loop %s: generation %d can't score", loop, generation.number)
                reason, number = "scoring failed", generation.number
        else:
            reason, number = "no generation", 0
        if self._on_fallback is not None:
            self._on_fallback(loop, reason)
        return decide_baseline(
            request,
            loop=loop,
            generation=number,
            decision_id=decision_id,
            ts=ts,
            learning_mode=config.learning_mode,
        )


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
