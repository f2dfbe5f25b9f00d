"""Steps of sessions that a scorer follows, or whose callers do, without HTTP."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from croupier.policy.decision import DecisionRequest
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action, Recall, SessionStep
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.ranking import RankRequest
from croupier.policy.sessions import SessionsConfig, SessionState
from croupier.policy.slates import SlateRequest
from croupier.policy.slots import Slot, SlotsRequest
from croupier.policy.stepping import Walk, as_logged
from croupier.policy.traffic import Plan
from croupier.service.scorer import Scorer
from croupier.service.session_tokens import SessionTokens
from tests.policy.recurrent import ACTIONS, OBSERVATION, recurrent_generation

if TYPE_CHECKING:
    from croupier.policy.events import Decision

SECOND = 1_000_000
SESSIONS = SessionsConfig(user="user", pause="10 s", horizon=6, state=OBSERVATION, group="city")
CANDIDATES = [Action(each) for each in ACTIONS]


class Desk:
    """A scorer with a clock that is set."""

    def __init__(self, plan: Plan | None = None, **settings: Any) -> None:
        self.now = 0
        self.seen: Counter[str] = Counter()
        config = {name: settings.pop(name) for name in ("learning_mode",) if name in settings}
        self.scorer = Scorer(
            {"feed": LoopConfig(sessions=SESSIONS, **config), "shop": LoopConfig()},
            clock=lambda: self.now,
            on_session=lambda _, event: self.seen.update([event]),
            **{"secret": b"s" * 32} | settings,
        )
        self.scorer.swap(Plan(recurrent_generation("feed", 1)) if plan is None else plan)

    def ask(
        self, name: str, user: object = "ann", *, at: int | None = None, **more: Any
    ) -> Decision:
        if at is not None:
            self.now = at * SECOND
        return self.scorer.decide("feed", asked(name, user, **more))


def asked(name: str, user: object = "ann", **more: Any) -> DecisionRequest:
    rng = np.random.default_rng([*name.encode()])
    signal, mood, engagement = rng.normal(1.0, 2.0, 3).tolist()
    context = {"signal": signal, "mood": {"now": mood}, "engagement": engagement, "city": "delft"}
    if user is not None:
        context["user"] = user
    return DecisionRequest(decision_id=name, actions=CANDIDATES, context=context, **more)


def step_of(decision: Decision) -> tuple[str, int]:
    assert isinstance(decision.session, SessionStep)
    return decision.session.id, decision.session.step


def recomputed(decision: Decision, generation: Generation) -> list[float]:
    session = None if decision.session is UNSET else decision.session
    at = as_logged(generation, decision.context, session)
    pmf: list[float] = at.pmf(decision.context, decision.actions)[0].tolist()
    return pmf


class TestStore:
    def test_users_are_followed_each_for_themselves(self) -> None:
        desk = Desk()
        walks = {user: Walk(recurrent_generation("feed", 1)) for user in ("ann", 7)}
        for step in range(4):
            for user, walk in walks.items():
                found = desk.ask(f"{user}-{step}", user, at=step)
                assert step_of(found) == (f"{user}-0", step)
                assert walk.at(found.context).pmf({}, found.actions)[0].tolist() == found.pmf
                assert found.scores is None
                walk.take(found.actions[found.chosen].id)
        assert desk.scorer.sessions == 2
        assert desk.seen == {"begun": 2, "continued": 6}

    def test_a_session_ends_with_a_pause_and_at_its_horizon(self) -> None:
        desk = Desk()
        steps = [step_of(desk.ask(f"d{at}", at=at)) for at in (0, 10, 21, 22, 23, 24, 25, 26, 27)]
        begun = ["d0"] * 2 + ["d21"] * 6 + ["d27"]
        assert steps == list(zip(begun, [0, 1, 0, 1, 2, 3, 4, 5, 0], strict=True))

    def test_a_repeated_step_is_the_same_one_and_takes_the_session_no_further(self) -> None:
        desk = Desk()
        first = [desk.ask(f"d{step}", at=step) for step in range(5)]
        for step in (4, 2, 1, 3, 4):
            again = desk.ask(f"d{step}", at=1000)
            assert msgspec.structs.replace(again, ts=first[step].ts) == first[step]
        assert step_of(desk.ask("d5", at=6)) == ("d0", 5)

    def test_what_was_not_logged_is_taken_back(self) -> None:
        desk, other = Desk(), Desk()
        desk.ask("d0", at=0)
        lost = [desk.ask(name, at=1) for name in ("x", "y")]
        desk.scorer.retract(lost)
        other.ask("d0", at=0)
        assert desk.ask("d1", at=2) == other.ask("d1", at=2)
        first = desk.ask("e0", "eve", at=3)
        desk.scorer.retract([first])
        assert step_of(desk.ask("e1", "eve", at=4)) == ("e1", 0)

    def test_the_longest_unheard_of_are_forgotten(self) -> None:
        desk = Desk(remembered_sessions=3)
        for place, user in enumerate("abcad"):
            desk.ask(f"{user}{place}", user, at=place)
        assert desk.scorer.sessions == 3
        assert desk.seen["evicted"] == 1
        assert step_of(desk.ask("b5", "b", at=5)) == ("b5", 0)
        assert step_of(desk.ask("a6", "a", at=6)) == ("a0", 2)
        # A session that is over takes no room.
        desk.ask("z", "z", at=100)
        assert (desk.scorer.sessions, desk.seen["expired"]) == (1, 3)

    def test_without_room_every_decision_is_a_first_one(self) -> None:
        desk = Desk(remembered_sessions=0)
        steps = [step_of(desk.ask(name, at=0)) for name in ("a", "b")]
        assert steps == [("a", 0), ("b", 0)]
        assert desk.scorer.sessions == 0

    def test_another_generation_begins_anew_in_the_middle(self) -> None:
        desk, new = Desk(), recurrent_generation("feed", 2)
        desk.ask("d0", at=0)
        desk.scorer.swap(Plan(new))
        found = desk.ask("d1", at=1)
        assert step_of(found) == ("d0", 1)
        assert found.pmf == Walk(new).at(found.context).pmf({}, found.actions)[0].tolist()
        assert found.pmf == recomputed(found, new)
        after = desk.ask("d2", at=2)
        assert isinstance(after.session, SessionStep)
        assert [(each.generation, each.since) for each in after.session.recalls] == [(2, 1)]


class TestNoSession:
    def test_a_decision_of_no_user_is_a_first_step(self) -> None:
        desk = Desk()
        for name in ("a", "b"):
            found = desk.ask(name, None, at=0)
            assert found.session is UNSET
            assert found.pmf == recomputed(found, recurrent_generation("feed", 1))
        assert desk.scorer.sessions == 0

    def test_a_ranking_of_one_is_a_step_and_all_else_is_none(self) -> None:
        desk, generation = Desk(), recurrent_generation("feed", 1)
        given_ = asked("r0")
        fields: dict[str, Any] = {"actions": CANDIDATES, "context": given_.context}
        one = desk.scorer.rank("feed", RankRequest(**fields, decision_id="r0")).decisions
        assert [step_of(each) for each in one] == [("r0", 0)]
        assert step_of(desk.ask("d1")) == ("r0", 1)
        others = [
            *desk.scorer.rank("feed", RankRequest(**fields, depth=2)).decisions,
            *desk.scorer.decide_slots("feed", SlotsRequest(**fields, slots=[Slot(id="x")])),
            *desk.scorer.decide_slate("feed", SlateRequest(**fields, size=2)),
        ]
        assert all(each.session is UNSET for each in others)
        assert others[0].pmf == recomputed(others[0], generation)
        assert others[2].pmf == recomputed(others[2], generation)
        for kind, route in (
            (RankRequest(**fields, session=""), desk.scorer.rank),
            (SlateRequest(**fields, size=2, session=""), desk.scorer.decide_slate),
        ):
            with pytest.raises(InvalidInputError, match=r"^session: expected it with a request"):
                route("feed", kind)  # type: ignore[arg-type]

    @pytest.mark.parametrize("how", ["killed", "logging_only", "nothing served"])
    def test_where_the_baseline_is_played_no_step_is_taken(self, how: str) -> None:
        plan = Plan(recurrent_generation("feed", 1), killed="why" if how == "killed" else None)
        mode = {"learning_mode": "logging_only"} if how == "logging_only" else {}
        desk = Desk(plan, **mode)
        if how == "nothing served":
            desk.scorer = Scorer({"feed": LoopConfig(sessions=SESSIONS)}, clock=lambda: 0)
        for token in (None, ""):
            decision, answered = desk.scorer.step("feed", asked("d", session=token))
            assert (decision.pmf, decision.session) == ([1.0, 0.0, 0.0, 0.0, 0.0], UNSET)
            assert answered == token

    def test_an_apprentice_is_asked_step_by_step(self) -> None:
        desk, walk = Desk(learning_mode="apprentice"), Walk(recurrent_generation("feed", 1))
        for step in range(3):
            found = desk.ask(f"d{step}", at=step)
            assert (found.propensity, found.chosen) == (1.0, 0)
            assert found.shadow is not None
            assert found.shadow.pmf == walk.at(found.context).pmf({}, found.actions)[0].tolist()
            walk.take(ACTIONS[0])

    @pytest.mark.parametrize(
        ("context", "field"),
        [
            ({"user": 1.5}, "context.user"),
            ({"user": "ann", "signal": "high"}, "context.signal"),
            ({"signal": True, "mood": {"now": []}}, "context.mood.now"),
        ],
    )
    @pytest.mark.parametrize("remembers", [True, False])
    def test_a_loop_with_sessions_refuses_what_none_can_be_made_of(
        self, context: dict[str, Any], field: str, *, remembers: bool
    ) -> None:
        """Also before there is a generation that looks at it: its log would be good for nothing."""
        desk = Desk(None if remembers else Plan(cold_start("feed")))
        with pytest.raises(InvalidInputError) as caught:
            desk.scorer.decide("feed", DecisionRequest(actions=CANDIDATES, context=context))
        assert caught.value.field == field


class TestTokens:
    def test_a_caller_can_keep_the_session_for_any_scorer(self) -> None:
        followed, token = Desk(), ""
        for step in range(4):
            # Another process each time, with the same secret.
            desk = Desk()
            desk.now = followed.now = step * SECOND
            request = asked(f"d{step}", session=token)
            decision, answered = desk.scorer.step("feed", request)
            assert desk.scorer.step("feed", request) == (decision, answered)
            assert desk.scorer.sessions == 0
            assert decision == followed.ask(f"d{step}", at=step)
            assert answered is not None
            token = answered
        followed.now = 14 * SECOND
        decision, _ = followed.scorer.step("feed", asked("late", session=token))
        assert step_of(decision) == ("late", 0)

    def test_one_is_given_whatever_serves(self) -> None:
        desk = Desk(Plan(cold_start("feed")))
        decision, token = desk.scorer.step("feed", asked("d0", session=""))
        assert step_of(decision) == ("d0", 0)
        desk.scorer.swap(Plan(recurrent_generation("feed", 1)))
        decision, _ = desk.scorer.step("feed", asked("d1", session=token))
        assert step_of(decision) == ("d0", 1)
        assert decision.pmf == recomputed(decision, recurrent_generation("feed", 1))

    def test_it_is_good_for_its_user_loop_and_secret_alone(self) -> None:
        desk = Desk()
        _, token = desk.scorer.step("feed", asked("d0", session=""))
        assert token is not None
        wrong = [
            (Desk(), asked("d1", "eve", session=token)),
            (Desk(secret=b"t" * 32), asked("d1", session=token)),
            (Desk(secret=b""), asked("d1", session=token)),
        ]
        for other, request in wrong:
            with pytest.raises(InvalidInputError, match=r"^session: expected what an answer"):
                other.scorer.step("feed", request)
        with pytest.raises(InvalidInputError, match=r"^context\.user: expected whose session"):
            desk.scorer.step("feed", asked("d1", None, session=token))
        with pytest.raises(InvalidInputError, match=r"^session: expected none: shop has no"):
            desk.scorer.step("shop", asked("d1", session=""))

    @pytest.mark.parametrize("secret", [b"", b"k" * 64])
    @given(data=st.data())
    @settings(deadline=None, max_examples=200)
    def test_no_other_text_passes_for_one(self, secret: bytes, data: st.DataObject) -> None:
        tokens = SessionTokens(secret)
        state = SessionState("d0", 3, 17, "fun", [Recall(1, 0, bytes(range(32)))])
        token = tokens.issue("feed", "ann", state)
        assert tokens.read("feed", "ann", token) == state
        place = data.draw(st.integers(0, len(token) - 1))
        piece = data.draw(st.text(max_size=3) | st.text("AQgw-_=", max_size=3))
        cut = data.draw(st.integers(0, 2))
        other = token[:place] + piece + token[place + cut :]
        if other in {token, ""}:
            return
        with pytest.raises(InvalidInputError) as caught:
            tokens.read("feed", "ann", other)
        assert caught.value.field == "session"

    @given(st.text(min_size=1) | st.binary(min_size=1).map(lambda each: each.hex()))
    @settings(deadline=None)
    def test_nor_does_any_other_one(self, text: str) -> None:
        with pytest.raises(InvalidInputError, match=r"^session"):
            SessionTokens().read("feed", "ann", text)

    def test_a_memory_that_fits_no_generation_ends_in_the_baseline(self) -> None:
        """As from a token that somebody has made up where there is no secret."""
        desk = Desk(secret=b"")
        made_up = SessionState("d0", 1, 0, "fun", [Recall(1, 0, b"\x00" * 4)])
        token = SessionTokens().issue("feed", "ann", made_up)
        decision, answered = desk.scorer.step("feed", asked("d1", session=token))
        assert (decision.propensity, decision.session, answered) == (1.0, UNSET, token)
