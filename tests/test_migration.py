"""What docs/migrate-from-personalizer.md shows is run as it stands there, but for the port."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from croupier.service.personalizer import merge_features
from tests.pages import Page, run

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Page("docs/migrate-from-personalizer.md")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A scorer that runs from the page's configuration, at another port."""
    with PAGE.scorer(tmp_path_factory.mktemp("migration")) as number:
        yield number


def test_the_sdk_works(port: int) -> None:
    printed = run([sys.executable, "-c", PAGE.block("python").replace("8080", str(port))])
    assert printed in {"pasta\n", "salad\n"}


@pytest.mark.parametrize("key", ["shop", "staff"])
def test_curl_works(port: int, key: str) -> None:
    script = PAGE.block("sh").replace("8080", str(port)).replace("of-the-shop", f"of-the-{key}")
    # Nothing comes of the reward: 204 has no body.
    answer = msgspec.json.decode(run(["bash", "-c", script]))
    assert answer["eventId"] == "visit-17"
    top, side = answer["slots"]
    assert (top["id"], side["id"]) == ("top", "side")
    assert top["rewardActionId"] in {"pasta", "salad", "soup"}
    assert side["rewardActionId"] in {"salad", "soup"} - {top["rewardActionId"]}


def test_the_control_plane_works(port: int) -> None:
    script = PAGE.block("control").replace("8080", str(port))
    left, told = run(["bash", "-c", script]), []
    while left:
        value, end = json.JSONDecoder().raw_decode(left)
        told.append(value)
        left = left[end:]
    first, second, third = told
    assert (first["logRetentionDays"], first["explorationPercentage"]) == (90, 0.1)
    assert second["name"] == "careful"
    assert (third["name"], third["status"]) == ("october", "pending")


def test_features_are_merged_as_the_page_says() -> None:
    shown = re.findall(r"`(\[\{.*?\}\])`\s+is\s+`(\{.*?\})`", PAGE.text)
    assert len(shown) == 2
    for objects, merged in shown:
        decoded = msgspec.json.decode(objects, type=list[dict[str, object]])
        assert merge_features("features", decoded) == msgspec.json.decode(merged)
