"""Commands that change what a loop serves, and the warnings that go with what it explores by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from croupier.cli.config import load_config
from croupier.offline.generations import record_generation
from croupier.offline.registry import Registry
from croupier.policy.traffic import Split
from croupier.service.serving import ServingDirectory
from tests.cli.test_batch import Command, Done
from tests.processes import free_port
from tests.service.generations import generation

if TYPE_CHECKING:
    from pathlib import Path

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

CONFIG = 'data_dir = "data"\n[loops.shop]\n'
GREEDY = f'{CONFIG}exploration = {{ kind = "greedy" }}\n'


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    (tmp_path / "croupier.toml").write_text(CONFIG)
    return Command(tmp_path, capsys)


@pytest.fixture
def registered(command: Command) -> Command:
    """Three generations, the first of them champion."""
    data = command.directory / "data"
    registry = Registry(f"sqlite:///{data / 'mlflow.db'}", data / "mlartifacts")
    for number in (1, 2, 3):
        registry.publish(generation("shop", number), params={}, metrics={})
    registry.promote("shop", 1)
    return command


def loop_state(command: Command) -> dict[str, Any]:
    (state,) = command("status", "--json").facts["loops"]
    assert isinstance(state, dict)
    return state


def plan(done: Done) -> Split:
    assert done.code == 0, done.err
    return msgspec.convert(done.facts["plan"], Split)


def test_a_split_and_its_end(registered: Command) -> None:
    split = ("split", "shop", "--json")
    assert plan(registered(*split)) == Split(generation=1)
    tried = registered(*split, "--canary", 2, "--share", 0.05, "--reason", "[b]try[/b] it")
    assert plan(tried) == Split(generation=1, canary=2, canary_share=0.05)
    both = registered(*split, "--shadow", 3)
    assert plan(both) == Split(generation=1, canary=2, canary_share=0.05, shadow=3)
    told = [(each["what"], each["reason"]) for each in both.facts["changes"]]
    assert told == [("canary 2 with share 0.05", "[b]try[/b] it"), ("shadow 3", "")]
    shown = registered("split", "shop")
    assert "shop: champion 1, canary 2 on 5 %, shadow 3" in shown.out
    # What a person wrote is shown as it was written.
    assert "[b]try[/b] it" in shown.out
    assert plan(registered(*split, "--clear")) == Split(generation=1)


def test_mistakes_are_one_line_and_change_nothing(registered: Command) -> None:
    for arguments, said in [
        (["--canary", 2], "share: expected the canary's share, in (0, 1)"),
        (["--share", 0.1], "canary: expected the generation that gets the share"),
        (["--canary", 2, "--share", 0], "share: expected a share in (0, 1), got 0"),
        (["--canary", 2, "--share", 1], "share: expected a share in (0, 1), got 1"),
        (["--canary", 2, "--share", "much"], "Invalid value for '--share'"),
        (["--canary", 9, "--share", 0.1], "the registry has no generation 9 of loop 'shop'"),
        (["--canary", 1, "--share", 0.1], "canary: generation 1 is the champion of shop"),
        (["--shadow", 1], "shadow: generation 1 is the champion of shop"),
        (["--canary", 2, "--share", 0.1, "--shadow", 9], "the registry has no generation 9"),
        (["--clear", "--shadow", 2], "clear: expected neither --canary nor --share nor --shadow"),
    ]:
        assert registered.refused("split", "shop", *arguments).startswith(said)
    assert plan(registered("split", "shop", "--json")) == Split(generation=1)
    for name in ("split", "kill", "resume"):
        reason = ["--reason", "x"] if name == "kill" else []
        said = registered.refused(name, "shed", *reason)
        assert said == "loop: expected one of the loops (shop), got 'shed'"
    assert "Missing option '--reason'" in registered.refused("kill", "shop")
    assert registered.refused("kill", "shop", "--reason", " ").startswith("reason: expected why")
    long = registered.refused("kill", "shop", "--reason", "x" * 501)
    assert long.startswith("reason: expected at most 500 characters")
    assert loop_state(registered)["traffic"] is None


def test_killing_and_resuming(registered: Command) -> None:
    killed = registered("kill", "shop", "--reason", "complaints", "--json")
    assert killed.code == 0, killed.err
    assert killed.facts == {
        "loop": "shop",
        "killed": "complaints",
        "here": True,
        "registry_error": None,
    }
    assert loop_state(registered)["traffic"] == "killed: complaints"
    found = plan(registered("split", "shop", "--json"))
    assert found == Split(generation=1, killed="complaints")
    assert "shop: killed: complaints" in registered("split", "shop").out
    assert "shop is no longer killed" in registered("resume", "shop").out
    assert plan(registered("split", "shop", "--json")) == Split(generation=1)
    assert loop_state(registered)["traffic"] is None


def test_a_registry_that_is_away_doesn_t_keep_a_loop_alive(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = f'[registry]\ntracking_uri = "http://127.0.0.1:{free_port()}"\n'
    (command.directory / "croupier.toml").write_text(CONFIG + away)
    serving = ServingDirectory(command.directory / "data" / "serving")
    killed = command("kill", "shop", "--reason", "complaints")
    assert killed.code == 0
    assert "only the scorers of" in killed.out
    assert serving.killed("shop") == "complaints"
    switch = serving.kill_switch("shop")
    assert switch is not None
    assert switch.by
    # It can't be known whether the registry has it on too.
    resumed = command("resume", "shop")
    assert resumed.code == 1
    assert "may still be killed in the registry" in resumed.out
    assert serving.killed("shop") is None


def test_what_an_exploration_can_t_do_is_said_and_is_no_error(command: Command) -> None:
    (command.directory / "croupier.toml").write_text(GREEDY)
    for name in ("nightly", "status"):
        done = command(name, "--json")
        assert done.code == 0
        warnings = [line for line in done.err.splitlines() if line.startswith("warning: ")]
        assert len(warnings) == 1
        assert warnings[0].startswith("warning: loop shop: greedy: only the best action")
        assert done.facts
    caution = loop_state(command)["caution"]
    assert caution.startswith("only the best action is ever played")
    (command.directory / "croupier.toml").write_text(CONFIG)
    assert "warning: " not in command("status").err
    assert loop_state(command)["caution"] is None


def test_the_checker_of_policies_warns_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from croupier.cli.main import main  # noqa: PLC0415

    for kind, warned in (("greedy", True), ("squarecb", False)):
        monkeypatch.setattr("sys.argv", ["croupier", "check-policy", kind, "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        said = capsys.readouterr()
        assert said.err.startswith("warning: greedy: only the best action") == warned
        assert msgspec.json.decode(said.out)["conforms"] is True


def test_the_draws_secret_is_configured_as_everything_is(tmp_path: Path) -> None:
    (tmp_path / "croupier.toml").write_text('[service]\ndraw_secret = "' + "ab" * 16 + '"')
    config, paths = load_config(tmp_path / "croupier.toml", environment={})
    assert config.service.draw_secret == "ab" * 16
    assert paths.secret == paths.root / "draw-secret"
    environment = {"CROUPIER_SERVICE__DRAW_SECRET": "cd" * 32}
    config, _ = load_config(tmp_path / "croupier.toml", environment=environment)
    assert config.service.draw_secret == "cd" * 32


@pytest.mark.parametrize("secret", ["ab" * 15, "ab" * 65, "hello"])
def test_a_bad_secret_is_named_and_not_shown(command: Command, secret: str) -> None:
    (command.directory / "croupier.toml").write_text(f'[service]\ndraw_secret = "{secret}"')
    said = command.refused("status")
    assert said.startswith("service.draw_secret: draw_secret: expected 16 to 64 bytes")
    assert secret not in said


def test_the_latest_signals_are_shown(registered: Command) -> None:
    assert loop_state(registered)["signals"] == []
    lake = registered.lake
    with lake.lock():
        for number, rises in ((1, True), (2, False), (3, None)):
            record_generation(
                lake,
                {
                    "loop": "shop",
                    "generation": number,
                    "violations_rise": rises,
                    "violation_p_value": None if rises is None else 0.5 - 0.499 * rises,
                    "oscillates": True if number == 2 else None,
                },
            )
    told = {each["name"]: each for each in loop_state(registered)["signals"]}
    assert {name: (each["generation"], each["raised"]) for name, each in told.items()} == {
        "oscillates": (2, True),
        "violations_rise": (2, False),
    }
    shown = " ".join(registered("status").out.split())
    assert "shop: signal: what the latest generations earned goes up and down more" in shown
    assert (
        "no signal that pairs that are alike are treated differently more often (generation 2, "
        "p-value 0.5)"
    ) in shown
