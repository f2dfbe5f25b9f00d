"""Answers :mod:`benchmarks.features` from the packages of the interpreter that runs it.

It reads a JSON list of questions and writes a list of answers: nothing where it is as asked, else a
sentence. Packages are read and not imported, but for Vowpal Wabbit, which is asked for its options;
so they needn't have what they depend on.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import json
import re
import sys
from pathlib import Path


def main() -> None:
    """Answer all questions."""
    answers = []
    for question in json.load(sys.stdin):
        asked = {"version": _version, "name": _name, "option": _option, "words": _words}
        try:
            answers.append(asked[question["kind"]](question["package"], question["asked"]))
        except (ModuleNotFoundError, importlib.metadata.PackageNotFoundError):
            answers.append("not installed")
    json.dump(answers, sys.stdout)


def _version(package: str, asked: str) -> str | None:
    there = importlib.metadata.version(package)
    return None if there == asked else f"the page is about {asked}, here is {there}"


def _name(_: str, asked: str) -> str | None:
    module, _, names = asked.partition(":")
    path = _place(module)
    if path is None:
        return f"no module {module}"
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for name in names.split("."):
        found = next((node for node in body if name in _defined(node)), None)
        if found is None:
            return f"no {name} in {asked}"
        body = getattr(found, "body", [])
    return None


def _option(_: str, asked: str) -> str | None:
    return None if asked in _options() else f"no option {asked}"


def _words(package: str, asked: str) -> str | None:
    pattern = re.compile(asked, re.IGNORECASE)
    for where, text in _texts(package).items():
        if found := pattern.search(text):
            return f"{found[0]!r} is in {where}"
    return None


@functools.cache
def _texts(package: str) -> dict[str, str]:
    """What words are searched for in, by where it is."""
    root = _place(package)
    if root is None:
        raise ModuleNotFoundError(package)
    aside = re.compile(r"(^|/)(tests?|examples)/|(^|/)(test_\w+|\w+_test|conftest)\.py$")
    inside = {path.relative_to(root.parent).as_posix(): path for path in root.parent.rglob("*.py")}
    texts = {
        f"{package}/{name}": path.read_text(encoding="utf-8")
        for name, path in sorted(inside.items())
        if not aside.search(name)
    }
    if package == "vowpalwabbit":
        texts |= {f"the option {name}": f"{name} {said}" for name, said in _options().items()}
    return texts


def _place(module: str) -> Path | None:
    """File of a module, found without importing anything but its name's first part's finder."""
    first, *rest = module.split(".")
    found = importlib.util.find_spec(first)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(first)
    path = Path(found.submodule_search_locations[0]).joinpath(*rest)
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((each for each in candidates if each.exists()), None)


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


@functools.cache
def _options() -> dict[str, str]:
    """What Vowpal Wabbit's options are called, and how it explains them."""
    import vowpalwabbit  # noqa: PLC0415

    workspace = vowpalwabbit.Workspace("--quiet")
    groups = workspace.get_config(filtered_enabled_reductions_only=False)
    return {
        f"--{option.name}": option.help_str
        for reductions in groups.values()
        for _, options in reductions
        for option in options
    }


if __name__ == "__main__":
    main()
