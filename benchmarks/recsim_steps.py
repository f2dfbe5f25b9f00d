"""RecSim's own Long-Term-Satisfaction environment: steps per second and memory, as one JSON line.

It is run by :mod:`benchmarks.sim2rec` with the interpreter of a virtual environment of its own,
made as told there, and so imports nothing of ours. RecSim's package imports TensorFlow and Dopamine
for its agents and for other environments; those imports are left out, the environment is untouched.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any

SECONDS, DOCUMENTS = 3.0, 30


def environment() -> Any:
    """The environment, with one slot, 30 documents and no resampling of them."""
    warnings.filterwarnings("ignore")
    for name in ("gin.tf", "recsim.simulator.runner_lib"):
        sys.modules[name] = types.ModuleType(name)
    gin: Any = importlib.import_module("gin")
    gin.tf = sys.modules["gin.tf"]
    found = importlib.import_module("recsim").__file__
    assert found is not None
    package = types.ModuleType("recsim.environments")
    package.__path__ = [str(Path(found).parent / "environments")]
    sys.modules[package.__name__] = package
    module = importlib.import_module("recsim.environments.long_term_satisfaction")
    return module.create_environment(
        {"num_candidates": DOCUMENTS, "slate_size": 1, "resample_documents": False, "seed": 0}
    )


def main() -> None:
    """Step for some seconds of processor time and print what that came to."""
    user = environment()
    user.reset()
    steps, started = 0, time.process_time()
    while (seconds := time.process_time() - started) < SECONDS:
        for _ in range(100):
            _, _, done, _ = user.step([steps % DOCUMENTS])
            steps += 1
            if done:
                user.reset()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(json.dumps({"per_second": steps / seconds, "memory_mb": peak}) + "\n")


if __name__ == "__main__":
    main()
