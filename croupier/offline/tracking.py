"""The connection to MLflow: its database, its client, and its errors as ours."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from croupier.policy.errors import CroupierError
from croupier.policy.generation import registered_model_name

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("RegistryError", "Tracking", "reported")


class RegistryError(CroupierError):
    """The registry can't be reached, or doesn't do as it is asked."""


class Tracking:
    """One MLflow server or database, which is connected to when it is first needed.

    Parameters
    ----------
    uri
        Of MLflow; an ``sqlite:///`` file is made on the first write.
    artifacts
        Directory for the files of runs, where MLflow has no store of its own.
    """

    def __init__(self, uri: str, artifacts: Path) -> None:
        self.uri = uri
        self._artifacts = artifacts
        self._cached: Any = None

    def experiment(self, loop: str) -> str:
        """Id of a loop's experiment, which is made if there is none."""
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        client = self.client()
        name = registered_model_name(loop)
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = self._artifacts.absolute().as_uri() if self._sqlite_file() else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            # Another process was a moment earlier.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return str(client.get_experiment_by_name(name).experiment_id)

    def client(self) -> Any:
        """MLflow's client; the database is made if there is none."""
        if self._cached is None:
            # Takes seconds, and many commands don't need it.
            from mlflow import MlflowClient  # noqa: PLC0415

            _quiet()
            if self.is_new():
                self._create()
            self._cached = MlflowClient(self.uri, self.uri)
        return self._cached

    def _create(self) -> None:
        """Make the SQLite file aside and link it into place whole.

        Other processes look into the file as soon as it is there, and MLflow would start to set it
        up a second time if it saw it half done.
        """
        from mlflow import MlflowClient  # noqa: PLC0415

        target = self._sqlite_file()
        assert target is not None
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=target.parent) as staging:
            fresh = Path(staging) / "mlflow.db"
            MlflowClient(f"sqlite:///{fresh}", f"sqlite:///{fresh}").search_registered_models()
            with contextlib.suppress(FileExistsError):
                os.link(fresh, target)

    def is_new(self) -> bool:
        """Whether nothing was ever written there."""
        file = self._sqlite_file()
        return file is not None and not file.exists()

    def _sqlite_file(self) -> Path | None:
        parsed = urlparse(self.uri)
        return Path(parsed.path[1:]) if parsed.scheme == "sqlite" else None


@contextlib.contextmanager
def reported(doing: str) -> Iterator[None]:
    """Turn what MLflow raises into an error of ours, of one line."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise RegistryError(f"the registry failed at {doing}: {first_line}") from error


def _quiet() -> None:
    """Keep MLflow's and Alembic's set-up chatter off the terminal; warnings still show."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
