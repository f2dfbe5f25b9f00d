"""What README.md shows is run as it stands there, but for the port."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.processes import free_port, running_scorer

if TYPE_CHECKING:
    from collections.abc import Iterator

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(marker: str) -> str:
    """The code block below a marker comment."""
    match = re.search(rf"<!-- test: {re.escape(marker)} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert match is not None, f"README.md has no block marked {marker}"
    return match[1]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A scorer that runs from the README's configuration, at another port."""
    folder = tmp_path_factory.mktemp("readme")
    number = free_port()
    config = folder / "croupier.toml"
    config.write_text(block("croupier.toml").replace("8080", str(number)))
    with running_scorer(config, folder / "croupier-data"):
        yield number


def run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_curl_example_works(port: int) -> None:
    decided, rewarded = (
        run(["bash", "-c", block("sh").replace("8080", str(port))])
        .replace("}{", "}\n{")
        .splitlines()
    )
    decision = msgspec.json.decode(decided)
    assert decision["decision_id"] == "visit-17"
    assert decision["action"] in {"red", "blue"}
    assert decision["propensity"] == 0.5
    assert msgspec.json.decode(rewarded) == {"accepted": 1}


def test_python_example_works(port: int) -> None:
    printed = run([sys.executable, "-c", block("python").replace("8080", str(port))])
    assert re.fullmatch(r"(red|blue) with probability 0\.5\n", printed)
