"""The tables of features: every cell says where it is from, and the packages agree."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from benchmarks.features import COLUMNS, PAGE, Feature, check, features

TEXT = PAGE.read_text(encoding="utf-8")
FEATURES = features(TEXT)
NOTES = TEXT.partition("\n[^")[2]
PINNED = re.compile(r"https://github\.com/[\w-]+/[\w-]+/blob/[0-9a-f]{40}/\S+")


@pytest.mark.parametrize("feature", [pytest.param(each, id=each.name) for each in FEATURES])
def test_every_cell_says_where_it_is_from(feature: Feature) -> None:
    assert set(feature.cells.values()) <= {"yes", "partly", "no"}
    assert set(feature.places) == {name for name, cell in feature.cells.items() if cell != "no"}
    for place in feature.places.values():
        assert re.search(r"`\w[\w.]*:[\w.]+`|`--\w+`|\[[^]]+\]", place), place
    if "no" in feature.cells.values():
        re.compile(feature.words)
        assert feature.words


def test_no_row_is_left_out() -> None:
    rows = [line for line in TEXT.splitlines() if re.match(r"\| .*\[\^[\w-]+\] \|", line)]
    assert len(rows) == len(FEATURES) > 50
    assert {name for each in FEATURES for name in each.cells} == {*COLUMNS, "Loop", "ReAgent"}


def test_every_link_is_to_a_file_at_a_commit() -> None:
    links = dict(re.findall(r"^\[([^]^]+)\]: (\S+)$", TEXT, re.MULTILINE))
    assert all(PINNED.fullmatch(link) for link in links.values())
    cited = re.findall(r"\[([^]^]+)\](?!\()", NOTES.partition("\n[decision_service")[0])
    assert {" ".join(name.split()) for name in cited} == set(links)


def test_an_installed_package_agrees_with_the_page() -> None:
    asked = [sys.executable, "-m", "benchmarks.features", "--peers", sys.executable, "--json"]
    answer = subprocess.run(asked, capture_output=True, check=False, text=True)
    found = json.loads(answer.stdout)
    assert (answer.returncode, found["wrong"]) == (0, [])
    assert found["asked"] > 50
    assert "mabwiser" in found["not_installed"]
    assert "ray" not in found["not_installed"]


@pytest.mark.parametrize(
    ("place", "words", "complaint"),
    [
        ("`ray.rllib.core.columns:Columns.OBS`", "no such words", None),
        ("`ray.rllib.core.columns:Columns.OBSERVED`", "no such words", "no OBSERVED in"),
        ("`ray.rllib.core.pillars:Columns`", "no such words", "no module ray.rllib.core.pillars"),
        ("`ray.rllib.core.columns:Columns`", "LearnerGroup", "'LearnerGroup' is in ray.rllib/"),
    ],
)
def test_what_is_otherwise_than_the_page_says_is_told(
    place: str, words: str, complaint: str | None
) -> None:
    page = (
        "| feature | Croupier | RLlib | ReAgent |\n"
        "|---|---|---|---|\n"
        "| here[^here] | yes | yes | no |\n"
        "| away[^away] | yes | no | no |\n"
        f"[^here]: RLlib {place}. Not found: `nowhere`.\n"
        f"[^away]: Not found:\n    `{words}`.\n"
    )
    wrong = check(page, sys.executable).wrong
    assert len(wrong) == (complaint is not None)
    assert all(complaint in each for each in wrong if complaint is not None)


def test_another_version_is_told() -> None:
    (wrong,) = check("`ray==1.0.0`", sys.executable).wrong
    assert wrong.startswith("ray: the page is about 1.0.0, here is ")
