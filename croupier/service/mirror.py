"""The registry mirror: a process of its own that keeps the serving directory up to date.

MLflow is large and its calls are slow; in the scorer's process it would cost memory and tail
latency. One mirror serves all the scorer processes of a machine.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import msgspec

from croupier.policy.errors import GenerationError
from croupier.policy.generation import Generation, registered_model_name
from croupier.policy.traffic import (
    CANARY,
    CHAMPION,
    KILLED_TAG,
    SHADOW,
    Split,
    canary_share,
)
from croupier.service.child import ChildProcess, end_with_parent, read_job
from croupier.service.config import LogFormat
from croupier.service.ids import now_us
from croupier.service.logs import configure_logging
from croupier.service.serving import RegistryState, ServingDirectory

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("MirrorJob", "main", "mirror_process", "mirror_registry", "registry_is_new")

_log = logging.getLogger(__name__)

_KEPT_GENERATIONS = 5
_LEFTOVER_AFTER_S = 3600.0


class MirrorJob(msgspec.Struct, frozen=True, kw_only=True):
    """What a mirror is to do.

    Attributes
    ----------
    tracking_uri
        Of MLflow.
    loops
        Names of the loops to follow.
    root
        The serving directory.
    poll_s
        Seconds between looks.
    log_format
        Of the service.
    """

    tracking_uri: str
    loops: list[str]
    root: str
    poll_s: float
    log_format: LogFormat = "auto"


def mirror_process(job: MirrorJob) -> ChildProcess:
    """A mirror beside the service, which takes another one's place should that die."""
    return ChildProcess("registry mirror", __name__, msgspec.json.encode(job))


def main() -> None:
    """Mirror as the job on the first line of the standard input says, until that input ends."""
    line = read_job()
    if not line:
        return
    job = msgspec.json.decode(line, type=MirrorJob)
    configure_logging(job.log_format)
    end_with_parent()
    mirror_registry(job)


def mirror_registry(job: MirrorJob) -> None:
    """Copy plans from the registry to the serving directory, for ever."""
    mirror = _Mirror(job)
    while True:
        mirror.look()
        time.sleep(job.poll_s)


def registry_is_new(tracking_uri: str) -> bool:
    """Whether the registry is an SQLite file that nobody has made yet: nothing is registered."""
    parsed = urlparse(tracking_uri)
    return parsed.scheme == "sqlite" and not Path(parsed.path[1:]).exists()


class _Mirror:
    """What is known from one look to the next."""

    def __init__(self, job: MirrorJob) -> None:
        self._job = job
        self._serving = ServingDirectory(Path(job.root))
        self._client: Any = None
        self._answered: int | None = None
        self._error: str | None = None
        self._whole: set[tuple[str, int]] = set()

    def look(self) -> None:
        """Ask for the plans, fetch what is new, and note how it went."""
        try:
            error = self._look()
            self._answered = now_us()
        except Exception as trouble:  # noqa: BLE001
            # The registry may be away for a while; scorers go on with what they have.
            self._client = None
            error = _first_line(trouble)
        if error is not None and error != self._error:
            _log.warning(
                "the registry can't be followed: %s", error, extra={"event": "registry_trouble"}
            )
        self._error = error
        try:
            self._serving.write_state(RegistryState(answered_us=self._answered, error=error))
        except OSError as trouble:
            # Scorers see that the state grows old.
            _log.warning("the registry's state can't be noted: %s", trouble)

    def _look(self) -> str | None:
        """Mirror every loop; gives what went wrong with single ones."""
        # Looking into a new registry would create it, in the way of the job that fills it.
        if registry_is_new(self._job.tracking_uri):
            return None
        if self._client is None:
            self._client = _client(self._job.tracking_uri)
        errors = []
        for loop in self._job.loops:
            registered = _registered(self._client, loop)
            try:
                errors += [f"loop {loop}: {each}" for each in self._mirror_loop(loop, registered)]
            except Exception as error:  # noqa: BLE001
                # One loop's trouble must not keep the others from their generations.
                errors.append(f"loop {loop}: {_first_line(error)}")
        return "; ".join(errors) or None

    def _mirror_loop(self, loop: str, registered: _Registered) -> list[str]:
        """Write a loop's plan down once its generations are here; gives what is wrong with it.

        A champion that can't be had leaves the one before in place, and another generation is left
        out: neither keeps the kill switch from the scorers.
        """
        before, errors = self._written(loop), []
        numbers: dict[str, int] = {}
        for alias, version in registered.versions.items():
            try:
                numbers[alias] = number = _generation_number(version)
                self._require_whole(loop, number, version)
            except Exception as error:  # noqa: BLE001
                numbers.pop(alias, None)
                errors.append(f"{alias}: {_first_line(error)}")
        if CHAMPION in registered.versions and CHAMPION not in numbers:
            if before is None:
                return errors
            numbers[CHAMPION] = before.generation
        split = _split(numbers, registered.tags, errors)
        if split != before:
            self._serving.write_split(loop, split)
            _prune(self._serving, loop, split)
        return errors

    def _written(self, loop: str) -> Split | None:
        """What was written of a loop; None too if it can't be read, and has to be written anew."""
        try:
            return self._serving.split(loop)
        except msgspec.DecodeError as error:
            _log.warning("loop %s: its plan is written again: %s", loop, error)
            return None

    def _require_whole(self, loop: str, number: int, version: Any) -> None:
        """Have the generation in place; what is there already is checked once."""
        path = self._serving.generation_path(loop, number)
        known = (loop, number) in self._whole
        if not path.exists() or not (known or _loads(path)):
            _fetch(self._client, version, self._serving, loop, number)
        self._whole.add((loop, number))


def _client(tracking_uri: str) -> Any:
    from mlflow import MlflowClient  # noqa: PLC0415 - takes seconds, and is not needed elsewhere

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


@dataclass(frozen=True, slots=True)
class _Registered:
    """What the registry says of a loop: model versions by alias, and the model's tags."""

    versions: dict[str, Any]
    tags: dict[str, str]


def _registered(client: Any, loop: str) -> _Registered:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    name = registered_model_name(loop)
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return _Registered({}, {})
        raise
    versions = {
        alias: client.get_model_version(name, model.aliases[alias])
        for alias in (CHAMPION, CANARY, SHADOW)
        if alias in model.aliases
    }
    return _Registered(versions, model.tags)


def _split(numbers: Mapping[str, int], tags: Mapping[str, str], errors: list[str]) -> Split:
    """The plan of these generations; what is wrong with the canary's share is added to errors."""
    champion, canary, share = numbers.get(CHAMPION, 0), numbers.get(CANARY), 0.0
    if canary == champion:
        # It has been promoted this moment, and its alias is about to go.
        canary = None
    if canary is not None:
        try:
            share = canary_share(tags)
        except ValueError as error:
            errors.append(f"{CANARY}: {error}")
            canary = None
    return Split(
        generation=champion,
        canary=canary,
        canary_share=share,
        shadow=numbers.get(SHADOW),
        killed=tags.get(KILLED_TAG),
    )


def _generation_number(version: Any) -> int:
    tag = version.tags.get("generation", "")
    if not (tag.isascii() and tag.isdigit()):
        raise GenerationError(
            f"version {version.version} of model {version.name} has no number in its tag "
            f"'generation'; only generations that Croupier published can be served"
        )
    return int(tag)


def _loads(path: Path) -> bool:
    try:
        Generation.load(path)
    except GenerationError as error:
        _log.warning("fetching a generation again: %s", error)
        return False
    return True


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
        shutil.rmtree(target, ignore_errors=True)
        downloaded.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _prune(serving: ServingDirectory, loop: str, split: Split) -> None:
    """Keep what is served and the few newest generations, for a quick rollback."""
    paths = list((serving.root / loop).iterdir())
    numbers = sorted(int(path.name) for path in paths if path.name.isdigit())
    for number in numbers[:-_KEPT_GENERATIONS]:
        if number not in {split.generation, split.canary, split.shadow}:
            shutil.rmtree(serving.generation_path(loop, number), ignore_errors=True)
    for path in paths:
        # Of a mirror that was killed while it fetched.
        if path.name.startswith(".") and path.is_dir() and _age_s(path) > _LEFTOVER_AFTER_S:
            shutil.rmtree(path, ignore_errors=True)


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


if __name__ == "__main__":
    main()
