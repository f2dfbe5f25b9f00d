"""The command line, called in the process of a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeAlias

import pytest

from croupier.cli.main import main

Complain: TypeAlias = Callable[..., str]


@pytest.fixture
def complain(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Complain:
    """Runs the command line here, and gives the one line that it says."""

    def run_here(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["croupier", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        assert ended.value.code == 2
        assert said.out == ""
        assert said.err.endswith("\n")
        (line,) = said.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return run_here
