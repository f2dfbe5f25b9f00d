"""A loop that approves and declines, kept fair from the requests to the second generation.

Only the approved have an outcome. Merit and group say how it will be; the auditor knows of merit.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from croupier.offline.compare import Comparison
from croupier.offline.registry import Registry
from croupier.policy.events import Decision
from tests.service.running import Server, running, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

# The oracle, its learners and the encodings have tests of their own; this is all of it in service.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

FLOOR, ALPHA, SLOPE = 0.1, 0.1, 0.4
CONFIG = f"""
[service]
port = 0
registry_poll = "50 ms"
draw_secret = "{bytes(range(16)).hex()}"

[loops.credit]
attribution_window = "1 s"
default_reward = 0.5
exploration = {{ kind = "bagging", floor = {FLOOR} }}

[loops.credit.oracle]
kind = "fair"
instances = 20
members = 100

[loops.credit.oracle.fairness]
action = "approve"
alpha = {ALPHA}

[loops.credit.oracle.fairness.auditors.merit]
type = "distance"
weights = {{ merit = {SLOPE} }}
"""
ACTIONS = [{"id": "decline"}, {"id": "approve"}]
REQUESTS = 600
PATIENCE_S = 480.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two generations were trained, the first of them from uniform decisions, and served."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        server = Server(tmp_path_factory.mktemp("fair"), CONFIG)
        with running(server):
            for generation in (1, 2):
                day(server, generation - 1)
                wait_until(lambda: joined(server.run("join")))
                # MLflow takes its time, and more of it the first time.
                trained = server.run("retrain", patience_s=PATIENCE_S)
                assert trained["credit"]["generation"] == generation
                because = ("--override", "--reason", "the loop is new")
                server.run("promote", "credit", str(generation), *because, patience_s=PATIENCE_S)
                wait_for(server, generation)
            yield server


def day(server: Server, number: int) -> None:
    rng = np.random.default_rng(number)
    with server.caller() as caller:
        for start in range(0, REQUESTS, 50):
            outcomes = []
            for place in range(start, start + 50):
                merit, group = float(rng.normal()), "ab"[int(rng.integers(2))]
                good = float(rng.random() < chance_of_good(merit, group))
                request = {
                    "decision_id": f"{number}-{place}",
                    "context": {"merit": merit, "group": group},
                    "actions": ACTIONS,
                }
                answer = caller.post("credit/decide", request)
                assert answer.status == 200
                if answer.json["action"] == "approve":
                    outcomes.append({"decision_id": f"{number}-{place}", "reward": good})
            assert caller.post("credit/reward", outcomes).json == {"accepted": len(outcomes)}


def chance_of_good(merit: float, group: str) -> float:
    return float(1.0 / (1.0 + np.exp(-(1.5 * merit - 2.0 * (group == "b") + 0.8))))


def joined(report: Any) -> bool:
    return all(loop["open"] == 0 for loop in report.values())


def wait_for(server: Server, number: int) -> None:
    wait_until(lambda: bool(server.readiness()["loops"]["credit"]["generation"] == number))


def approval(server: Server, merit: float, group: str) -> float:
    """What the server says of one request."""
    context = {"merit": merit, "group": group}
    answer = server.post("credit/decide", {"context": context, "actions": ACTIONS})
    assert answer.status == 200
    assert sum(answer.json["pmf"]) == pytest.approx(1.0, abs=1e-9)
    return float(answer.json["pmf"][1])


def test_the_log_is_exact(served: Server) -> None:
    """Every pmf in the log is what the generation in the registry gives, floor and all."""
    place = served.data_dir
    registry = Registry(f"sqlite:///{place / 'mlflow.db'}", place / "mlartifacts")
    generation = registry.load("credit", 1)
    decisions = [event for event in served.events() if isinstance(event, Decision)]
    decisions = [each for each in decisions if each.generation == 1]
    assert len(decisions) == REQUESTS
    for decision in decisions[:300]:
        pmf, scores = generation.pmf(decision.context, decision.actions)
        assert decision.pmf == pmf.tolist()
        assert scores is not None
        assert decision.scores == scores.tolist()
        assert decision.propensity == decision.pmf[decision.chosen]
        assert min(decision.pmf) >= FLOOR - 1e-12
    assert len({decision.pmf[1] for decision in decisions}) > 10
    audited = served.run("audit", patience_s=PATIENCE_S)["credit"]
    assert audited["decisions"] >= 2 * REQUESTS
    assert audited["replayed"] == audited["decisions"]
    assert audited["replay_mismatches"] == 0


def test_what_is_served_is_fair_and_not_blind(served: Server) -> None:
    people = [(merit, group) for merit in np.linspace(-2.0, 2.0, 9).tolist() for group in "ab"]
    chances = {each: approval(served, *each) for each in people}
    beyond = [
        abs(chances[one] - chances[two]) - min(1.0, SLOPE * abs(one[0] - two[0])) - ALPHA
        for one, two in itertools.combinations(people, 2)
    ]
    # Sixty rounds of 20 are little to learn from: it is near, and not within.
    assert max(beyond) < 0.3
    assert chances[2.0, "a"] > chances[-2.0, "a"] + 0.2


def test_it_can_be_evaluated_as_any_other_policy(served: Server) -> None:
    asked = itertools.chain(*(("--policy", each) for each in ("1", "logged", "uniform")))
    told = served.run("evaluate", *asked, patience_s=PATIENCE_S)
    found = msgspec.convert(told["credit"], Comparison)
    assert [each.name for each in found.total.policies] == ["generation 1", "logged", "uniform"]
    for policy in found.total.policies:
        for finding in policy.values.values():
            assert finding.value == pytest.approx(0.6, abs=0.3)
