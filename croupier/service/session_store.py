"""The store of sessions that nobody else keeps: bounded, and for one process."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from croupier.policy.sessions import SessionsConfig, SessionState

__all__ = ("SessionEvent", "SessionStore")

SessionEvent: TypeAlias = Literal["begun", "continued", "expired", "evicted"]
"""What happens to the sessions of a store: a step is the first one that it knows of, or another
one; a session is over, or was forgotten before it was because there were too many."""

_STEPS_KEPT: Final = 4
"""Latest steps of a session that can be repeated or taken back."""


class SessionStore:
    """How far the sessions of the latest users have come.

    A step that is asked for again under the same decision_id, of the latest four of its session, is
    decided from what was known before it, and the session is no further for it. What is forgotten,
    because it is over or there are too many, begins anew.

    Thread-safe. Whoever decides holds :attr:`lock` from :meth:`before` to :meth:`keep`, so that no
    two steps of a session are the same one.

    Parameters
    ----------
    capacity
        Most sessions, at least 0; 0 keeps none.
    observe
        Called with the loop and what happened.

    Attributes
    ----------
    lock
        Held by whoever decides.
    """

    def __init__(
        self, capacity: int, observe: Callable[[str, SessionEvent], None] | None = None
    ) -> None:
        self.lock = threading.RLock()
        self._capacity = capacity
        self._observe = observe
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def before(
        self, loop: str, user: str, decision_id: str, now_us: int, config: SessionsConfig
    ) -> SessionState | None:
        """How far a user's session had come before a decision; None if that is its first step."""
        kept = self._kept.get((loop, user))
        if kept is not None:
            for step in kept.latest:
                if step.decision_id == decision_id:
                    return step.before
            if kept.state.goes_on(now_us, config):
                self._tell(loop, "continued")
                return kept.state
        self._tell(loop, "begun")
        return None

    def keep(
        self,
        loop: str,
        user: str,
        step: tuple[str, SessionState | None],
        state: SessionState,
        config: SessionsConfig,
    ) -> None:
        """Keep how far a user's session has come.

        Parameters
        ----------
        loop, user
            Whose.
        step
            Id of the decision, and what :meth:`before` gave of it.
        state
            After it.
        config
            Of the loop.
        """
        if self._capacity == 0:
            return
        key, taken = (loop, user), _Step(*step)
        kept = self._kept.get(key)
        latest: deque[_Step] = deque(maxlen=_STEPS_KEPT) if kept is None else kept.latest
        if any(each.decision_id == taken.decision_id for each in latest):
            return
        latest.append(taken)
        self._kept[key] = _Kept(state, latest, state.last_us + config.pause_us)
        self._kept.move_to_end(key)
        self._trim(state.last_us)

    def retract(self, loop: str, user: str, decision_id: str) -> None:
        """Forget a step that was not logged, and those after it."""
        with self.lock:
            kept = self._kept.get((loop, user))
            places = [] if kept is None else [each.decision_id for each in kept.latest]
            if kept is None or decision_id not in places:
                return
            earlier = list(kept.latest)[: places.index(decision_id)]
            before = kept.latest[len(earlier)].before
            if before is None:
                del self._kept[loop, user]
                return
            latest = deque(earlier, maxlen=_STEPS_KEPT)
            self._kept[loop, user] = _Kept(before, latest, kept.ends_us)

    def _trim(self, now_us: int) -> None:
        """Forget what is over, as far as it stands first, and what is too much."""
        while self._kept:
            key, oldest = next(iter(self._kept.items()))
            over = oldest.ends_us < now_us
            if not over and len(self._kept) <= self._capacity:
                return
            del self._kept[key]
            self._tell(key[0], "expired" if over else "evicted")

    def _tell(self, loop: str, event: SessionEvent) -> None:
        if self._observe is not None:
            self._observe(loop, event)


class _Step(NamedTuple):
    """A decision, and how far its session had come before it."""

    decision_id: str
    before: SessionState | None


class _Kept(NamedTuple):
    """A session, its latest steps, and when it is over unless it goes on."""

    state: SessionState
    latest: deque[_Step]
    ends_us: int
