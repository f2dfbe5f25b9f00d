"""The scorer without HTTP: whatever an oracle does, there is an answer with a true propensity."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import numpy as np
import pytest

from croupier.policy.decision import DecisionRequest
from croupier.policy.errors import InvalidInputError
from croupier.policy.estimates import Estimates
from croupier.policy.events import Action, decode_event, encode_event
from croupier.policy.exploration import Softmax
from croupier.policy.generation import Generation
from croupier.policy.loop import LoopConfig
from croupier.policy.ranking import RankRequest
from croupier.policy.slates import SlateRequest
from croupier.policy.slots import Slot, SlotsRequest
from croupier.policy.traffic import Plan
from croupier.service.scorer import Scorer, uuid7
from tests.service.generations import generation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.policy.estimates import Uncertainty
    from croupier.policy.events import Decision, Features

REQUEST = DecisionRequest(actions=[Action("a"), Action("b"), Action("c")], baseline="b")
NAMES = [Action("a"), Action("b"), Action("c"), Action("d")]
RANK = RankRequest(actions=NAMES, excluded=["c"], baseline="b", depth=2)
SLOTS = SlotsRequest(actions=NAMES, slots=[Slot(id="x", baseline="c"), Slot(id="y")])
SLATE = SlateRequest(actions=NAMES, excluded=["c"], baseline="b", size=2)


class Oracle:
    """Gives the scores it was told to, or the error."""

    def __init__(self, scores: Sequence[float] | Exception) -> None:
        self._scores = scores

    def score(self, context: Features, actions: Sequence[Action]) -> NDArray[np.float64]:
        if isinstance(self._scores, Exception):
            raise self._scores
        return np.array(self._scores, dtype=np.float64)

    def estimate(
        self, context: Features, actions: Sequence[Action], needs: Uncertainty = frozenset()
    ) -> Estimates:
        del needs
        return Estimates(self.score(context, actions))

    def save(self, directory: Path) -> None:
        raise NotImplementedError


def scorer_with(oracle: Oracle) -> tuple[Scorer, list[tuple[str, str]]]:
    fallbacks: list[tuple[str, str]] = []
    scorer = Scorer({"digits": LoopConfig()}, on_fallback=lambda *what: fallbacks.append(what))
    scorer.swap(Plan(Generation("digits", 7, Softmax(), oracle, None)))
    return scorer, fallbacks


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "scores",
    [
        [NAN, NAN, NAN],
        [0.1, NAN, 0.3],
        [INF, 0.0, 0.0],
        [-INF, 0.0, 0.0],
        [0.1, 0.2],
        [[0.1, 0.2, 0.3]],
        [],
        RuntimeError("no"),
        MemoryError(),
        RecursionError(),
        ZeroDivisionError(),
    ],
    ids=repr,
)
def test_an_oracle_that_fails_ends_in_the_baseline(scores: Sequence[float] | Exception) -> None:
    scorer, fallbacks = scorer_with(Oracle(scores))
    decision = scorer.decide("digits", REQUEST)
    assert (decision.chosen, decision.propensity, decision.pmf) == (1, 1.0, [0.0, 1.0, 0.0])
    assert [(part.source, part.weight) for part in decision.mix] == [("baseline", 1.0)]
    assert (decision.generation, decision.scores) == (7, None)
    assert fallbacks == [("digits", "scoring failed")]
    assert decode_event(encode_event(decision)) == decision


def test_a_failing_oracle_is_logged_once_and_not_at_request_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scorer, fallbacks = scorer_with(Oracle([NAN] * 3))
    for _ in range(50):
        scorer.decide("digits", REQUEST)
    assert len(fallbacks) == 50
    assert len(caplog.records) == 1
    assert "generation 7 can't score" in caplog.text


def test_without_a_generation_the_baseline_is_played() -> None:
    fallbacks: list[tuple[str, str]] = []
    scorer = Scorer({"digits": LoopConfig()}, on_fallback=lambda *what: fallbacks.append(what))
    decision = scorer.decide("digits", REQUEST)
    assert (decision.chosen, decision.propensity, decision.generation) == (1, 1.0, 0)
    assert fallbacks == [("digits", "no generation")]


@pytest.mark.parametrize("served", ["nothing", "cold start", "oracle", "failing oracle"])
def test_features_are_refused_whoever_serves(served: str) -> None:
    # Otherwise an application would find out at its first promotion, and its training never would.
    scorer, _ = scorer_with(Oracle(RuntimeError("no")))
    if served == "nothing":
        scorer = Scorer({"digits": LoopConfig()})
    elif served == "cold start":
        scorer.swap(Plan(Generation("digits", 0, Softmax(), None, None)))
    elif served == "oracle":
        scorer.swap(Plan(generation("digits", 1)))
    deep: object = 1
    for _ in range(9):
        deep = [deep, "x"]
    for features in ({"x": {"y": deep}}, {"x": 1e39}, {"x": object()}, {"x": "\ud800"}):
        request = DecisionRequest(actions=[Action("a"), Action("b", features)])
        with pytest.raises(InvalidInputError) as refused:
            scorer.decide("digits", request)
        assert refused.value.field.startswith("actions[1].features")
        with pytest.raises(InvalidInputError) as refused:
            scorer.decide("digits", DecisionRequest(actions=[Action("a")], context=features))
        assert refused.value.field.startswith("context")


def shapes(scorer: Scorer) -> dict[str, tuple[list[Decision], str]]:
    """What requests of all shapes get, and which actions these are."""
    ranking = scorer.rank("digits", RANK)
    decided = {
        "ranking": (ranking.decisions, "".join(NAMES[index].id for index in ranking.order)),
    }
    for shape, decisions in (
        ("slots", scorer.decide_slots("digits", SLOTS)),
        ("slate", scorer.decide_slate("digits", SLATE)),
    ):
        decided[shape] = (decisions, "".join(NAMES[each.chosen].id for each in decisions))
    return decided


@pytest.mark.parametrize("served", ["nothing", "failing oracle", "too few scores"])
def test_every_shape_falls_back_to_its_baseline(served: str) -> None:
    """The ranking and the slate: the baseline, then the request's order; a slot: its own."""
    failure = RuntimeError("no") if served == "failing oracle" else [0.5]
    scorer, fallbacks = scorer_with(Oracle(failure))
    reason, number = "scoring failed", 7
    if served == "nothing":
        scorer = Scorer({"digits": LoopConfig()}, on_fallback=lambda *what: fallbacks.append(what))
        reason, number = "no generation", 0
    expected = {"ranking": "bacd", "slots": "ca", "slate": "ba"}
    for shape, (decisions, actions) in shapes(scorer).items():
        assert actions == expected[shape]
        assert len({each.decision_id for each in decisions}) == 1
        for each in decisions:
            assert each.propensity == each.pmf[each.chosen] == 1.0
            assert [part.source for part in each.mix] == ["baseline"]
            assert (each.generation, each.slate_size) == (number, None)
            assert decode_event(encode_event(each)) == each
    assert fallbacks == [("digits", reason)] * 6


def test_every_shape_is_drawn_from_the_plan() -> None:
    scorer, fallbacks = scorer_with(Oracle([0.1, 0.2, 0.3, 0.4]))
    for decisions, _ in shapes(scorer).values():
        for each in decisions:
            assert 0.0 < each.propensity < 1.0
            assert [part.source for part in each.mix] == ["generation:7"]
    assert fallbacks == []


class Forgetful(Oracle):
    """Fails in the slot of a name."""

    def estimate(
        self, context: Features, actions: Sequence[Action], needs: Uncertainty = frozenset()
    ) -> Estimates:
        if context["slot"]["id"] == "y":
            raise RuntimeError("no")
        return super().estimate(context, actions, needs)


def test_a_slot_that_can_t_be_scored_gets_its_baseline_after_the_others() -> None:
    scorer, fallbacks = scorer_with(Forgetful([0.1, 0.2, 0.3, 0.4]))
    first, second = scorer.decide_slots("digits", SLOTS)
    assert 0.0 < first.propensity < 1.0
    assert second.propensity == 1.0
    assert second.excluded == [NAMES[first.chosen].id]
    assert NAMES[second.chosen].id == ("b" if first.chosen == 0 else "a")
    assert fallbacks == [("digits", "scoring failed")]


@pytest.mark.parametrize("served", ["nothing", "cold start", "oracle", "failing oracle"])
def test_features_of_every_shape_are_refused_whoever_serves(served: str) -> None:
    scorer, _ = scorer_with(Oracle(RuntimeError("no")))
    if served == "nothing":
        scorer = Scorer({"digits": LoopConfig()})
    elif served == "cold start":
        scorer.swap(Plan(Generation("digits", 0, Softmax(), None, None)))
    elif served == "oracle":
        scorer.swap(Plan(generation("digits", 1)))
    bad = [Action("a"), Action("b", {"x": 1e39})]
    refused: dict[str, list[Callable[[], object]]] = {
        "actions[1].features": [
            lambda: scorer.rank("digits", RankRequest(actions=bad, depth=2)),
            lambda: scorer.decide_slots("digits", SlotsRequest(actions=bad, slots=[Slot(id="x")])),
            lambda: scorer.decide_slate("digits", SlateRequest(actions=bad, size=2)),
        ],
        "context": [
            lambda: scorer.rank("digits", RankRequest(actions=NAMES, context={"x": 1e39})),
            lambda: scorer.decide_slots(
                "digits", SlotsRequest(actions=NAMES, slots=SLOTS.slots, context={"x": 1e39})
            ),
            lambda: scorer.decide_slate(
                "digits", SlateRequest(actions=NAMES, size=2, context={"x": 1e39})
            ),
        ],
        "slots[1]": [
            lambda: scorer.decide_slots(
                "digits",
                SlotsRequest(
                    actions=NAMES, slots=[Slot(id="x"), Slot(id="y", features={"z": 1e39})]
                ),
            )
        ],
        "slots[0].features.z": [
            lambda: scorer.decide_slots(
                "digits",
                SlotsRequest(actions=NAMES, slots=[Slot(id="x", features={"z": object()})]),
            )
        ],
    }
    for field, calls in refused.items():
        for call in calls:
            with pytest.raises(InvalidInputError) as caught:
                call()
            assert caught.value.field == field


def test_an_unknown_loop() -> None:
    scorer = Scorer({"digits": LoopConfig(), "other": LoopConfig()})
    with pytest.raises(InvalidInputError, match="loop: expected one of digits, other, got 'x'"):
        scorer.decide("x", REQUEST)
    with pytest.raises(InvalidInputError, match="expected one of digits, other"):
        scorer.swap(Plan(generation("x", 1)))


def test_ids_are_ordered_by_time() -> None:
    ids = [uuid7(ts) for ts in range(10**15, 10**15 + 10**6, 10**4)]
    assert ids == sorted(set(ids))
    assert {uuid.UUID(each).version for each in ids} == {7}
    assert {uuid.UUID(each).variant for each in ids} == {uuid.RFC_4122}
    assert len({uuid7(10**15) for _ in range(1000)}) == 1000
