"""``croupier simulate log``: from a log to a policy, and what is said of it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import msgspec
import polars as pl
import pytest

from croupier.cli import simulate_log
from croupier.cli.main import main
from croupier.offline.lake import Lake
from croupier.policy.recurrent import load_recurrent
from croupier.sim2rec.learning_config import ActorConfig, PPOConfig, SADAEConfig
from croupier.sim2rec.log_loop import LOOP
from croupier.sim2rec.log_runs import ESTIMATORS, LOG_RUNS_SCHEMA
from croupier.sim2rec.log_study_config import (
    BASE,
    VARIANTS,
    LogStudyConfig,
    LogWorldConfig,
    PolicyConfig,
)
from croupier.sim2rec.user_model_config import SimulatorsConfig, UserModelConfig

if TYPE_CHECKING:
    from pathlib import Path

    from tests.command_line import Complain

# Of two groups none can be held out, so nobody is told a code; with three somebody is.
TINY = LogStudyConfig(
    world=LogWorldConfig(groups=(6.0, 24.0), users=24, nights=2, documents=4, horizon=4),
    policy=PolicyConfig(
        judge_share=0.5,
        models=UserModelConfig(members=2, memory=4, hidden=8, steps=20, every=10, sessions=8),
        simulators=SimulatorsConfig(users=16, by_group=True, penalty=1.0),
        actor=ActorConfig(memory=4, hidden=4, code=2, floor=0.05),
        ppo=PPOConfig(iterations=4, users=24, epochs=1, minibatches=2, critic=4),
        sadae=SADAEConfig(code=2, hidden=4, users=8, steps=4, every=2),
        every=2,
    ),
    fresh=4,
    truncated=2,
)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, command: str = "log") -> None:
    monkeypatch.setattr(sys, "argv", ["croupier", "simulate", command, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0


def test_a_policy_is_learned_from_a_log_and_told_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(simulate_log, "LOG_BUDGETS", {"reduced": TINY})
    asked = ["--seeds", "1", "--jobs", "1", "--output", str(tmp_path)]
    run(monkeypatch, *asked, "--json")
    study = json.loads(capfd.readouterr().out)
    assert json.loads((tmp_path / "log.json").read_bytes()) == study
    assert (tmp_path / "log.png").read_bytes().startswith(b"\x89PNG")
    runs = pl.read_delta(str(tmp_path / "runs"))
    assert runs.schema == LOG_RUNS_SCHEMA
    (row,) = runs.to_dicts()
    # Every one of 48 users has a session a night; a real lake has all of their decisions.
    assert row["sessions"] == 96
    (folder,) = tmp_path.glob("0-*")
    lake = Lake(folder / "loop" / "lake")
    for table in ("decisions", "outcomes", "interactions"):
        assert lake.scan(table, LOOP).select(pl.len()).collect().item() == 96 * 4
    assert [each["estimator"] for each in study["estimates"]] == list(ESTIMATORS)
    # Simulators of other users, each of which is fitted to a bootstrap of them.
    assert study["unseen"]["lower"] < study["unseen"]["value"] < study["unseen"]["upper"]
    assert row["unseen"]["value"] == study["unseen"]["value"] != study["simulated"]["value"]
    truths = study["truths"]
    lead = truths["over_champion"]
    assert lead["value"] == pytest.approx(truths["policy"]["value"] - truths["champion"]["value"])
    assert lead["lower"] < lead["value"] < lead["upper"]
    assert truths["optimum"]["value"] > max(
        truths[name]["value"] for name in ("policy", "champion", "greedy", "constant")
    )
    assert study["ablations"] == []
    served = load_recurrent(folder / "policy")
    assert served.config.actions == ("d00", "d01", "d02", "d03")
    assert (served.config.horizon, served.config.training.lake_version) == (4, 1)
    kept = (folder / "policy-as-it-is").stat().st_mtime_ns
    run(monkeypatch, *asked)
    said = capfd.readouterr().out
    assert "What the policy earns more than others" in said
    assert "wmdr over the judges' sessions" in said
    assert (folder / "policy-as-it-is").stat().st_mtime_ns == kept


@pytest.mark.slow  # every variant is a program of its own, and takes half a minute to compile
def test_switches_are_turned_and_a_loop_s_own_log_is_learned_from(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    world = msgspec.structs.replace(TINY.world, groups=(6.0, 12.0, 24.0))
    monkeypatch.setattr(
        simulate_log, "LOG_BUDGETS", {"reduced": msgspec.structs.replace(TINY, world=world)}
    )
    asked = ["--seeds", "2", "--jobs", "1", "--json"]
    run(monkeypatch, *asked, "--ablate", "--output", str(tmp_path / "study"))
    study = json.loads(capfd.readouterr().out)
    switches = [each.switch for each in VARIANTS if each is not BASE]
    assert [each["switch"] for each in study["ablations"]] == switches
    assert {each["seeds"] for each in study["ablations"]} == {2}
    for each in study["ablations"]:
        kept = "on" if each["kept"] else "off"
        assert each[kept]["value"] == pytest.approx(study["truths"]["policy"]["value"])

    (folder,) = (tmp_path / "study").glob("0-*")
    (tmp_path / "croupier.toml").write_text(
        f"""data_dir = {str(folder / "loop")!r}
[loops.{LOOP}]
reward_min = -100.0
reward_max = 100.0
[loops.{LOOP}.sessions]
user = "user.id"
pause = "20 min"
horizon = 4
state = ["group_signal", "engagement"]
group = "city"
[loops.shop]
"""
    )
    told = ["--loop", LOOP, "--config", str(tmp_path / "croupier.toml")]
    run(monkeypatch, *asked, *told, "--output", str(tmp_path / "own"))
    own = json.loads(capfd.readouterr().out)
    assert own["truths"] is None
    assert own["simulated"]["value"] > 0.0
    assert own["sessions"] == 144
    assert [each["estimator"] for each in own["estimates"]] == list(ESTIMATORS)
    (policy,) = (tmp_path / "own").glob("0-*/policy")
    assert sorted(load_recurrent(policy).config.codes) == ["city-0", "city-1", "city-2"]
    run(monkeypatch, str(policy), *told, "--json", command="register")
    registered = json.loads(capfd.readouterr().out)
    assert (registered["loop"], registered["generation"]) == (LOOP, 1)


def test_bad_input_is_one_line(complain: Complain, tmp_path: Path) -> None:
    (tmp_path / "croupier.toml").write_text(
        'data_dir = "data"\n[loops.shop]\n[loops.blind.sessions]\nuser = "u"\n'
    )
    config = ("--config", str(tmp_path / "croupier.toml"))
    assert complain("simulate", "log", "--budget", "huge").startswith("budget: expected one of")
    assert complain("simulate", "log", "--loop", "shop", *config).startswith(
        "loop: expected one with a section sessions"
    )
    assert complain("simulate", "log", "--loop", "blind", *config).startswith(
        "sessions.state: expected at least one number"
    )
    said = complain("simulate", "log", "--ablate", "--loop", "shop", *config)
    assert said.startswith("ablate: expected it without --loop")
