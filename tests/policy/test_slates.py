"""Slates: sets with exact marginal probabilities, dealt to their places at random."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from croupier.policy.decision import Circumstances, baseline_index, eligibility
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import (
    Action,
    Decision,
    LearningMode,
    MixComponent,
    decode_event,
    encode_event,
)
from croupier.policy.exploration import EpsilonGreedy, Exploration, Softmax
from croupier.policy.generation import Generation, cold_start
from croupier.policy.sampling import draw_key
from croupier.policy.slates import (
    SlateRequest,
    check_slate_request,
    decide_slate,
    draw_slate,
    inclusion,
    key_of_place,
    logged_inclusion,
    replay_place,
)
from croupier.policy.traffic import Plan
from tests.policy.drawing import COUNTS, FALSE_ALARM, by_slot, p_value
from tests.policy.strategies import EXPLORATIONS, masks, pmfs
from tests.policy.test_decision import ORACLE, PLAN, actions, requests
from tests.policy.test_generation import PROVENANCE
from tests.policy.test_ranking import SCORES, Scores, scored

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Below this the units of inclusion probabilities show.
GRID = 2.0**-46

TYPICAL = np.array([0.45, 0.2, 0.12, 0.1, 0.08, 0.05])


def slate_of(
    request: SlateRequest, plan: Plan = PLAN, decision_id: str = "d", mode: LearningMode = "online"
) -> list[Decision]:
    check_slate_request(request)
    return decide_slate(request, plan, Circumstances(decision_id, 5, mode))


def keys(count: int) -> list[str]:
    return [draw_key("news", 3, f"d{number}") for number in range(count)]


def fill_level(pmf: NDArray[np.float64], size: int) -> float:
    """By bisection: c at which min(1, c·p) sums to the size."""
    low, high = 1.0, 1e300
    for _ in range(200):
        middle = math.sqrt(low) * math.sqrt(high)
        full = math.fsum(np.minimum(1.0, middle * pmf)) >= size
        low, high = (low, middle) if full else (middle, high)
    return high


@st.composite
def slate_requests(draw: st.DrawFn) -> SlateRequest:
    request = draw(requests())
    eligible = len(request.actions) - len(set(request.excluded))
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    return SlateRequest(**fields, size=draw(st.integers(1, eligible)))


@st.composite
def sized_pmfs(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
    """A pmf, which actions are eligible, and a size that fits."""
    pmf = draw(pmfs())
    eligible = draw(masks(pmf.size)) | (pmf > 0.0)
    return pmf, eligible, draw(st.integers(1, int(eligible.sum())))


class TestCheckSlateRequest:
    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"size": 0}, "^size: expected 1 to 3, got 0"),
            ({"size": 4}, "^size: expected 1 to 3, got 4"),
            ({"size": 3, "excluded": ["a", "a"]}, "^size: expected 1 to 2, got 3"),
            ({"size": 101, "actions": [Action(str(i)) for i in range(200)]}, "^size: .*1 to 100"),
            (
                {"size": 100, "actions": [Action(str(i)) for i in range(1001)]},
                "^size: expected at most 100,000 actions over all places, got 100 times 1,001",
            ),
            ({"size": 1, "excluded": ["z"]}, r"^excluded\[0\]: expected the id of an action"),
        ],
        ids=lambda each: ascii(each)[:60],
    )
    def test_names_the_field(self, table: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            check_slate_request(SlateRequest(**{"actions": actions("abc"), **table}))


class TestInclusion:
    @given(sized_pmfs())
    @settings(max_examples=300)
    def test_fills_water_up_to_one(
        self, problem: tuple[NDArray[np.float64], NDArray[np.bool_], int]
    ) -> None:
        pmf, eligible, size = problem
        marginals = inclusion(pmf, size, eligible)
        assert math.fsum(marginals) == size
        assert marginals.max() <= 1.0
        assert (marginals[~eligible] == 0.0).all()
        assert (marginals[pmf > 0.0] > 0.0).all()
        count = np.count_nonzero(pmf)
        if count <= size:
            assert (marginals[pmf > 0.0] == 1.0).all()
            others = marginals[eligible & (pmf == 0.0)]
            assert np.ptp(others) <= GRID if others.size else count == size
            return
        c = fill_level(pmf, size)
        assert c >= size * (1.0 - 1e-9)
        assert marginals == pytest.approx(np.minimum(1.0, c * pmf), abs=1e-9)

    @given(sized_pmfs(), st.floats(0.0, 1.0))
    def test_carries_a_floor_over(
        self, problem: tuple[NDArray[np.float64], NDArray[np.bool_], int], share: float
    ) -> None:
        """π ≥ min(1, size · floor): what is tried in single decisions is tried in slates."""
        pmf, eligible, size = problem
        floor = share / np.count_nonzero(eligible)
        mixed = (1.0 - share) * pmf + floor * eligible
        smallest = inclusion(mixed, size, eligible)[eligible].min()
        assert smallest >= min(1.0, size * floor) - GRID * pmf.size

    @pytest.mark.parametrize(
        ("pmf", "size", "expected"),
        [
            ([0.5, 0.3, 0.2], 1, [0.5, 0.3, 0.2]),
            ([0.25, 0.25, 0.25, 0.25], 2, [0.5] * 4),
            ([0.4, 0.3, 0.2, 0.1], 2, [0.8, 0.6, 0.4, 0.2]),
            ([0.6, 0.2, 0.1, 0.1], 2, [1.0, 0.5, 0.25, 0.25]),
            ([0.6, 0.3, 0.05, 0.05], 3, [1.0, 1.0, 0.5, 0.5]),
            ([0.0, 1.0, 0.0, 0.0], 2, [1 / 3, 1.0, 1 / 3, 1 / 3]),
            ([0.5, 0.0, 0.5, 0.0], 2, [1.0, 0.0, 1.0, 0.0]),
            ([0.2] * 5, 5, [1.0] * 5),
            ([1.0 - 1e-300, 1e-300, 1e-300], 2, [1.0, 0.5, 0.5]),
        ],
    )
    def test_by_hand(self, pmf: list[float], size: int, expected: list[float]) -> None:
        assert inclusion(np.array(pmf), size) == pytest.approx(expected, abs=1e-13)

    def test_keeps_to_the_eligible(self) -> None:
        eligible = np.array([True, True, False, True])
        pmf = np.array([0.0, 1.0, 0.0, 0.0])
        assert inclusion(pmf, 2, eligible).tolist() == [0.5, 1.0, 0.0, 0.5]
        with pytest.raises(InvalidInputError, match=r"^size: expected at most 3, .*got 4"):
            inclusion(pmf, 4, eligible)

    @given(pmfs().filter(lambda pmf: pmf.size > 1), st.randoms(use_true_random=False))
    def test_permuted_actions_have_permuted_probabilities(
        self, pmf: NDArray[np.float64], random: Any
    ) -> None:
        order = list(range(pmf.size))
        random.shuffle(order)
        size = 1 + random.randrange(pmf.size)
        moved = inclusion(pmf[order], size)
        assert moved == pytest.approx(inclusion(pmf, size)[order], abs=GRID * pmf.size)


class TestDrawSlate:
    @given(sized_pmfs(), st.integers(0, 2**64 - 1).map(lambda key: f"{key:016x}"))
    @settings(max_examples=300)
    def test_takes_as_many_as_asked_none_twice(
        self, problem: tuple[NDArray[np.float64], NDArray[np.bool_], int], key: str
    ) -> None:
        pmf, eligible, size = problem
        places = inclusion(pmf, size, eligible) / size
        slate = draw_slate(places, size, key)
        assert len(set(slate)) == len(slate) == size
        assert (places[slate] > 0.0).all()
        assert set(np.flatnonzero(size * places >= 1.0)) <= set(slate)
        assert draw_slate(places, size, key) == slate
        for place, index in enumerate(slate):
            assert replay_place(places, size, str(place), key_of_place(key, place)) == index

    @pytest.mark.parametrize("count", COUNTS)
    @pytest.mark.parametrize("size", [2, 3, 5])
    def test_marginals_are_those_asked_for(self, size: int, count: int) -> None:
        """Of being in the set, and of every place: size + 1 tests, z-tests at 5 for 6 actions.

        A place is a multinomial draw. False alarm: 1e-4 a place, 4e-6 for the set.
        """
        marginals = inclusion(TYPICAL, size)
        slates = np.array([draw_slate(marginals / size, size, key) for key in keys(count)])
        often = np.bincount(slates.ravel(), minlength=6)
        open_ = marginals < 1.0
        spread = np.sqrt(count * marginals * (1.0 - marginals))[open_]
        assert (np.abs(often - count * marginals)[open_] <= 5.0 * spread).all()
        assert (often[~open_] == count).all()
        for place in range(size):
            seen = np.bincount(slates[:, place], minlength=6)
            p = stats.chisquare(seen, count * marginals / size).pvalue
            assert p > FALSE_ALARM, place

    @pytest.mark.parametrize("size", [2, 3, 4])
    def test_every_two_actions_meet(self, size: int) -> None:
        """In both orders and in any two places; in a list's own order neighbours never would."""
        marginals = inclusion(TYPICAL, size)
        met: set[tuple[int, int]] = set()
        for key in keys(20_000):
            met.update(itertools.combinations(draw_slate(marginals / size, size, key), 2))
        assert met == set(itertools.permutations(range(6), 2))

    def test_the_places_of_a_set_are_dealt_evenly(self) -> None:
        """All 6 orders of three certain actions. False alarm: 1e-4."""
        places = np.full(3, 1 / 3)
        orders = [tuple(draw_slate(places, 3, key)) for key in keys(6_000)]
        seen = [orders.count(each) for each in itertools.permutations(range(3))]
        assert stats.chisquare(seen).pvalue > FALSE_ALARM

    def test_draws_the_same_for_ever(self) -> None:
        """Logs of any age have to replay."""
        places = inclusion(TYPICAL, 3) / 3
        drawn = [draw_slate(places, 3, f"{key:016x}") for key in (0, 1, 2**63 + 5, 2**64 - 1)]
        assert drawn == [[4, 0, 1], [4, 1, 0], [1, 2, 0], [5, 3, 0]]

    @pytest.mark.parametrize(
        ("pmf", "size"),
        [
            ([0.6, 0.2, 0.2], 2),
            ([0.5, 0.5, 0.1], 2),
            ([0.5, 0.6, -0.1], 1),
            ([float("nan"), 0.5, 0.5], 1),
            ([0.0, 0.0, 0.0], 1),
            ([0.5, 0.5], 3),
            ([], 1),
            ([1.0], 0),
        ],
        ids=str,
    )
    def test_refuses_what_is_no_slate(self, pmf: list[float], size: int) -> None:
        with pytest.raises(InvalidInputError, match=r"^pmf: expected"):
            draw_slate(np.array(pmf), size, "0" * 16)


class TestReplayPlace:
    def test_refuses_what_is_no_place(self) -> None:
        places = np.full(4, 0.25)
        for slot, key in (("2", "0" * 16), ("-1", "0" * 16), ("x", "0" * 16), ("0", "not a key")):
            with pytest.raises(ValueError, match=r"slot|invalid literal"):
                replay_place(places, 2, slot, key)

    def test_every_place_has_a_key_of_its_own(self) -> None:
        logged = [key_of_place("a" * 16, place) for place in range(100)]
        assert len(set(logged)) == 100
        assert {key_of_place(each, place) for place, each in enumerate(logged)} == {"a" * 16}


class TestDecideSlate:
    @given(slate_requests(), EXPLORATIONS, st.text(min_size=1, max_size=9))
    @settings(deadline=None, max_examples=60)
    def test_logs_exactly_what_was_done(
        self, request: SlateRequest, exploration: Exploration, decision_id: str
    ) -> None:
        generation = Generation("news", 3, exploration, ORACLE, PROVENANCE)
        decisions = slate_of(request, Plan(generation), decision_id)
        size, eligible = request.size, eligibility(request)
        baseline = baseline_index(request)
        pmf, scores = generation.pmf(request.context, request.actions, eligible, baseline)
        places = inclusion(pmf, size, eligible) / size
        assert scores is not None
        assert [event.slot for event in decisions] == [str(place) for place in range(size)]
        assert len({event.chosen for event in decisions}) == size
        assert len({event.draw_key for event in decisions}) == size
        for event in decisions:
            assert abs(math.fsum(event.pmf) - 1.0) <= 1e-9
            assert event.pmf == places.tolist()
            assert event.propensity == event.pmf[event.chosen] > 0.0
            assert event.slate_size == size
            assert (event.excluded, event.baseline) == (request.excluded, baseline)
            assert event.scores == scores.tolist()
            assert event.mix == [MixComponent("generation:3", 1.0)]
            assert event.actions[event.chosen].id not in request.excluded
            logged = decode_event(encode_event(event))
            assert isinstance(logged, Decision)
            assert logged == event
            assert event.slot is not None
            replayed = replay_place(np.array(logged.pmf), size, event.slot, logged.draw_key)
            assert replayed == event.chosen
        assert logged_inclusion(decisions) == pytest.approx(size * places, abs=1e-15)

    @given(slate_requests(), st.text(min_size=1, max_size=9))
    @settings(deadline=None, max_examples=30)
    def test_replays(self, request: SlateRequest, decision_id: str) -> None:
        first = slate_of(request, PLAN, decision_id)
        resent = msgspec.json.decode(msgspec.json.encode(request), type=SlateRequest)
        assert slate_of(resent, PLAN, decision_id) == first

    def test_of_a_mixture_comes_from_the_mixture_s_pmf(self) -> None:
        plan = Plan(
            scored(EpsilonGreedy(epsilon=0.2)),
            canary=scored(Softmax(), Scores(SCORES[::-1]), number=4),
            canary_share=0.3,
            shadow=scored(Softmax(), number=5),
        )
        request = SlateRequest(actions=actions("abcde"), size=2)
        circumstances = Circumstances("d", 5, uniform=0.1)
        event = decide_slate(request, plan, circumstances)[0]
        answer = plan.answer({}, request.actions, None, 0, uniform=0.1)
        assert event.pmf == (inclusion(answer.pmf, 2) / 2).tolist()
        assert event.mix == answer.mix
        assert answer.shadow is not None
        assert event.shadow is not None
        assert event.shadow.generation == 5
        assert event.shadow.pmf == (inclusion(np.array(answer.shadow.pmf), 2) / 2).tolist()

    @pytest.mark.parametrize("mode", ["apprentice", "logging_only"])
    def test_of_the_baseline_is_certain(self, mode: LearningMode) -> None:
        """The baseline first, then the request's order; no place of a drawn slate."""
        request = SlateRequest(actions=actions("abcdef"), excluded=["b"], baseline="e", size=3)
        for plan, how in ((PLAN, mode), (Plan(PLAN.champion, killed="why"), "online")):
            decisions = slate_of(request, plan, mode=how)
            assert [event.actions[event.chosen].id for event in decisions] == ["e", "a", "c"]
            for place, event in enumerate(decisions):
                assert (event.slot, event.slate_size) == (str(place), None)
                assert event.propensity == event.pmf[event.chosen] == 1.0
                assert event.mix == [MixComponent("baseline", 1.0)]
                assert (event.shadow is not None) == (how == "apprentice")
            assert logged_inclusion(decisions) == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]

    @pytest.mark.parametrize("count", COUNTS)
    def test_places_are_drawn_with_their_propensities(self, count: int) -> None:
        """Place by place, over all slates; 3 tests."""
        plan = Plan(scored(Softmax(temperature=0.3)))
        request = SlateRequest(actions=actions("abcde"), size=3)
        drawn = [slate_of(request, plan, f"d{number}") for number in range(count)]
        for slot, decisions in by_slot(drawn).items():
            assert p_value(decisions) > FALSE_ALARM, slot

    def test_of_all_actions_is_all_actions(self) -> None:
        request = SlateRequest(actions=actions("abcd"), excluded=["b"], size=3)
        decisions = slate_of(request, Plan(cold_start("news")))
        assert {event.chosen for event in decisions} == {0, 2, 3}
        assert logged_inclusion(decisions) == pytest.approx([1.0, 0.0, 1.0, 1.0])
