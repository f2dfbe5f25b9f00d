"""What README.md shows is run as it stands there, but for the port."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.pages import Page, run

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Page("README.md")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A scorer that runs from the README's configuration, at another port."""
    with PAGE.scorer(tmp_path_factory.mktemp("readme")) as number:
        yield number


def test_curl_example_works(port: int) -> None:
    decided, rewarded = (
        run(["bash", "-c", PAGE.block("sh").replace("8080", str(port))])
        .replace("}{", "}\n{")
        .splitlines()
    )
    decision = msgspec.json.decode(decided)
    assert decision["decision_id"] == "visit-17"
    assert decision["action"] in {"red", "blue"}
    assert decision["propensity"] == 0.5
    assert msgspec.json.decode(rewarded) == {"accepted": 1}


def test_python_example_works(port: int) -> None:
    printed = run([sys.executable, "-c", PAGE.block("python").replace("8080", str(port))])
    assert re.fullmatch(r"(red|blue) with probability 0\.5\n", printed)
