"""Plans that a running server follows: canary, shadow, kill switch, uniform slices."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from croupier.offline.registry import Change, Registry
from croupier.policy.decision import DecisionRequest
from croupier.policy.events import Action, MixComponent
from croupier.policy.loop import LoopConfig
from croupier.policy.traffic import Plan, UniformSlice
from croupier.service.follower import Follower
from croupier.service.metrics import Metrics
from croupier.service.scorer import Scorer
from croupier.service.serving import KillSwitch, ServingDirectory
from croupier.service.settings import SettingsDirectory
from tests.service.generations import generation
from tests.service.running import Server, running, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from croupier.policy.events import Decision
    from tests.service.conftest import Serve

# MLflow uses what its own dependencies have deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

POLL = "50 ms"
CONFIG = f"""
[service]
port = 0
registry_poll = "{POLL}"

[loops.digits]

[loops.other]
"""
DECIDE = {"actions": [{"id": "a"}, {"id": "bb"}, {"id": "ccc"}], "baseline": "bb"}
BASELINE = [MixComponent("baseline", 1.0)]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without a registry; every test names a plan of its own."""
    with running(Server(tmp_path_factory.mktemp("planned"), CONFIG)) as server:
        for number in range(1, 6):
            made = generation("digits", number)
            made.save(server.serving.generation_path("digits", number))
        yield server


def report(server: Server, loop: str = "digits") -> dict[str, Any]:
    found: dict[str, Any] = server.readiness()["loops"][loop]
    return found


def follows(server: Server, **expected: object) -> None:
    wait_until(lambda: expected.items() <= report(server).items())


def decided(server: Server, loop: str = "digits") -> Decision:
    """Ask for a decision, and read it back from the log."""
    answer = server.post(f"{loop}/decide", DECIDE)
    assert answer.status == 200
    return server.decision(answer.json["decision_id"])


def gauge(server: Server, name: str, loop: str = "digits") -> float:
    line = next(
        line
        for line in server.get("/metrics").body.decode().splitlines()
        if line.startswith(f'{name}{{loop="{loop}"}} ')
    )
    return float(line.rpartition(" ")[2])


def croupier(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "croupier", *arguments, "--config", "croupier.toml"],
        cwd=server.data_dir.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_plan_is_served_as_a_whole(planned: Server) -> None:
    planned.name("digits", 1, canary=2, canary_share=0.25, shadow=3)
    follows(planned, generation=1, canary=2, canary_share=0.25, shadow=3, error=None)
    decision = decided(planned)
    assert decision.generation == 1
    assert decision.mix == [MixComponent("generation:1", 0.75), MixComponent("generation:2", 0.25)]
    asked = (decision.context, decision.actions, None, 1)
    champion, canary, shadow = (generation("digits", number).pmf(*asked)[0] for number in (1, 2, 3))
    assert decision.pmf == pytest.approx((0.75 * champion + 0.25 * canary).tolist(), abs=1e-12)
    assert decision.shadow is not None
    assert decision.shadow.generation == 3
    assert decision.shadow.pmf == shadow.tolist()
    assert gauge(planned, "croupier_canary_share") == 0.25

    planned.name("digits", 2)
    follows(planned, generation=2, canary=None, canary_share=0.0, shadow=None, error=None)
    decision = decided(planned)
    assert (decision.mix, decision.shadow) == ([MixComponent("generation:2", 1.0)], None)
    assert gauge(planned, "croupier_canary_share") == 0.0


@pytest.mark.parametrize(("role", "broken"), [("canary", 98), ("shadow", 99)])
def test_another_that_can_t_be_loaded_is_left_out(planned: Server, role: str, broken: int) -> None:
    others = {"canary": 4, "shadow": 3} | {role: broken}
    planned.name("digits", 2, canary_share=0.1, **others)
    follows(planned, generation=2, **{role: None})
    wait_until(lambda: (report(planned)["error"] or "").startswith(f"{role}: "))
    ready = planned.get("/readyz")
    assert (ready.status, ready.json["status"]) == (200, "degraded")
    healthy = "shadow" if role == "canary" else "canary"
    assert ready.json["loops"]["digits"][healthy] == others[healthy]
    decision = decided(planned)
    assert (decision.generation, decision.shadow is None) == (2, role == "shadow")
    assert f"loop digits: the plan can't be followed: {role}: " in planned.stderr()
    # As soon as it can be loaded it is served.
    generation("digits", broken).save(planned.serving.generation_path("digits", broken))
    follows(planned, **{role: broken}, error=None)


def test_a_champion_that_can_t_be_loaded_does_not_keep_a_canary(planned: Server) -> None:
    planned.name("digits", 1, canary=2, canary_share=0.5)
    follows(planned, generation=1, canary=2, error=None)
    planned.name("digits", 77)
    follows(planned, generation=1, canary=None)
    assert report(planned)["error"].startswith("champion: ")
    # Nor does it keep the kill switch from working.
    planned.name("digits", 77, killed="enough")
    follows(planned, generation=1, killed="enough")
    assert decided(planned).mix == BASELINE
    planned.name("digits", 1)
    follows(planned, generation=1, killed=None, error=None)


def test_what_an_older_mirror_wrote_is_read(planned: Server) -> None:
    path = planned.serving.root / "digits" / "champion.json"
    path.write_text('{"generation": 3}')
    follows(planned, generation=3, canary=None, shadow=None, killed=None, error=None)


def test_killed_by_hand_and_resumed(planned: Server) -> None:
    """As `croupier kill` does it, on a machine whose registry was never there."""
    planned.name("digits", 1, canary=2, canary_share=0.3, shadow=3)
    follows(planned, generation=1, canary=2, killed=None)
    assert decided(planned).mix != BASELINE

    killed = croupier(planned, "kill", "digits", "--reason", "it [b]misbehaves[/b]", "--json")
    assert killed.returncode == 0, killed.stderr
    facts = json.loads(killed.stdout)
    assert (facts["killed"], facts["here"]) == ("it [b]misbehaves[/b]", True)
    assert "there is no registry yet" in facts["registry_error"]
    assert not (planned.data_dir / "mlflow.db").exists()
    # The command takes longer than a poll.
    assert report(planned)["killed"] == "it [b]misbehaves[/b]"
    decision = decided(planned)
    assert (decision.mix, decision.propensity, decision.shadow) == (BASELINE, 1.0, None)
    assert decision.actions[decision.chosen].id == "bb"
    assert planned.readiness()["status"] == "degraded"
    assert gauge(planned, "croupier_killed") == 1.0
    assert gauge(planned, "croupier_killed", "other") == 0.0
    assert decided(planned, "other").mix != BASELINE
    status = croupier(planned, "status", "--json")
    traffic = {loop["loop"]: loop["traffic"] for loop in json.loads(status.stdout)["loops"]}
    assert traffic == {"digits": "killed: it [b]misbehaves[/b]", "other": "champion 0"}
    shown = croupier(planned, "status")
    assert "killed: it [b]misbehaves[/b]" in shown.stdout

    assert croupier(planned, "resume", "digits").returncode == 0
    follows(planned, generation=1, canary=2, killed=None, error=None)
    assert decided(planned).mix != BASELINE
    assert gauge(planned, "croupier_killed") == 0.0


def test_a_kill_takes_no_longer_than_a_poll(tmp_path: Path) -> None:
    """By the follower alone, without a process in between: one look is enough."""
    serving, scorer = ServingDirectory(tmp_path), Scorer({"digits": LoopConfig()})
    serving.start_cold("digits")
    settings = SettingsDirectory(tmp_path / "settings")
    follower = Follower(serving, scorer, Metrics(), settings, poll_s=60.0)
    follower.poll()
    request = DecisionRequest(actions=[Action("a"), Action("b")])
    assert scorer.decide("digits", request).mix == [MixComponent("generation:0", 1.0)]
    serving.kill("digits", KillSwitch(reason="now", by="anna", since_us=1))
    follower.poll()
    assert scorer.decide("digits", request).mix == BASELINE
    # A file that can't be read was not put there to go on as if nothing had happened.
    (tmp_path / "digits" / "killed.json").write_bytes(b"\xff")
    follower.poll()
    assert scorer.decide("digits", request).mix == BASELINE
    assert "can't be read" in (follower.report().loops["digits"]["killed"] or "")
    serving.resume("digits")
    follower.poll()
    assert scorer.decide("digits", request).mix == [MixComponent("generation:0", 1.0)]


def test_from_the_registry_to_the_scorer(serve: Serve) -> None:
    server = serve(CONFIG)
    registry = registry_of(server)
    for number in range(1, 10):
        registry.publish(generation("digits", number), params={}, metrics={})
    registry.promote("digits", 3)
    registry.set_canary("digits", 1, 0.2, change())
    registry.set_shadow("digits", 2, change())
    follows(server, generation=3, canary=1, canary_share=0.2, shadow=2, error=None)
    wait_until(lambda: bool(server.readiness()["status"] == "ready"))
    decision = decided(server)
    assert decision.mix == [MixComponent("generation:3", 0.8), MixComponent("generation:1", 0.2)]
    assert decision.shadow is not None
    check_that_served_generations_are_kept(server, registry)
    check_that_a_canary_without_a_share_is_left_out(server, registry)
    check_the_kill_switch(server, registry)
    # A canary that is promoted is no canary any more.
    registry.promote("digits", 1)
    follows(server, generation=1, canary=None, shadow=2, error=None)
    registry.clear_split("digits", change())
    follows(server, generation=1, canary=None, shadow=None)
    check_a_kill_without_the_registry_s_file(server)


def test_a_server_warns_of_an_exploration_that_learns_nothing(serve: Serve) -> None:
    server = serve(f'{CONFIG}\n[loops.sure]\nexploration = {{ kind = "greedy" }}\n')
    said = server.stderr()
    assert said.count("warning: ") == 1
    assert "warning: loop sure: greedy: only the best action is ever played" in said


def check_that_served_generations_are_kept(server: Server, registry: Registry) -> None:
    for number in range(4, 10):
        registry.promote("digits", number)
        follows(server, generation=number, canary=1, shadow=2)
    kept = {int(path.name) for path in (server.serving.root / "digits").glob("[0-9]*")}
    assert {1, 2, 9} <= kept
    assert 3 not in kept


def check_that_a_canary_without_a_share_is_left_out(server: Server, registry: Registry) -> None:
    """Somebody has used MLflow's own pages, and knows of aliases alone."""
    client = registry._tracking.client()
    client.delete_registered_model_tag("croupier-digits", "croupier.canary_share")
    follows(server, generation=9, canary=None, shadow=2)
    wait_until(lambda: "croupier.canary_share" in server.readiness()["registry"])
    client.set_registered_model_tag("croupier-digits", "croupier.canary_share", "0.125")
    follows(server, generation=9, canary=1, canary_share=0.125)


def check_the_kill_switch(server: Server, registry: Registry) -> None:
    registry.kill("digits", change("smoke"))
    follows(server, generation=9, killed="smoke")
    assert decided(server).mix == BASELINE
    registry.kill("other", change("more smoke"))
    wait_until(lambda: report(server, "other")["killed"] == "more smoke")
    for loop in ("digits", "other"):
        registry.resume(loop, change())
    for loop in ("digits", "other"):
        wait_until(partial(is_alive, server, loop))
    assert decided(server).mix != BASELINE


def is_alive(server: Server, loop: str) -> bool:
    return report(server, loop)["killed"] is None


def check_a_kill_without_the_registry_s_file(server: Server) -> None:
    database = server.data_dir / "mlflow.db"
    aside = database.rename(database.with_suffix(".aside"))
    killed = croupier(server, "kill", "digits", "--reason", "no registry", "--json")
    assert killed.returncode == 0, killed.stderr
    assert not database.exists()
    follows(server, generation=1, killed="no registry")
    assert decided(server).mix == BASELINE
    aside.rename(database)
    # The registry, which knows nothing of it, doesn't turn it off.
    time.sleep(0.3)
    assert report(server)["killed"] == "no registry"
    assert croupier(server, "resume", "digits").returncode == 0
    follows(server, generation=1, killed=None)


def registry_of(server: Server) -> Registry:
    return Registry(f"sqlite:///{server.data_dir / 'mlflow.db'}", server.data_dir / "mlartifacts")


def change(reason: str = "") -> Change:
    return Change("anna", time.time_ns() // 1000, reason)


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1e6)


SLICES = (
    UniformSlice(share=0.2, start="22:00", end="02:00", days=("fri",)),
    UniformSlice(share=0.3, start="23:00", end="23:30"),
)


@pytest.mark.parametrize(
    ("time_of_day", "share"),
    [
        ("2026-11-20T21:59:59", 0.0),
        ("2026-11-20T22:00:00", 0.2),
        ("2026-11-20T23:10:00", 0.5),
        ("2026-11-21T01:59:59", 0.2),
        ("2026-11-21T02:00:00", 0.0),
        ("2026-11-21T23:10:00", 0.3),
    ],
)
def test_uniform_slices_are_mixed_in_by_the_clock(time_of_day: str, share: float) -> None:
    scorer = Scorer({"digits": LoopConfig(uniform_slices=SLICES)}, clock=lambda: at(time_of_day))
    served = generation("digits", 1)
    scorer.swap(Plan(served, canary=generation("digits", 2), canary_share=0.25))
    request = DecisionRequest(
        actions=[Action("a"), Action("bb"), Action("ccc"), Action("d")], excluded=["d"]
    )
    decision = scorer.decide("digits", request)
    weights = {part.source: part.weight for part in decision.mix}
    expected = {"generation:1": 0.75 * (1 - share), "generation:2": 0.25 * (1 - share)}
    if share > 0.0:
        expected["uniform"] = share
    assert weights == pytest.approx(expected)
    eligible = np.array([True, True, True, False])
    parts = [
        generation("digits", number).pmf({}, request.actions, eligible, 0)[0] for number in (1, 2)
    ]
    mixed = (1 - share) * (0.75 * parts[0] + 0.25 * parts[1]) + share * eligible / 3
    assert decision.pmf == pytest.approx(mixed.tolist(), abs=1e-12)
    assert decision.propensity == decision.pmf[decision.chosen]
