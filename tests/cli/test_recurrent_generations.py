"""Policies from simulators as generations: registered, evaluated over sessions and judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from croupier.offline.lake import Lake
from croupier.offline.session_values import SessionComparison
from croupier.policy.events import Action, SessionStep
from croupier.policy.generation import Generation, cold_start
from croupier.policy.stepping import as_logged
from croupier.service.ids import now_us
from tests.cli.test_batch import Command, Done, hour_ago
from tests.policy.recurrent import random_policy
from tests.sim2rec.lts_sessions import DOCUMENTS, HOUR, SESSIONS, STEPS, LTSSessions

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from croupier.policy.recurrent import RecurrentPolicy

pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

CONFIG = """\
data_dir = "data"

[loops.feed]
reward_max = 100.0

[loops.feed.sessions]
user = "user.id"
pause = "20 min"
horizon = 6
state = ["signal", "engagement"]
group = "city"

[loops.shop]
"""
USERS = 100


def policy(sharpness: float = 1.0) -> RecurrentPolicy:
    actions = tuple(f"d{each}" for each in DOCUMENTS)
    return random_policy(2, actions=actions, observation=SESSIONS.state, sharpness=sharpness)


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    (tmp_path / "croupier.toml").write_text(CONFIG)
    policy(0.04).save(tmp_path / "policy")
    return Command(tmp_path, capsys)


def append(command: Command, made_by: Generation, start_us: int) -> pl.DataFrame:
    log = LTSSessions(USERS, seed=3).log(made_by, start_us)
    Lake(command.directory / "data" / "lake").append("interactions", log)
    return log


def register(command: Command) -> Done:
    where = command.directory / "policy"
    return command("simulate", "register", where, "--loop", "feed", "--json")


def test_a_policy_is_registered_and_judged_by_whole_sessions(command: Command) -> None:
    append(command, cold_start("feed"), hour_ago() - HOUR)
    done = register(command)
    assert (done.code, done.facts["generation"]) == (0, 1), done.err
    row = command.lake.scan("generations", "feed").collect().row(-1, named=True)
    assert (row["status"], row["oracle"], row["run_id"]) == (
        "challenger",
        "recurrent",
        done.facts["run_id"],
    )
    assert row["exploration"] == "softmax(temperature=1, floor=0.0125, floor_method=mix)"
    (place,) = command.directory.glob("data/**/recurrent/policy.json")
    loaded = place.parent.parent
    assert (loaded / "recurrent" / "arrays.npz").read_bytes() == (
        command.directory / "policy" / "arrays.npz"
    ).read_bytes()
    # What went before it can't tell of it: it may have learned from that.
    said = command.refused("evaluate", "--sessions", "--policy", "1", "--loop", "feed")
    assert said.startswith("expected sessions that began after the latest generation was made")
    assert "decides step by step" in command.refused("evaluate", "--policy", "1", "--loop", "feed")
    refused = command("promote", "feed", 1)
    assert (refused.code, "sessions that began after" in refused.err) == (2, True)

    append(command, cold_start("feed"), now_us() + 1_000_000)
    held = command("promote", "feed", 1, "--json")
    assert held.code == 1
    assert any("not shown to be above +0" in each for each in held.facts["reasons"])
    (command.directory / "croupier.toml").write_text(CONFIG + "[nightly.gate]\nmargin = -100.0\n")
    passed = command("promote", "feed", 1, "--json")
    assert passed.code == 0, passed
    row = command.lake.scan("generations", "feed").collect().row(-1, named=True)
    assert (row["status"], row["judged_rows"], row["estimator"]) == ("champion", USERS, "dr")
    assert row["total_variation"] > 0.0


def test_fairness_that_sessions_cannot_tell_of_holds_it_back(command: Command) -> None:
    limits = (
        "[nightly.gate]\nmargin = -100.0\n[loops.feed.fairness]\n"
        'attributes = ["city"]\nlimits = { max_value_gap = 0.1 }\n'
        "[loops.feed.guardrails.complaints]\n"
    )
    (command.directory / "croupier.toml").write_text(CONFIG + limits)
    assert register(command).code == 0
    append(command, cold_start("feed"), now_us() + 1_000_000)
    held = command("promote", "feed", 1, "--json")
    assert held.code == 1
    reasons = held.facts["reasons"]
    assert "fairness is asked for: it is not measured over whole sessions" in reasons
    assert any(each.startswith("guardrail complaints: only 0") for each in reasons)


def test_a_log_of_its_own_is_evaluated_exactly(command: Command) -> None:
    assert register(command).code == 0
    (place,) = command.directory.glob("data/**/recurrent/policy.json")

    generation = Generation.load(place.parent.parent)
    append(command, generation, now_us() + 1_000_000)
    log = command.lake.scan("interactions", "feed").collect()
    # Every row tells its own pmf, bit for bit.
    for row in log.iter_rows(named=True):
        session = msgspec.convert(row["session"], SessionStep)
        context = msgspec.json.decode(row["context"])
        actions = msgspec.json.decode(row["actions"], type=list[Action])
        at = as_logged(generation, context, session)
        assert at.pmf(context, actions)[0].tolist() == row["pmf"]
    named = ("--policy", 1, "--policy", "logged", "--estimator", "pdis", "--estimator", "wpdis")
    done = command("evaluate", "--sessions", *named, "--json")
    found = msgspec.convert(done.facts["feed"], SessionComparison)
    own, logged = found.policies
    assert (found.sessions, found.decisions, own.left_out) == (USERS, USERS * STEPS, 0)
    # Followed along the sessions it comes to the pmfs that it was served with, so weights are 1.
    for each in own.estimates:
        assert each.value == pytest.approx(logged.estimates[0].value, rel=1e-12)
        assert (each.ess, each.mean_weight, each.max_weight) == (USERS, 1.0, 1.0)


@pytest.mark.parametrize(
    ("config", "loop", "message"),
    [
        (CONFIG, "shop", "loop: expected one with a section sessions, got 'shop'"),
        (
            CONFIG.replace('"signal", ', ""),
            "feed",
            "loops.feed.sessions.state: expected the paths that the policy sees, signal too",
        ),
        (
            CONFIG.replace('"city"', '"town"'),
            "feed",
            "loops.feed.sessions.group: expected the policy's, 'city', got 'town'",
        ),
    ],
)
def test_a_loop_that_does_not_tell_what_it_sees_is_refused(
    command: Command, config: str, loop: str, message: str
) -> None:
    (command.directory / "croupier.toml").write_text(config)
    assert (
        command.refused("simulate", "register", command.directory / "policy", "--loop", loop)
        == message
    )


def test_what_is_no_policy_is_refused(command: Command) -> None:
    said = command.refused("simulate", "register", "nowhere", "--loop", "feed")
    assert said.startswith("the recurrent policy in nowhere can't be read")
