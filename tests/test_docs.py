"""What the pages in docs/ show is what the code takes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from croupier.cli.config import CroupierConfig
from croupier.cli.reference import reference_page
from croupier.policy.conformance import check_exploration
from croupier.policy.exploration import Custom, Exploration
from croupier.policy.oracle import OracleConfig
from croupier.service.config import ServiceConfig

PAGES = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
OPERATIONS = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
EXPLORATION = (Path(__file__).parent.parent / "docs" / "exploration.md").read_text()


def blocks(language: str) -> list[Any]:
    found = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [
        pytest.param(text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, text in enumerate(found.findall(page.read_text()))
    ]


@pytest.mark.parametrize("text", blocks("toml"))
def test_configuration_is_accepted(text: str) -> None:
    msgspec.convert(tomllib.loads(text), CroupierConfig)


def test_every_setting_is_on_its_page_and_explained() -> None:
    page = next(page for page in PAGES if page.name == "configuration.md")
    assert page.read_text() == reference_page()
    names = {line.split("`")[1] for line in reference_page().splitlines() if line.startswith("| `")}
    assert {"draw_secret", "attribution_window", "gamma_scale", "judge_share"} <= names
    assert not [line for line in reference_page().splitlines() if line.endswith("` |  |")]


def kinds(union: Any) -> set[str]:
    """Tags of a union of structs."""
    return {str(each.__struct_config__.tag) for each in union.__args__}


def test_every_exploration_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", EXPLORATION, re.MULTILINE)) >= kinds(Exploration)


def test_every_oracle_is_in_the_table() -> None:
    table = EXPLORATION.partition("## Oracles")[2].partition("```")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= kinds(OracleConfig)


@pytest.mark.parametrize("kind", sorted(kinds(Exploration) - {"custom"}))
def test_defaults_in_the_table_are_the_codes(kind: str) -> None:
    line = re.findall(rf"^\| `{kind}` \|.*$", EXPLORATION, re.MULTILINE)[0]
    documented = dict(re.findall(r"`(\w+)` (-?\d+(?:\.\d+)?|true)\b", line.split(" | ")[2]))
    (struct,) = (each for each in Exploration.__args__ if each.__struct_config__.tag == kind)
    fields = {field.name: field.default for field in msgspec.structs.fields(struct)}
    assert set(documented) <= set(fields)
    for name, value in documented.items():
        if (kind, name) != ("fastcb", "gamma"):
            assert fields[name] == (True if value == "true" else float(value)), name


def test_the_users_own_breaks_ties_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```", EXPLORATION, re.DOTALL | re.MULTILINE)
    namespace: dict[str, Any] = {"np": np, "__name__": __name__}
    exec(text, namespace)
    monkeypatch.setattr(f"{__name__}.Halves", namespace["Halves"], raising=False)
    failed = {
        finding.check
        for finding in check_exploration(Custom(path=f"{__name__}:Halves"))
        if not finding.passed
    }
    assert failed == {"shares ties evenly", "reorders with the actions"}


def documented_limits() -> list[Any]:
    """Settings of the table of limits, with the values that it says they have."""
    table = OPERATIONS.partition("## Limits")[2].partition("## Back-pressure")[0]
    found = re.findall(r"`(service|log)\.(\w+)`, ([\d,]+)( MiB| s)?", table)
    return [
        pytest.param(section, name, float(number.replace(",", "")), unit.strip(), id=name)
        for section, name, number, unit in found
    ]


@pytest.mark.parametrize(("section", "name", "number", "unit"), documented_limits())
def test_documented_limits_are_the_codes(section: str, name: str, number: float, unit: str) -> None:
    default = getattr(getattr(CroupierConfig(), section), name)
    if unit == "s":
        assert default == f"{number:g} s"
    else:
        assert default == number * (2**20 if unit == "MiB" else 1)


def test_every_setting_that_limits_is_documented() -> None:
    documented = {param.id for param in documented_limits()}
    limits = {
        field.name
        for field in msgspec.structs.fields(ServiceConfig)
        if field.name.startswith("max_") or field.name.endswith("_timeout")
    }
    assert limits <= documented


def test_every_event_of_the_log_is_in_the_table() -> None:
    sources = (Path(__file__).parent.parent / "croupier").rglob("*.py")
    logged = {
        event for path in sources for event in re.findall(r'"event": "(\w+)"', path.read_text())
    }
    table = OPERATIONS.partition("## Logs")[2].partition("## Trying")[0]
    assert logged == {
        event
        for line in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for event in re.findall(r"`(\w+)`", line)
    }
