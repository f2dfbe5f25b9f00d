"""Multi-slot decisions: several places of different kinds, each filled with another action."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from croupier.policy.decision import (
    MAX_ACTIONS,
    MAX_PLACES,
    check_actions,
    check_id,
    check_rules,
)
from croupier.policy.errors import InvalidInputError
from croupier.policy.requests import DecisionRequest, Slot, SlotsRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.policy.decision import Choose
    from croupier.policy.events import Decision, Features

__all__ = ("SLOT", "Slot", "SlotsRequest", "check_slots_request", "fill_slots", "slot_context")

SLOT = "slot"
"""Key of the context under which the oracle finds the slot's id and features."""


def check_slots_request(request: SlotsRequest) -> None:
    """Check what types alone can't say.

    Raises
    ------
    InvalidInputError
        Naming the field and what was expected; the first slot for which no action is left, if
        there are more slots than actions that can fill them.
    """
    if request.decision_id is not None:
        check_id("decision_id", request.decision_id)
    if SLOT in request.context:
        raise InvalidInputError(f"context.{SLOT}", "expected another name: slots stand under it")
    ids = check_actions(request.actions)
    count, candidates = len(request.slots), len(request.slots) * len(request.actions)
    if not 1 <= count <= MAX_PLACES:
        raise InvalidInputError("slots", f"expected 1 to {MAX_PLACES} slots, got {count}")
    if candidates > MAX_ACTIONS:
        raise InvalidInputError(
            "slots",
            f"expected at most {MAX_ACTIONS:,} actions over all slots, "
            f"got {count} times {len(request.actions):,}",
        )
    seen: set[str] = set()
    for position, slot in enumerate(request.slots):
        where = f"slots[{position}]."
        check_id(f"{where}id", slot.id)
        if slot.id in seen:
            raise InvalidInputError(f"{where}id", f"expected unique ids, got {slot.id!r} twice")
        seen.add(slot.id)
        check_rules(where, slot.excluded, slot.baseline, ids)
    unfillable = _Openings(request).unfillable
    if unfillable is not None:
        raise InvalidInputError(
            f"slots[{unfillable}]",
            f"expected an action to be left for slot {request.slots[unfillable].id!r}, "
            "besides one for every slot before it",
        )


def fill_slots(request: SlotsRequest, choose: Choose) -> list[Decision]:
    """Fill the slots, in their order.

    A slot is filled from its own exclusions and what earlier slots took, so that its propensity is
    conditional on them. Where later slots could otherwise not be filled any more, the actions that
    must be left to them are excluded as well; a decision's `excluded` says all of it.

    Parameters
    ----------
    request
        A request that :func:`check_slots_request` accepts.
    choose
        Takes one action, such as ``partial(decide, plan=plan, circumstances=…)``.

    Returns
    -------
    list of Decision
        One for every slot. Its context is the request's with the slot under the key ``slot``; its
        baseline is the slot's own if it can be had, or else the first action that can.
    """
    openings = _Openings(request)
    taken: list[str] = []
    decisions = []
    for position, slot in enumerate(request.slots):
        kept = [request.actions[index].id for index in openings.kept_from(position)]
        excluded = dict.fromkeys([*slot.excluded, *taken, *kept])
        decision = choose(
            DecisionRequest(
                actions=request.actions,
                context=slot_context(request.context, slot),
                decision_id=request.decision_id,
                excluded=list(excluded),
                baseline=slot.baseline,
                deferred=request.deferred,
                audit=request.audit,
            ),
            slot=slot.id,
        )
        openings.take(position, decision.chosen)
        taken.append(decision.actions[decision.chosen].id)
        decisions.append(decision)
    return decisions


def slot_context(context: Features, slot: Slot) -> Features:
    """What an oracle sees of a request and one of its slots."""
    return {**context, SLOT: {"id": slot.id, "features": slot.features}}


class _Openings:
    """Which actions slots may take so that all slots after them can still be filled.

    Holds an assignment of an action to every slot (a matching), and moves it along as slots take
    their actions.

    Attributes
    ----------
    unfillable
        Index of the first slot that can't be filled together with all before it; None if all can.
    """

    def __init__(self, request: SlotsRequest) -> None:
        place = {action.id: index for index, action in enumerate(request.actions)}
        self._may = np.ones((len(request.slots), len(place)), dtype=np.bool_)
        for position, slot in enumerate(request.slots):
            self._may[position, [place[each] for each in slot.excluded]] = False
        self._action_of: NDArray[np.int64] = np.full(len(request.slots), -1)
        self._slot_of: NDArray[np.int64] = np.full(len(place), -1)
        self.unfillable = next(
            (slot for slot in range(len(request.slots)) if not self._assign(slot)), None
        )

    def kept_from(self, slot: int) -> list[int]:
        """Actions that a slot can't have, because without them a later slot stays empty.

        A later slot can do without its action if it may have one that nobody needs, or that of
        another slot that can do without.
        """
        self._release(slot)
        can_do_without = (self._may & (self._slot_of < 0)).any(axis=1)
        queue = [each for each in np.flatnonzero(can_do_without).tolist() if each > slot]
        for other in queue:
            spared = self._may[:, self._action_of[other]] & ~can_do_without
            can_do_without |= spared
            queue += [each for each in np.flatnonzero(spared).tolist() if each > slot]
        later = np.arange(can_do_without.size) > slot
        kept: list[int] = self._action_of[later & ~can_do_without].tolist()
        return kept

    def take(self, slot: int, action: int) -> None:
        """Note what a slot took, one that it was not kept from."""
        self._release(slot)
        self._may[:, action] = False
        holder = int(self._slot_of[action])
        if holder >= 0:
            self._release(holder)
            self._assign(holder)

    def _release(self, slot: int) -> None:
        action = self._action_of[slot]
        if action >= 0:
            self._action_of[slot] = self._slot_of[action] = -1

    def _assign(self, slot: int) -> bool:
        """Find an action for a slot, moving others if need be, by an augmenting path (Berge, 1957).

        False if there is none, and nothing is moved then.
        """
        wanted_by: dict[int, int] = {}
        queue = [slot]
        for asking in queue:
            wanted = np.flatnonzero(self._may[asking])
            free = wanted[self._slot_of[wanted] < 0]
            if free.size:
                self._move(slot, asking, int(free[0]), wanted_by)
                return True
            for action in wanted.tolist():
                if action not in wanted_by:
                    wanted_by[action] = asking
                    queue.append(int(self._slot_of[action]))
        return False

    def _move(self, slot: int, asking: int, action: int, wanted_by: dict[int, int]) -> None:
        """Give an action to the slot that asks; its own goes to whoever wanted that, and so on."""
        while True:
            given_up = int(self._action_of[asking])
            self._action_of[asking], self._slot_of[action] = action, asking
            if asking == slot:
                return
            action, asking = given_up, wanted_by[given_up]
