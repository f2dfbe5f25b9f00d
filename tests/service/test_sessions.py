"""Sessions over HTTP: followed by the server or by the caller, through kills and hot swaps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from msgspec import UNSET

from croupier.cli.config import load_setup
from croupier.policy.events import SessionStep
from croupier.policy.sampling import draw
from croupier.policy.stepping import Walk, as_logged
from croupier.service.calls import ServiceError
from croupier.service.embedded import EmbeddedScorer
from tests.policy.recurrent import ACTIONS, recurrent_generation
from tests.service.running import Server, running, unique, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from croupier.policy.events import Decision

CONFIG = """
[service]
port = 0
registry_poll = "10 ms"

[loops.feed.sessions]
user = "user.id"
state = ["signal", "mood.now", "engagement"]
group = "city"
horizon = 50

[loops.swapped.sessions]
user = "user.id"
state = ["signal", "mood.now", "engagement"]

[loops.plain]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests; each asks for users of its own."""
    server = Server(tmp_path_factory.mktemp("sessions"), CONFIG)
    for loop in ("feed", "swapped"):
        server.serve(recurrent_generation(loop, 1))
    with running(server):
        yield server


def request(user: str, step: int, **more: Any) -> dict[str, Any]:
    signal, mood, engagement = np.random.default_rng(step).normal(1.0, 2.0, 3).tolist()
    context = {"user": {"id": user}, "signal": signal, "mood": {"now": mood}, "city": "leiden"}
    return {
        "decision_id": unique(),
        "context": context | {"engagement": engagement},
        "actions": [{"id": each} for each in ACTIONS],
    } | more


def ask(server: Server, body: dict[str, Any], loop: str = "feed") -> Any:
    answer = server.post(f"{loop}/decide", body)
    assert answer.status == 200, answer
    return answer.json


def step_of(decision: Decision) -> tuple[str, int]:
    assert isinstance(decision.session, SessionStep)
    return decision.session.id, decision.session.step


def check(server: Server, told: Any, number: int = 1) -> Decision:
    """What was told is what was logged, was drawn so, and is what the log's own memory says."""
    decision = server.decision(told["decision_id"])
    session = None if decision.session is UNSET else decision.session
    at = as_logged(recurrent_generation(decision.loop, number), decision.context, session)
    pmf = at.pmf(decision.context, decision.actions)[0]
    assert pmf.tolist() == decision.pmf == told["pmf"]
    assert draw(pmf, decision.draw_key) == decision.chosen == told["index"]
    assert told["propensity"] == pmf[decision.chosen]
    assert (told["generation"], decision.generation) == (number, number)
    return decision


def test_a_repeated_request_gets_its_answer_again_on_every_way(server: Server) -> None:
    """On a connection that is kept, the second request goes the fast way."""
    with server.caller() as caller:
        for more in ({}, {"session": ""}):
            user, kept = unique(), dict(more)
            for step in range(3):
                body = request(user, step, **kept)
                answers = [caller.post("feed/decide", body) for _ in range(3)]
                assert [each.status for each in answers] == [200] * 3
                assert len({each.body for each in answers}) == 1
                last = answers[0].json
                assert step_of(check(server, last))[1] == step
                if more:
                    kept = {"session": last["session"]}
            other = caller.post("feed/decide", body | {"context": {"user": {"id": user}}})
            assert (other.status, other.error["target"]) == (400, "decision_id")


def test_after_a_hot_swap_the_state_restarts(server: Server) -> None:
    first = ask(server, request("ann", 0, session=""), "swapped")
    ask(server, request("bob", 0), "swapped")
    server.serve(recurrent_generation("swapped", 2))
    wait_until(lambda: server.readiness()["loops"]["swapped"]["generation"] == 2)
    for body in (request("ann", 1, session=first["session"]), request("bob", 1)):
        decision = check(server, ask(server, body, "swapped"), 2)
        assert step_of(decision)[1] == 1
        assert decision.session is not UNSET
        assert decision.session.recalls == []
        new = Walk(recurrent_generation("swapped", 2)).at(decision.context)
        assert new.pmf({}, decision.actions)[0].tolist() == decision.pmf


def test_tokens_that_are_none_are_refused(server: Server) -> None:
    token = ask(server, request("ann", 0, session=""))["session"]
    swapped = token[:-1] + ("A" if token[-1] != "A" else "B")
    for body in (
        request("ann", 1, session=swapped),
        request("ann", 1, session=token[1:]),
        request("ann", 1, session="no such thing"),
        request("ann", 1, session="ü"),
        request("eve", 1, session=token),
    ):
        answer = server.post("feed/decide", body)
        assert (answer.status, answer.error["target"]) == (400, "session")
    answer = server.post("feed/decide", request("ann", 1, session=3))
    assert (answer.status, answer.error["target"]) == (400, "session")
    answer = server.post("plain/decide", request("ann", 1, session=""))
    assert (answer.status, answer.error["target"]) == (400, "session")
    answer = server.post("feed/rank", request("ann", 1, session=""))
    assert (answer.status, answer.error["target"]) == (400, "session")
    # Nothing of it was taken for a step.
    assert step_of(check(server, ask(server, request("ann", 1, session=token))))[1] == 1


def test_a_killed_server_forgets_sessions_and_callers_do_not(server: Server) -> None:
    token, followed, kept = "", [], []
    walks = [Walk(recurrent_generation("feed", 1)) for _ in range(2)]
    for step in range(3):
        followed.append(ask(server, request("ann", step)))
        assert "session" not in followed[-1]
        kept.append(ask(server, request("eve", step, session=token)))
        token = kept[-1]["session"]
        for walk, told in zip(walks, (followed[-1], kept[-1]), strict=True):
            decision = check(server, told)
            assert walk.at(decision.context).pmf({}, decision.actions)[0].tolist() == told["pmf"]
            assert decision.session is not UNSET
            assert decision.session.step == step
            walk.take(told["action"])
    server.kill()
    server.start()
    anew = check(server, ask(server, request("ann", 3)))
    assert step_of(anew) == (anew.decision_id, 0)
    assert anew.session == SessionStep(anew.decision_id, 0)
    going_on = check(server, ask(server, request("eve", 3, session=token)))
    assert step_of(going_on) == (kept[0]["decision_id"], 3)
    along = walks[1].at(going_on.context).pmf({}, going_on.actions)[0]
    assert along.tolist() == going_on.pmf
    metrics = server.get("/metrics").body.decode()
    assert "croupier_sessions 1.0" in metrics
    assert 'croupier_session_events_total{event="begun",loop="feed"} 1.0' in metrics


def test_an_embedded_scorer_follows_sessions_too(tmp_path: Path) -> None:
    server = Server(tmp_path, CONFIG)
    server.serve(recurrent_generation("feed", 1))
    with EmbeddedScorer.open(load_setup(tmp_path / "croupier.toml"), mirror=False) as scorer:
        feed, token = scorer.loop("feed"), ""
        answers = []
        for step in range(3):
            body = request("ann", step)
            asked = partial(feed.decide, body["actions"], body["context"])
            answers.append(asked(decision_id=body["decision_id"]))
            assert asked(decision_id=body["decision_id"]) == answers[-1]
            kept = asked(session=token)
            assert kept.session is not None
            token = kept.session
        with pytest.raises(ServiceError) as caught:
            asked(session=token[:-2])
        assert (caught.value.status, caught.value.target) == (400, "session")
    steps = [step_of(server.decision(each.decision_id)) for each in answers]
    assert steps == [(answers[0].decision_id, step) for step in range(3)]
