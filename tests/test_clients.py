"""What docs/clients.md shows is run as it stands there, but for the port and the patience."""

from __future__ import annotations

import inspect
import re
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from croupier.service.client import AsyncClient, Client, ClientOptions
from croupier.service.embedded import EmbeddedLoop
from tests.pages import Page, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = Page("docs/clients.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


@pytest.fixture(scope="module", autouse=True)
def port(folder: Path) -> Iterator[int]:
    """A scorer that runs from the page's configuration, at another port."""
    with PAGE.scorer(folder) as number:
        yield number


def printed_by(marker: str, folder: Path, port: int) -> list[str]:
    # Half a second is for a machine that does nothing else.
    code = PAGE.block(marker).replace("8080", str(port)).replace("timeout_s=0.5", "timeout_s=20")
    # In the working directory a package of ours would not be found.
    paths = f"import sys; sys.path[:0] = {sys.path!r}\n"
    return run([sys.executable, "-c", paths + code], folder).splitlines()


def test_the_synchronous_client(folder: Path, port: int) -> None:
    chosen, ranking, slots, slate = printed_by("sync", folder, port)
    assert re.fullmatch(r"(red|blue) 0\.5 True", chosen)
    assert sorted(re.findall(r"'(\w)'", ranking)) == ["a", "b", "c"]
    assert re.fullmatch(r"\{'top': '\w', 'side': '\w'\}", slots)
    assert len(set(re.findall(r"'(\w)'", slate))) == 2


def test_the_asynchronous_client(folder: Path, port: int) -> None:
    assert printed_by("async", folder, port) == ["24 ok"]


def test_the_scorer_in_process(folder: Path, port: int) -> None:
    (line,) = printed_by("embedded", folder, port)
    assert re.fullmatch(r"(red|blue) 0 (ready|degraded)", line)


@pytest.mark.parametrize("interface", [Client, AsyncClient, EmbeddedLoop])
def test_every_method_is_in_the_table(interface: type) -> None:
    table = re.findall(r"^\| `(\w+)\(", PAGE.text, re.MULTILINE)
    public = {name for name, _ in inspect.getmembers(interface) if not name.startswith("_")}
    assert public - {"close"} == set(table)
    for name in table:
        assert inspect.getdoc(getattr(interface, name))


def test_every_option_is_in_the_table() -> None:
    table = PAGE.text.partition("| option | default | |\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`.*`) \| (.*?) \|", table, re.MULTILINE)
    documented = {
        name: value
        for names, values in rows
        for name, value in zip(re.findall(r"\w+", names), values.split(", "), strict=True)
    }
    defaults = {
        field.name: {"None": "none", "False": "false"}.get(str(field.default), field.default)
        for field in msgspec.structs.fields(ClientOptions)
    }
    assert documented.keys() == defaults.keys()
    for name, value in defaults.items():
        expected = value if isinstance(value, str) else f"{value:g}"
        assert documented[name] == expected, name
