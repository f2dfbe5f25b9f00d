"""What a command costs before it has done anything: slow imports wait until they are used."""

from __future__ import annotations

import subprocess
import sys

# Each takes from half a second to several, of every command's start.
_SLOW = ("jax", "matplotlib", "mlflow", "onnxruntime", "pandas", "ray", "sklearn", "streamlit")


def test_nothing_slow_is_imported_before_it_is_used() -> None:
    assert imported_with("croupier.cli.commands", _SLOW) == []


def test_a_process_that_a_command_starts_imports_no_command() -> None:
    """It imports the main module once more, by whichever of the two ways it was run."""
    for main in ("croupier.__main__", "croupier.cli.main"):
        assert imported_with(main, ("croupier.cli.commands", "polars", "typer")) == []


def imported_with(module: str, others: tuple[str, ...]) -> list[str]:
    """Which of some modules are imported in a new process that imports another one."""
    script = f"""
import sys
import {module}
print(*(each for each in {others!r} if each in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.split()
