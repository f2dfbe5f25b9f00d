"""Tilts: what they keep of a pmf whatever their weights are, and how a generation plays one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.control.archive import pack, unpack
from croupier.policy.decision import Circumstances, DecisionRequest, decide
from croupier.policy.errors import GenerationError
from croupier.policy.events import Action
from croupier.policy.exploration import SquareCB
from croupier.policy.generation import Generation
from croupier.policy.loop import LoopConfig
from croupier.policy.ranking import rank, scored_once
from croupier.policy.requests import RankRequest, SlateRequest
from croupier.policy.sampling import draw
from croupier.policy.slates import decide_slate, inclusion
from croupier.policy.tilt import LARGEST_LOG_WEIGHT, Tilt
from croupier.policy.traffic import Plan
from tests.policy.drawing import COUNTS, FALSE_ALARM, by_slot, p_value
from tests.policy.strategies import EXPLORATIONS, masks, score_arrays
from tests.policy.test_generation import make_generation

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from numpy.typing import NDArray

WEIGHTS = st.one_of(
    st.sampled_from([0.0, LARGEST_LOG_WEIGHT, -LARGEST_LOG_WEIGHT]),
    st.floats(-LARGEST_LOG_WEIGHT, LARGEST_LOG_WEIGHT),
)
ACTIONS = [Action(f"a{each}", {"x": each / 4.0}) for each in range(5)]
TILT = Tilt((("a0", 1.0), ("a1", -2.0), ("a3", 0.7), ("unseen", 5.0)))


@dataclass(frozen=True)
class Asked:
    """A pmf as an exploration with a floor makes it, and a tilt of its actions."""

    pmf: NDArray[np.float64]
    actions: list[Action]
    eligible: NDArray[np.bool_] | None
    floor: float
    tilt: Tilt


@st.composite
def asked(draw_: st.DrawFn) -> Asked:
    exploration, scores = draw_(EXPLORATIONS), draw_(score_arrays(max_size=12))
    eligible = draw_(st.none() | masks(scores.size))
    rows = draw_(st.sampled_from([0, 1, 10_000]))
    pmf = exploration.pmf(scores, eligible, training_rows=rows)
    actions = [Action(f"a{each}") for each in range(scores.size)]
    # Some actions are not named, and some that are named are not there.
    names = draw_(st.lists(st.integers(0, scores.size + 2), unique=True))
    tilt = Tilt(tuple((f"a{name}", draw_(WEIGHTS)) for name in names))
    return Asked(pmf, actions, eligible, exploration.floor, tilt)


class TestTiltedPmf:
    @settings(deadline=None)
    @given(asked())
    def test_is_a_pmf_above_the_floor_and_0_where_nothing_can_be_chosen(self, case: Asked) -> None:
        pmf, eligible = case.pmf, case.eligible
        tilted = case.tilt.applied(pmf, case.actions, eligible, floor=case.floor)
        possible = np.ones(pmf.size, bool) if eligible is None else eligible
        assert tilted.shape == pmf.shape
        assert abs(tilted.sum() - 1.0) <= 1e-9
        assert (tilted[~possible] == 0.0).all()
        assert tilted.min() >= 0.0
        assert tilted[possible].min() >= min(case.floor, 1.0 / possible.sum()) * (1.0 - 1e-12)

    @settings(deadline=None)
    @given(asked())
    def test_has_the_odds_that_the_weights_say(self, case: Asked) -> None:
        """Against plain Python, term by term; a floor comes after that."""
        pmf, eligible = case.pmf, case.eligible
        tilted = case.tilt.applied(pmf, case.actions, eligible)
        weights = dict(case.tilt.log_weights)
        odds = [
            p * math.exp(weights.get(each.id, 0.0))
            for p, each in zip(pmf.tolist(), case.actions, strict=True)
        ]
        expected = np.array(odds) / math.fsum(odds)
        np.testing.assert_allclose(tilted, expected, rtol=1e-9, atol=1e-300)

    @settings(deadline=None)
    @given(asked(), st.randoms(use_true_random=False))
    def test_does_not_hang_on_the_order_of_actions(self, case: Asked, random: Random) -> None:
        pmf, eligible = case.pmf, case.eligible
        order = list(range(pmf.size))
        random.shuffle(order)
        moved = case.tilt.applied(
            pmf[order],
            [case.actions[each] for each in order],
            None if eligible is None else eligible[order],
            floor=case.floor,
        )
        tilted = case.tilt.applied(pmf, case.actions, eligible, floor=case.floor)
        np.testing.assert_allclose(moved, tilted[order], rtol=1e-9, atol=1e-12)

    @settings(deadline=None)
    @given(asked(), WEIGHTS)
    def test_is_the_pmf_itself_where_all_weigh_the_same(self, case: Asked, weight: float) -> None:
        pmf, eligible = case.pmf, case.eligible
        nothing = Tilt(tuple((name, 0.0) for name, _ in case.tilt.log_weights))
        alike = Tilt(tuple((each.id, weight) for each in case.actions))
        for tilt in (Tilt(()), nothing, alike):
            assert tilt.applied(pmf, case.actions, eligible, floor=case.floor) is pmf

    def test_leaves_alone_what_else_can_be_chosen(self) -> None:
        """The ratio of two actions changes by the same factor in every set that has both."""
        factor = math.exp(1.0) / math.exp(-2.0)
        for others in ([], [2], [2, 3, 4]):
            chosen = [ACTIONS[each] for each in [0, 1, *others]]
            pmf = np.full(len(chosen), 1.0 / len(chosen))
            tilted = TILT.applied(pmf, chosen)
            assert tilted[0] / tilted[1] == pytest.approx(factor, rel=1e-12)

    @pytest.mark.parametrize(
        ("weights", "said"),
        [
            ([["a", 21.0]], r"log_weights must be in \[-20, 20\], got 21\.0 for 'a'"),
            ([["a", 0.5], ["a", 0.1]], "name every action once"),
            ([["a", "b"]], "Expected `float`"),
        ],
    )
    def test_weights_are_checked(self, weights: object, said: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=said):
            msgspec.convert({"log_weights": weights}, Tilt)

    def test_weights_are_numbers(self) -> None:
        with pytest.raises(ValueError, match="got nan"):
            Tilt((("a", float("nan")),))


def tilted_generation(floor: float = 0.0) -> Generation:
    made = make_generation()
    return replace(made, exploration=SquareCB(gamma_scale=20.0, floor=floor), tilt=TILT)


class TestGeneration:
    def test_plays_its_tilt_and_never_past_it(self) -> None:
        generation = tilted_generation(floor=0.02)
        plain, scores = generation.untilted_pmf({"x": 1}, ACTIONS)
        pmf, logged = generation.pmf({"x": 1}, ACTIONS)
        np.testing.assert_array_equal(np.asarray(scores), np.asarray(logged))
        np.testing.assert_array_equal(pmf, TILT.applied(plain, ACTIONS, floor=0.02))
        assert np.abs(pmf - plain).max() > 0.01
        assert generation.choose({"x": 1}, ACTIONS, 0.5) is None
        # Without it the kernel, where there is one, draws from the plain pmf.
        quick = replace(tilted_generation(), tilt=None).choose({"x": 1}, ACTIONS, 0.5)
        assert quick is None or quick[0] == pytest.approx(
            tilted_generation().untilted_pmf({"x": 1}, ACTIONS)[0].tolist()
        )

    @pytest.mark.parametrize("count", COUNTS)
    def test_draws_with_the_probabilities_that_it_logs(self, count: int) -> None:
        """Decisions, rankings and slates; each chi-square test is false once in 10,000."""
        plan, rng = Plan(tilted_generation()), np.random.default_rng(0)
        taken, ranked, slates = [], [], []
        for number in range(count):
            context = {"x": float(rng.integers(3))}
            moment = Circumstances(f"d{number}", number)
            given_: dict[str, Any] = {"actions": ACTIONS, "context": context}
            taken.append(decide(DecisionRequest(**given_), plan, moment))
            if number % 4:
                continue
            choose = partial(decide, plan=scored_once(plan), circumstances=moment)
            ranked.append(rank(RankRequest(**given_, depth=2), choose).decisions)
            slates.append(decide_slate(SlateRequest(**given_, size=2), plan, moment))
        for decision in taken:
            expected, _ = plan.champion.pmf(decision.context, ACTIONS)
            assert decision.pmf == expected.tolist()
            assert decision.propensity == decision.pmf[decision.chosen]
            assert draw(expected, decision.draw_key) == decision.chosen
        for first, *_ in slates:
            expected = inclusion(plan.champion.pmf(first.context, ACTIONS)[0], 2) / 2
            assert first.pmf == expected.tolist()
        assert p_value(taken) > FALSE_ALARM
        for decisions in (*by_slot(ranked).values(), *by_slot(slates).values()):
            assert p_value(decisions) > FALSE_ALARM

    def test_comes_back_from_its_files(self, tmp_path: Path) -> None:
        generation = tilted_generation(floor=0.02)
        generation.save(tmp_path / "3")
        loaded = Generation.load(tmp_path / "3")
        assert loaded.tilt == TILT
        archived = unpack(pack(generation), max_bytes=1 << 20, configured=LoopConfig())
        for other in (loaded, archived):
            one = other.pmf({"x": 1}, ACTIONS)[0]
            assert one.tobytes() == generation.pmf({"x": 1}, ACTIONS)[0].tobytes()

    def test_without_a_tilt_is_written_as_it_always_was(self, tmp_path: Path) -> None:
        """Scorers of an earlier version go on reading it; one with a tilt they refuse by format."""
        for name, made in (("plain", make_generation()), ("tilted", tilted_generation())):
            made.save(tmp_path / name)
        plain, tilted = (
            msgspec.json.decode((tmp_path / name / "manifest.json").read_bytes())
            for name in ("plain", "tilted")
        )
        assert plain["format_version"] == 1
        assert "tilt" not in plain
        assert tilted["format_version"] == 2
        manifest = tmp_path / "tilted" / "manifest.json"
        manifest.write_text(manifest.read_text().replace("-2.0", "2.0"))
        with pytest.raises(GenerationError, match="altered"):
            Generation.load(tmp_path / "tilted")
