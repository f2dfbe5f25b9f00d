"""Multi-slot decisions: every slot gets another action, with a propensity given those before."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.decision import (
    Circumstances,
    DecisionRequest,
    baseline_index,
    decide,
    eligibility,
)
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action, Decision, LearningMode, MixComponent
from croupier.policy.generation import Generation, cold_start
from croupier.policy.sampling import draw, draw_key
from croupier.policy.slots import Slot, SlotsRequest, check_slots_request, fill_slots
from croupier.policy.traffic import Plan
from tests.policy.drawing import COUNTS, FALSE_ALARM, by_slot, p_value
from tests.policy.strategies import EXPLORATIONS, FEATURES, action_lists
from tests.policy.test_decision import ORACLE, PLAN, actions
from tests.policy.test_generation import PROVENANCE
from tests.service.generations import generation

if TYPE_CHECKING:
    from croupier.policy.exploration import Exploration


def slots(*excluded: str, **fields: Any) -> list[Slot]:
    """Slots "0", "1" and so on, each with the letters that it excludes."""
    return [
        Slot(id=str(place), excluded=list(each), **fields) for place, each in enumerate(excluded)
    ]


def filled(
    request: SlotsRequest, plan: Plan = PLAN, decision_id: str = "d", mode: LearningMode = "online"
) -> list[Decision]:
    check_slots_request(request)
    circumstances = Circumstances(decision_id, 5, mode)
    return fill_slots(request, partial(decide, plan=plan, circumstances=circumstances))


def chosen(decisions: list[Decision]) -> str:
    return "".join(event.actions[event.chosen].id for event in decisions)


def first_unfillable(offered: list[str], excluded: list[set[str]]) -> int | None:
    """By trying all ways: the first slot that can't be filled together with those before."""
    for count in range(1, len(excluded) + 1):
        ways = itertools.permutations(offered, count)
        if not any(all(map(lambda a, x: a not in x, way, excluded[:count])) for way in ways):
            return count - 1
    return None


@st.composite
def tight_requests(draw: st.DrawFn) -> SlotsRequest:
    """Hardly more actions than slots, and many exclusions: some can't be filled."""
    offered = "abcde"[: draw(st.integers(1, 5))]
    exclusions = st.lists(st.sampled_from(offered), max_size=len(offered)).map("".join)
    return SlotsRequest(
        actions=actions(offered), slots=slots(*draw(st.lists(exclusions, min_size=1, max_size=5)))
    )


@st.composite
def slots_requests(draw: st.DrawFn) -> SlotsRequest:
    """As an application would ask."""
    offered = draw(action_lists(max_size=6))
    ids = st.sampled_from([action.id for action in offered])
    request = SlotsRequest(
        actions=offered,
        slots=[
            Slot(
                id=name,
                features=draw(FEATURES.filter(lambda each: len(str(each)) < 40)),
                excluded=draw(st.lists(ids, max_size=1)) if len(offered) > 3 else [],
                baseline=draw(st.none() | ids),
            )
            for name in draw(
                st.lists(
                    st.text(min_size=1, max_size=5),
                    min_size=1,
                    max_size=min(3, len(offered)),
                    unique=True,
                )
            )
        ],
        context={name: each for name, each in draw(FEATURES).items() if name != "slot"},
        deferred=draw(st.booleans()),
        audit=draw(FEATURES),
    )
    check_slots_request(request)
    return request


class TestCheckSlotsRequest:
    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"slots": []}, "^slots: expected 1 to 100 slots, got 0"),
            ({"slots": slots(*[""] * 101)}, "^slots: expected 1 to 100 slots, got 101"),
            ({"slots": [Slot(id="")]}, r"^slots\[0\]\.id: expected 1 to 256 characters, got 0"),
            ({"slots": [Slot(id="x" * 257)]}, r"^slots\[0\]\.id: .*got 257"),
            ({"slots": [Slot(id="\ud800")]}, r"^slots\[0\]\.id: expected valid Unicode"),
            ({"slots": [Slot(id="x"), Slot(id="x")]}, r"^slots\[1\]\.id: .*got 'x' twice"),
            (
                {"slots": [Slot(id="x", excluded=["a", "z"])]},
                r"^slots\[0\]\.excluded\[1\]: expected the id of an action, got 'z'",
            ),
            (
                {"slots": [Slot(id="x"), Slot(id="y", baseline="z")]},
                r"^slots\[1\]\.baseline: expected the id of an action, got 'z'",
            ),
            ({"slots": slots("", "", "", "")}, r"^slots\[3\]: expected an action .* for slot '3'"),
            ({"slots": slots("abc")}, r"^slots\[0\]: expected an action .* for slot '0'"),
            ({"slots": slots("ab", "", "ab")}, r"^slots\[2\]: expected an action .* for slot '2'"),
            ({"context": {"slot": 1}}, "^context.slot: expected another name"),
            ({"actions": actions("aba")}, r"^actions\[2\]\.id: expected unique ids"),
            ({"actions": []}, "^actions: expected 1 to 10000 actions, got 0"),
            ({"decision_id": ""}, "^decision_id: expected 1 to 256 characters"),
            (
                {"actions": [Action(str(i)) for i in range(101)], "slots": slots(*[""] * 100)},
                "^slots: expected at most 10,000 actions over all slots, got 100 times 101",
            ),
        ],
        ids=lambda each: ascii(each)[:60],
    )
    def test_names_the_field(self, table: dict[str, Any], message: str) -> None:
        request = SlotsRequest(**{"actions": actions("abc"), "slots": slots("", ""), **table})
        with pytest.raises(InvalidInputError, match=message) as caught:
            check_slots_request(request)
        str(caught.value).encode()

    def test_accepts_the_most(self) -> None:
        offered = [Action(str(i)) for i in range(100)]
        check_slots_request(SlotsRequest(actions=offered, slots=slots(*[""] * 100)))

    @given(tight_requests())
    @settings(deadline=None, max_examples=150)
    def test_finds_the_first_slot_that_stays_empty(self, request: SlotsRequest) -> None:
        offered = [action.id for action in request.actions]
        expected = first_unfillable(offered, [set(slot.excluded) for slot in request.slots])
        if expected is None:
            check_slots_request(request)
        else:
            with pytest.raises(InvalidInputError) as caught:
                check_slots_request(request)
            assert caught.value.field == f"slots[{expected}]"


class TestFillSlots:
    @given(slots_requests(), EXPLORATIONS, st.text(min_size=1, max_size=9))
    @settings(deadline=None, max_examples=60)
    def test_logs_exactly_what_was_done(
        self, request: SlotsRequest, exploration: Exploration, decision_id: str
    ) -> None:
        """And each event holds all that another policy needs to answer for its slot."""
        policy = Generation("news", 3, exploration, ORACLE, PROVENANCE)
        decisions = filled(request, Plan(policy), decision_id)
        assert [event.slot for event in decisions] == [slot.id for slot in request.slots]
        taken: list[str] = []
        for event, slot in zip(decisions, request.slots, strict=True):
            assert set(event.excluded) >= {*slot.excluded, *taken}
            assert event.context.pop("slot") == {"id": slot.id, "features": slot.features}
            assert event.context == request.context
            event.context["slot"] = {"id": slot.id, "features": slot.features}
            assert abs(math.fsum(event.pmf) - 1.0) <= 1e-9
            assert event.propensity == event.pmf[event.chosen] > 0.0
            assert event.draw_key == draw_key("news", 3, decision_id, slot.id)
            assert event.chosen == draw(np.array(event.pmf), event.draw_key)
            again = DecisionRequest(
                actions=event.actions, excluded=event.excluded, baseline=slot.baseline
            )
            eligible, baseline = eligibility(again), baseline_index(again)
            assert event.baseline == baseline
            pmf, _ = policy.pmf(event.context, event.actions, eligible, baseline)
            assert event.pmf == pmf.tolist()
            assert (event.slate_size, event.deferred, event.audit) == (
                None,
                request.deferred,
                request.audit,
            )
            taken.append(event.actions[event.chosen].id)
        assert len(set(taken)) == len(taken)

    @given(slots_requests(), st.text(min_size=1, max_size=9))
    @settings(deadline=None, max_examples=30)
    def test_replays(self, request: SlotsRequest, decision_id: str) -> None:
        first = filled(request, PLAN, decision_id)
        resent = msgspec.json.decode(msgspec.json.encode(request), type=SlotsRequest)
        assert filled(resent, PLAN, decision_id) == first

    @given(tight_requests(), st.integers(0, 5))
    @settings(deadline=None, max_examples=150)
    def test_keeps_what_later_slots_need_and_nothing_else(
        self, request: SlotsRequest, number: int
    ) -> None:
        offered = [action.id for action in request.actions]
        excluded = [set(slot.excluded) for slot in request.slots]
        if first_unfillable(offered, excluded) is not None:
            return
        decisions = filled(request, Plan(cold_start("news")), str(number))
        taken: set[str] = set()
        for place, event in enumerate(decisions):
            for index, action in enumerate(offered):
                left = [each for each in offered if each not in taken | {action}]
                barred = action in excluded[place] | taken
                possible = not barred and first_unfillable(left, excluded[place + 1 :]) is None
                assert (event.pmf[index] > 0.0) == possible
                assert (action in event.excluded) == (not possible)
            taken.add(offered[event.chosen])

    def test_an_action_is_left_for_the_slot_that_has_no_other(self) -> None:
        request = SlotsRequest(actions=actions("abc"), slots=slots("", "", "bc"))
        seen = {
            chosen(filled(request, Plan(cold_start("news")), str(number))) for number in range(40)
        }
        assert seen == {"bca", "cba"}

    def test_slots_see_their_features(self) -> None:
        """The same actions get other scores in another slot."""
        request = SlotsRequest(
            actions=actions("abc"),
            slots=[Slot(id="top", features={"x": 3.0}), Slot(id="side", features={"x": -3.0})],
            context={"hour": 9},
        )
        top, side = filled(request, Plan(generation("news", 3)))
        assert top.scores != side.scores
        assert top.context == {"hour": 9, "slot": {"id": "top", "features": {"x": 3.0}}}
        assert request.context == {"hour": 9}

    @pytest.mark.parametrize("mode", ["apprentice", "logging_only"])
    def test_each_slot_plays_its_baseline(self, mode: LearningMode) -> None:
        """Its own if it is still free, else the first action that is."""
        request = SlotsRequest(
            actions=actions("abcdef"),
            slots=[
                Slot(id="own", baseline="d"),
                Slot(id="taken", baseline="d"),
                Slot(id="none"),
                Slot(id="excluded", baseline="f", excluded=["f", "c"]),
            ],
        )
        decisions = filled(request, mode=mode)
        assert chosen(decisions) == "dabe"
        for event in decisions:
            assert event.propensity == event.pmf[event.chosen] == 1.0
            assert event.mix == [MixComponent("baseline", 1.0)]
            assert event.baseline == event.chosen
            assert (event.shadow is None) == (mode == "logging_only")
        assert chosen(filled(request, Plan(PLAN.champion, killed="why"))) == "dabe"
        online = filled(request)
        assert online[0].actions[online[0].baseline].id == "d"

    def test_the_order_of_actions_makes_no_difference_to_probabilities(self) -> None:
        request = SlotsRequest(actions=actions("abcd"), slots=slots("b"), context={"x": 1.0})
        turned = msgspec.structs.replace(request, actions=actions("dcba"))
        assert filled(turned)[0].pmf == pytest.approx(filled(request)[0].pmf[::-1], abs=1e-12)

    @pytest.mark.parametrize("count", COUNTS)
    def test_slots_are_drawn_with_their_propensities(self, count: int) -> None:
        """Of a cold start, in which a slot keeps actions from another; 3 tests."""
        request = SlotsRequest(actions=actions("abcdef"), slots=slots("f", "", "abef"))
        plan = Plan(cold_start("news"))
        drawn = [filled(request, plan, f"d{number}") for number in range(count)]
        for slot, decisions in by_slot(drawn).items():
            assert p_value(decisions) > FALSE_ALARM, slot
