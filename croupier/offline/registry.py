"""Publishing generations: MLflow runs, model versions and the aliases champion and challenger."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from croupier.policy.errors import CroupierError, GenerationError
from croupier.policy.generation import Generation, cold_start, registered_model_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ("Registry", "RegistryError")


class RegistryError(CroupierError):
    """The registry can't be reached, or doesn't do as it is asked."""


class Registry:
    """One MLflow server or database with its artifact store.

    Every method raises :class:`RegistryError` if MLflow can't be reached.

    Parameters
    ----------
    tracking_uri
        Of MLflow; an ``sqlite:///`` file is made on the first write.
    artifacts
        Directory for the files of runs, where MLflow has no store of its own.
    """

    def __init__(self, tracking_uri: str, artifacts: Path) -> None:
        self.tracking_uri = tracking_uri
        self._artifacts = artifacts
        self._cached: Any = None

    def publish(
        self,
        generation: Generation,
        *,
        params: Mapping[str, object],
        metrics: Mapping[str, float],
    ) -> str:
        """Log a run that holds the generation, register it as challenger; gives the run's id."""
        with _reported("publishing a generation"):
            client = self._client()
            name = registered_model_name(generation.loop)
            self._ensure_model(name)
            run = client.create_run(
                self._experiment(generation.loop), run_name=f"generation {generation.number}"
            )
            run_id: str = run.info.run_id
            for key, value in params.items():
                client.log_param(run_id, key, value)
            for key, number in metrics.items():
                client.log_metric(run_id, key, number)
            with tempfile.TemporaryDirectory() as staging:
                directory = Path(staging) / "generation"
                generation.save(directory)
                client.log_artifacts(run_id, str(directory), "generation")
            client.set_terminated(run_id)
            version = client.create_model_version(
                name,
                source=f"{run.info.artifact_uri}/generation",
                run_id=run_id,
                tags={"generation": str(generation.number)},
            )
            client.set_registered_model_alias(name, "challenger", version.version)
        return run_id

    def promote(self, loop: str, number: int) -> None:
        """Give a generation the alias champion; scorers pick it up.

        Raises
        ------
        GenerationError
            If the registry doesn't have it.
        """
        version = self._version(loop, number)
        with _reported("promoting a generation"):
            self._client().set_registered_model_alias(
                registered_model_name(loop), "champion", version.version
            )

    def champion(self, loop: str) -> int:
        """Number of the champion; 0, the cold start, if no generation was ever promoted."""
        if self._is_new():
            return 0
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        with _reported("asking for the champion"):
            try:
                version = self._client().get_model_version_by_alias(
                    registered_model_name(loop), "champion"
                )
            except MlflowException as error:
                if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                    return 0
                raise
        return int(version.tags["generation"])

    def load(self, loop: str, number: int) -> Generation:
        """Read a generation back; number 0 is the cold start.

        Raises
        ------
        GenerationError
            If the registry doesn't have it, or not in order.
        """
        if number == 0:
            return cold_start(loop)
        version = self._version(loop, number)
        with tempfile.TemporaryDirectory() as staging:
            with _reported("reading a generation"):
                downloaded = self._client().download_artifacts(
                    version.run_id, "generation", staging
                )
            return Generation.load(Path(downloaded))

    def numbers(self, loop: str) -> list[int]:
        """Numbers of all generations that the registry has, ascending."""
        if self._is_new():
            return []
        return sorted(int(version.tags["generation"]) for version in self._versions(loop))

    def _version(self, loop: str, number: int) -> Any:
        if not self._is_new():
            for version in self._versions(loop):
                if version.tags.get("generation") == str(number):
                    return version
        raise GenerationError(f"the registry has no generation {number} of loop {loop!r}")

    def _versions(self, loop: str) -> list[Any]:
        with _reported("looking up generations"):
            found = self._client().search_model_versions(f"name='{registered_model_name(loop)}'")
        return list(found)

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        try:
            self._client().create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _experiment(self, loop: str) -> str:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        client = self._client()
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

    def _client(self) -> Any:
        if self._cached is None:
            # Takes seconds, and many commands don't need it.
            from mlflow import MlflowClient  # noqa: PLC0415

            _quiet()
            if self._is_new():
                self._create()
            self._cached = MlflowClient(self.tracking_uri, self.tracking_uri)
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

    def _is_new(self) -> bool:
        file = self._sqlite_file()
        return file is not None and not file.exists()

    def _sqlite_file(self) -> Path | None:
        parsed = urlparse(self.tracking_uri)
        return Path(parsed.path[1:]) if parsed.scheme == "sqlite" else None


@contextlib.contextmanager
def _reported(doing: str) -> Iterator[None]:
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
