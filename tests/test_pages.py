"""Every block of code in README.md and docs/ is run, or checked, or listed as not run and why.

The tutorial, the how-tos and the pages about backups and upgrades are run from top to bottom, the
latter in the folder that the tutorial leaves behind and with its scorer. Elsewhere, blocks with a
marker are run by the tests of their page; commands are parsed by the command line itself; TOML is
read as configuration and JSON as JSON; Python needs names that this module gives it. What is left
is in ``NOT_RUN``.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import typer.main

from croupier.cli.commands import app
from croupier.cli.config import CroupierConfig
from croupier.eventlog.kafka.broker import Cluster
from tests.page_runs import ROOT, Block, PageRun, blocks, console_steps

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]

TUTORIAL = "docs/tutorial.md"
HOW_TOS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "how-to").glob("*.md"))
# The second one restores what the first one has backed up.
AFTER_THE_TUTORIAL = [*HOW_TOS, "docs/backup.md", "docs/upgrades.md"]
SLOW = {
    "docs/how-to/kafka.md": "a broker",
    "docs/how-to/oscillation.md": "a study",
    "docs/how-to/gamma.md": "three trainings",
    "docs/how-to/simulators.md": "an environment of JAX's",
}
RUN = {TUTORIAL, *AFTER_THE_TUTORIAL}
PAGES = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]
# Pages whose marked blocks have tests of their own.
MARKED = {"README.md", "docs/clients.md", "docs/migrate-from-personalizer.md"}

# By page and the beginning of the block: why it is neither run nor checked.
NOT_RUN = {
    ("README.md", "application ──▶"): "a picture",
    ("docs/architecture.md", "application ──▶"): "a picture",
    ("docs/gate.md", "the draws of generation 3"): "a message",
    ("docs/individual-fairness.md", "|π(x)"): "a formula",
    ("docs/kafka.md", "connecting to Kafka failed"): "messages",
    ("docs/operations.md", "2026-11-26T02:30:04Z the night"): "a message",
    ("docs/operations.md", "upstream croupier"): "nginx is not here",
    ("docs/operations.md", "decisions.example.org"): "Caddy is not here",
    ("docs/exploration.md", "class Halves"): "run by test_docs.py",
    (
        "docs/clients.md",
        "answer = feed.decide",
    ): "goes on from the block before; needs a served policy",
    ("docs/evaluation.md", "from croupier.offline.compare"): "its imports are checked; needs a log",
    ("docs/sim2rec.md", "from croupier.offline.sessions"): "its imports are checked; minutes",
    ("docs/sim2rec.md", "from croupier.policy.recurrent"): "its imports are checked; minutes",
    ("docs/comparison.md", "python -m venv peers"): "installs the peers, and then takes an hour",
    ("docs/comparison.md", "python -m benchmarks.learning"): "needs the peers",
    ("docs/how-to/simulators.md", "$ croupier simulate log"): "minutes; tests/cli runs it in small",
}

_rng = np.random.default_rng(0)
_pmfs = 0.1 + 0.7 * _rng.dirichlet(np.ones(3), (2, 60))
_drawn = np.array([_rng.choice(3, p=pmf) for pmf in _pmfs[0]])


def _names() -> dict[str, Any]:
    """What Python blocks of other pages take to be there."""
    ope = importlib.import_module("croupier.offline.ope")
    reward = _rng.random(60).round()
    return {
        "np": np,
        "reward": reward,
        "p": _pmfs[0][np.arange(60), _drawn],
        "pi": _pmfs[1][np.arange(60), _drawn],
        "r": reward,
        "a": _drawn,
        "mu": _pmfs[0],
        "nu": _pmfs[1],
        "model": np.full((60, 3), 0.5),
        "estimator": ope.DR(),
        "values": _rng.random(9),
        "standard_errors": np.full(9, 0.1),
    }


def others(*languages: str) -> list[Any]:
    """Blocks of pages that aren't run as a whole, of some languages."""
    return [
        pytest.param(block, id=block.place)
        for page in PAGES
        if page not in RUN
        for block in blocks(page)
        if block.language in languages and not block.mark.startswith("test: ")
    ]


def why_not(block: Block) -> str | None:
    """Why a block isn't run."""
    for (page, beginning), reason in NOT_RUN.items():
        if block.page == page and block.text.startswith(beginning):
            return reason
    return None


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageRun]:
    """The folder of the tutorial, after it; its scorer goes on."""
    page = PageRun(tmp_path_factory.mktemp("tutorial"))
    (page.folder / "examples").symlink_to(ROOT / "examples")
    try:
        page.run(TUTORIAL)
        yield page
    finally:
        page.close()
        if Cluster.exists(page.folder / "broker"):
            Cluster(page.folder / "broker").stop()


def test_the_tutorial_works(tutorial: PageRun) -> None:
    assert (tutorial.folder / "data" / "lake" / "generations").is_dir()


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page, marks=[pytest.mark.slow] if page in SLOW else [])
        for page in AFTER_THE_TUTORIAL
    ],
)
def test_what_comes_after_the_tutorial_works(page: str, tutorial: PageRun) -> None:
    tutorial.run(page)


def test_no_block_is_left_out() -> None:
    checked = {"console", "python", "json", "toml", ""}
    for page in PAGES:
        for block in blocks(page):
            if block.mark.startswith("test: "):
                assert page in MARKED, block.place
            elif page in RUN:
                if block.mark.startswith("not run: "):
                    assert why_not(block), f"{block.place} is not run, and not on the list"
                else:
                    assert block.language in {"console", "python", "toml"}, block.place
                    assert not why_not(block), block.place
            elif not block.language.startswith("{"):
                assert block.language in checked or why_not(block), block.place


def test_what_is_on_the_list_is_there() -> None:
    found = {(block.page, block.text) for page in PAGES for block in blocks(page)}
    for page, beginning in NOT_RUN:
        assert any(page == at and text.startswith(beginning) for at, text in found), beginning


@pytest.mark.parametrize("block", others("console", ""))
def test_commands_are_ones_that_there_are(block: Block) -> None:
    if why_not(block):
        return
    if block.language == "console":
        commands = [command for command, _ in console_steps(block.text)]
    else:
        commands = block.text.replace("\\\n", " ").splitlines()
    for command in commands:
        for words in simple_commands(command):
            check_command(words, block.place)


def simple_commands(command: str) -> Iterator[list[str]]:
    """The commands of a line, without what is set before them."""
    lexer = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars="|;&")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|;&"):
            yield words
            words = []
        elif words or not re.match(r"[A-Z_]+=", word):
            words.append(word)


def check_command(words: list[str], place: str) -> None:
    match words:
        case ["croupier", *rest]:
            command: Any = typer.main.get_command(app)
            while getattr(command, "commands", None):
                name = rest.pop(0)
                assert name in command.commands, f"{place}: no command {name}"
                command = command.commands[name]
            # Raises if an option isn't known, doesn't take such a value, or is missing.
            command.make_context(command.name, rest)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), place
        case ["curl" | "sed" | "mlflow", *_]:
            pass
        case _:
            raise AssertionError(f"{place}: expected a known command, got {words}")


@pytest.mark.parametrize("block", others("json"))
def test_json_is_json(block: Block) -> None:
    assert msgspec.json.decode(block.text)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.place)
        for page in sorted(RUN)
        for block in blocks(page)
        if block.language == "toml"
    ],
)
def test_configuration_is_accepted(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It may name a class that the page has written to a file.
    for each in blocks(block.page):
        if each.mark.startswith("file: ") and each.language == "python":
            (tmp_path / each.mark.removeprefix("file: ")).write_text(each.text)
    monkeypatch.syspath_prepend(str(tmp_path))
    msgspec.convert(tomllib.loads(block.text), CroupierConfig)


@pytest.mark.parametrize("block", others("python"))
def test_python_runs_or_names_what_there_is(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{block.place}: {node.module}.{alias.name}"
    if not why_not(block):
        exec(compile(tree, block.place, "exec"), _names())


def test_pages_are_in_the_navigation() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES[1:]:
        name = Path(page).relative_to("docs").with_suffix("").as_posix()
        if name.startswith(("how-to/", "reference/api/")) or name == "index":
            continue
        assert re.search(rf"^{re.escape(name)}$", index, re.MULTILINE), name
