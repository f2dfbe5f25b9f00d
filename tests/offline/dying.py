"""Runs a command that kills itself at a given moment: ``python -m tests.offline.dying``.

Moments are the calls and the returns of functions that decide, write or register, counted from the
start, so that they are the same however fast the machine is. In wall-clock time most of a night is
spent loading libraries and evaluating, and what could go wrong happens in milliseconds.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deltalake import DeltaTable
from mlflow import MlflowClient

from croupier.cli.main import main
from croupier.offline import (
    evaluate,
    generations,
    join,
    lake,
    nightly,
    registry,
    report,
    retention,
    retrain,
    sink,
    standing,
    tracking,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_MODULES: Final = (
    evaluate,
    generations,
    join,
    lake,
    nightly,
    registry,
    report,
    retention,
    retrain,
    sink,
    standing,
    tracking,
)
_STEPS: Final = {
    "sink": "sink",
    "join": "join",
    "finish_published": "finish",
    "Nightly.train": "train",
    "Nightly.report": "train",
    "Registry.publish": "register",
    "Nightly.publish": "record",
    "evaluate": "evaluate",
    "Nightly.promote_on_evidence": "gate",
    "Registry.promote": "promote",
    "record_promotion": "promote",
    "retain": "retention",
}


class Watch:
    """Counts moments, by step, and ends the process at one of them.

    Parameters
    ----------
    last
        The moment to end at; 0 for none.
    """

    def __init__(self, last: int) -> None:
        self.steps: list[str] = []
        self._last = last
        self._within = ["other"]

    def functions_of(self, module: ModuleType) -> None:
        """Watch all functions and methods that a module defines, wherever they are known."""
        for name, value in list(vars(module).items()):
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value):
                watched = self._watched(value)
                for other in list(sys.modules.values()):
                    if vars(other).get(name) is value:
                        setattr(other, name, watched)
            elif inspect.isclass(value):
                self.methods_of(value)

    def methods_of(self, kind: type[Any]) -> None:
        """Watch all methods that a class defines."""
        for name, value in list(vars(kind).items()):
            if inspect.isfunction(value) and not name.startswith("__"):
                setattr(kind, name, self._watched(value))

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        step = _STEPS.get(function.__qualname__)

        @functools.wraps(function)
        def watched(*arguments: Any, **others: Any) -> Any:
            if step is not None:
                self._within.append(step)
            self._note()
            try:
                return function(*arguments, **others)
            finally:
                self._note()
                if step is not None:
                    self._within.pop()

        return watched

    def _note(self) -> None:
        self.steps.append(self._within[-1])
        if len(self.steps) == self._last:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    watch = Watch(int(sys.argv[1]))
    told, sys.argv = Path(sys.argv[2]), ["croupier", *sys.argv[3:]]
    for module in _MODULES:
        watch.functions_of(module)
    for kind in (DeltaTable, MlflowClient):
        watch.methods_of(kind)
    try:
        main()
    finally:
        told.write_text(json.dumps(watch.steps))
