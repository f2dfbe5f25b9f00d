"""Pages of documentation whose blocks are run, in their order, as a reader would.

A page's blocks share a folder and a Python session. What a block is follows from its language:

- ``console``: lines that begin with ``$`` are commands, and go on to the next such line if they end
  within quotes or with a backslash. ``croupier`` runs within this process, except for what serves,
  which runs beside it until the page ends; everything else is run by bash. If the lines after a
  command show what it prints, it has to print them: ``…`` stands for anything, and a line of ``…``
  for any lines.
- ``python``: executed, with the names of the blocks before.
- others are checked by ``test_docs.py``.

Comments before a block say more: ``<!-- file: NAME -->`` writes it to a file,
``<!-- not run: WHY -->`` leaves it out. The ports 8080 and 8501 stand for free ones.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from croupier.cli.config import load_config
from croupier.cli.main import main
from croupier.service.server import read_address
from tests.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("Block", "PageRun", "blocks", "console_steps")

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?(?P<indent> *)```(?P<language>[\w{}-]*)\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_PATIENCE_S = 600
_SERVES = ("serve", "dashboard")


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes
    ----------
    page
        Path in the repository.
    line
        Of its first line in the page.
    language, text
        What stands in it.
    mark
        The comment before it; empty if there is none.
    """

    page: str
    line: int
    language: str
    text: str
    mark: str

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """All blocks of a page, in their order."""
    text = (ROOT / page).read_text()
    return [
        Block(
            page,
            text.count("\n", 0, found.start("text")) + 1,
            found["language"],
            found["text"],
            found["mark"] or "",
        )
        for found in _BLOCK.finditer(text)
    ]


def console_steps(text: str) -> Iterator[tuple[str, str]]:
    """Commands of a console block, each with the output that is shown after it."""
    lines = text.splitlines()
    while lines:
        line = lines.pop(0)
        assert line.startswith("$ "), f"expected a command that begins with '$ ', got {line!r}"
        command = line.removeprefix("$ ")
        while not _is_complete(command):
            command += "\n" + lines.pop(0)
        shown = []
        while lines and not lines[0].startswith("$ "):
            shown.append(lines.pop(0))
        yield command, "\n".join(shown).strip("\n")


def _is_complete(command: str) -> bool:
    if command.endswith("\\"):
        return False
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True


@dataclass
class PageRun:
    """Runs pages in a folder, which is the working directory until it is closed.

    Attributes
    ----------
    folder
        Where files are written and commands run.
    """

    folder: Path
    _beside: ExitStack = field(default_factory=ExitStack)
    _ports: dict[str, str] = field(
        default_factory=lambda: {name: str(free_port()) for name in ("8080", "8501")}
    )

    def run(self, page: str) -> dict[str, Any]:
        """Run a page to its end; gives the names that its Python blocks have made."""
        names: dict[str, Any] = {"__name__": f"page_{Path(page).stem}"}
        with contextlib.chdir(self.folder), pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(self.folder))
            for block in blocks(page):
                if not block.mark.startswith("not run: "):
                    self._block(block, names)
        return names

    def close(self) -> None:
        """End what serves."""
        self._beside.close()

    def _block(self, block: Block, names: dict[str, Any]) -> None:
        text = self._with_ports(block.text)
        if block.mark.startswith("file: "):
            Path(block.mark.removeprefix("file: ")).write_text(text)
        elif block.language == "python":
            exec(compile(text, block.place, "exec"), names)
        elif block.language == "console":
            for command, shown in console_steps(text):
                printed = self._command(command, block.place)
                if shown and not re.fullmatch(_pattern(shown), _trimmed(printed) + "\n"):
                    raise AssertionError(
                        f"{block.place}: expected of {command!r}:\n{shown}\ngot:\n{printed}"
                    )

    def _with_ports(self, text: str) -> str:
        for name, port in self._ports.items():
            text = text.replace(name, port)
        return text

    def _command(self, command: str, place: str) -> str:
        words = shlex.split(command, comments=True)
        if words[0] == "PYTHONPATH=.":
            # Here the folder is on the path already.
            del words[0]
        is_plain = not re.search(r"[|;&<>]", re.sub(r"'[^']*'|\"[^\"]*\"", "", command))
        if words[0] == "croupier" and words[1] in _SERVES:
            self._serve(words[1:])
            return ""
        if words[0] == "croupier" and is_plain:
            return _croupier(words[1:], place)
        return _bash(command, place)

    def _serve(self, arguments: list[str]) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "croupier", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
        self._beside.callback(_end, process)
        if arguments[0] == "dashboard":
            port = arguments[arguments.index("--port") + 1]
            _await(process, f"http://127.0.0.1:{port}/_stcore/health")
            return
        config = arguments[arguments.index("--config") + 1] if "--config" in arguments else None
        _, paths = load_config(Path(config) if config else None)
        deadline = time.monotonic() + _PATIENCE_S
        while (address := read_address(paths.address)) is None:
            assert process.poll() is None, "the scorer ended"
            assert time.monotonic() < deadline, "the scorer didn't start"
            time.sleep(0.05)
        _await(process, f"{address.url}/readyz")


def _croupier(arguments: list[str], place: str) -> str:
    """What the command line prints, which has to succeed."""
    printed, complained = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(complained),
    ):
        patch.setattr(sys, "argv", ["croupier", *arguments])
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        else:
            code = 0
    assert not code, f"{place}: {shlex.join(arguments)} ended with {code}: {complained.getvalue()}"
    return printed.getvalue()


def _bash(command: str, place: str) -> str:
    done = subprocess.run(
        ["bash", "-ec", command],
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE_S,
        env=_environment(),
    )
    assert done.returncode == 0, f"{place}: {command} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def _environment() -> dict[str, str]:
    """This process's, with our commands and packages for those that are started in the folder."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


def _await(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{url}: the process ended"
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            urllib3.request("GET", url, timeout=5.0, retries=False)
            return
        time.sleep(0.1)
    raise AssertionError(f"nobody answers at {url}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _pattern(shown: str) -> str:
    lines = []
    for line in _trimmed(shown).splitlines():
        if line.strip() == "…":
            lines.append(r"(?:.*\n)*?")
        else:
            lines.append(re.escape(line).replace("…", ".*?") + r"\n")
    return "".join(lines)


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
