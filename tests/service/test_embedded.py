"""The scorer in an application's own process: as over HTTP, without the way there."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from croupier.cli.config import load_setup
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Activation, Decision, Outcome, decode_event
from croupier.policy.traffic import Split
from croupier.service.calls import ServiceError, UnavailableError
from croupier.service.embedded import EmbeddedScorer
from croupier.service.serving import ServingDirectory
from tests.service.asking import asking
from tests.service.generations import generation
from tests.service.running import Server, running, unique, wait_until
from tests.service.test_durability import locked_log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from croupier.policy.events import Event
    from croupier.service.embedded import EmbeddedLoop
    from croupier.service.setup import ServiceSetup

CONFIG = """
[service]
port = 0
registry_poll = "20 ms"
remembered_decisions = 500
[log]
busy_timeout_s = 0.2
[loops.digits]
[loops.scaled]
reward_max = 10.0
[loops.busy]
keep_prob = 0.5
"""
ACTIONS: list[dict[str, Any]] = [
    {"id": "a"},
    {"id": "b", "features": {"x": 1.0}},
    {"id": "c", "features": {"x": 2.0}},
]


@pytest.fixture
def setup(tmp_path: Path) -> ServiceSetup:
    (tmp_path / "croupier.toml").write_text(f'data_dir = "data"\n{CONFIG}')
    return load_setup(tmp_path / "croupier.toml")


@pytest.fixture
def scorer(setup: ServiceSetup) -> Iterator[EmbeddedScorer]:
    with EmbeddedScorer.open(setup, mirror=False) as scorer:
        yield scorer


@pytest.fixture
def digits(scorer: EmbeddedScorer) -> EmbeddedLoop:
    return scorer.loop("digits")


def events(setup: ServiceSetup) -> list[Event]:
    with SqliteEventLog(setup.log_dir) as log:
        return [decode_event(entry.payload) for entry in log.read(1, limit=10**9)]


def decisions(setup: ServiceSetup, decision_id: str) -> list[Decision]:
    return [
        event
        for event in events(setup)
        if isinstance(event, Decision) and event.decision_id == decision_id
    ]


def test_a_decision_and_what_becomes_of_it(setup: ServiceSetup, digits: EmbeddedLoop) -> None:
    answer = digits.decide(
        ACTIONS,
        {"hour": 9},
        excluded=["c"],
        baseline="b",
        deferred=True,
        audit={"region": "north"},
    )
    assert answer.decided
    assert (answer.loop, answer.generation, answer.pmf) == ("digits", 0, [0.5, 0.5, 0.0])
    assert digits.activate(answer.decision_id).accepted == 1
    assert digits.reward(answer.decision_id, 1.0, guardrails={"refund": 0.0}).accepted == 1
    decision, activation, outcome = events(setup)
    assert isinstance(decision, Decision)
    assert (decision.context, decision.audit) == ({"hour": 9}, {"region": "north"})
    assert (decision.baseline, decision.deferred) == (1, True)
    assert (decision.pmf, decision.chosen) == (answer.pmf, answer.index)
    assert isinstance(activation, Activation)
    assert isinstance(outcome, Outcome)
    assert outcome.decision_id == activation.decision_id == answer.decision_id


def test_it_answers_as_the_service_does_over_the_same_directory(tmp_path: Path) -> None:
    """Two scorers of one data directory draw the same for the same request."""
    server = Server(tmp_path, CONFIG)
    server.serve(generation("digits", 1))
    setup = load_setup(tmp_path / "croupier.toml")
    with (
        running(server),
        asking("sync", server.url, "digits") as remote,
        EmbeddedScorer.open(setup, mirror=False) as scorer,
    ):
        local = scorer.loop("digits")
        asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
            ("decide", (ACTIONS, {"u": 1.5}), {}),
            ("rank", (ACTIONS, {"u": 1.5}), {"depth": 2}),
            ("slots", (ACTIONS, [{"id": "top"}, {"id": "side"}], {"u": 1.5}), {}),
            ("slate", (ACTIONS, 2, {"u": 1.5}), {}),
        ]
        for method, positional, named in asked:
            named["decision_id"] = unique()
            theirs = getattr(remote, method)(*positional, **named)
            assert getattr(local, method)(*positional, **named) == theirs
            assert theirs.generation == 1
        assert local.readiness().loops == remote.readiness().loops


@pytest.mark.parametrize(
    ("method", "arguments", "target"),
    [
        ("decide", {"actions": []}, "actions"),
        ("decide", {"actions": [{"id": "a"}, {"id": "a"}]}, "actions[1].id"),
        ("decide", {"actions": [{"id": "a", "features": {"x": 1e308}}]}, "actions[0].features"),
        ("decide", {"actions": ACTIONS, "context": {"x": 1e308}}, "context"),
        ("decide", {"actions": ACTIONS, "decision_id": ""}, "decision_id"),
        ("rank", {"actions": ACTIONS, "depth": 4}, "depth"),
        ("rank", {"actions": ACTIONS, "depth": "two"}, "depth"),
        ("slate", {"actions": ACTIONS, "size": 0}, "size"),
        ("slots", {"actions": ACTIONS, "slots": []}, "slots"),
        ("reward", {"decision_id": "d", "reward": 2.0}, "[0].reward"),
        ("reward", {"decision_id": "", "reward": 1.0}, "[0].decision_id"),
        ("activate", {"decision_id": "x" * 257}, "decision_id"),
    ],
)
def test_it_refuses_as_the_service_does(
    shared: Server,
    digits: EmbeddedLoop,
    method: str,
    arguments: dict[str, Any],
    target: str,
) -> None:
    said = []
    with asking("sync", shared.url, "digits", key=shared.key) as remote:
        for interface in (digits, remote):
            with pytest.raises(ServiceError) as refused:
                getattr(interface, method)(**arguments)
            error = refused.value
            said.append((type(error), error.status, error.code, error.message, error.target))
    assert said[0] == said[1]
    assert (refused.value.status, refused.value.target) == (400, target)


def test_what_json_has_not_is_told_at_once(digits: EmbeddedLoop) -> None:
    for value in (object(), float("nan"), "\ud800"):
        with pytest.raises(InvalidInputError):
            digits.decide(ACTIONS, {"x": value})


def test_a_loop_has_to_be_configured(scorer: EmbeddedScorer) -> None:
    with pytest.raises(InvalidInputError, match="expected one of busy, digits, scaled"):
        scorer.loop("other")
    assert scorer.loop("scaled").reward("d", 9.0).accepted == 1


def test_a_repeated_request_gets_the_same_answer_and_is_logged_once(
    setup: ServiceSetup, digits: EmbeddedLoop
) -> None:
    decision_id = unique()
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda n: digits.rank(
                    ACTIONS,
                    {"u": 1, "v": "x"} if n % 2 else {"v": "x", "u": 1},
                    depth=2,
                    decision_id=decision_id,
                ),
                range(200),
            )
        )
    assert all(answer == answers[0] for answer in answers)
    assert len(decisions(setup, decision_id)) == 2
    with pytest.raises(ServiceError) as refused:
        digits.decide(ACTIONS, decision_id=decision_id)
    assert refused.value.target == "decision_id"


def test_only_the_latest_answers_are_kept(setup: ServiceSetup, digits: EmbeddedLoop) -> None:
    for name in ("first", *(f"other:{n}" for n in range(500)), "first", "other:499"):
        digits.decide(ACTIONS, decision_id=name)
    first = decisions(setup, "first")
    assert len(first) == 2
    # Asked of the same generation, it draws the same.
    assert first[0].chosen == first[1].chosen
    assert len(decisions(setup, "other:499")) == 1


def test_a_subsampled_log_keeps_a_share(setup: ServiceSetup, scorer: EmbeddedScorer) -> None:
    busy = scorer.loop("busy")
    answered = {busy.decide(ACTIONS).decision_id for _ in range(300)}
    kept = [event for event in events(setup) if isinstance(event, Decision)]
    assert {event.decision_id for event in kept} <= answered
    assert {event.keep_prob for event in kept} == {0.5}
    # Six standard deviations of 300 coins.
    assert 98 <= len(kept) <= 202


def test_it_follows_the_serving_directory(setup: ServiceSetup, digits: EmbeddedLoop) -> None:
    serving = ServingDirectory(setup.serving_dir)
    for number in (1, 2):
        made = generation("digits", number)
        made.save(serving.generation_path("digits", number))
        serving.write_split("digits", Split(generation=number))
        wait_until(lambda: digits.readiness().loops["digits"]["generation"] == number)  # noqa: B023
        assert digits.decide(ACTIONS, {"u": 1.0}).generation == number


def test_the_callers_objects_stay_the_callers(setup: ServiceSetup, digits: EmbeddedLoop) -> None:
    context: dict[str, Any] = {"tags": ("x", "y"), "n": 1}
    answer = digits.decide(ACTIONS, context)
    context["n"] = 2
    (logged,) = decisions(setup, answer.decision_id)
    assert logged.context == {"tags": ["x", "y"], "n": 1}


class _Elsewhere:
    """What :func:`locked_log` needs to know of a server."""

    def __init__(self, setup: ServiceSetup) -> None:
        self.data_dir = setup.log_dir.parent


def test_a_log_that_can_not_be_written(setup: ServiceSetup, scorer: EmbeddedScorer) -> None:
    digits = scorer.loop("digits")
    digits.decide(ACTIONS)
    with locked_log(_Elsewhere(setup)):  # type: ignore[arg-type]
        with pytest.raises(UnavailableError) as refused:
            digits.decide(ACTIONS, decision_id="lost")
        assert (refused.value.status, refused.value.code) == (503, "LogUnavailable")
        assert refused.value.retry_after == 1.0
        assert scorer.readiness().status == "unavailable"
        stand_in = scorer.loop("digits", fallback=True).decide(ACTIONS, decision_id="lost")
        assert (stand_in.decided, stand_in.action) == (False, "a")
    wait_until(lambda: scorer.readiness().status != "unavailable")
    assert digits.decide(ACTIONS, decision_id="lost").decided
    assert len(decisions(setup, "lost")) == 1


def test_closing_writes_out_what_was_acknowledged(tmp_path: Path) -> None:
    buffered = CONFIG.replace("[log]", '[log]\ndurability = "buffered"')
    (tmp_path / "croupier.toml").write_text(f'data_dir = "data"\n{buffered}')
    setup = load_setup(tmp_path / "croupier.toml")
    with EmbeddedScorer.open(setup, mirror=False) as scorer:
        digits = scorer.loop("digits")
        acknowledged = [digits.decide(ACTIONS).decision_id for _ in range(300)]
    scorer.close()
    assert [getattr(event, "decision_id", None) for event in events(setup)] == acknowledged
    with pytest.raises(UnavailableError, match="closed"):
        digits.decide(ACTIONS)


def test_it_runs_a_mirror_unless_told_otherwise(setup: ServiceSetup) -> None:
    with EmbeddedScorer.open(setup) as scorer:
        wait_until(lambda: scorer.readiness().registry == "ok")
    with EmbeddedScorer.open(setup, mirror=False) as scorer:
        assert scorer.loop("digits").decide(ACTIONS).decided


_APPLICATION = """
import sys, threading
from croupier.cli.config import load_setup
from croupier.service.embedded import EmbeddedScorer

scorer = EmbeddedScorer.open(load_setup(sys.argv[1]), mirror=False)
digits = scorer.loop("digits")
lock = threading.Lock()

def work():
    while True:
        answer = digits.decide([{"id": "a"}, {"id": "b"}], {"x": 0.5})
        outcome = f"outcome-of-{answer.decision_id}"
        digits.reward(answer.decision_id, 1.0, outcome_id=outcome)
        with lock:
            print(answer.decision_id, outcome, flush=True)

for _ in range(8):
    threading.Thread(target=work).start()
"""


def test_kill_9_loses_nothing_acknowledged(tmp_path: Path, setup: ServiceSetup) -> None:
    acknowledged: list[str] = []
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", _APPLICATION, str(tmp_path / "croupier.toml")],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(300)]
            process.kill()
            # What it had said before it was killed counts; half a line is none.
            said = "".join(lines) + process.stdout.read()
            acknowledged += said[: said.rfind("\n")].split()
    logged: list[str] = []
    for event in events(setup):
        assert isinstance(event, Decision | Outcome)
        logged.append(event.outcome_id if isinstance(event, Outcome) else event.decision_id)
    assert len(acknowledged) >= 3 * 2 * 300
    assert set(acknowledged) <= set(logged)
    assert len(logged) == len(set(logged))


def test_threads_may_share_it(setup: ServiceSetup, scorer: EmbeddedScorer) -> None:
    digits = scorer.loop("digits")
    answered: list[str] = []

    def work() -> None:
        answered.extend(digits.decide(ACTIONS).decision_id for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answered) == sorted(
        event.decision_id for event in events(setup) if isinstance(event, Decision)
    )


def test_features_are_limited_as_over_http(tmp_path: Path) -> None:
    config = tmp_path / "croupier.toml"
    config.write_text("[service]\nmax_object_features = 100\n\n[loops.digits]\n")
    with EmbeddedScorer.open(load_setup(config), mirror=False) as scorer:
        loop = scorer.loop("digits")
        assert loop.decide([{"id": "a"}], {str(n): n for n in range(100)}).decided
        with pytest.raises(ServiceError) as caught:
            loop.decide([{"id": "a"}], {str(n): n for n in range(101)})
        assert (caught.value.status, caught.value.target) == (400, "context")
