"""Rankings: positions drawn one after the other, each with its own exact propensity."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from croupier.policy.decision import (
    MAX_PLACES,
    Circumstances,
    baseline_index,
    decide,
    decide_baseline,
    eligibility,
)
from croupier.policy.errors import InvalidInputError, ScoringError
from croupier.policy.estimates import Estimates
from croupier.policy.events import Action, Decision, LearningMode, MixComponent
from croupier.policy.exploration import EpsilonGreedy, Exploration, Softmax
from croupier.policy.generation import Generation, cold_start
from croupier.policy.ranking import RankRequest, check_rank_request, rank, scored_once
from croupier.policy.sampling import draw, draw_key
from croupier.policy.traffic import Plan
from tests.policy.drawing import COUNTS, FALSE_ALARM, by_slot, p_value
from tests.policy.strategies import EXPLORATIONS
from tests.policy.test_decision import ORACLE, PLAN, actions, requests
from tests.policy.test_generation import PROVENANCE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.policy.estimates import Uncertainty
    from croupier.policy.events import Features
    from croupier.policy.ranking import Ranking

SCORES = (0.2, 0.9, 0.5, 0.4, 0.7)


class Scores:
    """An oracle that counts how often it is asked; gives its scores, or its error."""

    def __init__(self, scores: Sequence[float] | Exception = SCORES) -> None:
        self.scores = scores
        self.asked = 0

    def score(self, context: Features, actions: Sequence[Action]) -> NDArray[np.float64]:
        return self.estimate(context, actions).mean

    def estimate(
        self, context: Features, actions: Sequence[Action], needs: Uncertainty = frozenset()
    ) -> Estimates:
        self.asked += 1
        if isinstance(self.scores, Exception):
            raise self.scores
        return Estimates(np.array(self.scores))

    def save(self, directory: Path) -> None:
        raise NotImplementedError


def scored(exploration: Exploration, oracle: Scores | None = None, number: int = 3) -> Generation:
    return Generation("news", number, exploration, oracle or Scores(), None)


def ranked(
    request: RankRequest, plan: Plan = PLAN, decision_id: str = "d", mode: LearningMode = "online"
) -> Ranking:
    check_rank_request(request)
    circumstances = Circumstances(decision_id, 5, mode)
    return rank(request, partial(decide, plan=scored_once(plan), circumstances=circumstances))


def names(request: RankRequest, ranking: Ranking) -> str:
    return "".join(request.actions[index].id for index in ranking.order)


@st.composite
def rank_requests(draw: st.DrawFn) -> RankRequest:
    request = draw(requests())
    eligible = len(request.actions) - len(set(request.excluded))
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    return RankRequest(**fields, depth=draw(st.integers(1, eligible)))


class TestCheckRankRequest:
    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"depth": 0}, "^depth: expected 1 to 3, got 0"),
            ({"depth": -1}, "^depth: expected 1 to 3, got -1"),
            ({"depth": 4}, "^depth: expected 1 to 3, got 4"),
            ({"depth": 3, "excluded": ["a"]}, "^depth: expected 1 to 2, got 3"),
            ({"depth": 101, "actions": [Action(str(i)) for i in range(200)]}, "^depth: .*1 to 100"),
            (
                {"depth": 100, "actions": [Action(str(i)) for i in range(1001)]},
                "^depth: expected at most 100,000 actions over all places, got 100 times 1,001",
            ),
            ({"baseline": "z"}, "^baseline: expected the id of an action"),
        ],
        ids=lambda each: ascii(each)[:60],
    )
    def test_names_the_field(self, table: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            check_rank_request(RankRequest(**{"actions": actions("abc"), **table}))

    def test_accepts_the_most(self) -> None:
        offered = [Action(str(i)) for i in range(1000)]
        check_rank_request(RankRequest(actions=offered, depth=MAX_PLACES))


class TestRank:
    @given(rank_requests(), EXPLORATIONS, st.text(min_size=1, max_size=9))
    @settings(deadline=None, max_examples=60)
    def test_logs_exactly_what_was_done(
        self, request: RankRequest, exploration: Exploration, decision_id: str
    ) -> None:
        """And each event holds all that another policy needs to answer for its position."""
        generation = Generation("news", 3, exploration, ORACLE, PROVENANCE)
        ranking = ranked(request, Plan(generation), decision_id)
        assert len(ranking.decisions) == request.depth
        gone = list(request.excluded)
        for position, event in enumerate(ranking.decisions):
            slot = None if request.depth == 1 else str(position)
            assert (event.slot, event.slate_size, event.excluded) == (slot, None, gone)
            assert abs(math.fsum(event.pmf) - 1.0) <= 1e-9
            assert event.propensity == event.pmf[event.chosen] > 0.0
            assert event.draw_key == draw_key("news", 3, decision_id, slot)
            assert event.chosen == draw(np.array(event.pmf), event.draw_key)
            left = msgspec.structs.replace(request, excluded=gone)
            eligible, baseline = eligibility(left), baseline_index(left)
            expected, scores = generation.pmf(event.context, event.actions, eligible, baseline)
            assert event.pmf == expected.tolist()
            assert event.baseline == baseline
            assert scores is not None
            assert event.scores == scores.tolist()
            for index, action in enumerate(event.actions):
                assert action.id not in gone or event.pmf[index] == 0.0
            gone.append(event.actions[event.chosen].id)

    @given(rank_requests(), EXPLORATIONS)
    @settings(deadline=None, max_examples=60)
    def test_orders_all_actions(self, request: RankRequest, exploration: Exploration) -> None:
        ranking = ranked(request, Plan(Generation("news", 3, exploration, ORACLE, PROVENANCE)))
        assert sorted(ranking.order) == list(range(len(request.actions)))
        ids = [action.id for action in request.actions]
        for place, index in enumerate(ranking.order):
            assert (ids[place] in request.excluded) == (ids[index] in request.excluded)
            assert ids[place] not in request.excluded or place == index
        free = [index for index in ranking.order if ids[index] not in request.excluded]
        drawn, rest = free[: request.depth], free[request.depth :]
        assert drawn == [event.chosen for event in ranking.decisions]
        scores = ranking.decisions[0].scores
        assert scores is not None
        assert rest == sorted(rest, key=lambda index: (-scores[index], index))

    @given(rank_requests(), st.text(min_size=1, max_size=9))
    @settings(deadline=None, max_examples=30)
    def test_replays(self, request: RankRequest, decision_id: str) -> None:
        first = ranked(request, PLAN, decision_id)
        resent = msgspec.json.decode(msgspec.json.encode(request), type=RankRequest)
        assert ranked(resent, PLAN, decision_id) == first

    def test_of_depth_one_is_a_single_decision(self) -> None:
        request = RankRequest(actions=actions("abcd"), excluded=["b"], baseline="c", deferred=True)
        for number in range(50):
            circumstances = Circumstances(f"d{number}", 5)
            single = decide(request, PLAN, circumstances)
            assert ranked(request, PLAN, f"d{number}").decisions == [single]

    def test_the_rest_follows_the_scores(self) -> None:
        """Ties in the request's order; excluded actions where the request has them."""
        plan = Plan(scored(Softmax(temperature=0.01), Scores([0.5, 9.0, 0.5, 0.9, 0.1, 0.5])))
        request = RankRequest(actions=actions("abcdef"), excluded=["b"])
        assert names(request, ranked(request, plan)) == "dbacfe"
        request = RankRequest(actions=actions("abcdef"), excluded=["a", "f"], depth=2)
        assert names(request, ranked(request, plan)) == "abdcef"

    def test_without_scores_the_rest_keeps_its_order(self) -> None:
        request = RankRequest(actions=actions("abcdef"), excluded=["c"], depth=2)
        for number in range(20):
            ranking = ranked(request, Plan(cold_start("news")), str(number))
            text = names(request, ranking)
            rest = text.replace("c", "")[2:]
            assert rest == "".join(sorted(rest))
            assert text[2] == "c"

    @given(st.permutations(range(5)), st.integers(0, 2))
    @settings(deadline=None, max_examples=30)
    def test_permuted_actions_have_permuted_probabilities(
        self, order: list[int], taken: int
    ) -> None:
        """Position by position, given the same actions before."""
        exploration = Softmax(temperature=0.3, floor=0.02)
        request = RankRequest(actions=actions("abcde"), excluded=list("abcde")[:taken])
        moved = msgspec.structs.replace(request, actions=[request.actions[each] for each in order])
        scores = Scores([SCORES[each] for each in order])
        plain = ranked(request, Plan(scored(exploration))).decisions[0]
        other = ranked(moved, Plan(scored(exploration, scores))).decisions[0]
        assert other.pmf == pytest.approx([plain.pmf[each] for each in order], abs=1e-12)

    @pytest.mark.parametrize("count", COUNTS)
    def test_of_softmax_is_a_plackett_luce_model(self, count: int) -> None:
        """All 60 orders of the first three of five: the closed form, and how often each came."""
        temperature = 0.4
        plan = Plan(scored(Softmax(temperature=temperature)))
        request = RankRequest(actions=actions("abcde"), depth=3)
        weights = np.exp(np.array(SCORES) / temperature)
        closed: dict[tuple[int, ...], float] = {
            order: math.prod(
                weights[each] / (weights.sum() - weights[list(order[:place])].sum())
                for place, each in enumerate(order)
            )
            for order in itertools.permutations(range(5), 3)
        }
        assert math.fsum(closed.values()) == pytest.approx(1.0, abs=1e-12)
        seen: Counter[tuple[int, ...]] = Counter()
        for number in range(count):
            decisions = ranked(request, plan, f"d{number}").decisions
            order = tuple(event.chosen for event in decisions)
            joint = math.prod(event.propensity for event in decisions)
            assert joint == pytest.approx(closed[order], rel=1e-9)
            seen[order] += 1
        expected = np.array(list(closed.values())) * count
        observed = np.array([seen[order] for order in closed])
        assert stats.chisquare(observed, expected).pvalue > FALSE_ALARM

    @pytest.mark.parametrize("count", COUNTS)
    def test_positions_are_drawn_with_their_propensities(self, count: int) -> None:
        """Under a mixture with a canary and uniform play; 3 tests."""
        plan = Plan(
            scored(EpsilonGreedy(epsilon=0.2)),
            canary=scored(Softmax(temperature=0.2), Scores(SCORES[::-1]), number=4),
            canary_share=0.3,
        )
        request = RankRequest(actions=actions("abcde"), excluded=["d"], depth=3)
        drawn: list[list[Decision]] = []
        for number in range(count):
            circumstances = Circumstances(f"d{number}", 5, uniform=0.1)
            choose = partial(decide, plan=scored_once(plan), circumstances=circumstances)
            drawn.append(rank(request, choose).decisions)
        for slot, decisions in by_slot(drawn).items():
            assert p_value(decisions) > FALSE_ALARM, slot

    @pytest.mark.parametrize("mode", ["apprentice", "logging_only"])
    def test_of_the_baseline_begins_with_it(self, mode: LearningMode) -> None:
        request = RankRequest(actions=actions("abcdef"), excluded=["b"], baseline="e", depth=3)
        ranking = ranked(request, PLAN, mode=mode)
        assert names(request, ranking) == "ebacdf"
        for event in ranking.decisions:
            assert event.propensity == event.pmf[event.chosen] == 1.0
            assert event.mix == [MixComponent("baseline", 1.0)]
            assert event.baseline == event.chosen
            assert (event.shadow is None) == (mode == "logging_only")

    def test_of_the_kill_switch_is_the_baseline(self) -> None:
        request = RankRequest(actions=actions("abc"), baseline="c", depth=3)
        assert names(request, ranked(request, Plan(PLAN.champion, killed="why"))) == "cab"
        circumstances = Circumstances("d", 0)
        choose = partial(decide_baseline, circumstances=circumstances, loop="news", generation=3)
        assert names(request, rank(request, choose)) == "cab"


class TestScoredOnce:
    def test_asks_every_oracle_once_a_request(self) -> None:
        oracles = [Scores(), Scores(), Scores()]
        champion, canary, shadow = (
            scored(Softmax(), oracle, number) for number, oracle in enumerate(oracles, start=3)
        )
        plan = Plan(champion, canary=canary, canary_share=0.5, shadow=shadow)
        request = RankRequest(actions=actions("abcde"), depth=5)
        ranking = ranked(request, plan)
        assert [oracle.asked for oracle in oracles] == [1, 1, 1]
        plain = rank(request, partial(decide, plan=plan, circumstances=Circumstances("d", 5)))
        assert plain == ranking
        assert [oracle.asked for oracle in oracles] == [6, 6, 6]

    def test_a_canary_that_fails_is_asked_once_too(self) -> None:
        failing = Scores(RuntimeError("no"))
        plan = Plan(scored(Softmax()), canary=scored(Softmax(), failing, 4), canary_share=0.5)
        ranking = ranked(RankRequest(actions=actions("abcde"), depth=3), plan)
        assert failing.asked == 1
        parts = [MixComponent("generation:3", 1.0)]
        assert [event.mix for event in ranking.decisions] == [parts] * 3

    def test_a_champion_that_fails_fails_every_time(self) -> None:
        plan = scored_once(Plan(scored(Softmax(), Scores([float("nan")] * 5))))
        for _ in range(2):
            with pytest.raises(ScoringError):
                decide(RankRequest(actions=actions("abcde")), plan, Circumstances("d", 5))
