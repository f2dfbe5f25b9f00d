"""A guardrail from the requests to the gate: a challenger that earns more by harming it is refused.

One of two actions is rewarded for one device, the other one for the other. Whoever learns that is
promoted; in the loop where every reward comes with a complaint he isn't.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from croupier.cli.config import load_config
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.guardrails import guardrail_reward
from croupier.offline.lake import Lake
from croupier.offline.verify import verify_loop
from croupier.policy.events import Outcome
from tests.service.running import Server, running, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.running import Caller

# MLflow uses what its own dependencies have deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

REQUESTS = 800
LOOP = """
[loops.{name}]
attribution_window = "1 s"
exploration = {{ kind = "epsilon_greedy", epsilon = 0.2 }}
oracle = {{ kind = "sklearn" }}

[loops.{name}.guardrails.complaint]
direction = "lower"
max_fall = 0.05

[loops.{name}.guardrails.margin]
reward_max = 10.0
default_reward = 1.0
aggregation = "max"
"""
# With the ids of the decisions, the secret says what is drawn.
SERVICE = f'[service]\nport = 0\ndraw_secret = "{bytes(range(16)).hex()}"\n'
CONFIG = SERVICE + LOOP.format(name="kind") + LOOP.format(name="harsh")
ACTIONS = [{"id": "a"}, {"id": "b"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on which both loops have decided and been rewarded, and whose windows closed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        server = Server(tmp_path_factory.mktemp("guarded"), CONFIG)
        with running(server):
            with server.caller() as caller:
                for loop in ("kind", "harsh"):
                    day(caller, loop)
            wait_until(lambda: all_joined(server.run("join")))
            yield server


def day(caller: Caller, loop: str) -> None:
    for start in range(0, REQUESTS, 50):
        outcomes: list[dict[str, Any]] = []
        for number in range(start, start + 50):
            device = ("phone", "desktop")[number % 2]
            decision_id = f"{loop}-{number}"
            request = {"decision_id": decision_id, "context": {"device": device}}
            answer = caller.post(f"{loop}/decide", request | {"actions": ACTIONS})
            assert answer.status == 200
            good = float(answer.json["action"] == ("a" if device == "phone" else "b"))
            # In the kind loop, there are as many complaints whatever is done.
            complaint = good if loop == "harsh" else float(number % 10 < 2)
            known = {"decision_id": decision_id}
            told = {"complaint": complaint, "unwatched": -1e9}
            outcomes.append(known | {"reward": good, "guardrails": told})
            if number % 4 == 0:
                outcomes.append(known | {"reward": 0.0, "guardrails": {"margin": 7.5}})
        assert caller.post(f"{loop}/reward", outcomes).json == {"accepted": len(outcomes)}


def all_joined(report: Any) -> bool:
    return all(loop["open"] == 0 for loop in report.values())


def test_outcomes_outside_a_guardrails_range_are_refused(served: Server) -> None:
    known = {"decision_id": "x", "reward": 1.0}
    for place, told, field in (
        (known, {"complaint": 1.5}, "guardrails.complaint"),
        (known, {"complaint": 0.5, "margin": -0.1}, "guardrails.margin"),
    ):
        answer = served.post("kind/reward", place | {"guardrails": told})
        assert answer.status == 400
        assert answer.error["target"] == field
        assert "expected a number in [0, 1" in answer.error["message"]
        listed = served.post("kind/reward", [known, place | {"guardrails": told}])
        assert listed.error["target"] == f"[1].{field}"
    assert all(not isinstance(e, Outcome) or e.decision_id != "x" for e in served.events())


def test_the_gate_refuses_who_harms_a_guardrail(served: Server) -> None:
    """What is earned by it is the same in both loops, and so is what promotes in one of them.

    A uniform log, some 240 of whose decisions judge: the difference of rewards and of complaints
    is eight standard errors. A harmless challenger would be refused in 2.5 % at most of all logs;
    this one is always the same.
    """
    lake = Lake(served.data_dir / "lake")
    rows = lake.scan("interactions").select(
        "loop",
        "reward",
        complaint=guardrail_reward("complaint"),
        margin=guardrail_reward("margin"),
        other=guardrail_reward("unwatched"),
    )
    joined = rows.collect()
    assert len(joined) == 2 * REQUESTS
    assert joined["other"].null_count() == len(joined)
    assert sorted(joined["margin"].value_counts().rows()) == [(1.0, 1200), (7.5, 400)]
    harsh = joined.filter(pl.col("loop") == "harsh")
    assert harsh["complaint"].equals(harsh["reward"].alias("complaint"))

    found = served.run("nightly", patience_s=480.0)
    nights = {night["loop"]: night for night in found["loops"]}
    kind, harsh_night = nights["kind"], nights["harsh"]
    assert [night["failed"] for night in nights.values()] == [None, None]
    assert kind["verdict"]["promote"], kind["verdict"]
    assert kind["champion"] == 1
    assert sum("guardrail " in reason for reason in kind["verdict"]["reasons"]) == 2
    assert not harsh_night["verdict"]["promote"]
    assert harsh_night["champion"] == 0
    (reason,) = harsh_night["verdict"]["reasons"]
    assert reason.startswith("guardrail complaint: challenger - champion is +0.")
    assert reason.endswith(": shown to be higher by more than 0.05")
    assert harsh_night["evaluation"]["differences"]["dr"]["lower"] > 0.0

    # The table says so too, and what the generation that was served has come to.
    table = lake.scan("generations", "harsh").sort("generation").collect().to_dicts()
    assert [row["status"] for row in table] == ["champion", "rejected"]
    assert reason in table[1]["verdict"]
    complaint, margin = table[1]["guardrails"]
    assert (complaint["name"], margin["name"]) == ("complaint", "margin")
    assert complaint["difference_lower"] > 0.05
    assert table[0]["guardrails"] is None
    realised = {each["name"]: each for each in table[0]["realised_guardrails"]}
    assert realised["complaint"]["decisions"] == REQUESTS
    assert realised["complaint"]["mean"] == pytest.approx(harsh["complaint"].mean())
    states = {state["loop"]: state for state in served.run("status")["loops"]}
    assert states["harsh"]["guardrails"]["complaint"] == realised["complaint"]["mean"]


def test_the_lake_is_as_the_log_says(served: Server) -> None:
    config, paths = load_config(served.data_dir.parent / "croupier.toml", environment={})
    with SqliteEventLog(paths.log) as log:
        for loop in ("kind", "harsh"):
            found = verify_loop(Lake(paths.lake), log, loop, config.loop(loop))
            assert (found.sound, found.checked) == (True, REQUESTS)
