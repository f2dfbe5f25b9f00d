"""Recurrent policies: exact pmfs whatever may be chosen, files that can be trusted, and steps that
a log tells all about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.decision import Circumstances, DecisionRequest, decide
from croupier.policy.errors import GenerationError, InvalidInputError, ScoringError
from croupier.policy.events import Action, Decision, SessionStep, decode_event, encode_event
from croupier.policy.generation import Generation, cold_start
from croupier.policy.recurrent import Head, RecurrentPolicy, load_recurrent
from croupier.policy.stepping import Walk, as_logged, begun, decide_step, step_of
from croupier.policy.traffic import Plan
from tests.policy.recurrent import ACTIONS, random_policy, recurrent_generation

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.policy.sessions import SessionState

FLOOR = 0.05 / len(ACTIONS)


def context_of(step: int, user: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng((user, step))
    signal, mood, engagement = rng.normal(1.0, 2.0, 3).tolist()
    return {
        "user": user,
        "city": "leiden",
        "signal": signal,
        "mood": {"now": mood},
        "engagement": engagement,
    }


def request(step: int, actions: tuple[str, ...] = ACTIONS, user: int = 0) -> DecisionRequest:
    return DecisionRequest(
        actions=[Action(each) for each in actions], context=context_of(step, user)
    )


def session_of(
    plan: Plan, steps: int, user: int = 0, name: str = "d", *, uniform: float = 0.0
) -> list[Decision]:
    """The decisions of a user's session."""
    decisions, state = [], None
    for step in range(steps):
        at = Circumstances(f"{name}-{user}-{step}", step * 1_000_000, uniform=uniform)
        stepped = decide_step(request(step, user=user), plan, at, step_of(at.decision_id, state))
        state = stepped.state
        decisions.append(stepped.decision)
    return decisions


class TestPmf:
    @given(
        st.permutations([*ACTIONS, "new", "newer"]).flatmap(
            lambda ids: st.tuples(
                st.just(tuple(ids)), st.integers(1, len(ids)), st.sets(st.sampled_from(ids))
            )
        ),
        st.sampled_from(["ordered", "categorical"]),
    )
    @settings(deadline=None, max_examples=150)
    def test_is_renormalised_over_what_may_be_chosen(
        self, asked: tuple[tuple[str, ...], int, set[str]], head: Head
    ) -> None:
        ids, count, excluded = asked
        ids = ids[:count]
        eligible = np.array([each not in excluded for each in ids])
        if not eligible.any():
            return
        generation = Walk(recurrent_generation("feed", 1, random_policy(1, head=head)))
        actions = [Action(each) for each in ids]
        pmf, scores = generation.at(context_of(0)).pmf({}, actions, eligible)
        assert scores is None
        assert abs(pmf.sum() - 1.0) <= 1e-9
        assert (pmf[~eligible] == 0.0).all()
        assert pmf[eligible].min() >= min(FLOOR, 1.0 / eligible.sum()) - 1e-15
        step = generation.at(context_of(0)).step
        assert step is not None
        whole = dict(zip(ACTIONS, step.preferences.tolist(), strict=True))
        free = 1.0 - eligible.sum() * FLOOR
        known = [each for each, fine in zip(ids, eligible, strict=True) if fine and each in whole]
        best = max((whole[each] for each in known), default=0.0)
        odds = {each: np.exp(whole[each] - best) for each in known}
        for each, probability in zip(ids, pmf, strict=True):
            if each in excluded:
                continue
            if not known:
                assert probability == pytest.approx(1.0 / eligible.sum())
            elif each not in whole:
                assert probability == pytest.approx(FLOOR)
            else:
                share = odds[each] / sum(odds.values())
                assert probability == pytest.approx(FLOOR + free * share, abs=1e-9)

    def test_depends_on_what_came_before(self) -> None:
        def last(*taken: str, since: int = 0) -> bytes:
            walk = Walk(recurrent_generation("feed", 1))
            for step, each in enumerate(taken):
                walk.at(context_of(step + since))
                walk.take(each)
            return walk.at(context_of(9)).pmf({}, [*map(Action, ACTIONS)])[0].tobytes()

        assert last("fun", "bait") == last("fun", "bait")
        # By the action before, by earlier ones, by what was observed, and by how far it has come.
        ways = [last("fun", "bait"), last("fun", "ads"), last("ads", "bait"), last("fun")]
        assert len({*ways, last("fun", "bait", since=1), last()}) == 6
        # An action that the policy has never heard of tells it nothing.
        assert last("fun", "new") == last("fun", "newer")

    def test_is_had_at_a_step_alone(self) -> None:
        actions = [*map(Action, ACTIONS)]
        generation = recurrent_generation("feed", 3)
        with pytest.raises(ScoringError, match="generation 3 decides step by step"):
            generation.pmf(context_of(0), actions)
        first = Walk(generation).at(context_of(0)).pmf({}, actions)[0]
        plan = begun(Plan(generation), context_of(0))
        assert plan.champion.pmf({}, actions)[0].tobytes() == first.tobytes()

    @pytest.mark.parametrize("far", [1e308, -1e308])
    def test_is_one_however_far_away_something_is(self, far: float) -> None:
        walk = Walk(recurrent_generation("feed", 1))
        for _ in range(3):
            pmf = walk.at({"signal": far, "engagement": -far}).pmf({}, [*map(Action, ACTIONS)])[0]
            assert abs(pmf.sum() - 1.0) <= 1e-9
            walk.take("fun")

    @pytest.mark.parametrize("bad", ["high", [1.0], {"x": 1}, 10**400])
    def test_what_is_observed_must_be_numbers(self, bad: object) -> None:
        with pytest.raises(InvalidInputError, match=r"^context\.mood\.now: expected a number"):
            Walk(recurrent_generation("feed", 1)).at({"mood": {"now": bad}})


class TestSteps:
    @pytest.mark.parametrize("memory", [0, 8])
    def test_a_log_tells_their_pmfs_bit_for_bit(self, memory: int) -> None:
        generation = recurrent_generation("feed", 1, random_policy(1, memory=memory))
        logged = [decode_event(encode_event(each)) for each in session_of(Plan(generation), 8)]
        walk = Walk(generation)
        for step, each in enumerate(logged):
            assert isinstance(each, Decision)
            assert isinstance(each.session, SessionStep)
            assert (each.session.id, each.session.step) == ("d-0-0", step)
            assert each.version == 2
            alone = as_logged(generation, each.context, each.session).pmf({}, each.actions)[0]
            along = walk.at(each.context).pmf({}, each.actions)[0]
            assert alone.tobytes() == along.tobytes() == np.array(each.pmf).tobytes()
            walk.take(each.actions[each.chosen].id)

    def test_all_generations_of_a_plan_remember_their_own(self) -> None:
        champion, canary, shadow = (recurrent_generation("feed", each) for each in (1, 2, 3))
        plan = Plan(champion, canary=canary, canary_share=0.25, shadow=shadow)
        walks = [Walk(each) for each in (champion, canary, shadow)]
        for each in session_of(plan, 5, uniform=0.1):
            pmfs = [walk.at(each.context).pmf({}, each.actions)[0] for walk in walks]
            drawn_from = 0.9 * (0.75 * pmfs[0] + 0.25 * pmfs[1]) + 0.1 / len(ACTIONS)
            np.testing.assert_allclose(each.pmf, drawn_from, rtol=1e-12)
            assert each.shadow is not None
            assert each.shadow.pmf == pmfs[2].tolist()
            for walk in walks:
                walk.take(each.actions[each.chosen].id)

    def test_another_generation_begins_where_it_comes_in(self) -> None:
        old, new = recurrent_generation("feed", 1), recurrent_generation("feed", 2)
        state: SessionState | None = None
        for step, generation in enumerate((old, old, new, new)):
            at = Circumstances(f"d{step}", step)
            decision, state = decide_step(
                request(step), Plan(generation), at, step_of(at.decision_id, state)
            )
            assert isinstance(decision.session, SessionStep)
            assert (decision.session.id, decision.session.step) == ("d0", step)
            known = [(each.generation, each.since) for each in decision.session.recalls]
            assert known == {0: [], 1: [(1, 0)], 2: [], 3: [(2, 2)]}[step]
        first = Walk(new).at(context_of(2)).pmf({}, [*map(Action, ACTIONS)])[0]
        third = decide_step(
            request(2), Plan(new), Circumstances("d2", 2), SessionStep("d0", 2, "fun")
        )
        assert third.decision.pmf == first.tolist()

    def test_a_canary_that_cannot_follow_leaves_its_share(self) -> None:
        champion, canary = cold_start("feed"), recurrent_generation("feed", 2)
        failed: list[int] = []
        plan = Plan(champion, canary=canary, canary_share=0.5)
        asked = DecisionRequest(actions=[*map(Action, ACTIONS)], context={"signal": "high"})
        stepped = decide_step(
            asked,
            plan,
            Circumstances("d", 0),
            SessionStep("d", 0),
            on_failure=lambda generation, _: failed.append(generation.number),
        )
        assert stepped.decision.pmf == pytest.approx([0.2] * 5)
        assert set(failed) == {2}

    def test_draws_happen_as_often_as_their_pmfs_say(self) -> None:
        """One false alarm in 1,000 seeds: chi-square of all draws given what came before them."""
        total, spread = np.zeros(len(ACTIONS)), np.zeros((len(ACTIONS), len(ACTIONS)))
        plan = Plan(recurrent_generation("feed", 1))
        for user in range(400):
            for each in session_of(plan, 5, user % 3, name=f"draw-{user}"):
                pmf = np.array(each.pmf)
                total += np.eye(len(ACTIONS))[each.chosen] - pmf
                spread += np.diag(pmf) - np.outer(pmf, pmf)
        statistic = total @ np.linalg.pinv(spread, hermitian=True) @ total
        assert scipy.stats.chi2.sf(statistic, len(ACTIONS) - 1) > 1e-3

    def test_others_are_logged_as_before(self) -> None:
        plain = decide(request(0), Plan(cold_start("feed")), Circumstances("d", 0))
        assert b'"session"' not in encode_event(plain)
        assert plain.version == 1


class TestFiles:
    def test_round_trip(self, tmp_path: Path) -> None:
        generation = recurrent_generation("feed", 4)
        for name in ("one", "two"):
            generation.save(tmp_path / name)
        manifest = msgspec.json.decode((tmp_path / "one" / "manifest.json").read_bytes())
        assert manifest["format_version"] == 3
        assert (tmp_path / "one" / "manifest.sha256").read_text() == (
            tmp_path / "two" / "manifest.sha256"
        ).read_text()
        loaded = Generation.load(tmp_path / "one")
        assert loaded.recurrent is not None
        assert loaded.recurrent.config == random_policy(4).config
        same = [session_of(Plan(each), 4) for each in (generation, loaded)]
        assert same[0] == same[1]

    def test_what_was_altered_is_refused(self, tmp_path: Path) -> None:
        recurrent_generation("feed", 4).save(tmp_path / "4")
        path = tmp_path / "4" / "recurrent" / "arrays.npz"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(GenerationError, match="was altered after it was saved"):
            Generation.load(tmp_path / "4")

    @pytest.mark.parametrize("keep", [0, 10, 400, 2000])
    def test_what_is_damaged_is_refused(self, tmp_path: Path, keep: int) -> None:
        random_policy().save(tmp_path)
        path = tmp_path / "arrays.npz"
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(GenerationError):
            load_recurrent(tmp_path)

    def test_arrays_have_to_fit(self) -> None:
        policy = random_policy()
        wrong: list[tuple[str, Any, str]] = [
            ("mean", np.zeros(2, np.float32), "mean: expected float32 of shape"),
            ("mean", np.zeros(3), "mean: expected float32 of shape"),
            ("mean", np.full(3, np.nan, np.float32), "mean: expected finite numbers"),
            ("deviation", np.zeros(3, np.float32), "deviation: expected numbers above 0"),
            ("more", np.zeros(3, np.float32), "expected the arrays mean, deviation"),
        ]
        for name, value, message in wrong:
            with pytest.raises(GenerationError, match=message):
                RecurrentPolicy(policy.config, {**policy.arrays, name: value})

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("actions", ("a",)),
            ("actions", ("a", "a")),
            ("sees", (3,)),
            ("horizon", 0),
            ("hidden", 0),
            ("floor", 0.0),
            ("codes", {"delft": (1.0,), "leiden": (1.0, 2.0)}),
        ],
    )
    def test_a_shape_that_cannot_be_names_its_field(self, field: str, value: object) -> None:
        with pytest.raises(InvalidInputError) as caught:
            msgspec.structs.replace(random_policy().config, **{field: value})
        assert caught.value.field == field
