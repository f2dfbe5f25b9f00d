"""What a command costs before it has done anything: slow imports wait until they are used."""

from __future__ import annotations

import subprocess
import sys

# Each takes from half a second to several, of every command's start.
_SLOW = ("jax", "matplotlib", "mlflow", "onnxruntime", "pandas", "ray", "sklearn", "streamlit")
_SCRIPT = f"""
import sys
import croupier.cli.main
loaded = [each for each in {_SLOW!r} if each in sys.modules]
sys.exit(", ".join(loaded) or None)
"""


def test_nothing_slow_is_imported_before_it_is_used() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"imported by every command: {done.stderr}"
