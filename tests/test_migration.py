"""What docs/migrate-from-personalizer.md shows is run as it stands there, but for the port."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from croupier.service.personalizer import merge_features
from tests.processes import free_port, running_scorer

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).parent.parent / "docs" / "migrate-from-personalizer.md").read_text()


def block(marker: str) -> str:
    """The code block below a marker comment."""
    match = re.search(rf"<!-- test: {re.escape(marker)} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert match is not None, f"the page has no block marked {marker}"
    return match[1]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A scorer that runs from the page's configuration, at another port."""
    folder = tmp_path_factory.mktemp("migration")
    number = free_port()
    config = folder / "croupier.toml"
    config.write_text(block("croupier.toml").replace("8080", str(number)))
    with running_scorer(config, folder / "croupier-data"):
        yield number


def run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_sdk_works(port: int) -> None:
    printed = run([sys.executable, "-c", block("python").replace("8080", str(port))])
    assert printed in {"pasta\n", "salad\n"}


@pytest.mark.parametrize("key", ["shop", "staff"])
def test_curl_works(port: int, key: str) -> None:
    script = block("sh").replace("8080", str(port)).replace("of-the-shop", f"of-the-{key}")
    # Nothing comes of the reward: 204 has no body.
    answer = msgspec.json.decode(run(["bash", "-c", script]))
    assert answer["eventId"] == "visit-17"
    top, side = answer["slots"]
    assert (top["id"], side["id"]) == ("top", "side")
    assert top["rewardActionId"] in {"pasta", "salad", "soup"}
    assert side["rewardActionId"] in {"salad", "soup"} - {top["rewardActionId"]}


def test_features_are_merged_as_the_page_says() -> None:
    shown = re.findall(r"`(\[\{.*?\}\])`\s+is\s+`(\{.*?\})`", PAGE)
    assert len(shown) == 2
    for objects, merged in shown:
        decoded = msgspec.json.decode(objects, type=list[dict[str, object]])
        assert merge_features("features", decoded) == msgspec.json.decode(merged)
