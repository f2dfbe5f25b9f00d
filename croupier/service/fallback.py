"""Stand-ins for answers: what an application does by itself while the service can't be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from croupier.policy.requests import DecisionRequest, RankRequest, SlateRequest, SlotsRequest
from croupier.service.api import (
    Choice,
    DecideResponse,
    RankResponse,
    SlateMember,
    SlateResponse,
    SlotsResponse,
)
from croupier.service.calls import NOT_DECIDED
from croupier.service.ids import now_us, uuid7

if TYPE_CHECKING:
    from collections.abc import Sequence

    import msgspec

    from croupier.service.calls import Call

__all__ = ("BASELINE_GENERATION", "baseline_answer")

_T = TypeVar("_T")

BASELINE_GENERATION = -1
"""Generation of an answer that nobody decided."""


class _Baseline(DecideResponse, frozen=True, kw_only=True):
    decided: ClassVar[bool] = False


class _BaselineRanking(RankResponse, frozen=True, kw_only=True):
    decided: ClassVar[bool] = False


class _BaselineSlots(SlotsResponse, frozen=True, kw_only=True):
    decided: ClassVar[bool] = False


class _BaselineSlate(SlateResponse, frozen=True, kw_only=True):
    decided: ClassVar[bool] = False


def baseline_answer(loop: str, call: Call[_T]) -> _T | None:
    """What the application would do by itself, in the form of an answer.

    Parameters
    ----------
    loop
        That was asked.
    call
        That got no answer.

    Returns
    -------
    answer
        The baseline, or the first actions that can be had, with probability 1. It has a
        `decision_id` of its own: the request may have been decided and logged after all, and what
        the application showed must not be counted for that. None for calls that decide nothing, and
        for requests that no answer fits.
    """
    stand_in: Any = None
    match call.request:
        case SlotsRequest() as request:
            stand_in = _baseline_slots(request)
        case DecisionRequest() as request:
            stand_in = _baseline_of_actions(request)
    if stand_in is None:
        return None
    kind, fields = stand_in
    answer: _T = kind(
        decision_id=f"{NOT_DECIDED}{uuid7(now_us())}",
        loop=loop,
        generation=BASELINE_GENERATION,
        **fields,
    )
    return answer


def _baseline_of_actions(
    request: DecisionRequest,
) -> tuple[type[msgspec.Struct], dict[str, Any]] | None:
    ids = [action.id for action in request.actions]
    order = _preferred(ids, request.excluded, request.baseline)
    match request:
        case SlateRequest(size=size):
            count = size
        case RankRequest(depth=depth):
            count = depth
        case _:
            count = 1
    if not 1 <= count <= len(order):
        return None
    drawn = order[:count]
    if isinstance(request, SlateRequest):
        members = [
            SlateMember(slot=str(place), action=ids[index], index=index, inclusion=1.0)
            for place, index in enumerate(drawn)
        ]
        inclusion = [float(index in set(drawn)) for index in range(len(ids))]
        return _BaselineSlate, {"slate": members, "inclusion": inclusion}
    choices = [
        _certain(None if count == 1 else str(place), ids, index)
        for place, index in enumerate(drawn)
    ]
    if isinstance(request, RankRequest):
        # Whatever is excluded keeps its place.
        ranking = list(ids)
        for place, index in zip(sorted(order), order, strict=True):
            ranking[place] = ids[index]
        return _BaselineRanking, {"ranking": ranking, "drawn": choices}
    first = choices[0]
    return _Baseline, {
        "action": first.action,
        "index": first.index,
        "propensity": first.propensity,
        "pmf": first.pmf,
        "session": request.session,
    }


def _baseline_slots(
    request: SlotsRequest,
) -> tuple[type[msgspec.Struct], dict[str, Any]] | None:
    """Give every slot its baseline or else the first action that leaves the later ones one each."""
    ids = [action.id for action in request.actions]
    wanted = [_preferred(ids, slot.excluded, slot.baseline) for slot in request.slots]
    taken: list[int] = []
    for position, candidates in enumerate(wanted):
        later = wanted[position + 1 :]
        index = next(
            (each for each in candidates if each not in taken and _can_fill(later, {*taken, each})),
            None,
        )
        if index is None:
            return None
        taken.append(index)
    filled = [
        _certain(slot.id, ids, index) for slot, index in zip(request.slots, taken, strict=True)
    ]
    return _BaselineSlots, {"slots": filled}


def _preferred(ids: Sequence[str], excluded: Sequence[str], baseline: str | None) -> list[int]:
    """Indices of the eligible actions, the baseline before all others."""
    out = set(excluded)
    free = (index for index, each in enumerate(ids) if each not in out)
    return sorted(free, key=lambda index: ids[index] != baseline)


def _can_fill(wanted: Sequence[Sequence[int]], gone: set[int]) -> bool:
    """Whether every slot can have an action of its own, by augmenting paths."""
    holder: dict[int, int] = {}

    def give(slot: int, tried: set[int]) -> bool:
        for index in wanted[slot]:
            if index in gone or index in tried:
                continue
            tried.add(index)
            if index not in holder or give(holder[index], tried):
                holder[index] = slot
                return True
        return False

    return all(give(slot, set()) for slot in range(len(wanted)))


def _certain(slot: str | None, ids: Sequence[str], index: int) -> Choice:
    pmf = [0.0] * len(ids)
    pmf[index] = 1.0
    return Choice(slot=slot, action=ids[index], index=index, propensity=1.0, pmf=pmf)
