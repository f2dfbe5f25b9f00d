"""Settings of loops: put over the configuration, kept whole, and followed while decisions go on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from croupier.policy.decision import DecisionRequest
from croupier.policy.errors import ConfigError
from croupier.policy.events import Action, MixComponent
from croupier.policy.exploration import Conservative, EpsilonGreedy, Greedy, Thompson
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import RidgeConfig
from croupier.policy.traffic import UniformSlice
from croupier.service.follower import Follower
from croupier.service.metrics import Metrics
from croupier.service.scorer import Scorer
from croupier.service.serving import ServingDirectory
from croupier.service.settings import LoopSettings, SettingsDirectory

if TYPE_CHECKING:
    from pathlib import Path

REQUEST = DecisionRequest(actions=[Action("a"), Action("b")])
SLICE = UniformSlice(share=0.1, start="02:00", end="04:00")


def settings(**values: Any) -> LoopSettings:
    return LoopSettings(edited_us=1, by="anna", **values)


def test_what_was_never_set_is_as_configured() -> None:
    configured = LoopConfig(uniform_slices=(SLICE,), log_retention="30 d", aggregation="mean")
    assert settings().over(configured) == configured
    assert settings().names() == []
    changed = settings(default_reward=0.5, log_retention=None, exploration=EpsilonGreedy())
    assert changed.over(configured) == msgspec.structs.replace(
        configured, default_reward=0.5, log_retention=None, exploration=EpsilonGreedy()
    )
    assert changed.names() == ["default_reward", "log_retention", "exploration"]


@pytest.mark.parametrize(
    ("share", "slices"),
    [(0.0, ()), (0.2, (UniformSlice(share=0.2),)), (1.0, (UniformSlice(share=1.0),))],
)
def test_a_uniform_share_takes_the_place_of_slices(
    share: float, slices: tuple[UniformSlice, ...]
) -> None:
    configured = LoopConfig(uniform_slices=(SLICE,))
    assert settings(uniform_share=share).over(configured).uniform_slices == slices


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attribution_window": "soon"}, "attribution_window"),
        ({"default_reward": 2.0}, "default_reward"),
        ({"uniform_share": 1.5}, "share"),
        ({"log_retention": "1 d"}, "log_retention"),
        ({"exploration": Thompson()}, "needs an oracle"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_name_the_file(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    directory = SettingsDirectory(tmp_path)
    directory.write("shop", settings(**values))
    with pytest.raises(ConfigError, match=message) as refused:
        directory.over("shop", LoopConfig())
    assert refused.value.field == "loops.shop"
    assert "shop.json" in str(refused.value)


def test_they_are_kept_to_the_last_field(tmp_path: Path) -> None:
    directory = SettingsDirectory(tmp_path / "settings")
    assert directory.read("shop") is None
    assert directory.over("shop", LoopConfig()) == LoopConfig()
    kept = settings(
        attribution_window="5 min",
        default_reward=0.5,
        aggregation="sum",
        learning_mode="apprentice",
        model_export_frequency="1 h",
        log_retention=None,
        uniform_share=0.25,
        exploration=Thompson(),
        oracle=RidgeConfig(),
        policy_name="mine",
        policy_arguments="{}",
    )
    directory.write("shop", kept)
    assert directory.read("shop") == kept
    assert directory.read("other") is None
    for broken in (b"", b"{", b"[]", b'{"edited_us": 1}', b'{"edited_us":1,"by":"a","what":2}'):
        (tmp_path / "settings" / "shop.json").write_bytes(broken)
        with pytest.raises(ConfigError, match="can't be read"):
            directory.read("shop")


def followed(tmp_path: Path, configured: LoopConfig) -> tuple[SettingsDirectory, Scorer, Follower]:
    serving, scorer = ServingDirectory(tmp_path / "serving"), Scorer({"shop": configured})
    serving.start_cold("shop")
    directory = SettingsDirectory(tmp_path / "settings")
    follower = Follower(serving, scorer, Metrics(), directory, poll_s=60.0)
    follower.poll()
    return directory, scorer, follower


def test_a_scorer_follows_and_comes_back(tmp_path: Path) -> None:
    configured = LoopConfig(learning_mode="apprentice")
    directory, scorer, follower = followed(tmp_path, configured)
    assert scorer.decide("shop", REQUEST).mix == [MixComponent("baseline", 1.0)]
    directory.write("shop", settings(learning_mode="online", uniform_share=0.5))
    follower.poll()
    decision = scorer.decide("shop", REQUEST)
    assert decision.mix == [MixComponent("generation:0", 0.5), MixComponent("uniform", 0.5)]
    # What goes with nothing leaves what was.
    directory.write("shop", settings(learning_mode="online", default_reward=7.0))
    follower.poll()
    assert "default_reward" in (follower.report().loops["shop"]["error"] or "")
    assert scorer.decide("shop", REQUEST).mix == decision.mix
    (tmp_path / "settings" / "shop.json").unlink()
    follower.poll()
    assert follower.report().loops["shop"]["error"] is None
    assert scorer.loops["shop"] == configured


def test_the_cold_start_is_that_of_the_exploration_that_was_set(tmp_path: Path) -> None:
    directory, scorer, follower = followed(tmp_path, LoopConfig())
    assert scorer.decide("shop", REQUEST).pmf == [0.5, 0.5]
    directory.write("shop", settings(exploration=Conservative(inner=Greedy(), alpha=0.2)))
    follower.poll()
    decision = scorer.decide("shop", REQUEST)
    assert decision.pmf[0] == pytest.approx(0.9)
    assert decision.pmf[decision.chosen] == decision.propensity


def test_decisions_under_way_are_of_one_configuration(tmp_path: Path) -> None:
    """Whatever is set meanwhile, a decision's mixture and its mode belong together."""
    directory, scorer, follower = followed(tmp_path, LoopConfig())
    stop, wrong = threading.Event(), []

    def decide() -> None:
        while not stop.is_set():
            decision = scorer.decide("shop", REQUEST)
            apprentice = decision.learning_mode == "apprentice"
            if apprentice != (decision.mix == [MixComponent("baseline", 1.0)]):
                wrong.append(decision)

    threads = [threading.Thread(target=decide) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        mode = "apprentice" if turn % 2 else "online"
        directory.write("shop", settings(learning_mode=mode, uniform_share=0.1 + turn / 100))
        follower.poll()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
