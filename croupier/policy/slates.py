"""Slates: a set of k of K actions, drawn as one, with exact probabilities of being in it.

A slate is a combinatorial semi-bandit's action: every member has a reward of its own. What counts
for learning and evaluation is each action's marginal probability π of being in the set; the members
are then dealt to the places at random, so that a place holds action a with probability π(a) / k.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from croupier.policy.decision import (
    baseline_index,
    check_no_session,
    check_places,
    check_request,
    decide,
    decision_of,
    eligibility,
    plays_baseline,
)
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Decision, Shadow
from croupier.policy.ranking import draw_in_turn, scored_once
from croupier.policy.requests import SlateRequest
from croupier.policy.sampling import draw_key
from croupier.policy.traffic import Answer

if TYPE_CHECKING:
    from croupier.policy.decision import Circumstances
    from croupier.policy.traffic import OnFailure, Plan

__all__ = (
    "SlateRequest",
    "check_slate_request",
    "decide_slate",
    "draw_slate",
    "inclusion",
    "key_of_place",
    "logged_inclusion",
    "replay_place",
)

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

# Inclusion probabilities are multiples of 2**-48: whole numbers add up without rounding, and one
# that was divided by the number of places for the log is found again by rounding.
_BITS = 48
_UNIT = 1 << _BITS
_PERSON = b"croupier-slate-1"
_SUM_TOLERANCE = 1e-6


def check_slate_request(request: SlateRequest) -> None:
    """Check what types alone can't say.

    Raises
    ------
    InvalidInputError
        Naming the field and what was expected.
    """
    check_request(request)
    check_no_session(request)
    count = len(request.actions)
    check_places("size", request.size, count - len(set(request.excluded)), count)


def decide_slate(
    request: SlateRequest,
    plan: Plan,
    circumstances: Circumstances,
    *,
    on_failure: OnFailure | None = None,
) -> list[Decision]:
    """Draw a slate from a plan, with the inclusion probabilities of the plan's pmf.

    Where the baseline is played there is nothing to draw: places are filled in turn, with the
    baseline and then in the request's order, as
    :func:`~croupier.policy.ranking.draw_in_turn` does. Such decisions have no slate size, since
    their pmf is that of one certain action.

    Parameters
    ----------
    request
        A request that :func:`check_slate_request` accepts.
    plan
        What the loop serves.
    circumstances
        Everything else.
    on_failure
        Called with generations that can't answer and are not needed for an answer, and with why.

    Returns
    -------
    list of Decision
        One for every place, "0" to "size - 1". All have the pmf π / size and the baseline of the
        request.

    Raises
    ------
    ScoringError
        If the champion's oracle gives no usable scores.
    """
    if plays_baseline(plan, circumstances):
        choose = partial(decide, plan=scored_once(plan), circumstances=circumstances)
        return draw_in_turn(request, request.size, choose)
    loop, number, size = plan.champion.loop, plan.champion.number, request.size
    eligible, baseline = eligibility(request), baseline_index(request)
    answer = plan.answer(
        request.context,
        request.actions,
        eligible,
        baseline,
        uniform=circumstances.uniform,
        on_failure=on_failure,
    )
    pmf = inclusion(answer.pmf, size, eligible) / size
    shadow = answer.shadow
    if shadow is not None:
        other = inclusion(np.array(shadow.pmf), size, eligible) / size
        shadow = Shadow(shadow.generation, other.tolist())
    of_a_place = Answer(pmf, answer.scores, answer.mix, shadow).shown()
    key = draw_key(loop, number, circumstances.decision_id, secret=circumstances.secret)
    return [
        decision_of(
            request,
            plan,
            circumstances,
            of_a_place,
            chosen=chosen,
            baseline=baseline,
            key=key_of_place(key, place),
            slot=str(place),
            slate_size=size,
        )
        for place, chosen in enumerate(draw_slate(pmf, size, key))
    ]


def inclusion(pmf: FloatArray, size: int, eligible: NDArray[np.bool_] | None = None) -> FloatArray:
    """Probability of every action to be in a slate, from the probability to be taken alone.

    ``π(a) = min(1, c·p(a))`` with c such that π sums to `size` (water-filling), and since then
    ``c ≥ size``, a floor on p carries over: ``π(a) ≥ min(1, size·floor)``, but for rounding. If no
    more than `size` actions have a probability above 0, all of these are in, and the rest of the
    places goes to the other eligible actions evenly.

    Parameters
    ----------
    pmf
        Shape (K,), summing to 1.
    size
        Number of places, at most that of eligible actions.
    eligible
        Which actions may be taken, shape (K,); all of them if None.

    Returns
    -------
    ndarray of shape (K,)
        Multiples of 2⁻⁴⁸ that sum to `size`, each at most 1.

    Raises
    ------
    InvalidInputError
        If fewer than `size` actions are eligible.
    """
    possible = pmf > 0.0
    count = int(np.count_nonzero(possible))
    if count > size:
        return _units(_water_filled(pmf, size), size) / _UNIT
    marginals = np.asarray(possible, dtype=np.float64)
    if count < size:
        others = ~possible if eligible is None else eligible & ~possible
        left = int(np.count_nonzero(others))
        if count + left < size:
            raise InvalidInputError(
                "size", f"expected at most {count + left}, the eligible actions, got {size}"
            )
        marginals[others] = (size - count) / left
    return _units(marginals, size) / _UNIT


def _water_filled(pmf: FloatArray, size: int) -> FloatArray:
    descending = np.argsort(-pmf, kind="stable")
    ordered = pmf[descending]
    tails = np.cumsum(ordered[::-1])[::-1]
    # With the t largest certain, the others share size - t places, and none may get more than one.
    places = size - np.arange(size)
    certain = int(np.flatnonzero(places * ordered[:size] <= tails[:size])[0])
    marginals = np.ones(pmf.size)
    rest = descending[certain:]
    marginals[rest] = np.minimum((size - certain) * (pmf[rest] / tails[certain]), 1.0)
    return marginals


def draw_slate(pmf: FloatArray, size: int, key: str) -> list[int]:
    """Draw a set with given marginals, and deal it to the places.

    Systematic sampling (Madow, 1949) over the actions in a random order: laid end to end, with
    their π for lengths, they cover [0, size), and those are taken in whose part one of the points
    ``u, u + 1, …, u + size - 1`` falls. An order that is drawn anew for each slate lets actions
    meet that could not in any fixed one. The members then get a random place each. Orders and u
    come from the key alone, by SHAKE-128.

    Given the order, an action's part is exactly π long and at most 1, so it is in with probability
    π and never twice.

    Parameters
    ----------
    pmf
        Of one place: π / size, shape (K,).
    size
        Number of places.
    key
        16 hexadecimal digits.

    Returns
    -------
    list of int
        Index of the action in every place.

    Raises
    ------
    InvalidInputError
        If the pmf is not that of a slate of this size.
    """
    if not (size >= 1 and np.isfinite(pmf).all() and pmf.size and pmf.min() >= 0.0):
        raise InvalidInputError("pmf", f"expected probabilities of a slate of {size}")
    marginals = size * pmf
    if abs(pmf.sum() - 1.0) > _SUM_TOLERANCE or marginals.max() > 1.0 + _SUM_TOLERANCE:
        raise InvalidInputError(
            "pmf", f"expected it to sum to 1, and no entry above 1/{size}, in a slate of {size}"
        )
    units = _units(marginals, size)
    numbers = _numbers(key, pmf.size + 1 + size)
    order = np.argsort(numbers[: pmf.size], kind="stable")
    first = int(numbers[pmf.size] >> np.uint64(64 - _BITS))
    points = first + _UNIT * np.arange(size)
    members = order[np.searchsorted(np.cumsum(units[order]), points, side="right")]
    dealt = np.argsort(numbers[pmf.size + 1 :], kind="stable")
    places: list[int] = members[dealt].tolist()
    return places


def logged_inclusion(decisions: list[Decision]) -> list[float]:
    """Probability of every action of having been in a slate, out of the slate's own decisions."""
    first = decisions[0]
    if first.slate_size is not None:
        return [min(first.slate_size * each, 1.0) for each in first.pmf]
    taken = {decision.chosen for decision in decisions}
    return [float(index in taken) for index in range(len(first.actions))]


def key_of_place(key: str, place: int) -> str:
    """The key under which a place of a slate is logged, or the slate's own, given the former.

    A slate is drawn as a whole, from one key. Every place logs that key with the number of the
    place in its last bits (exclusive or), so that keys are as many as decisions, and each alone is
    enough to replay the slate.
    """
    return f"{int(key, 16) ^ place:016x}"


def replay_place(pmf: FloatArray, size: int, slot: str, key: str) -> int:
    """Which action a logged slate's decision must have chosen.

    Parameters
    ----------
    pmf, size, slot, key
        As logged: `pmf` of shape (K,), the slate's size, the place as text, and the place's key.

    Raises
    ------
    ValueError
        If these are not a slate's.
    """
    place = int(slot)
    if not 0 <= place < size:
        raise InvalidInputError("slot", f"expected one of {size} places, got {slot!r}")
    return draw_slate(pmf, size, key_of_place(key, place))[place]


def _units(marginals: FloatArray, size: int) -> IntArray:
    """Marginals in units of 2⁻⁴⁸, with a sum of exactly `size`, and none that is possible at 0."""
    units = np.rint(marginals * _UNIT).astype(np.int64)
    units = np.clip(units, marginals > 0.0, _UNIT)
    surplus = int(units.sum()) - size * _UNIT
    # What rounding leaves goes to the largest that are not certain. If they have no room, what the
    # least likely were rounded up by is taken from the certain ones.
    order = np.lexsort((-units, units == _UNIT))
    for index in order.tolist() if surplus else ():
        unit = int(units[index])
        if unit > 0:
            share = min(max(surplus, unit - _UNIT), unit - 1)
            units[index] -= share
            surplus -= share
        if surplus == 0:
            break
    if surplus:
        raise InvalidInputError("pmf", f"expected probabilities of a slate of {size}")
    return units


def _numbers(key: str, count: int) -> NDArray[np.uint64]:
    """As many random numbers of 64 bits as are needed."""
    digest = hashlib.shake_128(_PERSON + int(key, 16).to_bytes(8, "big")).digest(8 * count)
    return np.frombuffer(digest, dtype=">u8").astype(np.uint64)
