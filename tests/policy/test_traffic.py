"""Traffic: mixtures are what they say, whoever is in them, at whatever time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.decision import Circumstances, DecisionRequest, decide, eligibility
from croupier.policy.errors import ScoringError
from croupier.policy.estimates import Estimates
from croupier.policy.events import Action, MixComponent
from croupier.policy.exploration import Greedy, Softmax
from croupier.policy.generation import Generation
from croupier.policy.traffic import (
    SHARE_TAG,
    Plan,
    Split,
    UniformSlice,
    canary_share,
    uniform_share,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.policy.estimates import Uncertainty
    from croupier.policy.events import Features


class Oracle:
    """Believes in some actions by their ids, or can't tell at all."""

    def __init__(self, beliefs: dict[str, float] | None) -> None:
        self._beliefs = beliefs

    def score(self, context: Features, actions: Sequence[Action]) -> NDArray[np.float64]:
        del context
        if self._beliefs is None:
            raise ScoringError("no idea")
        return np.array([self._beliefs.get(action.id, 0.0) for action in actions])

    def estimate(
        self, context: Features, actions: Sequence[Action], needs: Uncertainty = frozenset()
    ) -> Estimates:
        del needs
        return Estimates(self.score(context, actions))

    def save(self, directory: Path) -> None:
        raise NotImplementedError


def generation(number: int, **beliefs: float) -> Generation:
    return Generation("news", number, Softmax(temperature=0.5), Oracle(beliefs), None)


BROKEN = Generation("news", 9, Greedy(), Oracle(None), None)
CHAMPION, CANARY, SHADOW = generation(1, a=1.0), generation(2, b=2.0), generation(3, c=3.0)


@st.composite
def requests(draw: st.DrawFn) -> DecisionRequest:
    size = draw(st.integers(1, 6))
    ids = "abcdef"[:size]
    excluded = draw(st.lists(st.sampled_from(ids), unique=True, max_size=size - 1))
    return DecisionRequest(
        actions=[Action(each) for each in ids],
        excluded=excluded,
        baseline=draw(st.sampled_from([None, *ids])),
    )


def own(each: Generation, request: DecisionRequest) -> NDArray[np.float64]:
    return each.pmf({}, request.actions, eligibility(request))[0]


@given(requests(), st.floats(0.0, 1.0), st.floats(0.01, 0.99))
@settings(deadline=None)
def test_the_pmf_is_the_mixture_s(request: DecisionRequest, uniform: float, share: float) -> None:
    plan = Plan(CHAMPION, canary=CANARY, canary_share=share, shadow=SHADOW)
    decided = decide(request, plan, Circumstances("d", 0, uniform=uniform))
    eligible = eligibility(request)
    allowed = np.ones(len(request.actions)) if eligible is None else eligible.astype(float)
    first, second = own(CHAMPION, request), own(CANARY, request)
    expected = uniform * allowed / allowed.sum() + (1 - uniform) * (
        (1 - share) * first + share * second
    )
    np.testing.assert_allclose(decided.pmf, expected, atol=1e-12)
    assert abs(sum(decided.pmf) - 1.0) <= 1e-9
    assert decided.propensity == decided.pmf[decided.chosen]
    assert all(decided.pmf[i] == 0.0 for i in range(len(allowed)) if not allowed[i])
    weights = {part.source: part.weight for part in decided.mix}
    assert abs(sum(weights.values()) - 1.0) <= 1e-9
    assert all(0.0 < weight <= 1.0 for weight in weights.values())
    assert set(weights) <= {"generation:1", "generation:2", "uniform"}
    assert weights.get("uniform", 0.0) == uniform
    # Whoever shares the traffic: the decision is the champion's, and the shadow is never played.
    assert decided.generation == 1
    assert decided.shadow is not None
    assert decided.shadow.generation == 3
    assert decided.shadow.pmf == own(SHADOW, request).tolist()


def test_a_canary_or_a_shadow_that_fails_costs_the_champion_nothing() -> None:
    failed = []
    request = DecisionRequest(actions=[Action("a"), Action("b")])
    alone = decide(request, Plan(CHAMPION), Circumstances("d", 0))
    plan = Plan(CHAMPION, canary=BROKEN, canary_share=0.5, shadow=BROKEN)
    decided = decide(
        request, plan, Circumstances("d", 0), on_failure=lambda each, _: failed.append(each.number)
    )
    assert decided == alone
    assert failed == [9, 9]
    with pytest.raises(ScoringError, match="no idea"):
        decide(request, Plan(BROKEN, canary=CANARY, canary_share=0.5), Circumstances("d", 0))


@given(requests(), st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=50)
def test_a_killed_plan_plays_the_baseline(request: DecisionRequest, uniform: float) -> None:
    plan = Plan(BROKEN, canary=BROKEN, canary_share=0.5, shadow=BROKEN, killed="it misbehaves")
    decided = decide(request, plan, Circumstances("d", 0, uniform=uniform))
    assert decided.chosen == decided.baseline
    assert decided.propensity == 1.0
    assert decided.mix == [MixComponent("baseline", 1.0)]
    assert decided.shadow is None


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1e6)


# 2026-11-20 is a Friday.
NIGHT = UniformSlice(share=0.2, start="22:00", end="02:00", days=("fri",))
LATE = UniformSlice(share=0.3, start="23:00", end="23:30")


@pytest.mark.parametrize(
    ("time", "share"),
    [
        ("2026-11-20T21:59:59.999999", 0.0),
        ("2026-11-20T22:00:00", 0.2),
        ("2026-11-20T22:59:59.999999", 0.2),
        ("2026-11-20T23:00:00", 0.5),
        ("2026-11-20T23:29:59", 0.5),
        ("2026-11-20T23:30:00", 0.2),
        ("2026-11-21T00:00:00", 0.2),
        ("2026-11-21T01:59:59.999999", 0.2),
        ("2026-11-21T02:00:00", 0.0),
        ("2026-11-21T22:30:00", 0.0),
        ("2026-11-21T23:10:00", 0.3),
        ("2026-11-20T01:00:00", 0.0),
        ("1969-12-31T23:10:00", 0.3),
    ],
)
def test_slices_are_on_at_their_times_and_add_up(time: str, share: float) -> None:
    assert uniform_share((NIGHT, LATE), at(time)) == pytest.approx(share)


def test_slices_add_up_to_1_at_most() -> None:
    whole = UniformSlice(share=0.7)
    assert uniform_share((whole, whole), 0) == 1.0
    request = DecisionRequest(actions=[Action("a"), Action("b")], baseline="b")
    decided = decide(request, Plan(CHAMPION), Circumstances("d", 0, uniform=1.0))
    assert decided.mix == [MixComponent("uniform", 1.0)]
    assert decided.pmf == [0.5, 0.5]


@given(st.lists(st.sampled_from([NIGHT, LATE, UniformSlice(share=0.05)])), st.integers(0, 2**50))
def test_a_share_is_a_probability(slices: list[UniformSlice], ts: int) -> None:
    on = [each.share for each in slices if each.is_on(ts)]
    assert uniform_share(slices, ts) == pytest.approx(min(sum(on), 1.0))
    assert 0.0 <= uniform_share(slices, ts) <= 1.0


class TestSplit:
    def test_reads_what_was_written_before_there_were_canaries(self) -> None:
        assert msgspec.json.decode(b'{"generation": 7}', type=Split) == Split(generation=7)

    @pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
    def test_a_canary_s_share_is_more_than_nothing_and_less_than_everything(
        self, share: float
    ) -> None:
        with pytest.raises(ValueError, match="expected a share in"):
            Split(generation=1, canary=2, canary_share=share)

    @pytest.mark.parametrize("tags", [{}, *({SHARE_TAG: text} for text in ("", "x", "0", "1"))])
    def test_a_share_that_is_none_is_named(self, tags: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=SHARE_TAG):
            canary_share(tags)

    def test_a_share_comes_back_from_its_tag(self) -> None:
        assert canary_share({SHARE_TAG: repr(0.05)}) == 0.05
