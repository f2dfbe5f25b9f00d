"""Deciding: what is refused, what is logged, and that a decision can be replayed."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.decision import (
    MAX_ACTIONS,
    Circumstances,
    DecisionRequest,
    check_request,
    check_reward,
    decide,
    decide_baseline,
    eligibility,
)
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import (
    Action,
    Decision,
    LearningMode,
    MixComponent,
    decode_event,
    encode_event,
)
from croupier.policy.exploration import Exploration, SquareCB
from croupier.policy.generation import Generation, cold_start
from croupier.policy.oracle import SklearnConfig, SklearnOracle
from croupier.policy.sampling import draw, draw_key
from croupier.policy.traffic import Plan
from tests.policy.strategies import EXPLORATIONS, FEATURES, action_lists
from tests.policy.test_generation import PROVENANCE
from tests.policy.training import random_rows

ORACLE = SklearnOracle(SklearnConfig()).fit(random_rows(100))
GENERATION = Generation("news", 3, SquareCB(floor=0.02), ORACLE, PROVENANCE)
PLAN = Plan(GENERATION)
AT_ZERO = Circumstances("d", 0)


def actions(names: str) -> list[Action]:
    return [Action(name) for name in names]


@st.composite
def requests(draw: st.DrawFn) -> DecisionRequest:
    offered = draw(action_lists())
    ids = [action.id for action in offered]
    excluded = draw(st.lists(st.sampled_from(ids), max_size=len(ids) - 1))
    return DecisionRequest(
        actions=offered,
        context=draw(FEATURES),
        excluded=excluded,
        baseline=draw(st.none() | st.sampled_from(ids)),
        deferred=draw(st.booleans()),
        audit=draw(FEATURES),
    )


class TestCheckRequest:
    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"actions": []}, "^actions: expected 1 to 10000 actions, got 0"),
            ({"actions": [Action(str(i)) for i in range(MAX_ACTIONS + 1)]}, "^actions: .*10001"),
            ({"actions": [Action("a"), Action("")]}, r"^actions\[1\]\.id: .*1 to 256.*got 0"),
            ({"actions": [Action("a" * 257)]}, r"^actions\[0\]\.id: .*1 to 256.*got 257"),
            ({"actions": actions("aba")}, r"^actions\[2\]\.id: expected unique ids, got 'a' twice"),
            ({"actions": [Action("\ud800")]}, r"^actions\[0\]\.id: expected valid Unicode"),
            ({"decision_id": ""}, "^decision_id: expected 1 to 256 characters, got 0"),
            ({"decision_id": "x" * 257}, "^decision_id: .*got 257"),
            ({"decision_id": "\ud800"}, "^decision_id: expected valid Unicode"),
            ({"excluded": ["a", "z"]}, r"^excluded\[1\]: expected the id of an action, got 'z'"),
            ({"excluded": ["a", "b", "c"]}, "^excluded: .*at least one action to remain"),
            ({"excluded": ["a", "b", "c", "a"]}, "^excluded: .*at least one action to remain"),
            ({"baseline": "z"}, "^baseline: expected the id of an action, got 'z'"),
            ({"baseline": ""}, "^baseline: "),
        ],
        ids=lambda each: ascii(each)[:60],
    )
    def test_names_the_field(self, table: dict[str, Any], message: str) -> None:
        request = DecisionRequest(**{"actions": actions("abc"), **table})
        with pytest.raises(InvalidInputError, match=message) as caught:
            check_request(request)
        assert str(caught.value).startswith(caught.value.field)
        str(caught.value).encode()

    @pytest.mark.parametrize(
        "table",
        [
            {},
            {"actions": actions("a")},
            {"actions": [Action(str(i)) for i in range(MAX_ACTIONS)]},
            {"decision_id": "x" * 256},
            {"decision_id": "選択 🎲"},
            {"excluded": ["a", "a", "b"]},
            {"excluded": ["a"], "baseline": "a"},
        ],
        ids=lambda table: ascii(table)[:60],
    )
    def test_accepts(self, table: dict[str, Any]) -> None:
        check_request(DecisionRequest(**{"actions": actions("abc"), **table}))

    @given(requests())
    @settings(deadline=None, max_examples=50)
    def test_accepts_what_the_other_tests_make(self, request: DecisionRequest) -> None:
        check_request(request)

    def test_unknown_fields_are_refused(self) -> None:
        with pytest.raises(msgspec.ValidationError, match="exclude"):
            msgspec.convert({"actions": [{"id": "a"}], "exclude": []}, DecisionRequest)


class TestDecide:
    @given(requests(), EXPLORATIONS, st.text(min_size=1, max_size=20))
    @settings(deadline=None, max_examples=75)
    def test_logs_exactly_what_was_done(
        self, request: DecisionRequest, exploration: Exploration, decision_id: str
    ) -> None:
        generation = Generation("news", 3, exploration, ORACLE, PROVENANCE)
        decision = decide(request, Plan(generation), Circumstances(decision_id, 5))
        excluded = {
            index for index, each in enumerate(request.actions) if each.id in request.excluded
        }
        eligible = len(request.actions) - len(excluded)
        assert abs(math.fsum(decision.pmf) - 1.0) <= 1e-9
        assert decision.chosen not in excluded
        assert decision.propensity == decision.pmf[decision.chosen] > 0.0
        for index, probability in enumerate(decision.pmf):
            if index in excluded:
                assert probability == 0.0
            else:
                assert probability >= min(exploration.floor, 1.0 / eligible)
        assert decision.draw_key == draw_key("news", 3, decision_id)
        assert decision.chosen == draw(np.array(decision.pmf), decision.draw_key)
        assert decision.mix == [MixComponent("generation:3", 1.0)]
        assert decision.scores is not None
        assert len(decision.scores) == len(request.actions)
        assert decision.baseline not in excluded
        assert (decision.decision_id, decision.ts, decision.generation) == (decision_id, 5, 3)
        assert decision.context is request.context
        assert (decision.actions, decision.excluded) == (request.actions, request.excluded)
        assert (decision.deferred, decision.audit) == (request.deferred, request.audit)
        assert (decision.slot, decision.keep_prob) == (None, 1.0)

    @given(requests(), st.text(min_size=1, max_size=20))
    @settings(deadline=None, max_examples=50)
    def test_replays(self, request: DecisionRequest, decision_id: str) -> None:
        """The same decision from the same request, also after it went over the wire."""
        first = decide(request, PLAN, Circumstances(decision_id, 5))
        resent = msgspec.json.decode(msgspec.json.encode(request), type=DecisionRequest)
        assert decide(resent, PLAN, Circumstances(decision_id, 5)) == first
        logged = decode_event(encode_event(first))
        assert logged == first

    def test_does_not_depend_on_the_time(self) -> None:
        request = DecisionRequest(actions=actions("abcdefgh"))
        decisions = [decide(request, PLAN, Circumstances("d", ts)) for ts in range(20)]
        assert len({decision.chosen for decision in decisions}) == 1

    def test_depends_on_id_generation_and_loop(self) -> None:
        request = DecisionRequest(actions=actions("abcdefgh"))
        chosen = {decide(request, PLAN, Circumstances(str(i), 0)).chosen for i in range(200)}
        assert chosen == set(range(8))
        for generations in (
            [Generation("news", number, SquareCB(), None, None) for number in range(200)],
            [cold_start(f"loop-{number}") for number in range(200)],
        ):
            chosen = {decide(request, Plan(each), AT_ZERO).chosen for each in generations}
            assert chosen == set(range(8))

    @pytest.mark.parametrize("mode", ["online", "logging_only"])
    def test_of_a_slot_has_a_draw_of_its_own(self, mode: LearningMode) -> None:
        request = DecisionRequest(actions=actions("abcdefgh"))
        circumstances = Circumstances("d", 0, mode, secret=b"known to scorers alone")
        slots = [None, *map(str, range(100))]
        decisions = [decide(request, PLAN, circumstances, slot=slot) for slot in slots]
        for decision, slot in zip(decisions, slots, strict=True):
            assert decision.slot == slot
            expected = draw_key("news", 3, "d", slot, secret=circumstances.secret)
            assert decision.draw_key == expected
        chosen = {decision.chosen for decision in decisions}
        assert chosen == (set(range(8)) if mode == "online" else {0})

    def test_of_the_cold_start_has_no_scores(self) -> None:
        request = DecisionRequest(actions=actions("abcd"), excluded=["b"])
        decision = decide(request, Plan(cold_start("news")), AT_ZERO)
        assert decision.scores is None
        assert decision.pmf == [1 / 3, 0.0, 1 / 3, 1 / 3]
        assert decision.generation == 0

    def test_audit_attributes_never_reach_the_oracle(self) -> None:
        plain = DecisionRequest(actions=actions("abcd"), context={"age": 3})
        audited = msgspec.structs.replace(plain, audit={"gender": "x", "v": [1.0]})
        left, right = (decide(each, PLAN, AT_ZERO) for each in (plain, audited))
        assert left.scores == right.scores
        assert left.pmf == right.pmf
        assert right.audit == {"gender": "x", "v": [1.0]}

    def test_frequencies_are_the_propensities(self) -> None:
        """Inverse propensities add up to the number of decisions, action by action.

        20,000 fixed ids; the bound is 5 standard errors: a false-alarm rate of 2e-6.
        """
        exploration = SquareCB(floor=0.02)
        generation = Generation("news", 3, exploration, ORACLE, PROVENANCE)
        request = DecisionRequest(actions=[Action(f"a{k}", {"x": k / 2}) for k in range(4)])
        n = 20_000
        pmf = np.array(decide(request, Plan(generation), AT_ZERO).pmf)
        drawn = [draw(pmf, draw_key("news", 3, f"d{i}")) for i in range(n)]
        weighted = np.bincount(drawn, minlength=4) / pmf / n
        assert (np.abs(weighted - 1.0) <= 5 * np.sqrt((1.0 / pmf - 1.0) / n)).all()


class TestBaseline:
    @pytest.mark.parametrize(
        ("excluded", "baseline", "expected"),
        [
            ([], None, "a"),
            ([], "c", "c"),
            (["a"], None, "b"),
            (["a", "b"], None, "c"),
            (["c"], "c", "a"),
            (["c", "a"], "c", "b"),
            (["a"], "c", "c"),
            (["d"], "c", "c"),
        ],
        ids=str,
    )
    def test_is_the_named_action_or_the_first_that_is_eligible(
        self, excluded: list[str], baseline: str | None, expected: str
    ) -> None:
        request = DecisionRequest(actions=actions("abcd"), excluded=excluded, baseline=baseline)
        played = decide_baseline(request, AT_ZERO, loop="news", generation=3)
        assert played.actions[played.chosen].id == expected
        online = decide(request, PLAN, AT_ZERO)
        assert online.actions[online.baseline].id == expected

    @given(requests(), st.sampled_from(["apprentice", "logging_only"]))
    @settings(deadline=None, max_examples=50)
    def test_is_played_for_certain_unless_the_loop_is_online(
        self, request: DecisionRequest, mode: LearningMode
    ) -> None:
        decision = decide(request, PLAN, Circumstances("d", 7, mode))
        assert_baseline_for_certain(decision)
        assert decision.learning_mode == mode
        assert decision.actions[decision.chosen].id not in request.excluded
        assert (decision.loop, decision.generation, decision.ts) == ("news", 3, 7)
        assert (decision.deferred, decision.audit) == (request.deferred, request.audit)
        assert decode_event(encode_event(decision)) == decision

    @given(requests())
    @settings(deadline=None, max_examples=50)
    def test_can_be_replayed_as_any_draw_can(self, request: DecisionRequest) -> None:
        decision = decide_baseline(request, AT_ZERO, loop="news", generation=3)
        assert_baseline_for_certain(decision)
        assert draw(np.array(decision.pmf), decision.draw_key) == decision.chosen


class TestEligibility:
    def test_is_none_where_nothing_is_excluded(self) -> None:
        assert eligibility(DecisionRequest(actions=actions("abc"))) is None

    def test_marks_the_excluded(self) -> None:
        eligible = eligibility(DecisionRequest(actions=actions("abc"), excluded=["b", "b"]))
        assert eligible is not None
        assert eligible.tolist() == [True, False, True]


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.5, 1])
def test_rewards_in_range_are_accepted(reward: float) -> None:
    check_reward("reward", reward, 0.0, 1.0)


@pytest.mark.parametrize("reward", [-1e-9, 1.1, float("nan"), float("inf"), -float("inf")])
def test_other_rewards_are_refused_by_field_and_range(reward: float) -> None:
    with pytest.raises(InvalidInputError, match=r"^reward: expected a number in \[0, 1\], got"):
        check_reward("reward", reward, 0.0, 1.0)


def assert_baseline_for_certain(decision: Decision) -> None:
    assert decision.chosen == decision.baseline
    assert decision.propensity == 1.0
    assert decision.pmf[decision.chosen] == 1.0
    assert math.fsum(decision.pmf) == 1.0
    assert decision.mix == [MixComponent("baseline", 1.0)]
    assert decision.scores is None
