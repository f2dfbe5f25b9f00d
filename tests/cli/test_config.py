"""The configuration: what is put over what, and what a bad value is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from croupier.cli.config import CroupierConfig, DataPaths, load_config
from croupier.cli.main import main
from croupier.policy.errors import ConfigError
from croupier.policy.exploration import EpsilonGreedy, SquareCB

if TYPE_CHECKING:
    from collections.abc import Mapping


def load(
    tmp_path: Path,
    toml: str,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> tuple[CroupierConfig, DataPaths]:
    file = tmp_path / "some.toml"
    file.write_text(toml, encoding="utf-8")
    return load_config(file, environment=environment or {}, flags=flags)


def refusal(tmp_path: Path, toml: str, environment: Mapping[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, toml, environment)
    return refused.value


FULL = """
data_dir = "here"

[service]
host = "0.0.0.0"
port = 9000
max_body_bytes = 2048
registry_poll = "250 ms"

[service.keys.app]
key = "0123456789"
loops = ["digits"]

[log]
durability = "buffered"
max_batch = 7

[registry]
tracking_uri = "http://mlflow:5000"

[loops.digits]
attribution_window = "2 h"
exploration = { kind = "squarecb", gamma_scale = 3 }

[loops.other]
exploration.kind = "epsilon_greedy"
"""


def test_a_file_that_says_everything(tmp_path: Path) -> None:
    config, paths = load(tmp_path, FULL)
    assert (config.service.host, config.service.port) == ("0.0.0.0", 9000)
    assert config.service.registry_poll_s == 0.25
    assert config.service.keys["app"].loops == ("digits",)
    assert (config.log.durability, config.log.max_batch) == ("buffered", 7)
    assert config.loops["digits"].exploration == SquareCB(gamma_scale=3)
    assert config.loops["digits"].attribution_window_us == 7_200_000_000
    assert config.loops["other"].exploration == EpsilonGreedy()
    assert paths.tracking_uri(config.registry) == "http://mlflow:5000"
    assert paths.root == tmp_path / "here"


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    config, paths = load(tmp_path, "")
    assert config == CroupierConfig()
    assert paths.root == tmp_path / "croupier-data"
    assert paths.tracking_uri(config.registry) == f"sqlite:///{paths.root / 'mlflow.db'}"
    assert (paths.log, paths.serving) == (paths.root / "log", paths.root / "serving")


def test_no_file_is_all_defaults_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, paths = load_config(None, environment={})
    assert config == CroupierConfig()
    assert paths.root == tmp_path / "croupier-data"
    (tmp_path / "croupier.toml").write_text("[service]\nport = 1234")
    assert load_config(None, environment={})[0].service.port == 1234


def test_flags_go_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    toml = "[service]\nport = 1\nmax_body_bytes = 2000"
    environment = {"CROUPIER_SERVICE__PORT": "2", "CROUPIER_SERVICE__MAX_BODY_BYTES": "3000"}
    flags = {"service.port": 3, "service.host": None}
    assert load(tmp_path, toml)[0].service.port == 1
    assert load(tmp_path, toml, environment)[0].service.port == 2
    service = load(tmp_path, toml, environment, flags)[0].service
    assert (service.port, service.max_body_bytes, service.host) == (3, 3000, "127.0.0.1")


def test_the_environment_makes_sections_and_reads_toml(tmp_path: Path) -> None:
    environment = {
        "CROUPIER_LOOPS__DIGITS__LEARNING_MODE": "apprentice",
        "CROUPIER_LOOPS__DIGITS__REWARD_MAX": "5",
        "CROUPIER_LOOPS__DIGITS__EXPLORATION": "{kind = 'epsilon_greedy', epsilon = 0.25}",
        "CROUPIER_SERVICE__KEYS__APP__KEY": '"12345678"',
        "CROUPIER_SERVICE__KEYS__APP__LOOPS": '["digits"]',
        "CROUPIER_REGISTRY__TRACKING_URI": "http://mlflow:5000/#a=b",
        "CROUPIER_FUZZ_EFFORT": "not a field of ours",
        "PATH": "/bin",
        "XCROUPIER_SERVICE__PORT": "5",
    }
    config, _ = load(tmp_path, "", environment)
    loop = config.loops["digits"]
    assert (loop.learning_mode, loop.reward_max) == ("apprentice", 5.0)
    assert loop.exploration == EpsilonGreedy(epsilon=0.25)
    assert config.service.keys["app"].key == "12345678"
    assert config.registry.tracking_uri == "http://mlflow:5000/#a=b"


def test_a_variable_with_a_line_break_is_one_value(tmp_path: Path) -> None:
    text = '1\nother = "x"'
    refused = refusal(tmp_path, "", {"CROUPIER_SERVICE__PORT": text})
    assert refused.field == "service.port"


def test_where_a_data_directory_is_relative_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    toml = 'data_dir = "here"'
    named = {"CROUPIER_DATA_DIR": "typed"}
    assert load(tmp_path, toml)[1].root == tmp_path / "here"
    assert load(tmp_path, toml, named)[1].root == elsewhere / "typed"
    assert load(tmp_path, toml, named, {"data_dir": "flag"})[1].root == elsewhere / "flag"
    assert load(tmp_path, toml, named, {"data_dir": None})[1].root == elsewhere / "typed"
    assert load(tmp_path, 'data_dir = "~/x"')[1].root == tmp_path / "home" / "x"
    assert load(tmp_path, 'data_dir = "/srv/x"')[1].root == Path("/srv/x")


BAD = [
    ("zzz = 1", "zzz"),
    ("[service]\nprot = 1", "service.prot"),
    ("[log]\nx.y = 1", "log.x"),
    ("[nightly]\nzzz = 1", "nightly.zzz"),
    ("[loops.digits]\nzzz = 1", "loops.digits.zzz"),
    ("service = 1", "service"),
    ("loops = 3", "loops"),
    ("[[loops]]", "loops"),
    ("data_dir = 3", "data_dir"),
    ('data_dir = ""', "data_dir"),
    ('data_dir = "a\\u0000b"', "data_dir"),
    ('data_dir = "~no-such-user-of-ours/x"', "data_dir"),
    ('[service]\nport = "x"', "service.port"),
    ("[service]\nport = 70000", "service.port"),
    ("[service]\nport = -1", "service.port"),
    ("[service]\nport = true", "service.port"),
    ("[service]\nport = 80.5", "service.port"),
    ('[service]\nhost = "0.0.0.0"', "service.host"),
    ('[service]\nhost = ""', "service.host"),
    ('[service]\nhost = "::"', "service.host"),
    ("[service]\nmax_body_bytes = 0", "service.max_body_bytes"),
    ("[service]\nmax_body_bytes = 100000000", "service.max_body_bytes"),
    ("[service]\nmax_inflight_bytes = 1000", "service.max_inflight_bytes"),
    ("[service]\nmax_features = 0", "service.max_features"),
    ("[service]\nmax_features = 100", "service.max_features"),
    ("[service]\nmax_object_features = 0", "service.max_object_features"),
    ("[service]\nmax_connections = 0", "service.max_connections"),
    ('[service]\nrequest_timeout = "1 ms"', "service.request_timeout"),
    ('[service]\nrequest_timeout = "soon"', "service.request_timeout"),
    ('[service]\nidle_timeout = "2 d"', "service.idle_timeout"),
    ('[service]\nlog_format = "xml"', "service.log_format"),
    ('[service]\naccess_log = "yes"', "service.access_log"),
    ("[log]\nmax_pending_bytes = 0", "log.max_pending_bytes"),
    ("[service]\nregistry_poll = 1", "service.registry_poll"),
    ('[service]\nregistry_poll = "0 s"', "service.registry_poll"),
    ('[service]\nregistry_poll = "1 ms"', "service.registry_poll"),
    ('[service]\nregistry_poll = "99 d"', "service.registry_poll"),
    ('[service]\nregistry_poll = "soon"', "service.registry_poll"),
    ("[service.keys.app]", "service.keys.app"),
    ('[service.keys.app]\nkey = "long enough"\nscopes = []', "service.keys.app.scopes"),
    ('[service.keys.app]\nkey = "long enough"\nscopes = ["all"]', "service.keys.app.scopes[0]"),
    ("[service]\nmax_control_body_bytes = 3", "service.max_control_body_bytes"),
    ('[loops.a]\nmodel_export_frequency = "0 s"', "loops.a.model_export_frequency"),
    ('[loops.a]\nlog_retention = "1 d"', "loops.a.log_retention"),
    ("[service.keys]\napp = 3", "service.keys.app"),
    ('[service.keys.app]\nkey = "short"', "service.keys.app.key"),
    ('[service.keys.app]\nkey_sha256 = "abc"', "service.keys.app.key_sha256"),
    ('[service.keys.app]\nkey = "long enough"\nloops = ["a", 3]', "service.keys.app.loops[1]"),
    (
        """
        [loops.a]
        [service.keys.ok]
        key = "long enough"
        loops = ["a"]
        [service.keys.app]
        key = "long enough"
        loops = ["a", "b"]
        """,
        "service.keys.app.loops",
    ),
    (
        """
        [loops.a]
        [service.keys.app]
        key = "long enough"
        personalizer_loop = "b"
        """,
        "service.keys.app.personalizer_loop",
    ),
    (
        """
        [loops.a]
        [loops.b]
        [service.keys.app]
        key = "long enough"
        personalizer_loop = "b"
        loops = ["a"]
        """,
        "service.keys.app.personalizer_loop",
    ),
    *(
        (
            f'[service.keys.app]\nkey = "long enough"\npersonalizer_loop = "{name}"',
            "service.keys.app.personalizer_loop",
        )
        for name in ("", "*")
    ),
    ('[log]\ndurability = "maybe"', "log.durability"),
    ("[log]\nbusy_timeout_s = nan", "log.busy_timeout_s"),
    ("[log]\nbusy_timeout_s = 0", "log.busy_timeout_s"),
    ("[log]\nmax_batch = 0", "log.max_batch"),
    ("[log]\nmax_pending = 3", "log.max_pending"),
    ("[log]\nsegment_rows = 0", "log.segment_rows"),
    ("[registry]\ntracking_uri = 5", "registry.tracking_uri"),
    ("[loops.Digits]", "loops.Digits"),
    ('[loops."a b"]', "loops.a b"),
    ('[loops.""]', "loops."),
    ('[loops.digits]\nlearning_mode = "offline"', "loops.digits.learning_mode"),
    ('[loops.digits]\nattribution_window = "5 lightyears"', "loops.digits.attribution_window"),
    ("[loops.digits]\nattribution_window = 5", "loops.digits.attribution_window"),
    ("[loops.digits]\nreward_min = 3", "loops.digits.reward_min"),
    ("[loops.digits]\nreward_max = inf", "loops.digits.reward_max"),
    ("[loops.digits]\ndefault_reward = 7", "loops.digits.default_reward"),
    ('[loops.digits]\nexploration = "squarecb"', "loops.digits.exploration"),
    ("[loops.digits.exploration]\ngamma_scale = 1", "loops.digits.exploration"),
    ('[loops.digits.exploration]\nkind = "magic"', "loops.digits.exploration.kind"),
    (
        '[loops.digits.exploration]\nkind = "squarecb"\ngamma_scale = -1',
        "loops.digits.exploration.gamma_scale",
    ),
    (
        '[loops.digits.exploration]\nkind = "squarecb"\ngamma_scale = "big"',
        "loops.digits.exploration.gamma_scale",
    ),
    ('[loops.digits.exploration]\nkind = "uniform"\nfloor = 2', "loops.digits.exploration.floor"),
    (
        '[loops.digits.oracle]\nkind = "vowpal_wabbit"\nencoder = { bits = 99 }',
        "loops.digits.oracle.encoder.bits",
    ),
    (
        '[loops.digits.oracle]\nkind = "vowpal_wabbit_model"\narguments = "--nn 5 -f model"',
        "loops.digits.oracle.arguments",
    ),
    (
        '[loops.digits.oracle]\nkind = "sklearn_onnx"\nmax_columns = 0',
        "loops.digits.oracle.max_columns",
    ),
    (
        '[loops.digits.oracle]\nkind = "auto"\nmax_columns = 0',
        "loops.digits.oracle.max_columns",
    ),
    (
        """
        [loops.digits.oracle]
        kind = "auto"
        beyond = { kind = "vowpal_wabbit", encoder = { bits = 12 } }
        """,
        "loops.digits.oracle.beyond.encoder.bits",
    ),
    (
        '[loops.digits.exploration]\nkind = "squarecb"\noptimism = -1',
        "loops.digits.exploration.optimism",
    ),
    (
        '[loops.digits.oracle]\nkind = "distilled"\nbase = { kind = "sklearn_onnx", threads = 0 }',
        "loops.digits.oracle.base.threads",
    ),
    (
        "[loops.digits.guardrails.nps]\n[loops.digits.guardrails.refund]\nmax_fall = -1",
        "loops.digits.guardrails.refund.max_fall",
    ),
    ('[loops.digits.guardrails."a b"]', "loops.digits.guardrails.a b"),
    # The fields of one loop are told apart from those of another, whichever come first.
    (
        """
        [loops.fine]
        [loops.digits.exploration]
        kind = "squarecb"
        gamma_scale = -1
        [loops.worse.exploration]
        kind = "softmax"
        temperature = 0
        """,
        "loops.digits.exploration.gamma_scale",
    ),
    (
        '[loops.digits.exploration]\nkind = "squarecb"\nfloor = 2\ngamma_scale = -1',
        "loops.digits.exploration.floor",
    ),
]


@pytest.mark.parametrize(("toml", "field"), BAD, ids=[field for _, field in BAD])
def test_a_bad_value_names_its_field(tmp_path: Path, toml: str, field: str) -> None:
    refused = refusal(tmp_path, toml)
    assert refused.field == field
    assert str(refused).startswith(f"{field}: ")
    assert refused.expected


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("CROUPIER_SERVICE__PORT", "many", "service.port"),
        ("CROUPIER_SERVICE__PROT", "5", "service.prot"),
        ("CROUPIER_SERVICE", "5", "service"),
        ("CROUPIER_SERVICE__PORT__MORE", "5", "service.port.more"),
        ("CROUPIER_LOOPS__DIGITS__REWARD_MIN", "3", "loops.digits.reward_min"),
        ("CROUPIER_LOG__DURABILITY", "maybe", "log.durability"),
        ("CROUPIER_DATA_DIR", "", "data_dir"),
    ],
)
def test_a_bad_variable_names_its_field(tmp_path: Path, name: str, value: str, field: str) -> None:
    assert refusal(tmp_path, "[service]\nport = 1", {name: value}).field == field


@pytest.mark.parametrize(
    "content",
    [b"x = = 1", b"\xff\xfe", b"[service", b"a = " + b"[" * 5000, b"port: 5", b"a = 1\na = 2"],
    ids=repr,
)
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^config: expected a TOML file at .*bad\.toml: "):
        load_config(file, environment={})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^config: expected a file at .*missing\.toml$"):
        load_config(tmp_path / "missing.toml", environment={})
    with pytest.raises(ConfigError, match="expected a TOML file at"):
        load_config(tmp_path, environment={})


def test_a_key_lets_the_service_listen_anywhere(tmp_path: Path) -> None:
    key = '[service.keys.app]\nkey = "long enough"'
    for host in ("0.0.0.0", "::", "192.0.2.1", "scorer.example"):
        assert load(tmp_path, f'[service]\nhost = "{host}"\n{key}')[0].service.host == host
        load(tmp_path, f'[service]\nhost = "{host}"\nallow_anonymous = true')
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        load(tmp_path, f'[service]\nhost = "{host}"')


def test_an_unknown_loop_is_told_the_known_ones(tmp_path: Path) -> None:
    config, _ = load(tmp_path, "[loops.b]\n[loops.a]")
    with pytest.raises(ConfigError, match=r"^loop: expected one of the loops \(a, b\), got 'c'$"):
        config.loop("c")


def test_a_value_can_be_left_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("00112233445566778899aabbccddeeff\n")
    config, _ = load(tmp_path, '[service]\ndraw_secret = { file = "secret" }')
    assert config.service.draw_secret == "00112233445566778899aabbccddeeff"
    elsewhere = tmp_path / "key"
    elsewhere.write_text("a-secret-of-the-shop")
    config, _ = load(
        tmp_path,
        "[service.keys.shop]",
        {"CROUPIER_SERVICE__KEYS__SHOP__KEY": f'{{ file = "{elsewhere}" }}'},
    )
    assert config.service.keys["shop"].key == "a-secret-of-the-shop"


def test_a_file_that_is_not_there_is_named_with_its_field(tmp_path: Path) -> None:
    refused = refusal(tmp_path, '[service]\ndraw_secret = { file = "nowhere" }')
    assert refused.field == "service.draw_secret"
    assert "expected a readable file" in str(refused)


def test_check_shows_what_is_set_and_hides_secrets(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "croupier.toml"
    file.write_text(
        """
[service.keys.shop]
key = "a-secret-of-the-shop"
[log]
backend = "kafka"
[loops.a.exploration]
kind = "greedy"
"""
    )
    monkeypatch.setattr(sys, "argv", ["croupier", "config", "check", "-c", str(file), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = json.loads(capfd.readouterr().out)
    assert {each["setting"]: each["value"] for each in said["settings"]} == {
        "service.keys.shop.key": "(secret)",
        "log.backend": '"kafka"',
        "loops.a.exploration.kind": "greedy",
    }
    assert [text.partition(" ")[0] for text in said["cautions"]] == [
        "registry.tracking_uri",
        "log.kafka.replication",
        "loops.a.exploration:",
    ]
