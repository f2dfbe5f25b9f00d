"""Fixtures of all tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ("tests.command_line", "tests.kafka", "tests.ray_cluster")


@pytest.fixture(scope="session", autouse=True)
def _no_telemetry() -> Iterator[None]:
    """MLflow reports to nobody, neither here nor from the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield


@pytest.fixture(scope="session", autouse=True)
def _quick_compilation() -> Iterator[None]:
    """Programs of tests take longer to compile than to run; XLA reads it when it is first used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
        yield
