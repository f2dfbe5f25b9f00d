r"""What ``docs/comparison.md`` says of packages, looked up in the packages themselves.

Croupier needn't be in the environment that has them; :mod:`benchmarks.features_peers` runs there::

    python -m venv peers
    peers/bin/pip install vowpalwabbit==9.11.9 mabwiser==2.7.4 contextualbandits==0.3.30 \
        coba==8.1.0 river==0.26.1
    peers/bin/pip install --no-deps --ignore-requires-python obp==0.5.7 vw-estimators==0.2.2 \
        scope-rl==0.2.1 mab2rec==1.3.1 jurity==2.1.0 ray==2.60.0
    python -m benchmarks.features --peers peers/bin/python

Every row of the page's tables of features has a note. For a cell that says yes or partly, the note
names, by column, where the feature is; for the cells that say no, it gives the words that were
searched for. A name (```module:Class.method```), an option of Vowpal Wabbit's (```--name```) and a
version have to be there, and nothing may be found of the words. What is a link to a file of a
repository is left to the reader, and so are packages that aren't installed, which are told.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from croupier.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[1] / "docs" / "comparison.md"
COLUMNS = {
    "VW": ["vowpalwabbit"],
    "OBP": ["obp"],
    "vw-estimators": ["estimators"],
    "SCOPE-RL": ["scope_rl"],
    "MABWiser": ["mabwiser", "mab2rec"],
    "contextualbandits": ["contextualbandits"],
    "coba": ["coba"],
    "River": ["river"],
    "RLlib": ["ray.rllib"],
}
"""Where the words of cells that say no are searched for, by column; the others are repositories."""


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the page.

    Attributes
    ----------
    name
        What is in its first cell.
    cells
        ``yes``, ``partly`` or ``no`` by column, Croupier's apart.
    places
        What the note says, by column, of where it is.
    words
        The regular expression that was searched for, in any case of letters.
    """

    name: str
    cells: dict[str, str]
    places: dict[str, str]
    words: str


class Findings(msgspec.Struct, frozen=True):
    """How many questions were asked, what is otherwise than the page says, and what isn't there."""

    asked: int
    wrong: list[str]
    not_installed: list[str]


def features(page: str) -> list[Feature]:
    """Rows of the tables of features, with their notes."""
    notes = dict(re.findall(r"^\[\^([\w-]+)\]: (.*(?:\n    .*)*)", page, re.MULTILINE))
    found: list[Feature] = []
    columns: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| feature | Croupier |"):
            columns = cells[2:]
        elif row := re.match(r"\| (.+?)\[\^([\w-]+)\] \|", line):
            places, _, words = " ".join(notes[row[2]].split()).partition("Not found: ")
            found.append(
                Feature(
                    name=row[1],
                    cells=dict(zip(columns, cells[2:], strict=True)),
                    places=dict(_places(places, columns)),
                    words=words.partition("`")[2].partition("`")[0],
                )
            )
    return found


def check(page: str, interpreter: str) -> Findings:
    """Ask the packages of an interpreter for everything that a page says of them."""
    questions = list(_questions(page))
    answers: list[str | None] = json.loads(
        subprocess.run(  # noqa: S603 - the interpreter is the caller's
            [interpreter, str(Path(__file__).with_name("features_peers.py"))],
            input=json.dumps(questions),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    missing = {
        str(question["package"])
        for question, answer in zip(questions, answers, strict=True)
        if answer == "not installed"
    }
    wrong = [
        f"{question['where']}: {answer}"
        for question, answer in zip(questions, answers, strict=True)
        if answer not in {None, "not installed"}
    ]
    return Findings(
        asked=sum(answer != "not installed" for answer in answers),
        wrong=wrong,
        not_installed=sorted(missing),
    )


def _places(note: str, columns: list[str]) -> Iterator[tuple[str, str]]:
    """What a note says of each column: parts that begin with its name, up to a semicolon."""
    for part in note.split("; "):
        named = next((column for column in columns if part.startswith(f"{column} ")), None)
        if named is not None:
            yield named, part.removeprefix(named).strip()


def _questions(page: str) -> Iterator[dict[str, Any]]:
    versions = re.findall(r"`([\w-]+)==([\d.]+)`", page)
    for package, version in versions:
        yield {"kind": "version", "where": package, "package": package, "asked": version}
    for feature in features(page):
        for column, place in feature.places.items():
            for name in re.findall(r"`(\w[\w.]*:[\w.]+|--\w+)`", place):
                kind = "option" if name.startswith("--") else "name"
                package = "vowpalwabbit" if kind == "option" else name.partition(".")[0]
                where = f"{feature.name}, {column}"
                yield {"kind": kind, "where": where, "package": package, "asked": name}
        for column, cell in feature.cells.items():
            for package in COLUMNS.get(column, []) if cell == "no" else []:
                where = f"{feature.name}, {column}, no"
                yield {"kind": "words", "where": where, "package": package, "asked": feature.words}


def main() -> None:
    """Check the page and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", required=True, help="an interpreter with the packages")
    parser.add_argument("--json", action="store_true")
    given: Any = parser.parse_args()
    findings = check(PAGE.read_text(encoding="utf-8"), given.peers)
    output = Output(json=given.json)

    def show() -> None:
        for line in findings.wrong:
            output.remark(line)
        output.remark(
            f"{findings.asked} things looked up, {len(findings.wrong)} otherwise than the page says"
        )
        if findings.not_installed:
            output.remark(f"not installed: {', '.join(findings.not_installed)}")

    output.result(findings, show)
    sys.exit(1 if findings.wrong else 0)


if __name__ == "__main__":
    main()
