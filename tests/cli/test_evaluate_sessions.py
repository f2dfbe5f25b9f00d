"""``croupier evaluate --sessions`` on a lake with sessions of LTS users."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from croupier.offline.lake import Lake
from croupier.offline.ope import SESSION_ESTIMATORS
from croupier.offline.session_values import SessionComparison
from croupier.policy.generation import cold_start
from tests.cli.test_batch import Command, hour_ago
from tests.sim2rec.lts_sessions import HOUR, STEPS, LTSSessions

if TYPE_CHECKING:
    from pathlib import Path

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

[loops.shop]
"""


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    (tmp_path / "croupier.toml").write_text(CONFIG)
    lake = Lake(tmp_path / "data" / "lake")
    lake.append("interactions", LTSSessions(60, seed=1).log(cold_start("feed"), hour_ago() - HOUR))
    return Command(tmp_path, capsys)


def test_policies_are_compared_over_sessions(command: Command, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    asked = ("--policy", "logged", "--policy", "uniform", "--output", told)
    done = command("evaluate", "--sessions", *asked, "--json")
    assert done.code == 0, done.err
    found = msgspec.convert(done.facts["feed"], SessionComparison)
    assert msgspec.json.decode(told.read_bytes()) == done.facts
    rows = command.lake.scan("interactions", "feed").collect()
    mean_return = rows["reward"].sum() / 60
    assert (found.sessions, found.decisions, found.horizon) == (60, 60 * STEPS, STEPS)
    logged, uniform = found.policies
    assert logged.estimates[0].value == pytest.approx(mean_return)
    assert [each.estimator for each in uniform.estimates] == list(SESSION_ESTIMATORS)
    assert uniform.estimates[0].value == pytest.approx(mean_return)
    shown = command("evaluate", "--sessions", "--policy", "uniform", "--estimator", "wpdis")
    assert "feed: 60 sessions, 360 decisions, at most 6 steps, discount 1" in shown.out
    assert f"{mean_return:.4g}" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "uniform", "--loop", "shop"), "loop: expected one with a section sessions"),
        (("--policy", "uniform", "--by", "day"), "by: expected it without --sessions"),
        (("--policy", "uniform", "--estimator", "ips"), "estimator: expected one of pdis"),
        (("--policy", "best-fixed"), "policy: expected no best-fixed with --sessions"),
        (("--policy", "uniform", "--confidence", "2"), "confidence: expected a number in"),
        ((), "sessions: expected at least one --policy with it"),
    ],
)
def test_what_sessions_can_not_be_asked_is_refused(
    command: Command, arguments: tuple[str, ...], message: str
) -> None:
    assert command.refused("evaluate", "--sessions", *arguments).startswith(message)


def test_a_loop_s_sessions_are_checked(command: Command, tmp_path: Path) -> None:
    for wrong, message in (
        ("horizon = 0", "horizon must be at least 1, got 0"),
        ('state = ["a", "a"]', "state must be different paths, got ['a', 'a']"),
        ('pause = "soon"', "pause: a duration is a number and one of"),
        ("discount = 1.5", "discount must be in (0, 1], got 1.5"),
        ('group = "a..b"', "user, state and group must be names or dotted paths, got 'a..b'"),
    ):
        (tmp_path / "croupier.toml").write_text(
            f'data_dir = "data"\n[loops.feed.sessions]\nuser = "u"\n{wrong}\n'
        )
        said = command.refused("evaluate", "--sessions", "--policy", "uniform")
        assert said.startswith("loops.feed"), said
        assert message in said, said
