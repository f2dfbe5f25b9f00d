"""Builds the compiled inner loops when Croupier is installed; without them it is only slower.

Puts what ``croupier dev kafka`` needs into the wheel.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SOURCES = (
    Path("croupier") / "policy" / "_kernel.c",
    Path("croupier") / "offline" / "fairness" / "_partners.c",
)
_BROKER = Path("docker") / "kafka"
_BROKER_IN_WHEEL = "croupier/eventlog/kafka/broker/files"
_FLAGS = ["-O2", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wextra"]


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles the sources into the tree, and puts them and the broker's files into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build before everything else."""
        if version != "editable":
            # An editable installation finds them where they are.
            for path in (Path(self.root) / _BROKER).iterdir():
                if path.suffix != ".md":
                    build_data["force_include"][str(path)] = f"{_BROKER_IN_WHEEL}/{path.name}"
        for source in _SOURCES:
            target = source.with_name(f"{source.stem}{sysconfig.get_config_var('EXT_SUFFIX')}")
            try:
                _compile(Path(self.root) / source, Path(self.root) / target)
            except (OSError, ImportError, subprocess.CalledProcessError) as error:
                said = getattr(error, "stderr", None) or error
                self.app.display_warning(f"{source} was not compiled: {said}")
                continue
            build_data["artifacts"].append(f"/{target.as_posix()}")
            build_data["pure_python"] = False
            build_data["infer_tag"] = True


def _compile(source: Path, target: Path) -> None:
    import numpy as np  # noqa: PLC0415 - it may not be there

    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    headers = ["-I", sysconfig.get_paths()["include"], "-I", np.get_include()]
    staging = target.with_suffix(".tmp")
    command = [*compiler, *_FLAGS, *headers, str(source), "-o", str(staging)]
    subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    # In one step, for whoever has the old one loaded.
    staging.replace(target)
