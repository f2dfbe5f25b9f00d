"""The secret of the draws: one for all processes, and for nobody else to read."""

from __future__ import annotations

import base64
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from croupier.policy.decision import DecisionRequest
from croupier.policy.errors import ConfigError
from croupier.policy.events import Action
from croupier.policy.exploration import Uniform
from croupier.policy.generation import Generation
from croupier.policy.loop import LoopConfig
from croupier.policy.sampling import draw_key
from croupier.policy.traffic import Plan
from croupier.service.scorer import Scorer
from croupier.service.secret import kept_secret, parse_secret

if TYPE_CHECKING:
    from tests.service.conftest import Serve

ROOT = Path(__file__).parents[2]
# Forked from one parent, the children start as close together as processes can.
RACE = """
import os, pathlib, sys, time
from croupier.service.secret import kept_secret
file, into = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
start = time.monotonic() + 0.2
children = []
for number in range(8):
    pid = os.fork()
    if pid == 0:
        while time.monotonic() < start:
            pass
        (into / str(number)).write_bytes(kept_secret(file))
        os._exit(0)
    children.append(pid)
sys.exit(any(os.waitpid(pid, 0)[1] for pid in children))
"""


def test_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "data" / "draw-secret"
    secret = kept_secret(file)
    assert len(secret) == 32
    assert kept_secret(file) == secret
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]
    assert kept_secret(tmp_path / "other" / "draw-secret") != secret


def test_processes_that_start_at_once_get_the_same(tmp_path: Path) -> None:
    data, into = tmp_path / "data", tmp_path / "into"
    into.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RACE, data / "draw-secret", into],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert {path.read_bytes() for path in into.iterdir()} == {kept_secret(data / "draw-secret")}
    assert len(list(into.iterdir())) == 8
    assert list(data.iterdir()) == [data / "draw-secret"]


@given(st.binary(min_size=16, max_size=64))
def test_hexadecimal_and_base64_are_read(secret: bytes) -> None:
    assert parse_secret(secret.hex()) == secret
    assert parse_secret(f" {secret.hex().upper()}\n") == secret
    for text in (base64.b64encode(secret).decode(), base64.urlsafe_b64encode(secret).decode()):
        # What happens to be hexadecimal is taken for it, and is a secret all the same.
        if not set(text) <= set("0123456789abcdefABCDEF="):
            assert parse_secret(text) == parse_secret(text.rstrip("=")) == secret


@pytest.mark.parametrize("text", ["", "ab" * 15, "ab" * 65, "not a secret!", "é" * 30, "A" * 200])
def test_anything_else_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="expected 16 to 64 bytes in hexadecimal") as refused:
        parse_secret(text)
    assert not text or text not in str(refused.value)


@pytest.mark.parametrize("content", ["", "half", "ab" * 8 + "\n" + "cd"])
def test_a_file_that_holds_none_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "draw-secret"
    file.write_text(content)
    with pytest.raises(ConfigError, match="draw-secret"):
        kept_secret(file)
    assert file.read_text() == content


def test_draws_depend_on_it_and_on_nothing_else_that_is_secret() -> None:
    """Who chooses ids and knows everything else can't tell what they will get."""
    generation = Generation("news", 1, Uniform(), None, None)
    request = DecisionRequest(actions=[Action("a"), Action("b")], decision_id="d")
    keys = {}
    for secret in (b"", b"x" * 32, b"y" * 32):
        for instance in range(2):
            scorer = Scorer({"news": LoopConfig()}, secret=secret)
            scorer.swap(Plan(generation))
            keys[secret, instance] = scorer.decide("news", request).draw_key
    assert {keys[secret, 0] == keys[secret, 1] for secret in (b"", b"x" * 32)} == {True}
    assert len(set(keys.values())) == 3


def test_a_server_draws_with_its_own_also_after_a_restart(serve: Serve) -> None:
    config = (
        '[service]\nport = 0\n{}\n[loops.digits]\n[registry]\ntracking_uri = "http://127.0.0.1:9"'
    )
    server = serve(config.format(""))
    request = {"actions": [{"id": "a"}, {"id": "b"}], "decision_id": "d1"}
    server.post("digits/decide", request)
    secret = kept_secret(server.data_dir / "draw-secret")
    assert server.decision("d1").draw_key == draw_key("digits", 0, "d1", secret=secret)
    server.stop()
    server.start()
    server.post("digits/decide", request | {"decision_id": "d2"})
    assert server.decision("d2").draw_key == draw_key("digits", 0, "d2", secret=secret)
    server.stop()
    given = "5a" * 20
    server.configure(config.format(f'draw_secret = "{given}"'))
    server.start()
    server.post("digits/decide", request | {"decision_id": "d3"})
    expected = draw_key("digits", 0, "d3", secret=bytes.fromhex(given))
    assert server.decision("d3").draw_key == expected
