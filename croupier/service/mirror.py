"""The registry mirror: a process of its own that keeps the serving directory up to date.

MLflow is large and its calls are slow; in the scorer's process it would cost memory and tail
latency. One mirror serves all the scorer processes of a machine.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from croupier.policy.errors import GenerationError
from croupier.policy.generation import Generation, registered_model_name
from croupier.service.scorer import now_us
from croupier.service.serving import Champion, RegistryState, ServingDirectory

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("mirror_registry", "registry_is_new")

_log = logging.getLogger(__name__)

_KEPT_GENERATIONS = 5


def mirror_registry(
    tracking_uri: str, loops: Sequence[str], root: Path, poll_s: float, parent: int
) -> None:
    """Copy champions from the registry to the serving directory until the parent process ends.

    Parameters
    ----------
    tracking_uri
        Of MLflow.
    loops
        Names of the loops to follow.
    root
        The serving directory.
    poll_s
        Seconds between looks.
    parent
        Process id of the service; the mirror never outlives it, however it ends.
    """
    serving = ServingDirectory(root)
    answered: int | None = None
    client: Any = None
    while os.getppid() == parent:
        try:
            # Looking into a new registry would create it, in the way of the job that fills it.
            if not registry_is_new(tracking_uri):
                client = client or _client(tracking_uri)
                for loop in loops:
                    _mirror_loop(client, serving, loop)
            answered = now_us()
            serving.write_state(RegistryState(answered_us=answered, error=None))
        except Exception as error:  # noqa: BLE001
            # The registry may be away for a while; scorers go on with what they have.
            _log.warning("the registry can't be read: %s", error)
            client = None
            first_line = str(error).partition("\n")[0]
            serving.write_state(RegistryState(answered_us=answered, error=first_line))
        time.sleep(poll_s)


def registry_is_new(tracking_uri: str) -> bool:
    """Whether the registry is an SQLite file that nobody has made yet: nothing is registered."""
    parsed = urlparse(tracking_uri)
    return parsed.scheme == "sqlite" and not Path(parsed.path[1:]).exists()


def _client(tracking_uri: str) -> Any:
    from mlflow import MlflowClient  # noqa: PLC0415 - takes seconds, and is not needed elsewhere

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def _mirror_loop(client: Any, serving: ServingDirectory, loop: str) -> None:
    version = _champion_version(client, loop)
    if version is None:
        number = 0
    else:
        number = int(version.tags["generation"])
        if not serving.generation_path(loop, number).exists():
            _fetch(client, version, serving, loop, number)
    if serving.champion(loop) != Champion(generation=number):
        serving.write_champion(loop, Champion(generation=number))
        _prune(serving, loop, number)


def _champion_version(client: Any, loop: str) -> Any:
    """The model version that bears the alias ``champion``; None if there is none."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    try:
        return client.get_model_version_by_alias(registered_model_name(loop), "champion")
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise


def _fetch(client: Any, version: Any, serving: ServingDirectory, loop: str, number: int) -> None:
    """Download a generation, check it, and put it in place in one step."""
    target = serving.generation_path(loop, number)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{number}-", dir=target.parent))
    try:
        downloaded = Path(client.download_artifacts(version.run_id, "generation", str(staging)))
        generation = Generation.load(downloaded)
        if (generation.loop, generation.number) != (loop, number):
            raise GenerationError(
                f"the registry's generation {number} of loop {loop} says it is "
                f"{generation.number} of {generation.loop}"
            )
        downloaded.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _prune(serving: ServingDirectory, loop: str, champion: int) -> None:
    """Keep the champion and the few newest generations, for a quick rollback."""
    folder = serving.root / loop
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    for number in numbers[:-_KEPT_GENERATIONS]:
        if number != champion:
            shutil.rmtree(serving.generation_path(loop, number), ignore_errors=True)
