"""A caller's mistake: one line on stderr, exit status 2, and no traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.command_line import Complain


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("CROUPIER_"):
            monkeypatch.delenv(name)


MISTAKES = [
    ("zzz = 1", [], "zzz: "),
    ("[service]\nport = 'x'", [], "service.port: Expected `int`, got `str`"),
    ("x = = 1", [], "config: expected a TOML file at"),
    ("[service]\nport = 0", [], "loops: expected at least one [loops.<name>] section"),
    ("[loops.digits]\n[service]\nhost = '0.0.0.0'", [], "service.host: expected at least one key"),
    ("[loops.digits]", ["--host", "0.0.0.0"], "service.host: expected at least one key"),
    ("[loops.digits]", ["--port", "99999"], "service.port: "),
    ("[loops.digits]", ["--port", "many"], "Invalid value for '--port'"),
    ("[loops.digits]", ["--no-such-flag"], "No such option: --no-such-flag"),
    ("[loops.digits]", ["extra"], "Got unexpected extra argument"),
    ("[loops.digits]\n[service]\nhost = '192.0.2.1'\nallow_anonymous = true\nport = 0", [],
     "service.host: expected an address of this machine, got '192.0.2.1'"),
    ("[loops.digits]\n[service]\nhost = 'no host'\nallow_anonymous = true", [],
     "service.host: expected an address of this machine, got 'no host'"),
    ("[loops.digits]\n[service]\nhost = '" + "x" * 300 + "'\nallow_anonymous = true", [],
     "service.host: expected an address of this machine"),
    ("data_dir = 'croupier.toml'\n[loops.digits]\n[service]\nport = 0", [],
     "making the log's folder failed: "),
]  # fmt: skip


@pytest.mark.parametrize(("toml", "flags", "said"), MISTAKES, ids=[said for *_, said in MISTAKES])
def test_a_mistake_in_what_is_to_be_served(
    toml: str, flags: list[str], said: str, tmp_path: Path, complain: Complain
) -> None:
    (tmp_path / "croupier.toml").write_text(toml)
    assert complain("serve", *flags).startswith(said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--config", "missing.toml"], "config: expected a file at missing.toml"),
        (["serve", "--config", "."], "config: expected a TOML file at ."),
        (["no-such-command"], "No such command 'no-such-command'"),
        (["status", "--data-dir", ""], "data_dir: "),
    ],
)
def test_a_mistake_in_the_command(arguments: list[str], said: str, complain: Complain) -> None:
    assert complain(*arguments).startswith(said)


@pytest.mark.parametrize("command", ["retrain", "evaluate", "join", "audit"])
def test_an_unknown_loop(command: str, tmp_path: Path, complain: Complain) -> None:
    (tmp_path / "croupier.toml").write_text("[loops.digits]")
    line = complain(command, "--loop", "nope")
    # Some commands work on configured loops, others on those that have been heard of.
    assert line.startswith("loop: expected ")
    assert line.endswith(", got 'nope'")


def test_a_bad_variable(monkeypatch: pytest.MonkeyPatch, complain: Complain) -> None:
    monkeypatch.setenv("CROUPIER_SERVICE__PORT", "many")
    assert complain("serve") == "service.port: Expected `int`, got `str`"


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "croupier", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_port_that_is_taken(tmp_path: Path, taken_port: int) -> None:
    (tmp_path / "croupier.toml").write_text("[loops.digits]")
    ended = run(tmp_path, "serve", "--port", str(taken_port))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"error: service.port: expected a free port, but 127.0.0.1:{taken_port} "
        f"can't be listened on: Address already in use\n"
    )
    # Nothing was begun.
    assert not (tmp_path / "croupier-data").exists()


def test_a_process_of_its_own_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "croupier.toml").write_text("[loops.digits]\nreward_min = 2")
    ended = run(tmp_path, "serve")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "error: loops.digits.reward_min: reward_min must be below reward_max, got 2.0 and 1.0\n"
    )
