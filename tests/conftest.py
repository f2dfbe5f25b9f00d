"""Fixtures of all tests."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from croupier.offline.tracking import Tracking

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


_create = Tracking._create


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database as it is when nothing was ever registered; it takes seconds to make."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with warnings.catch_warnings():
        # Of MLflow's own making.
        warnings.filterwarnings("ignore", ".*noload")
        _create(Tracking(f"sqlite:///{file}", file.parent / "mlartifacts"))
    return file


@pytest.fixture(scope="session", autouse=True)
def _quick_registries(request: pytest.FixtureRequest) -> Iterator[None]:
    """Registries that this process makes are copies of one that was made as all are."""

    def copy(tracking: Tracking) -> None:
        target = tracking._sqlite_file()
        assert target is not None
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as staging:
            whole = Path(shutil.copy(request.getfixturevalue("empty_registry"), staging))
            with suppress(FileExistsError):
                target.hardlink_to(whole)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracking, "_create", copy)
        yield
