"""Pages of documentation whose marked blocks are run as they stand there, but for the port."""

from __future__ import annotations

import re
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.processes import free_port, running_scorer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("Page", "run")

_ROOT = Path(__file__).parent.parent


class Page:
    """A page by its path in the repository."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.text = (_ROOT / path).read_text()

    def block(self, marker: str) -> str:
        """The code block below a marker comment."""
        pattern = rf"<!-- test: {re.escape(marker)} -->\n```\w+\n(.*?)```"
        match = re.search(pattern, self.text, re.DOTALL)
        assert match is not None, f"{self.path} has no block marked {marker}"
        return match[1]

    @contextmanager
    def scorer(self, folder: Path) -> Iterator[int]:
        """Port of a scorer that runs from the page's configuration, at another port than there."""
        number = free_port()
        config = folder / "croupier.toml"
        config.write_text(self.block("croupier.toml").replace("8080", str(number)))
        with running_scorer(config, folder / "croupier-data"):
            yield number


def run(command: list[str], folder: Path | None = None) -> str:
    """Standard output of a command that must succeed, in a folder if one is given."""
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True, timeout=60
    ).stdout
