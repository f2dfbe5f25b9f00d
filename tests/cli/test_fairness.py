"""Groups on the command line: a night that audits them, the gate's limits, croupier audit."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from croupier.offline.promotion_report import PromotionReport
from tests.cli.test_batch import CONFIG, Command, hour_ago, in_process
from tests.offline.shop import Shop
from tests.offline.worlds import World

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.policy.requests import DecisionRequest

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

GROUPS = """
[loops.shop.fairness]
attributes = ["gender", "gender * age"]
sensitive = ["gender"]
"""


@dataclass(frozen=True, eq=False)
class Attributed(World):
    """Women come in the first context oftener than men."""

    def request(self, context: int, decision_id: str | None = None) -> DecisionRequest:
        asked = super().request(context, decision_id)
        number = 0 if decision_id is None else int(decision_id.rpartition("-")[2])
        female = number % 10 < (8 if context == 0 else 3)
        audit = {"gender": "f" if female else "m", "age": "old" if number % 4 else "young"}
        return msgspec.structs.replace(asked, audit=audit)


WORLD = Attributed(np.array([[0.9, 0.1, 0.1], [0.1, 0.2, 0.1], [0.1, 0.1, 0.3]]))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a night's work, and an untried generation 2."""
    directory = tmp_path_factory.mktemp("told")
    (directory / "croupier.toml").write_text(CONFIG + GROUPS)
    (directory / "data").mkdir()
    shop = Shop(directory / "data", WORLD, now=hour_ago())
    shop.day(900)
    done = in_process("nightly", cwd=directory)
    assert done.code == 0, done.err
    assert in_process("retrain", cwd=directory).code == 0
    return directory


@pytest.fixture
def command(told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Works on a copy; the artifacts of runs stay where they are."""
    shutil.copytree(told, tmp_path, dirs_exist_ok=True)
    return Command(tmp_path, capsys)


def configure(command: Command, limits: str) -> None:
    text = CONFIG + GROUPS + f"[loops.shop.fairness.limits]\n{limits}\n"
    (command.directory / "croupier.toml").write_text(text)


def test_a_night_keeps_what_groups_got(command: Command) -> None:
    kept = command.lake.scan("fairness", "shop").collect()
    assert set(kept["attribute"]) == {"gender", "gender * age"}
    assert {"f × old", "m × young"} <= set(kept["group"])
    done = command("report", "--generation", 1, "--json")
    report = msgspec.json.decode(done.out, type=PromotionReport, strict=False)
    assert report.judged is not None
    assert report.judged.fairness is not None
    (section,) = [each for each in report.judged.verdict.sections if each.name == "fairness"]
    assert section.measured
    assert any("value gap" in each.name for each in section.findings)
    page = command.directory / "page.html"
    assert command("report", "--generation", 1, "--output", page).code == 0
    assert "What both are worth, by gender" in page.read_text()


def test_an_audit_tells_of_propensities_and_of_groups(command: Command) -> None:
    said = command("audit")
    assert said.code == 0, said.err
    assert "shop: generation 0 by gender * age" in said.out
    assert "f × old" in said.out
    assert said.out.endswith("Sound.\n")
    found = command("audit", "--json").facts["shop"]
    (generation,) = found["groups"]["generations"]
    assert [each["attribute"] for each in generation["attributes"]] == ["gender", "gender * age"]
    (gender, _) = generation["attributes"]
    assert sum(each["decisions"] for each in gender["groups"]) == 900
    # The cold start is uniform: exposures are equal to the last digit.
    exposures = [each["exposure"]["value"] for each in gender["exposures"]]
    assert exposures == pytest.approx([1 / 3] * len(exposures))
    assert exposures
    (reward,) = [each for each in gender["disparities"] if each["measure"] == "reward"]
    values = [each["reward"]["value"] for each in gender["groups"]]
    assert reward["gap"]["difference"] == pytest.approx(max(values) - min(values))
    assert not any("exposure" in each for each in generation["found"])
    assert found["replay_mismatches"] == 0


def test_attributes_can_be_asked_for(command: Command) -> None:
    found = command("audit", "--by", "context.x", "--json").facts["shop"]["groups"]
    (attribute,) = found["generations"][0]["attributes"]
    assert {each["group"] for each in attribute["groups"]} == {"x0", "x1", "x2"}
    assert command.refused("audit", "--by", "a * ").startswith("by: attributes must be names")
    assert command.refused("audit", "--generations", 0).startswith("generations: expected")


def test_a_candidate_is_audited_before_release(command: Command) -> None:
    done = command("audit", "--candidate", 2, "--json")
    assert done.code == 0, done.err
    (gender, crossed) = done.facts["audit"]["attributes"]
    assert {each["group"] for each in gender["groups"]} == {"f", "m"}
    assert all(each["candidate"] is not None for each in gender["groups"])
    assert len(crossed["groups"]) == 4
    configure(command, "max_value_gap = 0.05")
    said = command("audit", "--candidate", 2)
    assert said.code == 1
    assert "value gap (f over m) (at most 0.05): fail" in said.out
    configure(command, "max_value_gap = 5.0")
    assert command("audit", "--candidate", 2).code == 0


def test_the_gate_holds_a_challenger_to_its_limits(command: Command) -> None:
    configure(command, "max_value_gap = 0.05")
    held = command("promote", "shop", 2, "--json")
    assert held.code == 1
    assert any("fairness of gender: value gap" in each for each in held.facts["reasons"])
    assert "shown not to be at most 0.05" in "; ".join(held.facts["reasons"])
    shown = command("report", "--generation", 2).out
    assert "fail" in shown
    (command.directory / "croupier.toml").write_text(
        CONFIG + "[nightly.gate]\nrequired = ['fairness']\n"
    )
    held = command("promote", "shop", 2, "--json")
    assert any("fairness is required and was not measured" in e for e in held.facts["reasons"])


def test_what_can_t_be_configured_is_refused(command: Command) -> None:
    configure(command, "max_exposure_gap = 2.0")
    said = command.refused("audit")
    assert said.startswith("loops.shop.fairness.limits.max_exposure_gap: ")
    assert "must be in [0, 1], got 2.0" in said
