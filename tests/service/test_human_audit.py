"""A walk through a human audit: a person's judgements turn what the gate says of a generation.

The first generation gets through, as nobody minds that the city counts. A person is shown pairs and
says that it must not. The next generation, made the same way, is refused with the violation rate
that her judgements give it, and one that tells people less apart passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from croupier.policy.events import Judgement
from tests.service.running import Server, running, wait_until

if TYPE_CHECKING:
    from pathlib import Path

# MLflow uses what its own dependencies have deprecated.
pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

LIMIT = 0.05
CONFIG = f"""
[service]
port = 0
registry_poll = "50 ms"

[nightly.gate]
margin = -1.0

[loops.loans]
attribution_window = "1 s"
oracle = {{ kind = "sklearn" }}
exploration = {{ kind = "softmax", temperature = TEMPERATURE, floor = 0.02 }}

[loops.loans.individual_fairness]
action = "approve"
alpha = 0.1
gamma = 0.5
max_violation_rate = {LIMIT}

[loops.loans.individual_fairness.auditors.scale]
type = "distance"
weights = {{ income = 0.4, city = 1.0 }}

[loops.loans.individual_fairness.auditors.board]
type = "learned"
features = ["income", "city"]
people = ["ada"]
"""
SHARP, SMOOTH = (CONFIG.replace("TEMPERATURE", each) for each in ("0.2", "2.0"))
ACTIONS = [{"id": "decline"}, {"id": "approve"}]
REQUESTS = 800
PATIENCE_S = 480.0


def day(server: Server, number: int) -> dict[str, dict[str, Any]]:
    """A day's requests with their outcomes; gives contexts by decision."""
    rng = np.random.default_rng(number)
    contexts: dict[str, dict[str, Any]] = {}
    with server.caller() as caller:
        for start in range(0, REQUESTS, 50):
            outcomes = []
            for place in range(start, start + 50):
                context: dict[str, Any] = {
                    "income": float(rng.normal()),
                    "city": ["north", "south"][int(rng.integers(2))],
                }
                request = {
                    "decision_id": f"{number}-{place}",
                    "context": context,
                    "actions": ACTIONS,
                }
                answer = caller.post("loans/decide", request)
                assert answer.status == 200
                contexts[f"{number}-{place}"] = context
                good = rng.random() < chance_of_good(**context)
                reward = float(good) if answer.json["action"] == "approve" else 0.5
                outcomes.append({"decision_id": f"{number}-{place}", "reward": reward})
            assert caller.post("loans/reward", outcomes).json == {"accepted": len(outcomes)}
    wait_until(lambda: joined(server.run("join")))
    return contexts


def chance_of_good(income: float, city: str) -> float:
    return float(1.0 / (1.0 + np.exp(-(0.8 * income + (1.2 if city == "north" else -1.2)))))


def joined(report: Any) -> bool:
    return all(loop["open"] == 0 for loop in report.values())


def learned(server: Server, generation: int) -> None:
    trained = server.run("retrain", patience_s=PATIENCE_S)
    assert trained["loans"]["generation"] == generation


def asked(server: Server, generation: int, *, passes: bool) -> dict[str, Any]:
    """What the gate says, in the exit code and in the findings about individual fairness."""
    code = 0 if passes else 1
    said = server.run("promote", "loans", str(generation), patience_s=PATIENCE_S, code=code)
    assert said["promote"] is passes
    report = server.run("report", "--loop", "loans", "--generation", str(generation))
    sections = {each["name"]: each for each in report["judged"]["verdict"]["sections"]}
    findings = {each["name"]: each for each in sections["individual_fairness"]["findings"]}
    rate: dict[str, Any] = findings["violation rate"]
    return rate | {"reasons": said["reasons"]}


def ada_judges(server: Server, contexts: dict[str, dict[str, Any]]) -> int:
    """She is shown what is proposed, and only income makes a difference to her."""
    pairs = server.run("judge", "--loop", "loans", "--count", "40", patience_s=PATIENCE_S)
    with server.caller() as caller:
        for pair in pairs:
            one, two = (pair[side]["decision_id"] for side in ("first", "second"))
            assert pair["first"]["context"] == contexts[one]
            apart = abs(contexts[one]["income"] - contexts[two]["income"])
            judgement = {
                "decision_id": one,
                "other_decision_id": two,
                "auditor": "ada",
                "distance": min(1.0, 0.4 * apart),
            }
            assert caller.post("loans/judge", judgement).json == {"accepted": 1}
    server.run("sink")
    return len(pairs)


# The gate, the proposals and the route have tests of their own; this is the whole walk.
@pytest.mark.slow
def test_a_persons_judgements_turn_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    server = Server(tmp_path, SHARP)
    with running(server):
        contexts = day(server, 0)
        learned(server, 1)
        before = asked(server, 1, passes=True)
        assert before["upper"] <= LIMIT
        wait_until(lambda: bool(server.readiness()["loops"]["loans"]["generation"] == 1))
        contexts |= day(server, 1)

        count = ada_judges(server, contexts)
        told = [each for each in server.events() if isinstance(each, Judgement)]
        assert len(told) == count == 40
        assert {each.auditor for each in told} == {"ada"}

        learned(server, 2)
        refused = asked(server, 2, passes=False)
        assert refused["lower"] > LIMIT
        (reason,) = refused["reasons"]
        assert f"violation rate of the challenger is {refused['value']:.4f}" in reason
        assert f"not shown to be at most {LIMIT:g}" in reason
        audited = server.run("audit", "--pairs", patience_s=PATIENCE_S)["loans"]
        board = next(each for each in audited["auditors"] if each["name"] == "board")
        assert board["judgements"] == count
        assert board["weights"]["city"] < 0.15 < board["weights"]["income"]

        server.configure(SMOOTH)
        learned(server, 3)
        passed = asked(server, 3, passes=True)
        assert passed["upper"] <= LIMIT < refused["value"]
        wait_until(lambda: bool(server.readiness()["loops"]["loans"]["generation"] == 3))
        north, south = (
            server.post(
                "loans/decide",
                {"context": {"income": 0.0, "city": city}, "actions": ACTIONS},
            ).json["pmf"][1]
            for city in ("north", "south")
        )
        assert 0.0 < north - south <= 0.1
